# SPDX-License-Identifier: Apache-2.0
"""Helpers of all kernel launchers: tile sizes, device context, strides and precision."""

import contextlib
import math
from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """Sizes of one program of an implicit GEMM.

    Attributes:
        pixels: number of pixels, a power of two >= 16.
        outputs: number of outputs, or of channels of the state of a cell, a power of two >= 16.
        slab: number of input channels of one product, a power of two >= 16.
        warps: number of warps.
        stages: number of pipeline stages.
    """

    pixels: int
    outputs: int
    slab: int
    warps: int
    stages: int


def on_device(tensor):
    """Return a context manager that launches kernels on the tensor's GPU. It has no effect for other tensors."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def ceil_div(n: int, by: int) -> int:
    """Return n / by, rounded up. triton.cdiv does the same, but takes microseconds outside of a kernel."""
    return -(-n // by)


def next_power_of_two(n: int) -> int:
    """Return the smallest power of two >= n >= 1."""
    return 1 << (n - 1).bit_length()


def needs_int64(*tensors) -> bool:
    """Return True if 32-bit element addresses are too small for one of the tensors. None arguments are ignored."""
    extents = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors if t is not None)
    return max(extents) >= 2**31 - 2**16  # masked lanes of a program compute addresses slightly beyond the tensor


def get_dot_precision(dtype: torch.dtype) -> str:
    """Return the argument input_precision of tl.dot.

    A float32 product is computed as three tf32 products, which is about as accurate as float32.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"


def get_strides(tensor, unit: int = 1) -> tuple[int, int, int]:
    """Return the batch, row and pixel strides of a tensor in multiples of `unit` elements, or zeros for None."""
    return (0, 0, 0) if tensor is None else tuple(tensor.stride(i) // unit for i in (0, 2, 3))


def get_stride_unit(tensor) -> int:
    """Return the largest power of two, at most 16, that divides the batch, row and pixel strides.

    The kernel multiplies the strides by this constant, so that the compiler can prove that vectors are aligned. Without
    the constant, Triton recognizes only strides that are multiples of 16.
    """
    return math.gcd(16, *get_strides(tensor))
