# SPDX-License-Identifier: Apache-2.0
"""Triton kernel for the epilogue of a convolution that a library (cuDNN) computes.

The epilogue adds the bias, a second summand and the residual, and applies the activation and the pixel shuffle. Each
program computes consecutive elements of the channels_last result. Sums are in float32 and rounded once. Results are
deterministic.
"""

import torch
import triton
import triton.language as tl

from .device import ceil_div, on_device
from .launch_plans import launch_kernel, planned

BLOCK = 1024  # elements of a program: 8 for each thread


@triton.jit
def _epilogue_kernel(
    y_ptr, second_ptr, residual_ptr, bias_ptr, out_ptr, count, width, CHANNELS: tl.constexpr, R: tl.constexpr,
    HAS_SECOND: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVE: tl.constexpr,
    SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute out = shuffle(act(y + second + residual + bias)).

    `width` is the width of y in pixels, and CHANNELS is the number of channels of out.
    """
    first = tl.program_id(0).to(tl.int64) * BLOCK
    n = first + tl.arange(0, BLOCK)
    inside = n < count
    channel = (n % CHANNELS).to(tl.int32)
    source = n
    if R > 1:
        pixel = n // CHANNELS
        column, row = pixel % (width * R), pixel // (width * R)  # rows of all images are numbered consecutively
        channel = (channel * R + (row % R).to(tl.int32)) * R + (column % R).to(tl.int32)
        source = ((row // R) * width + column // R) * (CHANNELS * R * R) + channel
    value = tl.load(y_ptr + source, mask=inside, other=0.0).to(tl.float32)
    if HAS_SECOND:
        value += tl.load(second_ptr + source, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual_ptr + source, mask=inside, other=0.0).to(tl.float32)
    if ACTIVE:
        value = tl.where(value < 0.0, value * SLOPE if SLOPE != 0.0 else 0.0, value)  # avoids infinity times zero
    tl.store(out_ptr + n, value.to(out_ptr.dtype.element_ty), mask=inside)


@planned
def apply_epilogue(
    y: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    second: torch.Tensor | None,
    residual: torch.Tensor | None,
    slope: float | None,
    shuffle: int,
) -> None:
    """Write out = shuffle(act(y + second + residual + bias)).

    Args:
        y: (B, O, H, W). y, out, second and residual are dense in channels_last memory.
        out: (B, O/r^2, r H, r W). It may be y if r = 1.
        bias: (O,) or None.
        second: (B, O, H, W) or None.
        residual: (B, O, H, W) or None.
        slope: slope for negative values, 0 for ReLU, or None without activation.
        shuffle: factor r of the pixel shuffle.
    """
    if out.numel() == 0:
        return
    with on_device(y):
        launch_kernel(
            _epilogue_kernel, (ceil_div(out.numel(), BLOCK),),
            y, second, residual, bias, out, out.numel(), y.shape[3], CHANNELS=out.shape[1], R=shuffle,
            HAS_SECOND=second is not None, HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None,
            ACTIVE=slope is not None, SLOPE=0.0 if slope is None else slope, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
