# SPDX-License-Identifier: Apache-2.0
"""Triton kernel for steps of recurrent cells: an implicit GEMM on tensor cores with the gates of the cell as epilogue.

One program computes all gates of BLOCK_M pixels x BLOCK_N channels of the state. The products of all gates share the
tiles of the sources, so that the formula of the cell is computed in registers. Pre-activations are written only if a
gradient needs them. In memory, the weight has the order (gates C, 3, 3, inputs). The convolution sums over two sources,
x and x2; masks pad the channels of each source to whole slabs. The products limit the speed: 18 gates (C1 + C2) C
operations for each pixel. Formulas have the names of csrc/gates and differ only in the last lines of the kernel.

All feature maps have channel stride 1. Accumulators and gates are float32. tanh(x) is computed as 2 sigmoid(2x) - 1.
Results are deterministic.
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
from .implicit_gemm import add_source, index_program_pixels, load_map
from .launch_plans import launch_kernel, planned


@triton.jit
def tanh(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def complete_gate(
    acc, gate: tl.constexpr, bias_ptr, residual_ptr, pre_ptr, p, image, row, column, residual_b, residual_h, residual_w,
    n, n_exists, exists, UNIT: tl.constexpr, C: tl.constexpr, GATES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Return the pre-activation of a gate, the sum of its products, bias and residual. If KEEP is true, store it."""
    if HAS_BIAS:
        acc += tl.load(bias_ptr + gate * C + n, mask=n_exists, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
        from_ptr = residual_ptr + gate * C
        acc += load_map(from_ptr, image, row, column, residual_b, residual_h, residual_w, n, exists, UNIT)
    if KEEP:
        to = pre_ptr + p[:, None] * (GATES * C) + gate * C + n[None, :]
        tl.store(to, acc.to(pre_ptr.dtype.element_ty), mask=exists)
    return acc


@triton.jit
def _cell_kernel(
    x_ptr, x2_ptr, weight_ptr, bias_ptr, residual_ptr, first_ptr, second_ptr, result_ptr, result2_ptr, pre_ptr, points,
    height, width, slope, x_b, x_h, x_w, x2_b, x2_h, x2_w, residual_b, residual_h, residual_w, first_b, first_h,
    first_w, second_b, second_h, second_w, X_UNIT: tl.constexpr, X2_UNIT: tl.constexpr, RESIDUAL_UNIT: tl.constexpr,
    FIRST_UNIT: tl.constexpr, SECOND_UNIT: tl.constexpr, INPUTS: tl.constexpr, INPUTS2: tl.constexpr, C: tl.constexpr,
    GATES: tl.constexpr, FORMULA: tl.constexpr, OPTION: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr, USE_INT64: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SLAB: tl.constexpr,
):  # fmt: skip
    TOTAL: tl.constexpr = INPUTS + INPUTS2
    p, valid, image, row, column = index_program_pixels(points, height, width, USE_INT64, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_exists = n < C
    acc_0 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_1 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_2 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_3 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    at = (image * x_b + row * x_h + column * x_w) * X_UNIT
    acc_0, acc_1, acc_2, acc_3 = add_source(
        acc_0, acc_1, acc_2, acc_3, x_ptr, weight_ptr, at, row, column, valid, height, width, x_h * X_UNIT,
        x_w * X_UNIT, n, n_exists, 0, INPUTS, TOTAL, C, GATES, SLAB, PRECISION, 3, "zeros",
    )  # fmt: skip
    if INPUTS2 > 0:
        at = (image * x2_b + row * x2_h + column * x2_w) * X2_UNIT
        acc_0, acc_1, acc_2, acc_3 = add_source(
            acc_0, acc_1, acc_2, acc_3, x2_ptr, weight_ptr, at, row, column, valid, height, width, x2_h * X2_UNIT,
            x2_w * X2_UNIT, n, n_exists, INPUTS, INPUTS2, TOTAL, C, GATES, SLAB, PRECISION, 3, "zeros",
        )  # fmt: skip
    exists = valid[:, None] & n_exists[None, :]
    acc_0 = complete_gate(
        acc_0, 0, bias_ptr, residual_ptr, pre_ptr, p, image, row, column, residual_b, residual_h, residual_w, n,
        n_exists, exists, RESIDUAL_UNIT, C, GATES, HAS_BIAS, HAS_RESIDUAL, KEEP,
    )  # fmt: skip
    if GATES > 1:
        acc_1 = complete_gate(
            acc_1, 1, bias_ptr, residual_ptr, pre_ptr, p, image, row, column, residual_b, residual_h, residual_w, n,
            n_exists, exists, RESIDUAL_UNIT, C, GATES, HAS_BIAS, HAS_RESIDUAL, KEEP,
        )  # fmt: skip
    if GATES > 2:
        acc_2 = complete_gate(
            acc_2, 2, bias_ptr, residual_ptr, pre_ptr, p, image, row, column, residual_b, residual_h, residual_w, n,
            n_exists, exists, RESIDUAL_UNIT, C, GATES, HAS_BIAS, HAS_RESIDUAL, KEEP,
        )  # fmt: skip
    if GATES > 3:
        acc_3 = complete_gate(
            acc_3, 3, bias_ptr, residual_ptr, pre_ptr, p, image, row, column, residual_b, residual_h, residual_w, n,
            n_exists, exists, RESIDUAL_UNIT, C, GATES, HAS_BIAS, HAS_RESIDUAL, KEEP,
        )  # fmt: skip
    to = p[:, None] * C + n[None, :]
    first = load_map(first_ptr, image, row, column, first_b, first_h, first_w, n, exists, FIRST_UNIT)
    if FORMULA == "lstm_gates":  # i f g o, c -> h', c'
        state = tl.sigmoid(acc_1) * first + tl.sigmoid(acc_0) * tanh(acc_2)
        result = tl.sigmoid(acc_3) * tanh(state)
        tl.store(result2_ptr + to, state.to(result2_ptr.dtype.element_ty), mask=exists)
    elif FORMULA == "st_lstm_gates":  # i f g q, c -> c', q
        result = tl.sigmoid(acc_1) * first + tl.sigmoid(acc_0) * tanh(acc_2)
        tl.store(result2_ptr + to, acc_3.to(result2_ptr.dtype.element_ty), mask=exists)
    elif FORMULA == "memory_gates" or FORMULA == "memory_gates_tanh":  # i f g, c -> c'
        state = first if FORMULA == "memory_gates" else tanh(first)
        result = tl.sigmoid(acc_1) * state + tl.sigmoid(acc_0) * tanh(acc_2)
    elif FORMULA == "output_gate" or FORMULA == "output_gate_tanh":  # o, value -> h'
        gate = tl.sigmoid(acc_0) if FORMULA == "output_gate" else tanh(acc_0)
        result = gate * tanh(first)
    elif FORMULA == "gru_reset":  # z r, h -> z, r h
        result = tl.sigmoid(acc_0)
        tl.store(result2_ptr + to, (tl.sigmoid(acc_1) * first).to(result2_ptr.dtype.element_ty), mask=exists)
    else:  # n, z and h -> h'
        h = load_map(second_ptr, image, row, column, second_b, second_h, second_w, n, exists, SECOND_UNIT)
        new = tanh(acc_0) if FORMULA == "gru_update" else tl.where(acc_0 > 0, acc_0, slope * acc_0)
        keep = first if OPTION else 1.0 - first
        result = keep * h + (1.0 - keep) * new
    tl.store(result_ptr + to, result.to(result_ptr.dtype.element_ty), mask=exists)


GATES = {
    "lstm_gates": 4, "st_lstm_gates": 4, "memory_gates": 3, "memory_gates_tanh": 3, "output_gate": 1,
    "output_gate_tanh": 1, "gru_reset": 2, "gru_update": 1, "gru_update_leaky": 1,
}  # fmt: skip


def select_tiles(points: int, inputs: int, channels: int, gates: int, dtype: torch.dtype) -> Tiles:
    """Select tiles from the shape, so that nothing is timed at run time.

    Few pixels use small tiles, so that all multiprocessors have work. bench/gpu_rows/conv_lstm_cell.py times other
    tiles.

    Args:
        points: number of pixels.
        inputs: number of channels of x or x2, whichever has more.
        channels: channels of the state.
        gates: number of gates.
        dtype: dtype of the sources.
    """
    pixels = 128 if points >= 128 * 256 else 64
    single = dtype == torch.float32
    slab = min(max(next_power_of_two(inputs), 16), 32 if single else 64)
    most = (32 if gates > 2 else 64) // (2 if single else 1)  # the accumulators of all gates fit in registers
    return Tiles(pixels, min(max(next_power_of_two(channels), 16), most), slab, 8 if pixels == 128 else 4, 3)


def launch(formula, option, slope, convolution, others, results, pre, *, use_int64=None, tiles=None):
    """Compute one step of a cell and write its results.

    Args:
        formula: str, a key of GATES.
        option: number, used by gru_update and gru_update_leaky. The weight of h is z if it is not 0, otherwise 1 - z.
        slope: number, used by gru_update_leaky: slope of the leaky ReLU.
        convolution: (x, x2 or None, weight, bias or None, residual or None) with x (B, C1, H, W), x2 (B, C2, H, W),
            weight (gates C, C1 + C2, 3, 3) in channels_last memory and the dtype of x, bias (gates C,), residual (B,
            gates C, H, W). x, x2 and residual have channel stride 1.
        others: other inputs of the formula, (B, C, H, W), each of any dtype, with channel stride 1.
        results: outputs of the formula, (B, C, H, W), dense channels_last.
        pre: output for the pre-activations, (B, gates C, H, W), dense channels_last, or None.
        use_int64: bool, use 64-bit addresses. None: if a tensor needs them.
        tiles: Tiles. None: select_tiles.
    """
    first, second = (*others, None)[:2]
    result, result2 = (*results, None)[:2]
    tensors = (*convolution, first, second, result, result2, pre)
    _launch(*tensors, formula, bool(option), slope, use_int64=use_int64, tiles=tiles)


@planned
def _launch(
    x, x2, weight, bias, residual, first, second, result, result2, pre, formula, option, slope, *, use_int64, tiles
) -> None:
    """Compute one step of a cell, see launch. first and second are the other inputs of the formula."""
    if result.numel() == 0:
        return
    batch, channels, height, width = first.shape
    inputs = [0 if t is None else t.shape[1] for t in (x, x2)]
    points = batch * height * width
    tiles = tiles or select_tiles(points, max(inputs), channels, GATES[formula], x.dtype)
    maps = (x, x2, residual, first, second)
    units = [1 if t is None else get_stride_unit(t) for t in maps]
    steps = [s for t, unit in zip(maps, units, strict=True) for s in get_strides(t, unit)]
    grid = (ceil_div(points, tiles.pixels), ceil_div(channels, tiles.outputs))
    with on_device(x):
        launch_kernel(
            _cell_kernel, grid,
            x, x2, weight, bias, residual, first, second, result, result2, pre, points, height, width, slope, *steps,
            X_UNIT=units[0], X2_UNIT=units[1], RESIDUAL_UNIT=units[2], FIRST_UNIT=units[3], SECOND_UNIT=units[4],
            INPUTS=inputs[0], INPUTS2=inputs[1], C=channels, GATES=GATES[formula], FORMULA=formula,
            OPTION=option, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, KEEP=pre is not None,
            PRECISION=get_dot_precision(x.dtype), USE_INT64=needs_int64(*maps, result,
            pre) if use_int64 is None else use_int64,
            BLOCK_M=tiles.pixels, BLOCK_N=tiles.outputs, SLAB=tiles.slab, num_warps=tiles.warps,
            num_stages=tiles.stages,
        )  # fmt: skip
