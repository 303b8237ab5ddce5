# SPDX-License-Identifier: Apache-2.0
"""Modulated deformable convolution on tensor cores: implicit GEMM whose left side is gathered on the fly.

One program computes BLOCK_M output pixels x BLOCK_N outputs of one convolution group. Per tap it reads each offset and
mask value once per (pixel, offset group), gathers four corners of SEGMENTS x CHANNELS input channels as vectors
through the L1 cache (neighbouring taps read the same pixels), blends them in float32 and multiplies them by the weights
of the tap, accumulating in float32. Nothing of the size of the column matrix is ever in memory. Bound by the gather:
4 K corner reads per pixel and channel from L1 and L2.

Channels go in segments: gcd(C/groups, C/offset groups) neighbouring channels, which share one offset group and one
convolution group whatever the two groupings are; CHANNELS is the power of two that holds a segment or a part of it.
Layout: channel stride 1 in every map, as in csrc/deform_conv2d/params.h; weight dense as (O, k_h, k_w, C/groups).
Positions and all sums are in float32. Bit for bit the same from run to run.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .device import Tiles, get_dot_precision, get_stride_unit, get_strides, needs_int64, next_power_of_two, on_device


@triton.jit
def index_pixels(first, points, h_out, w_out, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """BLOCK output pixels from `first` on: flat index, image, row, column and whether they exist."""
    p = (first.to(tl.int64) if WIDE else first) + tl.arange(0, BLOCK)
    column = p % w_out
    rest = p // w_out
    return p, rest // h_out, rest % h_out, column, p < points


@triton.jit
def index_channels(segment, SEGMENT: tl.constexpr, part, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr, end):
    """Channels (SEGMENTS, CHANNELS) of part `part` of the segments from `segment` on, and whether they exist."""
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
    """Displacements and mask factor, float32 (BLOCK, SEGMENTS), of the tap at_tap = g*K + k of each offset group."""
    at = at_offset[:, None] + 2 * at_tap[None, :]
    pair = at[:, :, None] + tl.arange(0, 2)[None, None, :]  # one load for both
    dy, dx = tl.split(tl.load(offset_ptr + pair, mask=valid[:, :, None], other=0.0).to(tl.float32))
    if HAS_MASK:
        m = tl.load(mask_ptr + at_mask[:, None] + at_tap[None, :], mask=valid, other=0.0).to(tl.float32)
        if SIGMOID:
            m = tl.sigmoid(m)
    else:
        m = tl.full(dy.shape, 1.0, tl.float32)
    return dy, dx, m


@triton.jit
def locate_cell(y, x, valid, height, width, WIDE: tl.constexpr):
    """The cell around a position: its first row and column, the fractions, and which rows and columns exist.

    Only positions inside (-1, H) x (-1, W) pass, written so that NaN fails; the others have no corner.
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
    if WIDE:
        y0 = y0.to(tl.int64)
        x0 = x0.to(tl.int64)
    return y0, x0, y - floor_y, x - floor_x, top, bottom, left, right


@triton.jit
def load_corner(x_ptr, at, exists, channel, present):
    """Values (BLOCK, SEGMENTS, CHANNELS) of one corner in float32, 0 where it lies outside."""
    exists = exists[:, :, None] & present[None, :, :]
    at = at[:, :, None] + channel[None, :, :]
    return tl.load(x_ptr + at, mask=exists, other=0.0, cache_modifier=".ca").to(tl.float32)


@triton.jit
def sample_channels(x_ptr, image, y, x, m, valid, channel, present, height, width, x_h, x_w, WIDE: tl.constexpr):
    """mask * S(x) of a slab of channels, (BLOCK, SEGMENTS * CHANNELS) in the dtype of x."""
    y0, x0, ly, lx, top, bottom, left, right = locate_cell(y, x, valid, height, width, WIDE)
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
    """The displacement (dy, dx) common to all taps of a pixel, from a dense (B, 2, H', W') float32 map; else 0."""
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
    PAD_W: tl.constexpr, HAS_BASE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Output pixels from `first` on: number, image, row and column of the tap (0, 0) in the input, whether they exist,
    the common displacement, and where their offsets and mask begin."""
    p, image, row, column, valid = index_pixels(first, points, h_out, w_out, BLOCK, WIDE)
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
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    N_TILES: tl.constexpr = (O_GROUP + BLOCK_N - 1) // BLOCK_N
    COUNT: tl.constexpr = C_GROUP // SEGMENT
    PARTS: tl.constexpr = (SEGMENT + CHANNELS - 1) // CHANNELS
    SLABS: tl.constexpr = (COUNT + SEGMENTS - 1) // SEGMENTS * PARTS
    group = tl.program_id(1) // N_TILES
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    p, image, row, column, valid, base_y, base_x, at_offset, at_mask = locate_pixels(
        first * BLOCK_M, points, base_ptr, h_out, w_out, offset_b, offset_h, offset_w, mask_b, mask_h, mask_w,
        OFFSET_UNIT, STRIDE_H, STRIDE_W, PAD_H, PAD_W, HAS_BASE, BLOCK_M, WIDE,
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
            x_ptr, image, y, x, m, known, channel, present, height, width, x_h * X_UNIT, x_w * X_UNIT, WIDE
        )  # fmt: skip
        # The weights' rows in one dimension, so that the compiler sees their vectors.
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
    """What the kernels know of one call besides the tensors."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int


def select_slab_shape(segment: int, count: int, slab: int) -> tuple[int, int]:
    """(SEGMENTS, CHANNELS) of one product, between 16 and `slab` channels (holes included where segments are odd)."""
    if segment % 8:  # an address of 8 bytes for each element: less of them at once
        slab = min(slab, 32)
    channels = min(next_power_of_two(segment), slab)
    return max(min(next_power_of_two(count), slab // channels), 16 // channels, 1), channels


def select_forward_tiles(points: int, outputs: int, dtype: torch.dtype) -> Tiles:
    """Tiles of the forward pass from the number of output pixels, the outputs of one group and the dtype.

    A pure function, so that nothing is timed at run time and a capture needs no care. By machine code for sm_90: 64
    pixels on 8 warps take 52 instructions a tap and pixel and leave 16 warps on a multiprocessor to wait for gathers,
    where 128 take 58 and leave 8; a second stage takes more, and in Triton 3.6 its gathers go past L1. Few pixels take
    half the tile to keep 132 multiprocessors busy, float32 half the slab and warps, for its registers.
    bench/gpu_rows/deform_conv2d.py times the neighbours.
    """
    pixels, single = 64 if points >= 64 * 128 else 32, dtype == torch.float32
    warps = 8 if pixels == 64 and not single else 4
    return Tiles(pixels, min(max(next_power_of_two(outputs), 16), 128), 32 if single else 64, warps, 1)


def launch_forward(
    x, offset, mask, weight, bias, y, problem, *, base=None, sigmoid=False, slope=None, wide=None, tiles=None
):
    """y = act(deform_conv2d(x, offset + base, weight, bias, mask)), written completely.

    Args:
        x: (B, C, H, W); offset: (B, 2GK, H', W'); mask: (B, GK, H', W') or None; channel stride 1 in each. Offset and
            mask may be slices of one map, and with sigmoid=True mask holds what a sigmoid is yet to be taken of.
        weight: (O, C/groups, k_h, k_w) in channels_last memory; bias: (O,) or None.
        y: (B, O, H', W') dense channels_last.
        problem: kernel, stride, padding, dilation, groups and offset groups.
        base: (B, 2, H', W') float32 contiguous, (dy, dx) in pixels added to every offset, or None.
        slope: of a leaky ReLU at the end, or None.
        wide: 64-bit addresses; None: where a tensor needs them. tiles: None: forward_tiles.
    """
    if y.numel() == 0:
        return
    channels, outputs, taps = x.shape[1], weight.shape[0], problem.kernel[0] * problem.kernel[1]
    c_group, c_offset = channels // problem.groups, channels // problem.offset_groups
    segment = math.gcd(c_group, c_offset)
    points = y.shape[0] * y.shape[2] * y.shape[3]
    tiles = tiles or select_forward_tiles(points, outputs // problem.groups, x.dtype)
    segments, part = select_slab_shape(segment, c_group // segment, tiles.slab)
    grid = (triton.cdiv(points, tiles.pixels), problem.groups * triton.cdiv(outputs // problem.groups, tiles.outputs))
    wide = needs_int64(x, offset, mask, y) if wide is None else wide
    with on_device(x):
        _forward_kernel[grid](
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
            WIDE=wide, BLOCK_M=tiles.pixels, BLOCK_N=tiles.outputs, SEGMENTS=segments, CHANNELS=part,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
