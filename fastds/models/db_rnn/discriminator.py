# SPDX-License-Identifier: Apache-2.0
"""The critic of single frames that DB-RNN is trained against."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastds.nn.convolutions import Conv3x3

SLOPE = 0.01
VARIANTS = {"S": ((16, 20, 20), 10), "M": ((16, 20, 32), 10), "L": ((16, 32, 32), 16)}  # channels, width of the head
_VARIANT_OF = {"predrnn": "M", "predrnn++": "M", "mim": "L", "motionrnn": "L", "preciplstm": "L"}
POOLS = (4, 4, 2)


def variant_of(cell: str) -> str:
    """The variant that the paper trains DB networks of this cell against, the smallest for cells it does not name."""
    return _VARIANT_OF.get(cell, "S")


class Discriminator(nn.Module):
    """Is a frame observed? Three times conv3x3, leaky ReLU, maximum pooling (4, 4, 2); then two linear layers.

    Args:
        variant: "S", "M" or "L".
        size: rows and columns of a frame, multiples of 32: the first linear layer depends on them.

    Shapes: forward(frames (N, 1, H, W)) -> logits (N, 1); the paper's probability is their sigmoid.

    Source: Ma, Zhang and Liu 2024, DB-RNN, section IV.
    """

    def __init__(self, variant: str = "S", size: tuple[int, int] = (160, 160)):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        if any(n < 32 or n % 32 for n in size):
            raise ValueError(f"size must be two multiples of 32, got {size!r}")
        self.size = tuple(size)
        channels, width = VARIANTS[variant]
        self.convs = nn.ModuleList(Conv3x3(i, o) for i, o in zip((1, *channels), channels, strict=False))
        self.hidden = nn.Linear(channels[-1] * (size[0] // 32) * (size[1] // 32), width)
        self.head = nn.Linear(width, 1)

    def forward(self, frames: Tensor) -> Tensor:
        if frames.dim() != 4 or tuple(frames.shape[1:]) != (1, *self.size):
            raise ValueError(f"frames has shape {tuple(frames.shape)}, expected (N, 1, {self.size[0]}, {self.size[1]})")
        x = frames
        for conv, pool in zip(self.convs, POOLS, strict=True):
            x = F.max_pool2d(conv(x, act="leaky_relu", negative_slope=SLOPE), pool)
        return self.head(F.leaky_relu(self.hidden(x.flatten(1)), SLOPE))
