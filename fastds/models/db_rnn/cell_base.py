# SPDX-License-Identifier: Apache-2.0
"""Interface of the recurrent cells, and folding of the frame embedding into their convolutions.

A new cell is a subclass of `Cell` and one line in CELLS of fastds/models/db_rnn/cells.py.
"""

from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from fastds.nn.convolutions import Conv1x1, MultiInputConv3x3
from fastds.ops.core.buffer_pool import allocate_map

# Result of one step of a cell: h, the new state, the zigzag memory.
Step: TypeAlias = tuple[Tensor, Any, Tensor | None]


class Cell(nn.Module):
    """One recurrent layer of an MSModule, with C input and C output channels.

    forward(x, state, m, previous) -> (h, state, m)
        x: (B, C, H, W), input of this step.
        state: state from the previous step, a nested structure of tensors; None at the start of a sequence (zeros).
        m: zigzag memory (B, C, H, W) from the layer below; None at the start, or if the cell has none.
        previous: the feature map selected by `difference`, one step before; None at the start (zeros).
        h: (B, C, H, W), output for the next layer.

    Attributes:
        zigzag: whether the cell reads and returns m.
        difference: "hidden" passes the hidden state of the layer below one step before, at the resolution of this
            layer, as `previous`. "input" passes the input of this layer one step before. None passes nothing.
        multiple: the rows and columns of x must be a multiple of this number.
        uniform_sizes: whether nearly all feature maps of a step have the size of the state. Without gradients, freed
            memory is then reused for the next feature maps, see fastds.ops.core.buffer_pool.
    """

    zigzag: ClassVar[bool] = False
    difference: str | None = None
    multiple: ClassVar[int] = 1
    uniform_sizes: ClassVar[bool] = False

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__()
        self.channels, self.layer, self.layers = channels, layer, layers

    @classmethod
    def shared(cls, channels: int) -> nn.Module | None:
        """Build a layer that all cells of a module share and receive as forward(..., shared=...).

        Returns:
            The layer, or None if the cells share no layer.
        """
        return None

    def fold(self, embed: Conv1x1) -> tuple[Tensor, ...] | None:
        """Fold the frame embedding into the weights of layer 0.

        A cell with folded weights receives them as forward(..., folded=...), with x = (frame, 1), (B, 2, H, W).

        Args:
            embed: 1x1 convolution from one channel to C channels.

        Returns:
            The folded weights, or None if the cell does not support folding.
        """
        return None

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        """Run one time step. Subclasses implement this method.

        Args:
            x: (B, C, H, W), input.
            state: state of the previous step, or None for zeros.
            m: zigzag memory (B, C, H, W), or None.
            previous: (B, C, H, W), feature map selected by `difference`, or None.

        Returns:
            h, the new state, and the new zigzag memory or None.

        Raises:
            NotImplementedError: The subclass does not implement the method.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")


def zeros(x: Tensor, channels: int | None = None, memory: bool = False) -> Tensor:
    """Create zeros (B, channels, H, W) in channels_last, on the device of x.

    Args:
        x: (B, C, H, W).
        channels: number of channels; None takes C.
        memory: whether the tensor is a memory of a cell, which is at least float32. Otherwise it has the dtype of x.
    """
    shape = (x.shape[0], channels or x.shape[1], *x.shape[2:])
    dtype = torch.promote_types(x.dtype, torch.float32) if memory else x.dtype
    return allocate_map(shape, dtype, x).zero_()


def append_ones(frame: Tensor) -> Tensor:
    """Append a channel of ones: (B, 1, H, W) -> (B, 2, H, W), channels_last."""
    return torch.cat([frame, torch.ones_like(frame)], 1).contiguous(memory_format=torch.channels_last)


def fold_embedding(conv: MultiInputConv3x3, embed: Conv1x1) -> Tensor:
    """Fold the frame embedding into the weight of a convolution of embed(frame) and other inputs.

    Returns:
        The weight for the inputs (frame, 1) and the other inputs.
    """
    first = conv.in_channels[0]
    assert embed.bias is not None
    columns = torch.cat([embed.weight[:, 0, 0], embed.bias[:, None]], 1)  # (C, 2)
    folded = torch.einsum("ocyx,ck->okyx", conv.weight[:, :first], columns)
    return torch.cat([folded, conv.weight[:, first:]], 1)
