# SPDX-License-Identifier: Apache-2.0
"""What every launcher needs around its kernels."""

import contextlib
import math
from typing import NamedTuple

import torch
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor


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


def power_of_two(n: int) -> int:
    """The smallest power of two that is >= n >= 1."""
    return 1 << (n - 1).bit_length()


def is_wide(*tensors) -> bool:
    """Whether an element lies 2^31 or more elements from the start of its tensor."""
    extents = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors if t is not None)
    return max(extents) >= 2**31 - 2**16  # a program's masked lanes reach a little further


def precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: float32 as three tf32 products, which keeps float32's accuracy."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def strides(tensor, unit: int = 1) -> tuple[int, int, int]:
    """Batch, row and pixel strides, in units of some elements, of a map with channel stride 1; 0 for None."""
    return (0, 0, 0) if tensor is None else tuple(tensor.stride(i) // unit for i in (0, 2, 3))


def unit_of(tensor) -> int:
    """The largest power of two, at most 16, that divides the strides.

    The kernel multiplies by it: so the compiler knows that vectors are aligned, which it finds out by itself for
    multiples of 16 alone.
    """
    return math.gcd(16, *strides(tensor))


def channels_last(tensor):
    """A map or weight (B, C, H, W) as (B, H, W, C); None for None."""
    return None if tensor is None else tensor.permute(0, 2, 3, 1)


def boxes_pay(x, x2, weight) -> bool:
    """Whether programs read the sources (B, C, H, W) of a product, and its weight, by boxes that the GPU copies.

    That is TMA, of sm_90; nobody has timed newer ones. 16-bit tensors at addresses and strides of 16 bytes, sources of
    whole slabs. On an H100, us: two sources of 64 channels and 200 x 200 pixels 27 for 39, a ConvLSTM of 64 channels 59
    for 85; but one of 24 channels 105 for 83.
    """
    tensors = [channels_last(t) for t in (x, x2, weight) if t is not None]
    if any(t.dtype.itemsize != 2 or t.shape[3] % 64 for t in tensors):
        return False
    if any(t.device.type == "cpu" or type(t) is not torch.Tensor or t.data_ptr() % 16 for t in tensors):
        return False  # a fake tensor has no address
    steps = [s for t in tensors for s in t.stride()[:-1]]
    hopper = 90 <= driver.active.get_current_target().arch < 100
    return hopper and all(s > 0 and s % 8 == 0 for s in steps)


def map_boxes(tensor, rows: int, columns: int, channels: int):
    """Boxes of a map (B, C, H, W) with channel stride 1, zeros where it ends; None for None."""
    if tensor is None:
        return None
    tensor = channels_last(tensor)
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [1, rows, columns, channels])


def weight_boxes(weight, outputs: int, channels: int):
    """Boxes (outputs, 1, channels) of one tap of a weight (O, C, k, k) in channels_last memory, or a slice of its
    inputs."""
    count, inputs, size, _ = weight.shape
    tap = weight.stride(3 if size > 1 else 0)
    shape, strides = [count, size * size, inputs], [weight.stride(0), tap, 1]
    return TensorDescriptor(channels_last(weight), shape, strides, [outputs, 1, channels])
