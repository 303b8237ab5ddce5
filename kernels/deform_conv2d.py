# SPDX-License-Identifier: Apache-2.0
"""Triton kernel for modulated deformable convolution: an implicit GEMM on tensor cores with gathered samples.

One program computes BLOCK_M output pixels x BLOCK_N outputs of one convolution group. For each tap the program reads
the offsets and mask, and gathers the four corners of SEGMENTS x CHANNELS input channels as vectors through the L1 cache
(neighbouring taps read the same pixels). It blends the corners in float32 and multiplies the samples by the weights of
the tap, with float32 accumulators. The column matrix is never stored. The gather limits the speed: 4 K reads of a
corner for each pixel and channel.

A segment consists of gcd(C/groups, C/offset groups) neighbouring channels, which belong to one offset group and one
convolution group. CHANNELS is a power of two; one product takes a whole segment or a part of it. All feature maps have
channel stride 1; the memory of the weight is dense in the order (O, k_h, k_w, C/groups). Positions and sums are
float32. Results are deterministic.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .device import (
    Tiles,
    ceil_div,
    get_dot_precision,
    get_stride_unit,
    get_strides,
    needs_int64,
    next_power_of_two,
    on_device,
)
from .launch_plans import launch_kernel, planned


@triton.jit
def index_pixels(first, points, h_out, w_out, BLOCK: tl.constexpr, USE_INT64: tl.constexpr):
    """Return flat index, image, row, column of BLOCK output pixels from `first` on, and whether they exist."""
    p = (first.to(tl.int64) if USE_INT64 else first) + tl.arange(0, BLOCK)
    column = p % w_out
    rest = p // w_out
    return p, rest // h_out, rest % h_out, column, p < points


@triton.jit
def index_channels(segment, SEGMENT: tl.constexpr, part, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr, end):
    """Return the channels of part `part` of SEGMENTS segments from `segment` on, and whether they exist.

    Both have the shape (SEGMENTS, CHANNELS).
    """
    s = segment + tl.arange(0, SEGMENTS)
    inner = part * CHANNELS + tl.arange(0, CHANNELS)
    channel = s[:, None] * SEGMENT + inner[None, :]
    present = (s < end)[:, None]
    if SEGMENT % CHANNELS != 0:  # else the mask is constant over a segment, and its loads stay vectors
        present = present & (inner < SEGMENT)[None, :]
    return channel, present


@triton.jit
def load_offsets(
    offset_ptr, mask_ptr, at_offset, at_mask, at_tap, valid, HAS_MASK: tl.constexpr, SIGMOID: tl.constexpr
):  # fmt: skip
    """Load the displacements and mask factors of a tap for some offset groups, as float32 (BLOCK, SEGMENTS).

    at_tap is g*K + k for tap k of offset group g. Without a mask, the factors are 1.
    """
    at = at_offset[:, None] + 2 * at_tap[None, :]
    pair = at[:, :, None] + tl.arange(0, 2)[None, None, :]  # one load for dy and dx
    dy, dx = tl.split(tl.load(offset_ptr + pair, mask=valid[:, :, None], other=0.0).to(tl.float32))
    if HAS_MASK:
        m = tl.load(mask_ptr + at_mask[:, None] + at_tap[None, :], mask=valid, other=0.0).to(tl.float32)
        if SIGMOID:
            m = tl.sigmoid(m)
    else:
        m = tl.full(dy.shape, 1.0, tl.float32)
    return dy, dx, m


@triton.jit
def locate_cell(y, x, valid, height, width, USE_INT64: tl.constexpr):
    """Return the cell around a position: first row and column, fractions, and which rows and columns exist.

    Positions outside (-1, H) x (-1, W) and NaN have no existing corner.
    """
    inside = valid & (y > -1.0) & (y < height) & (x > -1.0) & (x < width)
    y = tl.where(inside, y, 0.0)
    x = tl.where(inside, x, 0.0)
    floor_y = tl.floor(y)
    floor_x = tl.floor(x)
    y0 = floor_y.to(tl.int32)
    x0 = floor_x.to(tl.int32)
    top = inside & (y0 >= 0)
    bottom = inside & (y0 + 1 < height)
    left = x0 >= 0
    right = x0 + 1 < width
    if USE_INT64:
        y0 = y0.to(tl.int64)
        x0 = x0.to(tl.int64)
    return y0, x0, y - floor_y, x - floor_x, top, bottom, left, right


@triton.jit
def load_corner(x_ptr, at, exists, channel, present):
    """Load one corner, float32 (BLOCK, SEGMENTS, CHANNELS), 0 outside the image."""
    exists = exists[:, :, None] & present[None, :, :]
    at = at[:, :, None] + channel[None, :, :]
    return tl.load(x_ptr + at, mask=exists, other=0.0, cache_modifier=".ca").to(tl.float32)


@triton.jit
def sample_channels(x_ptr, image, y, x, m, valid, channel, present, height, width, x_h, x_w, USE_INT64: tl.constexpr):
    """Return mask * S(x) of a slab of channels, (BLOCK, SEGMENTS * CHANNELS) in the dtype of x."""
    y0, x0, ly, lx, top, bottom, left, right = locate_cell(y, x, valid, height, width, USE_INT64)
    at = image[:, None] + y0 * x_h + x0 * x_w
    upper = m * (1.0 - ly)
    lower = m * ly
    v = (upper * (1.0 - lx))[:, :, None] * load_corner(x_ptr, at, top & left, channel, present)
    v += (upper * lx)[:, :, None] * load_corner(x_ptr, at + x_w, top & right, channel, present)
    v += (lower * (1.0 - lx))[:, :, None] * load_corner(x_ptr, at + x_h, bottom & left, channel, present)
    v += (lower * lx)[:, :, None] * load_corner(x_ptr, at + x_h + x_w, bottom & right, channel, present)
    return tl.reshape(v.to(x_ptr.dtype.element_ty), (v.shape[0], v.shape[1] * v.shape[2]))


@triton.jit
def load_base_offset(base_ptr, image, row, column, valid, h_out, w_out, HAS_BASE: tl.constexpr):
    """Load the displacement (dy, dx) that all taps of a pixel share, or return zeros if HAS_BASE is false.

    base_ptr is a contiguous (B, 2, H', W') float32 map.
    """
    if HAS_BASE:
        at = (image * 2 * h_out + row) * w_out + column
        dy = tl.load(base_ptr + at, mask=valid, other=0.0)
        dx = tl.load(base_ptr + at + h_out * w_out, mask=valid, other=0.0)
    else:
        dy = tl.zeros(row.shape, tl.float32)
        dx = tl.zeros(row.shape, tl.float32)
    return dy, dx


@triton.jit
def locate_pixels(
    first, points, base_ptr, h_out, w_out, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
    OFFSET_UNIT: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr,
    PAD_W: tl.constexpr, HAS_BASE: tl.constexpr, BLOCK: tl.constexpr, USE_INT64: tl.constexpr,
):  # fmt: skip
    """Locate the output pixels from `first` on.

    For each pixel, the result is its flat index, its image, the row and column of tap (0, 0) in the input, whether the
    pixel exists, its base offset (dy, dx), and the positions of its offsets and mask in memory.
    """
    p, image, row, column, valid = index_pixels(first, points, h_out, w_out, BLOCK, USE_INT64)
    base_y, base_x = load_base_offset(base_ptr, image, row, column, valid, h_out, w_out, HAS_BASE)
    at_offset = (image * offset_b + row * offset_h + column * offset_w) * OFFSET_UNIT
    at_mask = image * mask_b + row * mask_h + column * mask_w
    row = row * STRIDE_H - PAD_H
    column = column * STRIDE_W - PAD_W
    return p, image, row, column, valid, base_y, base_x, at_offset, at_mask


@triton.jit
def _forward_kernel(
    x_ptr, offset_ptr, mask_ptr, base_ptr, weight_ptr, bias_ptr, y_ptr, points, height, width, h_out, w_out,
    x_b, x_h, x_w, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
    X_UNIT: tl.constexpr, OFFSET_UNIT: tl.constexpr, KW: tl.constexpr, TAPS: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr, C_GROUP:
    tl.constexpr, O_GROUP: tl.constexpr,
    GROUPS: tl.constexpr, C_OFFSET: tl.constexpr, SEGMENT: tl.constexpr, HAS_MASK: tl.constexpr,
    SIGMOID: tl.constexpr, HAS_BASE: tl.constexpr, HAS_BIAS: tl.constexpr, LEAKY: tl.constexpr, SLOPE: tl.constexpr,
    PRECISION: tl.constexpr, USE_INT64: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    N_TILES: tl.constexpr = (O_GROUP + BLOCK_N - 1) // BLOCK_N
    COUNT: tl.constexpr = C_GROUP // SEGMENT
    PARTS: tl.constexpr = (SEGMENT + CHANNELS - 1) // CHANNELS
    SLABS: tl.constexpr = (COUNT + SEGMENTS - 1) // SEGMENTS * PARTS
    group = tl.program_id(1) // N_TILES
    first = tl.program_id(0)
    if USE_INT64:
        first = first.to(tl.int64)
    p, image, row, column, valid, base_y, base_x, at_offset, at_mask = locate_pixels(
        first * BLOCK_M, points, base_ptr, h_out, w_out, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
        OFFSET_UNIT, STRIDE_H, STRIDE_W, PAD_H, PAD_W, HAS_BASE, BLOCK_M, USE_INT64,
    )  # fmt: skip
    image = image * x_b * X_UNIT
    o = tl.program_id(1) % N_TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    o_exists = o < O_GROUP
    o += group * O_GROUP
    inner = tl.arange(0, SEGMENTS * CHANNELS)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(TAPS * SLABS):
        k = step // SLABS
        segment = step % SLABS // PARTS * SEGMENTS
        part = step % PARTS
        channel, present = index_channels(
            group * COUNT + segment, SEGMENT, part, SEGMENTS, CHANNELS, (group + 1) * COUNT
        )
        at_tap = (group * COUNT + segment + tl.arange(0, SEGMENTS)) * SEGMENT // C_OFFSET * TAPS + k
        known = valid[:, None] & (segment + tl.arange(0, SEGMENTS) < COUNT)[None, :]
        dy, dx, m = load_offsets(offset_ptr, mask_ptr, at_offset, at_mask, at_tap, known, HAS_MASK, SIGMOID)
        y = (row + k // KW * DIL_H).to(tl.float32)[:, None] + (dy + base_y[:, None])
        x = (column + k % KW * DIL_W).to(tl.float32)[:, None] + (dx + base_x[:, None])
        v = sample_channels(
            x_ptr, image, y, x, m, known, channel, present, height, width, x_h * X_UNIT, x_w * X_UNIT, USE_INT64
        )  # fmt: skip
        # Index the weight's rows in one dimension, so that the compiler vectorizes the loads.
        within = part * CHANNELS + inner % CHANNELS
        c = (segment + inner // CHANNELS) * SEGMENT + within
        c_exists = segment + inner // CHANNELS < COUNT
        if SEGMENT % CHANNELS != 0:
            c_exists = c_exists & (within < SEGMENT)
        at = (o[None, :] * TAPS + k) * C_GROUP + c[:, None]
        w = tl.load(weight_ptr + at, mask=c_exists[:, None] & o_exists[None, :], other=0.0)
        acc = tl.dot(v, w, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + o, mask=o_exists, other=0.0).to(tl.float32)[None, :]
    if LEAKY:
        acc = tl.where(acc >= 0.0, acc, acc * SLOPE)
    at = p[:, None] * (GROUPS * O_GROUP) + o[None, :]
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=valid[:, None] & o_exists[None, :])


class Problem(NamedTuple):
    """Parameters of the convolution other than tensors; pairs are (rows, columns)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int


def select_slab_shape(segment: int, count: int, slab: int) -> tuple[int, int]:
    """Select (SEGMENTS, CHANNELS) of one product.

    Args:
        segment: channels of a segment.
        count: number of segments.
        slab: maximum number of channels of a product, a power of two >= 16.
    """
    if segment % 8:  # loads are not vectorized, and each element needs an address in registers
        slab = min(slab, 32)
    channels = min(next_power_of_two(segment), slab)
    return max(min(next_power_of_two(count), slab // channels), 16 // channels, 1), channels


def select_forward_tiles(points: int, outputs: int, dtype: torch.dtype) -> Tiles:
    """Select tiles of the forward pass from the shape, so that nothing is timed at run time.

    On sm_90, tiles of 64 pixels with 8 warps need fewer instructions for each tap and pixel than tiles of 128 pixels,
    and have more warps to hide the latency of gathers. A second pipeline stage needs more instructions, and in Triton
    3.6 its gathers bypass the L1 cache. With few pixels, tiles have 32 pixels, so that all multiprocessors have work.
    float32 uses half of the slab and of the warps, because it needs more registers. bench/gpu_rows/deform_conv2d.py
    times other tiles.

    Args:
        points: number of output pixels.
        outputs: outputs of one group.
        dtype: dtype of the input.
    """
    pixels, single = 64 if points >= 64 * 128 else 32, dtype == torch.float32
    warps = 8 if pixels == 64 and not single else 4
    return Tiles(pixels, min(max(next_power_of_two(outputs), 16), 128), 32 if single else 64, warps, 1)


@planned
def launch_forward(
    x, offset, mask, weight, bias, y, problem, *, base=None, sigmoid=False, slope=None, use_int64=None, tiles=None
):
    """Write y = act(deform_conv2d(x, offset + base, weight, bias, mask)).

    Args:
        x: (B, C, H, W). x, offset and mask have channel stride 1.
        offset: (B, 2GK, H', W') for G offset groups and K taps.
        mask: (B, GK, H', W') or None. Offset and mask may be slices of one tensor.
        weight: (O, C/groups, k_h, k_w) in channels_last memory.
        bias: (O,) or None.
        y: (B, O, H', W'), dense channels_last.
        problem: Problem.
        base: (B, 2, H', W') float32 contiguous, (dy, dx) in pixels added to every offset, or None.
        sigmoid: bool, whether the mask holds logits.
        slope: slope of a final leaky ReLU, or None.
        use_int64: bool, use 64-bit addresses. None: if a tensor needs them.
        tiles: Tiles. None: select_forward_tiles.
    """
    if y.numel() == 0:
        return
    channels, outputs, taps = x.shape[1], weight.shape[0], problem.kernel[0] * problem.kernel[1]
    c_group, c_offset = channels // problem.groups, channels // problem.offset_groups
    segment = math.gcd(c_group, c_offset)
    points = y.shape[0] * y.shape[2] * y.shape[3]
    tiles = tiles or select_forward_tiles(points, outputs // problem.groups, x.dtype)
    segments, part = select_slab_shape(segment, c_group // segment, tiles.slab)
    grid = (ceil_div(points, tiles.pixels), problem.groups * ceil_div(outputs // problem.groups, tiles.outputs))
    use_int64 = needs_int64(x, offset, mask, y) if use_int64 is None else use_int64
    with on_device(x):
        launch_kernel(
            _forward_kernel, grid,
            x, offset, mask, base, weight, bias, y, points, *x.shape[2:], *y.shape[2:],
            *get_strides(x, get_stride_unit(x)), *get_strides(offset, get_stride_unit(offset)), *get_strides(mask),
            X_UNIT=get_stride_unit(x),
            OFFSET_UNIT=get_stride_unit(offset), KW=problem.kernel[1], TAPS=taps, STRIDE_H=problem.stride[0],
            STRIDE_W=problem.stride[1],
            PAD_H=problem.padding[0], PAD_W=problem.padding[1], DIL_H=problem.dilation[0], DIL_W=problem.dilation[1],
            C_GROUP=c_group, O_GROUP=outputs // problem.groups, GROUPS=problem.groups, C_OFFSET=c_offset,
            SEGMENT=segment, HAS_MASK=mask is not None, SIGMOID=sigmoid, HAS_BASE=base is not None,
            HAS_BIAS=bias is not None, LEAKY=slope is not None, SLOPE=slope or 0.0,
            PRECISION=get_dot_precision(x.dtype),
            USE_INT64=use_int64, BLOCK_M=tiles.pixels, BLOCK_N=tiles.outputs, SEGMENTS=segments, CHANNELS=part,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
