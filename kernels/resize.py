# SPDX-License-Identifier: Apache-2.0
"""Triton kernel for bilinear upsampling by 2 with half-pixel centres.

A program computes up to 1024 channels of some neighbouring pixels. The four input pixels of an output pixel are read
through the L1 cache. Sums are float32 and rounded once. Results are deterministic.
"""

import torch
import triton
import triton.language as tl

from .device import ceil_div, needs_int64, next_power_of_two, on_device
from .launch_plans import launch_kernel, planned

ELEMENTS = 1024  # elements of a program: 8 for each thread


@triton.jit
def locate_near_and_far(fine, count):
    """Return the two coarse rows (or columns) from which a fine row (or column) is interpolated.

    The first contains the fine row and has the weight 3/4. The second, with weight 1/4, is its neighbour, clamped at
    the border.
    """
    near = fine // 2
    far = near + 2 * (fine % 2) - 1
    return near, tl.minimum(tl.maximum(far, 0), count - 1)


@triton.jit
def load_pixels(x_ptr, pixel, channel, inside, CHANNELS: tl.constexpr):
    return tl.load(x_ptr + pixel[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _upsample2_kernel(
    x_ptr, out_ptr, points, height, width, CHANNELS: tl.constexpr, USE_INT64: tl.constexpr, PIXELS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0)
    if USE_INT64:
        first = first.to(tl.int64)
    pixel = first * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (pixel < points)[:, None] & (channel < CHANNELS)[None, :]
    column, row = pixel % (2 * width), pixel // (2 * width)  # rows of all images are numbered consecutively
    top = row // (2 * height) * height
    near_y, far_y = locate_near_and_far(row % (2 * height), height)
    near_x, far_x = locate_near_and_far(column, width)
    near_y, far_y = (top + near_y) * width, (top + far_y) * width
    value = 0.5625 * load_pixels(x_ptr, near_y + near_x, channel, inside, CHANNELS)
    value += 0.1875 * load_pixels(x_ptr, near_y + far_x, channel, inside, CHANNELS)
    value += 0.1875 * load_pixels(x_ptr, far_y + near_x, channel, inside, CHANNELS)
    value += 0.0625 * load_pixels(x_ptr, far_y + far_x, channel, inside, CHANNELS)
    to = out_ptr + pixel[:, None] * CHANNELS + channel[None, :]
    tl.store(to, value.to(out_ptr.dtype.element_ty), mask=inside)


@planned
def upsample2(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write out (B, C, 2 H, 2 W) from x (B, C, H, W), both dense channels_last."""
    if out.numel() == 0:
        return
    points, channels = out.shape[0] * out.shape[2] * out.shape[3], out.shape[1]
    block = min(next_power_of_two(channels), ELEMENTS)
    grid = (ceil_div(points, ELEMENTS // block), ceil_div(channels, block))
    with on_device(x):
        launch_kernel(
            _upsample2_kernel, grid,
            x, out, points, *x.shape[2:], CHANNELS=channels, USE_INT64=needs_int64(out), PIXELS=ELEMENTS // block,
            BLOCK=block, num_warps=4,
        )  # fmt: skip
