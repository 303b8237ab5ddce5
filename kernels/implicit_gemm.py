# SPDX-License-Identifier: Apache-2.0
"""Convolutions over one or two sources as an implicit GEMM on tensor cores, with all that follows in the epilogue.

One program computes BLOCK_M pixels x BLOCK_N outputs. Per tap and slab of channels it reads its pixels' neighbours as
they lie in the map, masked or clamped at the border, and multiplies them by the tap's weights; nothing of the size of
the column matrix or of a concatenation is ever in memory. All taps of a slab follow one another and read through L1,
where the pixels of neighbouring taps are the same: a tap of 128 pixels x 64 channels is 16 KB. The weight is read as it
is, or as a slice of the inputs of a wider one. Bound by products: 2 k^2 (C1 + C2) O a pixel.

Layout: channel stride 1 in every map. Sums are in float32, rounded once. Bit for bit the same from run to run.
"""

import torch
import triton
import triton.language as tl

from .device import Tiles, get_dot_precision, get_stride_unit, get_strides, needs_int64, next_power_of_two, on_device


@triton.jit
def index_program_pixels(points, height, width, WIDE: tl.constexpr, BLOCK_M: tl.constexpr):
    """The pixels of a program: number, whether it is one of the `points`, image, row and column."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    p = program * BLOCK_M + tl.arange(0, BLOCK_M)
    return p, p < points, p // width // height, p // width % height, p % width


@triton.jit
def locate_neighbours(
    row, column, down, right, valid, height, width, stride_h, stride_w, PADDING: tl.constexpr
):  # fmt: skip
    """Where the pixels `down` rows and `right` columns from others lie in memory, from those on, and which of them
    exist; PADDING as fastds.ops.conv3x3 names it."""
    if PADDING == "zeros":
        inside = valid & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        step = down * stride_h + right * stride_w
    else:
        inside = valid
        to_row = tl.minimum(tl.maximum(row + down, 0), height - 1)
        to_column = column + right
        if PADDING == "replicate":
            to_column = tl.minimum(tl.maximum(to_column, 0), width - 1)
        else:
            to_column = (to_column + width) % width
        step = (to_row - row) * stride_h + (to_column - column) * stride_w
    return step, inside


@triton.jit
def add_source(
    acc_0, acc_1, acc_2, acc_3, source_ptr, weight_ptr, at, row, column, valid, height, width, stride_h, stride_w, n,
    n_exists, FIRST: tl.constexpr, INPUTS: tl.constexpr, TOTAL: tl.constexpr, C: tl.constexpr, GATES: tl.constexpr,
    SLAB: tl.constexpr, PRECISION: tl.constexpr, SIZE: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """The accumulators of the gates after all SIZE x SIZE taps of one source.

    FIRST, INPUTS: its channels among the TOTAL that a tap of the weight is apart from the next. n: rows of the weight;
    those of gate k begin at k C."""
    TAPS: tl.constexpr = SIZE * SIZE
    SLABS: tl.constexpr = (INPUTS + SLAB - 1) // SLAB
    GATE: tl.constexpr = C * TAPS * TOTAL
    for step in range(TAPS * SLABS):
        tap = step % TAPS
        c = step // TAPS * SLAB + tl.arange(0, SLAB)
        exists = c < INPUTS
        to, inside = locate_neighbours(
            row, column, tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2, valid, height, width, stride_h, stride_w,
            PADDING,
        )  # fmt: skip
        at_source = at + to
        values = tl.load(
            source_ptr + at_source[:, None] + c[None, :], mask=inside[:, None] & exists[None, :], other=0.0,
            cache_modifier=".ca",
        )  # fmt: skip
        w_ptr = weight_ptr + ((n[None, :] * TAPS + tap) * TOTAL + FIRST + c[:, None])
        w_exists = exists[:, None] & n_exists[None, :]
        acc_0 = tl.dot(values, tl.load(w_ptr, mask=w_exists, other=0.0), acc_0, input_precision=PRECISION)
        if GATES > 1:
            acc_1 = tl.dot(values, tl.load(w_ptr + GATE, mask=w_exists, other=0.0), acc_1, input_precision=PRECISION)
        if GATES > 2:
            w_ptr += 2 * GATE
            acc_2 = tl.dot(values, tl.load(w_ptr, mask=w_exists, other=0.0), acc_2, input_precision=PRECISION)
        if GATES > 3:
            acc_3 = tl.dot(values, tl.load(w_ptr + GATE, mask=w_exists, other=0.0), acc_3, input_precision=PRECISION)
    return acc_0, acc_1, acc_2, acc_3


@triton.jit
def load_map(ptr, image, row, column, stride_b, stride_h, stride_w, n, exists, UNIT: tl.constexpr):
    at = (image * stride_b + row * stride_h + column * stride_w) * UNIT
    return tl.load(ptr + at[:, None] + n[None, :], mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _convolution_kernel(
    x_ptr, x2_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, points, height, width, h_out, w_out, x_b, x_h, x_w,
    x2_b, x2_h, x2_w, residual_b, residual_h, residual_w, X_UNIT: tl.constexpr, X2_UNIT: tl.constexpr,
    RESIDUAL_UNIT: tl.constexpr, INPUTS: tl.constexpr, INPUTS2: tl.constexpr, TOTAL: tl.constexpr,
    OUTPUTS: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, R: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVE: tl.constexpr, SLOPE: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """out = shuffle(act(conv([x; x2]) + bias + residual)); h_out and w_out before the shuffle."""
    FINE: tl.constexpr = OUTPUTS // (R * R)  # channels after the shuffle
    p, valid, image, row, column = index_program_pixels(points, h_out, w_out, WIDE, BLOCK_M)
    # Sub-pixel after sub-pixel, so that neighbours in a tile are neighbours in the result's memory.
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_exists = n < OUTPUTS
    channel = n if R == 1 else n % FINE * (R * R) + n // FINE
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    at = (image * x_b + row * STRIDE * x_h + column * STRIDE * x_w) * X_UNIT
    acc, _, _, _ = add_source(
        acc, acc, acc, acc, x_ptr, weight_ptr, at, row * STRIDE, column * STRIDE, valid, height, width, x_h * X_UNIT,
        x_w * X_UNIT, channel, n_exists, 0, INPUTS, TOTAL, OUTPUTS, 1, SLAB, PRECISION, SIZE, PADDING,
    )  # fmt: skip
    if INPUTS2 > 0:
        at = (image * x2_b + row * STRIDE * x2_h + column * STRIDE * x2_w) * X2_UNIT
        acc, _, _, _ = add_source(
            acc, acc, acc, acc, x2_ptr, weight_ptr, at, row * STRIDE, column * STRIDE, valid, height, width,
            x2_h * X2_UNIT, x2_w * X2_UNIT, channel, n_exists, INPUTS, INPUTS2, TOTAL, OUTPUTS, 1, SLAB, PRECISION,
            SIZE, PADDING,
        )  # fmt: skip
    exists = valid[:, None] & n_exists[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + channel, mask=n_exists, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        acc += load_map(
            residual_ptr, image, row, column, residual_b, residual_h, residual_w, channel, exists, RESIDUAL_UNIT
        )  # fmt: skip
    if ACTIVE:
        acc = tl.where(acc < 0.0, acc * SLOPE if SLOPE != 0.0 else 0.0, acc)  # not infinity times zero
    to = p[:, None] * OUTPUTS + n[None, :]
    if R > 1:
        corner = ((image * h_out + row) * R * w_out + column) * R  # of the pixel's first sub-pixel
        sub = n // FINE
        to = (corner[:, None] + (sub // R * w_out * R + sub % R)[None, :]) * FINE + (n % FINE)[None, :]
    tl.store(out_ptr + to, acc.to(out_ptr.dtype.element_ty), mask=exists)


MULTIPROCESSORS = 132  # of an H100 or H200
BLOCKS = ((128, 128), (128, 64), (64, 64), (64, 32))  # pixels and outputs of a program, from the best product on


def select_tiles(points: int, inputs: int, outputs: int, dtype: torch.dtype) -> Tiles:
    """Tiles from the number of pixels of the result, the wider source, the outputs and the dtype: nothing is timed at
    run time.

    The largest block that gives every multiprocessor a program; bench/gpu_rows/conv3x3.py times the neighbours.
    """
    single, widest = dtype == torch.float32, max(next_power_of_two(outputs), 16)
    slab = min(max(next_power_of_two(inputs), 16), 32 if single else 64)
    blocks = [(m, min(n, widest)) for m, n in BLOCKS if not single or m == 64]
    full = (b for b in blocks if triton.cdiv(points, b[0]) * triton.cdiv(outputs, b[1]) >= MULTIPROCESSORS)
    pixels, channels = next(full, blocks[-1])
    return Tiles(pixels, channels, slab, 8 if pixels * channels > 128 * 64 else 4, 3)


def launch(x, x2, weight, bias, residual, out, *, stride=1, padding_mode="zeros", slope=None, shuffle=1, wide=None,
           tiles=None) -> None:  # fmt: skip
    """out = shuffle(act(conv([x; x2], weight) + bias + residual)), size kept, written completely.

    Args:
        x: (B, C1, H, W); x2: (B, C2, H, W) or None; channel stride 1.
        weight: (O, C1 + C2, k, k), dtype of x, k odd, in channels_last memory or a slice of the inputs of one.
        bias: (O,) or None. residual: (B, O, ceil(H/stride), ceil(W/stride)) or None, channel stride 1.
        out: (B, O/r^2, r ceil(H/stride), r ceil(W/stride)), dense channels_last.
        stride: of the convolution, in pixels. padding_mode: as of fastds.ops.conv3x3.
        slope: of the negative side, 0 for ReLU; None: no activation. shuffle: r.
        wide: 64-bit addresses; None: where a tensor needs them. tiles: None: tiles_of.
    """
    if out.numel() == 0:
        return
    outputs, size = weight.shape[0], weight.shape[2]
    inputs = [0 if t is None else t.shape[1] for t in (x, x2)]
    h_out, w_out = out.shape[2] // shuffle, out.shape[3] // shuffle
    points = out.shape[0] * h_out * w_out
    tiles = tiles or select_tiles(points, max(inputs), outputs, x.dtype)
    maps = (x, x2, residual)
    units = [1 if t is None else get_stride_unit(t) for t in maps]
    steps = [s for t, unit in zip(maps, units, strict=True) for s in get_strides(t, unit)]
    grid = (triton.cdiv(points, tiles.pixels), triton.cdiv(outputs, tiles.outputs))
    with on_device(x):
        _convolution_kernel[grid](
            x, x2, weight, bias, residual, out, points, *x.shape[2:], h_out, w_out, *steps, X_UNIT=units[0],
            X2_UNIT=units[1], RESIDUAL_UNIT=units[2], INPUTS=inputs[0], INPUTS2=inputs[1],
            TOTAL=weight.stride(3 if size > 1 else 0), OUTPUTS=outputs, SIZE=size, STRIDE=stride, PADDING=padding_mode,
            R=shuffle, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVE=slope is not None,
            SLOPE=0.0 if slope is None else slope, PRECISION=get_dot_precision(x.dtype),
            WIDE=needs_int64(*maps, out) if wide is None else wide, BLOCK_M=tiles.pixels, BLOCK_N=tiles.outputs,
            SLAB=tiles.slab, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
