# SPDX-License-Identifier: Apache-2.0
"""One MS-RNN module: six cells at three resolutions, between an embedding and an output.

Steps whose frames are known run one by one like the others: one convolution for the inputs of all of them would write
and read their part of the gates, and five ConvLSTM steps of (4, 24, 160, 160) would take 60 ms, not 35, on two cores.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.db_rnn.cell import with_ones
from fastds.models.db_rnn.cells import CELLS, build_cell
from fastds.models.db_rnn.rematerialize import halved_maximum, rematerialize
from fastds.nn.convolutions import Conv1x1
from fastds.nn.resize import upsample2
from fastds.ops.core.buffer_pool import make_out_argument
from fastds.ops.core.layout import get_padding_to_multiple

LAYERS = 6


def down(x: Tensor) -> Tensor:
    """Maximum of 2x2 pixels."""
    return halved_maximum(x)


def up(x: Tensor) -> Tensor:
    """Bilinear, twice as fine, centres of pixels aligned."""
    batch, channels, height, width = x.shape
    out = make_out_argument((batch, channels, 2 * height, 2 * width), x)
    if out:
        return torch.ops.aten.upsample_bilinear2d.out(x, [2 * height, 2 * width], False, None, None, **out)
    return upsample2(x)


def same(x: Tensor) -> Tensor:
    return x


def joined(enter: Callable[[Tensor], Tensor], h: Tensor, *skips: Tensor) -> Tensor:
    """The input of a layer: what the layer below, or the frame, gives, and the skips; h itself stays as it is."""
    x = enter(h)
    for skip in skips:
        x = x + skip if x is h else x.add_(skip)
    return x


RESIZE = (same, down, down, same, up, up)  # of what layer l - 1 gives, for layer l
SKIP = {4: 1, 5: 0}  # layer: the encoder layer whose output it adds


@dataclass
class ModuleState:
    """What a module carries from step to step."""

    cells: list[Any] = field(default_factory=lambda: [None] * LAYERS)
    previous: list[Tensor | None] = field(default_factory=lambda: [None] * LAYERS)  # of cells with a difference
    m: Tensor | None = None  # zigzag memory: between steps, what enters layer 0 next
    folded: tuple[Tensor, ...] | None = None  # weights of layer 0 for the whole sequence


class MSModule(nn.Module):
    """Embedding, encoder layers 0-2, decoder layers 3-5, output.

        x_0 = Emb frame;  x_l = resize(h_{l-1}) + skip_l;  (h_l, m_l) = cell_l(x_l, resize(m_{l-1}));  Y = Out h_5

    Resolutions 1, 1/2, 1/4, 1/4, 1/2, 1; down by maximum, up bilinear; skips are sums: h_1 and h_0 in layers 4 and 5,
    and what another module adds. The zigzag memory is resized as the hidden state is, without skips.

    Args:
        cell: a name of fastds.models.db_rnn.cells.CELLS.
        hidden: channels of every layer.
        options: of the cell.
        residual: Y = frame + Out h_5.

    Source: Ma, Zhang and Liu 2024, DB-RNN, equations 3 and 4; residual is ours.
    """

    def __init__(self, cell: str, hidden: int, options: dict, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.embed = Conv1x1(1, hidden)
        self.cells = nn.ModuleList(build_cell(cell, hidden, layer, LAYERS, **options) for layer in range(LAYERS))
        self.output = Conv1x1(hidden, 1)
        self.shared = CELLS[cell].shared(hidden)

    @property
    def multiple(self) -> int:
        """Rows and columns of a frame have to be a multiple of it."""
        return 4 * self.cells[0].multiple

    def forward(
        self, frame: Tensor, state: ModuleState, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """One step.

        Args:
            frame: (B, 1, H, W).
            state: changed in place.
            skips: one map per layer that is added to its input.

        Returns:
            Y (B, 1, H, W) and the hidden states of all layers.
        """
        hidden: list[Tensor] = []
        if skips is None and state.folded is None:
            state.folded = self.cells[0].fold(self.embed)
        folded = None if skips is not None else state.folded
        h = frame
        for layer in range(LAYERS):
            added = [hidden[SKIP[layer]]] if layer in SKIP else []
            added += [] if skips is None else [skips[layer]]
            options = {} if self.shared is None else {"shared": self.shared}
            if layer == 0 and folded is not None:
                options["folded"] = folded
            h = self._layer(layer, h, added, state, options)
            hidden.append(h)
        y = self.output(h)
        return frame + y if self.residual else y, hidden

    def _layer(self, layer: int, below: Tensor, added: list[Tensor], state: ModuleState, options: dict) -> Tensor:
        """Hidden state of a layer. Without a graph nothing else stays that only this layer needed."""
        cell, resize, kept = self.cells[layer], RESIZE[layer], torch.is_grad_enabled()
        enter = resize if layer > 0 else with_ones if "folded" in options else self.embed
        if cell.difference == "hidden":
            arrived = enter(below)
            x = sum(added, arrived)
        else:
            x = joined(enter, below, *added)
        small = x is below or enter is with_ones
        remade = [(x, joined, enter, below, *added)] if kept and not small else []
        if state.m is not None:
            source, state.m = state.m, resize(state.m)
            remade += [(state.m, resize, source)] if kept and state.m is not source else []
            del source
        with rematerialize(*remade):
            h, state.cells[layer], state.m = cell(x, state.cells[layer], state.m, state.previous[layer], **options)
        if cell.difference is not None:
            state.previous[layer] = arrived if cell.difference == "hidden" else x
        return h


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Dry pixels on the right and below, so that the size is a multiple; missing values become dry, too."""
    height, width = frames.shape[-2:]
    frames = torch.where(frames.isnan(), 0.0, frames)
    return F.pad(frames, (0, get_padding_to_multiple(width, multiple), 0, get_padding_to_multiple(height, multiple)))
