# SPDX-License-Identifier: Apache-2.0
"""One MS-RNN module: six recurrent cells at three resolutions, between an embedding and an output convolution.

The time steps of known frames run one by one, like those of the forecast. One convolution for the inputs of all known
frames would be slower, because it writes and reads all their gate contributions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.db_rnn.activation_checkpointing import checkpoint_activations, max_pool_2x2
from fastds.models.db_rnn.cell_base import append_ones
from fastds.models.db_rnn.cells import CELLS, build_cell
from fastds.nn.convolutions import Conv1x1
from fastds.nn.resize import upsample2
from fastds.ops.core.buffer_pool import make_out_argument
from fastds.ops.core.layout import get_padding_to_multiple

LAYERS = 6


def downsample(x: Tensor) -> Tensor:
    """Compute the maximum of blocks of 2x2 pixels."""
    return max_pool_2x2(x)


def upsample(x: Tensor) -> Tensor:
    """Interpolate bilinearly by a factor of 2, with half-pixel centres."""
    batch, channels, height, width = x.shape
    out = make_out_argument((batch, channels, 2 * height, 2 * width), x)
    if out:
        return torch.ops.aten.upsample_bilinear2d.out(x, [2 * height, 2 * width], False, None, None, **out)
    return upsample2(x)


def identity(x: Tensor) -> Tensor:
    """Return x."""
    return x


def add_skips(transform: Callable[[Tensor], Tensor], h: Tensor, *skips: Tensor) -> Tensor:
    """Compute the input of a layer: transform(h) plus the skips, without changing h.

    Args:
        transform: embedding or change of resolution.
        h: frame, or output of the layer below.
        skips: tensors to add.
    """
    x = transform(h)
    for skip in skips:
        x = x + skip if x is h else x.add_(skip)
    return x


# For each layer: the function that changes the resolution of the output of the layer below.
RESIZE = (identity, downsample, downsample, identity, upsample, upsample)
SKIP = {4: 1, 5: 0}  # decoder layer: encoder layer whose output is added


@dataclass
class ModuleState:
    """State of a module between time steps."""

    cells: list[Any] = field(default_factory=lambda: [None] * LAYERS)
    previous: list[Tensor | None] = field(default_factory=lambda: [None] * LAYERS)  # for cells with a `difference`
    m: Tensor | None = None  # zigzag memory; between steps, the input of layer 0
    folded: tuple[Tensor, ...] | None = None  # folded weights of layer 0, for the whole sequence


class MSModule(nn.Module):
    """Multi-scale recurrent module: embedding, encoder layers 0-2, decoder layers 3-5, output.

        x_0 = Emb frame;  x_l = resize(h_{l-1}) + skip_l;  (h_l, m_l) = cell_l(x_l, resize(m_{l-1}));  Y = Out h_5

    The resolutions of the layers are 1, 1/2, 1/4, 1/4, 1/2, 1, with max pooling and bilinear interpolation between
    them. The skips are added: h_1 in layer 4, h_0 in layer 5, and the skips from another module. The zigzag memory is
    resized like the hidden state, without skips.

    Args:
        cell: key of fastds.models.db_rnn.cells.CELLS.
        hidden: number of channels of every layer.
        options: further arguments of the cell.
        residual: whether Y = frame + Out h_5 (not in the paper).

    Source: Ma, Zhang and Liu 2024, DB-RNN, equations 3 and 4.
    """

    def __init__(self, cell: str, hidden: int, options: dict, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.embed = Conv1x1(1, hidden)
        self.cells: Any = nn.ModuleList(build_cell(cell, hidden, layer, LAYERS, **options) for layer in range(LAYERS))
        self.output = Conv1x1(hidden, 1)
        self.shared = CELLS[cell].shared(hidden)

    @property
    def multiple(self) -> int:
        """Rows and columns of a frame must be a multiple of this number."""
        return 4 * self.cells[0].multiple

    def forward(
        self, frame: Tensor, state: ModuleState, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Run one time step.

        Args:
            frame: (B, 1, H, W).
            state: state of the module, modified in place.
            skips: one tensor per layer to add to its input, or None.

        Returns:
            Y (B, 1, H, W) and the hidden states of all layers.
        """
        hidden: list[Tensor] = []
        if skips is None and state.folded is None:
            state.folded = self.cells[0].fold(self.embed)
        folded = None if skips is not None else state.folded
        h = frame
        for layer in range(LAYERS):
            all_skips = [hidden[SKIP[layer]]] if layer in SKIP else []
            all_skips += [] if skips is None else [skips[layer]]
            options: dict[str, Any] = {} if self.shared is None else {"shared": self.shared}
            if layer == 0 and folded is not None:
                options["folded"] = folded
            h = self._run_layer(layer, h, all_skips, state, options)
            hidden.append(h)
        y = self.output(h)
        return frame + y if self.residual else y, hidden

    def _run_layer(
        self, layer: int, below: Tensor, all_skips: list[Tensor], state: ModuleState, options: dict
    ) -> Tensor:
        """Run one layer and return its hidden state.

        Without gradients, temporary tensors are freed as soon as they are not used any more.

        Args:
            layer: index of the layer.
            below: frame, or output of the layer below.
            all_skips: tensors to add to the input.
            state: state of the module, modified in place.
            options: further arguments of the cell.
        """
        cell, resize, recording = self.cells[layer], RESIZE[layer], torch.is_grad_enabled()
        transform = resize if layer > 0 else append_ones if "folded" in options else self.embed
        if cell.difference == "hidden":
            transformed = transform(below)
            x = sum(all_skips, transformed)
        else:
            x = add_skips(transform, below, *all_skips)
        small = x is below or transform is append_ones
        recomputed = [(x, add_skips, transform, below, *all_skips)] if recording and not small else []
        if state.m is not None:
            source, state.m = state.m, resize(state.m)
            recomputed += [(state.m, resize, source)] if recording and state.m is not source else []
            del source
        with checkpoint_activations(*recomputed):
            h, state.cells[layer], state.m = cell(x, state.cells[layer], state.m, state.previous[layer], **options)
        if cell.difference is not None:
            state.previous[layer] = transformed if cell.difference == "hidden" else x
        return h


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Set missing values (NaN) to 0 (dry), and pad frames with 0 on the right and bottom to multiples of a number."""
    height, width = frames.shape[-2:]
    frames = torch.where(frames.isnan(), 0.0, frames)
    return F.pad(frames, (0, get_padding_to_multiple(width, multiple), 0, get_padding_to_multiple(height, multiple)))
