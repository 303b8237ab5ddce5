# SPDX-License-Identifier: Apache-2.0
"""One MS-RNN module: six cells at three resolutions, between an embedding and an output."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.db_rnn.cells import CELLS, build_cell
from fastds.models.db_rnn.fold import with_ones
from fastds.nn.conv3x3 import Conv1x1
from fastds.ops._recompute import halved_maximum, made_again

LAYERS = 6


def down(x: Tensor) -> Tensor:
    """Maximum of 2x2 pixels."""
    return halved_maximum(x)


def up(x: Tensor) -> Tensor:
    """Bilinear, twice as fine, centres of pixels aligned."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def same(x: Tensor) -> Tensor:
    return x


def joined(resize: Callable[[Tensor], Tensor], h: Tensor, *skips: Tensor) -> Tensor:
    """The input of a layer: what the layer below gives, and the skips."""
    return sum(skips, resize(h))


RESIZE = (same, down, down, same, up, up)  # of what layer l - 1 gives, for layer l
SKIP = {4: 1, 5: 0}  # layer: the encoder layer whose output it adds


@dataclass
class ModuleState:
    """What a module carries from step to step: the cells' states the maps their differences are taken from."""

    cells: list[Any] = field(default_factory=lambda: [None] * LAYERS)
    previous: list[Tensor | None] = field(default_factory=lambda: [None] * LAYERS)
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
        self, frame: Tensor, state: ModuleState, m: Tensor | None, skips: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """One step.

        Args:
            frame: (B, 1, H, W).
            state: changed in place.
            m: zigzag memory that enters layer 0.
            skips: one map per layer that is added to its input.

        Returns:
            Y (B, 1, H, W), the hidden states of all layers, and the zigzag memory that leaves layer 5.
        """
        hidden: list[Tensor] = []
        if skips is None and state.folded is None:
            state.folded = self.cells[0].fold(self.embed)
        folded = None if skips is not None else state.folded
        h = self.embed(frame) if folded is None else with_ones(frame)
        for layer, (cell, resize) in enumerate(zip(self.cells, RESIZE, strict=True)):
            added = [hidden[SKIP[layer]]] if layer in SKIP else []
            added += [] if skips is None else [skips[layer]]
            arrived = resize(h)
            x = sum(added, arrived)
            remade = [] if x is h else [(x, joined, resize, h, *added)]
            if m is not None:
                source, m = m, resize(m)
                remade += [] if m is source else [(m, resize, source)]
            options = {} if self.shared is None else {"shared": self.shared}
            if layer == 0 and folded is not None:
                options["folded"] = folded
            with made_again(*remade):
                h, state.cells[layer], m = cell(x, state.cells[layer], m, state.previous[layer], **options)
            if cell.difference is not None:
                state.previous[layer] = arrived if cell.difference == "hidden" else x
            hidden.append(h)
        y = self.output(h)
        return frame + y if self.residual else y, hidden, m


def pad_to_multiple(frames: Tensor, multiple: int) -> Tensor:
    """Dry pixels on the right and below, so that the size is a multiple; missing values become dry, too."""
    height, width = frames.shape[-2:]
    frames = torch.where(frames.isnan(), 0.0, frames)
    return F.pad(frames, (0, -width % multiple, 0, -height % multiple))
