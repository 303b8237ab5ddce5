# SPDX-License-Identifier: Apache-2.0
"""A ConvLSTM step as one implicit GEMM on tensor cores whose epilogue is the gates.

One program computes BLOCK_M pixels x BLOCK_N channels of the state, all four gates of each: four products share every
tile of the sources that is read, so the gates meet in registers and the 4C pre-activations are written only where a
gradient will need them. The weight is read as it is, (4C, 3, 3, inputs) in memory: no interleaved copy. x and h are two
sources of one sum; each is padded to whole slabs of channels by masks. Bound by products: 72 (C1 + C) C a pixel.

Layout: channel stride 1 in every map. Accumulators, gates and cell state are float32. tanh is 2 sigmoid(2x) - 1, exact
to 1e-7 of its range. Bit for bit the same from run to run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .device import is_wide, on_device, power_of_two, precision, strides, unit_of


@triton.jit
def add_source(
    acc_i, acc_f, acc_g, acc_o, source_ptr, weight_ptr, at, row, column, valid, height, width, stride_h, stride_w, n,
    n_exists, FIRST: tl.constexpr, INPUTS: tl.constexpr, TOTAL: tl.constexpr, C: tl.constexpr, SLAB: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The four accumulators after all taps of one source, whose channels are FIRST, FIRST + 1, ... of the weight."""
    SLABS: tl.constexpr = (INPUTS + SLAB - 1) // SLAB
    GATE: tl.constexpr = C * 9 * TOTAL
    for step in range(9 * SLABS):
        tap = step // SLABS
        down = tap // 3 - 1
        right = tap % 3 - 1
        c = step % SLABS * SLAB + tl.arange(0, SLAB)
        exists = c < INPUTS
        inside = valid & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        at_source = at + (down * stride_h + right * stride_w)
        values = tl.load(
            source_ptr + at_source[:, None] + c[None, :], mask=inside[:, None] & exists[None, :], other=0.0
        )
        w_ptr = weight_ptr + ((n[None, :] * 9 + tap) * TOTAL + FIRST + c[:, None])
        w_exists = exists[:, None] & n_exists[None, :]
        acc_i = tl.dot(values, tl.load(w_ptr, mask=w_exists, other=0.0), acc_i, input_precision=PRECISION)
        acc_f = tl.dot(values, tl.load(w_ptr + GATE, mask=w_exists, other=0.0), acc_f, input_precision=PRECISION)
        acc_g = tl.dot(values, tl.load(w_ptr + 2 * GATE, mask=w_exists, other=0.0), acc_g, input_precision=PRECISION)
        acc_o = tl.dot(values, tl.load(w_ptr + 3 * GATE, mask=w_exists, other=0.0), acc_o, input_precision=PRECISION)
    return acc_i, acc_f, acc_g, acc_o


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def biased(acc, bias_ptr, n, n_exists, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n_exists, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def _cell_kernel(
    x_ptr, x2_ptr, weight_ptr, bias_ptr, residual_ptr, c_ptr, new_h_ptr, new_c_ptr, pre_ptr, points, height, width,
    x_b, x_h, x_w, x2_b, x2_h, x2_w, residual_b, residual_h, residual_w, c_b, c_h, c_w,
    X_UNIT: tl.constexpr, X2_UNIT: tl.constexpr, RESIDUAL_UNIT: tl.constexpr, C_UNIT: tl.constexpr,
    INPUTS: tl.constexpr, INPUTS2: tl.constexpr, C: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SLAB: tl.constexpr,
):  # fmt: skip
    TOTAL: tl.constexpr = INPUTS + INPUTS2
    first = tl.program_id(0)
    if WIDE:
        first = first.to(tl.int64)
    p = first * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = p < points
    column = p % width
    row = p // width % height
    image = p // width // height
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_exists = n < C
    acc_i = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_f = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_o = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    at = (image * x_b + row * x_h + column * x_w) * X_UNIT
    acc_i, acc_f, acc_g, acc_o = add_source(
        acc_i, acc_f, acc_g, acc_o, x_ptr, weight_ptr, at, row, column, valid, height, width, x_h * X_UNIT,
        x_w * X_UNIT, n, n_exists, 0, INPUTS, TOTAL, C, SLAB, PRECISION,
    )  # fmt: skip
    if INPUTS2 > 0:
        at = (image * x2_b + row * x2_h + column * x2_w) * X2_UNIT
        acc_i, acc_f, acc_g, acc_o = add_source(
            acc_i, acc_f, acc_g, acc_o, x2_ptr, weight_ptr, at, row, column, valid, height, width, x2_h * X2_UNIT,
            x2_w * X2_UNIT, n, n_exists, INPUTS, INPUTS2, TOTAL, C, SLAB, PRECISION,
        )  # fmt: skip
    acc_i = biased(acc_i, bias_ptr, n, n_exists, HAS_BIAS)
    acc_f = biased(acc_f, bias_ptr, n + C, n_exists, HAS_BIAS)
    acc_g = biased(acc_g, bias_ptr, n + 2 * C, n_exists, HAS_BIAS)
    acc_o = biased(acc_o, bias_ptr, n + 3 * C, n_exists, HAS_BIAS)
    exists = valid[:, None] & n_exists[None, :]
    if HAS_RESIDUAL:
        at = (image * residual_b + row * residual_h + column * residual_w) * RESIDUAL_UNIT
        from_ptr = residual_ptr + at[:, None] + n[None, :]
        acc_i += tl.load(from_ptr, mask=exists, other=0.0).to(tl.float32)
        acc_f += tl.load(from_ptr + C, mask=exists, other=0.0).to(tl.float32)
        acc_g += tl.load(from_ptr + 2 * C, mask=exists, other=0.0).to(tl.float32)
        acc_o += tl.load(from_ptr + 3 * C, mask=exists, other=0.0).to(tl.float32)
    if KEEP:
        to = pre_ptr + p[:, None] * (4 * C) + n[None, :]
        tl.store(to, acc_i.to(pre_ptr.dtype.element_ty), mask=exists)
        tl.store(to + C, acc_f.to(pre_ptr.dtype.element_ty), mask=exists)
        tl.store(to + 2 * C, acc_g.to(pre_ptr.dtype.element_ty), mask=exists)
        tl.store(to + 3 * C, acc_o.to(pre_ptr.dtype.element_ty), mask=exists)
    at = (image * c_b + row * c_h + column * c_w) * C_UNIT
    state = tl.load(c_ptr + at[:, None] + n[None, :], mask=exists, other=0.0).to(tl.float32)
    state = tl.sigmoid(acc_f) * state + tl.sigmoid(acc_i) * tanh(acc_g)
    to = p[:, None] * C + n[None, :]
    tl.store(new_c_ptr + to, state.to(new_c_ptr.dtype.element_ty), mask=exists)
    tl.store(new_h_ptr + to, (tl.sigmoid(acc_o) * tanh(state)).to(new_h_ptr.dtype.element_ty), mask=exists)


class Tiles(NamedTuple):
    """Sizes of one program: pixels, channels of the state, channels of a slab; powers of two >= 16."""

    pixels: int
    channels: int
    slab: int
    warps: int
    stages: int


def tiles_of(points: int, inputs: int, channels: int, dtype: torch.dtype) -> Tiles:
    """Tiles from the number of pixels, the wider source, the state and the dtype: nothing is timed at run time.

    Few pixels take small tiles to keep the multiprocessors busy; bench/gpu_rows/conv_lstm_cell.py times the neighbours.
    """
    pixels = 128 if points >= 128 * 256 else 64
    single = dtype == torch.float32
    slab = min(max(power_of_two(inputs), 16), 32 if single else 64)
    return Tiles(pixels, 16 if channels <= 16 or single else 32, slab, 8 if pixels == 128 else 4, 2)


def launch(x, x2, weight, bias, residual, c, new_h, new_c, pre, *, wide=None, tiles=None):
    """One step; writes new_h, new_c and, unless None, pre completely.

    Args:
        x, x2: (B, C1, H, W), (B, C2, H, W) or None: what is convolved; c: (B, C, H, W) in its own dtype. Channel stride
            1 in every map.
        weight: (4C, C1 + C2, 3, 3) in channels_last memory, dtype of x, outputs in the order i, f, g, o. bias: (4C,) or
            None. residual: (B, 4C, H, W), added to the convolution, or None.
        new_h, new_c: (B, C, H, W), pre: (B, 4C, H, W) before the gates' functions, or None; dense channels_last.
        wide: 64-bit addresses; None: where a tensor needs them. tiles: None: tiles_of.
    """
    if new_h.numel() == 0:
        return
    batch, channels, height, width = c.shape
    inputs = [0 if t is None else t.shape[1] for t in (x, x2)]
    points = batch * height * width
    tiles = tiles or tiles_of(points, max(inputs), channels, x.dtype)
    maps = (x, x2, residual, c)
    units = [1 if t is None else unit_of(t) for t in maps]
    steps = [s for t, unit in zip(maps, units, strict=True) for s in strides(t, unit)]
    grid = (triton.cdiv(points, tiles.pixels), triton.cdiv(channels, tiles.channels))
    with on_device(x):
        _cell_kernel[grid](
            x, x2, weight, bias, residual, c, new_h, new_c, pre, points, height, width, *steps, X_UNIT=units[0],
            X2_UNIT=units[1], RESIDUAL_UNIT=units[2], C_UNIT=units[3], INPUTS=inputs[0], INPUTS2=inputs[1],
            C=channels, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, KEEP=pre is not None,
            PRECISION=precision(x.dtype), WIDE=is_wide(*maps, new_h, pre) if wide is None else wide,
            BLOCK_M=tiles.pixels, BLOCK_N=tiles.channels, SLAB=tiles.slab, num_warps=tiles.warps,
            num_stages=tiles.stages,
        )  # fmt: skip
