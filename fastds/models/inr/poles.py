# SPDX-License-Identifier: Apache-2.0
"""What lies beyond the first and last row of a global field: the same rows on the other side of the pole."""

import torch
from torch import Tensor

POLES = ("clamp", "cross")
HALO = 16  # rows; whole tiles of the convolution engine


def across_poles(z: Tensor, registration: str, vector_channels: list[int]) -> tuple[Tensor, int]:
    """z (B, C, H, W) with rows beyond both poles, and how many on each side.

    Row -k is row k (nodes: the pole itself is row 0) or row k-1 (cells), turned by half a circle; vector components
    change sign.

    Raises:
        ValueError: an odd number of columns.
    """
    height, width = z.shape[2:]
    if width % 2:
        raise ValueError(f"pole='cross' needs an even number of columns, got {width}")
    first = 1 if registration == "node" else 0
    halo = min(HALO, height - first)
    other = z.roll(width // 2, 3)
    if vector_channels:
        sign = z.new_ones(z.shape[1])
        sign[vector_channels] = -1
        other = other * sign[:, None, None]
    north = other[:, :, first : first + halo].flip(2)
    south = other[:, :, height - first - halo : height - first].flip(2)
    return torch.cat([north, z, south], 2), halo
