# SPDX-License-Identifier: Apache-2.0
"""What every launcher needs around its kernels."""

import contextlib
import math
from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Sizes of one program of an implicit product: pixels, outputs (of a cell: channels of its state) and channels
    multiplied at once, powers of two >= 16."""

    pixels: int
    outputs: int
    slab: int
    warps: int
    stages: int


def on_device(tensor):
    """Context in which kernels start on the tensor's GPU and its current stream; nothing for other tensors."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is >= n >= 1."""
    return 1 << (n - 1).bit_length()


def needs_int64(*tensors) -> bool:
    """Whether an element lies 2^31 or more elements from the start of its tensor."""
    extents = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors if t is not None)
    return max(extents) >= 2**31 - 2**16  # a program's masked lanes reach a little further


def get_dot_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: float32 as three tf32 products, which keeps float32's accuracy."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def get_strides(tensor, unit: int = 1) -> tuple[int, int, int]:
    """Batch, row and pixel strides, in units of some elements, of a map with channel stride 1; 0 for None."""
    return (0, 0, 0) if tensor is None else tuple(tensor.stride(i) // unit for i in (0, 2, 3))


def get_stride_unit(tensor) -> int:
    """The largest power of two, at most 16, that divides the strides.

    The kernel multiplies by it: so the compiler knows that vectors are aligned, which it finds out by itself for
    multiples of 16 alone.
    """
    return math.gcd(16, *get_strides(tensor))
