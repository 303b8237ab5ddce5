# SPDX-License-Identifier: Apache-2.0
"""Discriminator of single frames for the adversarial training of DB-RNN."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastds.nn.convolutions import Conv3x3

SLOPE = 0.01
# Channels of the convolutions and width of the hidden layer.
VARIANTS = {"S": ((16, 20, 20), 10), "M": ((16, 20, 32), 10), "L": ((16, 32, 32), 16)}
_VARIANTS_BY_CELL = {"predrnn": "M", "predrnn++": "M", "mim": "L", "motionrnn": "L", "preciplstm": "L"}
POOLS = (4, 4, 2)


def select_variant(cell: str) -> str:
    """Return the variant of the discriminator for a cell: that of the paper, or "S" if the paper names none."""
    return _VARIANTS_BY_CELL.get(cell, "S")


class Discriminator(nn.Module):
    """Classify frames as observed or generated.

    Three stages of 3x3 convolution, leaky ReLU and max pooling (4, 4, 2) are followed by two linear layers.

    Args:
        variant: "S", "M" or "L".
        size: rows and columns of a frame, multiples of 32. The size of the first linear layer depends on them.

    Shapes: forward(frames (N, 1, H, W)) -> logits (N, 1). Their sigmoid is the probability of the paper.

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
            x = F.max_pool2d(conv(x, activation="leaky_relu", negative_slope=SLOPE), pool)
        return self.head(F.leaky_relu(self.hidden(x.flatten(1)), SLOPE))
