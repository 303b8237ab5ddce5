# SPDX-License-Identifier: Apache-2.0
"""What the networks of the family ask of a recurrent cell; the embedding of a frame inside its convolutions.

A new cell is one subclass and one line in fastds/models/db_rnn/cells.py."""

from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from fastds.nn.convolutions import Conv1x1, SummedConv3x3
from fastds.ops.core.buffer_pool import allocate_map

# What a cell gives for a step: h, its state, the zigzag memory.
Step: TypeAlias = tuple[Tensor, Any, Tensor | None]


class Cell(nn.Module):
    """One layer of a module, C channels in and out.

    forward(x, state, m, previous) -> (h, state, m)
        x: (B, C, H, W), input of the layer at this step.
        state: what the last call returned, None at the start of a sequence (zeros). Any nest of tensors.
        m: zigzag memory (B, C, H, W) from the layer below, None at the start or where the cell has none.
        previous: of cells that name a `difference`, that map of the step before, None at the start (zeros).
        h: (B, C, H, W), what the next layer and the output see.

    Attributes:
        zigzag: takes and gives m.
        difference: "hidden", the hidden state of the layer below one step ago, brought to this layer's resolution;
            "input", this layer's own input one step ago; None.
        multiple: the rows and columns of x have to be a multiple of it.
        alike: nearly all maps of a step have the size of the state, so that freed ones serve the next ones where no
            graph keeps them, see fastds.ops.core.buffer_pool.
    """

    zigzag: ClassVar[bool] = False
    difference: str | None = None
    multiple: ClassVar[int] = 1
    alike: ClassVar[bool] = False

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__()
        self.channels, self.layer, self.layers = channels, layer, layers

    @classmethod
    def shared(cls, channels: int) -> nn.Module | None:
        """A layer that all cells of a module share and take as forward(..., shared=...); None: the cells have none."""
        return None

    def fold(self, embed: Conv1x1) -> tuple[Tensor, ...] | None:
        """Weights with the embedding of layer 0 inside, see fastds/models/db_rnn/fold.py; None: the cell has none.

        A cell that gives them takes them back as forward(..., folded=...), with (frame, 1) (B, 2, H, W) for x.
        """
        return None

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        raise NotImplementedError(f"{type(self).__name__} has no forward")


def zeros(x: Tensor, channels: int | None = None, memory: bool = False) -> Tensor:
    """Zeros (B, channels, H, W) on the device of x, channels_last; a memory is at least float32."""
    shape = (x.shape[0], channels or x.shape[1], *x.shape[2:])
    dtype = torch.promote_types(x.dtype, torch.float32) if memory else x.dtype
    return allocate_map(shape, dtype, x).zero_()


def with_ones(frame: Tensor) -> Tensor:
    """(B, 1, H, W) -> (frame, 1), (B, 2, H, W), channels_last."""
    return torch.cat([frame, torch.ones_like(frame)], 1).contiguous(memory_format=torch.channels_last)


def fold_embedding(conv: SummedConv3x3, embed: Conv1x1) -> Tensor:
    """Weight of `conv` for the sources (frame, 1), rest, in the place of embed(frame), rest."""
    first = conv.in_channels[0]
    columns = torch.cat([embed.weight[:, 0, 0], embed.bias[:, None]], 1)  # (C, 2)
    own = torch.einsum("ocyx,ck->okyx", conv.weight[:, :first], columns)
    return torch.cat([own, conv.weight[:, first:]], 1)
