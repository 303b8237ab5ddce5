# SPDX-License-Identifier: Apache-2.0
"""Triton kernel for convolutions over one or two sources: an implicit GEMM on tensor cores with a fused epilogue.

One program computes BLOCK_M pixels x BLOCK_N outputs. For each tap and slab of channels the program reads the
neighbours of its pixels and multiplies them by the weights of the tap. Neither the column matrix nor a concatenation of
the sources is stored. The taps of a slab follow one another, because neighbouring taps read the same pixels from the L1
cache: a tap of 128 pixels x 64 channels has 16 KB. The weight may be a slice of the inputs of a larger weight. The
products limit the speed: 2 k^2 (C1 + C2) O operations for each pixel.

All feature maps have channel stride 1. Sums are float32 and rounded once. Results are deterministic. The kernel of the
recurrent cells uses the same loop over a source (add_source).
"""

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
def index_program_pixels(points, height, width, USE_INT64: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return index, validity (index < points), image, row and column of each pixel of a program."""
    program = tl.program_id(0)
    if USE_INT64:
        program = program.to(tl.int64)
    p = program * BLOCK_M + tl.arange(0, BLOCK_M)
    return p, p < points, p // width // height, p // width % height, p % width


@triton.jit
def locate_neighbours(
    row, column, down, right, valid, height, width, stride_h, stride_w, PADDING: tl.constexpr
):  # fmt: skip
    """Return the address steps to the pixels `down` rows and `right` columns away, and whether they exist.

    PADDING is a padding mode of fastds.ops.conv3x3.
    """
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
    """Add the SIZE x SIZE taps of one source to the accumulators of the gates.

    The source has INPUTS channels, which start at channel FIRST of the TOTAL input channels of the weight. `n` holds
    the rows of the weight for the first gate; the rows for gate k are n + k C.
    """
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
    """Load channels n of a map with channel stride 1, in float32."""
    at = (image * stride_b + row * stride_h + column * stride_w) * UNIT
    return tl.load(ptr + at[:, None] + n[None, :], mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _convolution_kernel(
    x_ptr, x2_ptr, weight_ptr, bias_ptr, residual_ptr, out_ptr, points, height, width, h_out, w_out, x_b, x_h, x_w,
    x2_b, x2_h, x2_w, residual_b, residual_h, residual_w, X_UNIT: tl.constexpr, X2_UNIT: tl.constexpr,
    RESIDUAL_UNIT: tl.constexpr, INPUTS: tl.constexpr, INPUTS2: tl.constexpr, TOTAL: tl.constexpr,
    OUTPUTS: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, R: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, ACTIVE: tl.constexpr, SLOPE: tl.constexpr,
    PRECISION: tl.constexpr, USE_INT64: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    """Compute out = shuffle(act(conv([x; x2]) + bias + residual)).

    h_out and w_out are sizes before the shuffle.
    """
    FINE: tl.constexpr = OUTPUTS // (R * R)  # channels after the shuffle
    p, valid, image, row, column = index_program_pixels(points, h_out, w_out, USE_INT64, BLOCK_M)
    # Outputs are ordered by sub-pixel, so that neighbours in a tile are neighbours in the memory of the result.
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
        acc = tl.where(acc < 0.0, acc * SLOPE if SLOPE != 0.0 else 0.0, acc)  # avoids infinity times zero
    to = p[:, None] * OUTPUTS + n[None, :]
    if R > 1:
        corner = ((image * h_out + row) * R * w_out + column) * R  # position of the first sub-pixel
        sub = n // FINE
        to = (corner[:, None] + (sub // R * w_out * R + sub % R)[None, :]) * FINE + (n % FINE)[None, :]
    tl.store(out_ptr + to, acc.to(out_ptr.dtype.element_ty), mask=exists)


MULTIPROCESSORS = 132  # H100 and H200
BLOCKS = ((128, 128), (128, 64), (64, 64), (64, 32))  # pixels and outputs of a program, the most efficient first


def select_tiles(points: int, inputs: int, outputs: int, dtype: torch.dtype) -> Tiles:
    """Select tiles from the shape, so that nothing is timed at run time.

    The tiles are the first of BLOCKS with at least one program for each multiprocessor, or else the last of BLOCKS.
    bench/gpu_rows/conv3x3.py times other tiles.

    Args:
        points: pixels of the result before the pixel shuffle.
        inputs: number of channels of x or x2, whichever has more.
        outputs: output channels.
        dtype: dtype of the sources.
    """
    single, widest = dtype == torch.float32, max(next_power_of_two(outputs), 16)
    slab = min(max(next_power_of_two(inputs), 16), 32 if single else 64)
    blocks = [(m, min(n, widest)) for m, n in BLOCKS if not single or m == 64]
    full = (b for b in blocks if ceil_div(points, b[0]) * ceil_div(outputs, b[1]) >= MULTIPROCESSORS)
    pixels, channels = next(full, blocks[-1])
    return Tiles(pixels, channels, slab, 8 if pixels * channels > 128 * 64 else 4, 3)


@planned
def launch(x, x2, weight, bias, residual, out, *, stride=1, padding_mode="zeros", slope=None, shuffle=1, use_int64=None,
           tiles=None) -> None:  # fmt: skip
    """Write out = shuffle(act(conv([x; x2], weight) + bias + residual)), with padding k // 2.

    Args:
        x: (B, C1, H, W), channel stride 1.
        x2: (B, C2, H, W), channel stride 1, or None.
        weight: (O, C1 + C2, k, k), dtype of x, k odd, in channels_last memory or a slice of the inputs of such a
            weight.
        bias: (O,) or None.
        residual: (B, O, ceil(H/stride), ceil(W/stride)), channel stride 1, or None.
        out: (B, O/r^2, r ceil(H/stride), r ceil(W/stride)), dense channels_last.
        stride: stride in pixels.
        padding_mode: str, a padding mode of fastds.ops.conv3x3.
        slope: slope for negative values, 0 for ReLU, or None without activation.
        shuffle: factor r of the pixel shuffle.
        use_int64: bool, use 64-bit addresses. None: if a tensor needs them.
        tiles: Tiles. None: select_tiles.
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
    grid = (ceil_div(points, tiles.pixels), ceil_div(outputs, tiles.outputs))
    with on_device(x):
        launch_kernel(
            _convolution_kernel, grid,
            x, x2, weight, bias, residual, out, points, *x.shape[2:], h_out, w_out, *steps, X_UNIT=units[0],
            X2_UNIT=units[1], RESIDUAL_UNIT=units[2], INPUTS=inputs[0], INPUTS2=inputs[1],
            TOTAL=weight.stride(3 if size > 1 else 0), OUTPUTS=outputs, SIZE=size, STRIDE=stride, PADDING=padding_mode,
            R=shuffle, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, ACTIVE=slope is not None,
            SLOPE=0.0 if slope is None else slope, PRECISION=get_dot_precision(x.dtype),
            USE_INT64=needs_int64(*maps, out) if use_int64 is None else use_int64, BLOCK_M=tiles.pixels,
            BLOCK_N=tiles.outputs,
            SLAB=tiles.slab, num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
