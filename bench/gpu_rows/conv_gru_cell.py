# SPDX-License-Identifier: Apache-2.0
"""A ConvGRU step without gradients, by the kernels of fastds as for a ConvLSTM, eager torch and torch.compile.

With gradients a step always consists of the convolutions of cuDNN and pointwise kernels of fastds.
"""

import functools
from dataclasses import replace

from bench.gpu_rows import Problem, Row, compile_lazily, draw_exact
from bench.gpu_rows.conv_lstm_cell import BOTH, SHAPES
from bench.torch_cells import compute_gru_cell
from fastds.ops import conv_gru_cell


def make_inputs(batch, channels, height, width):
    states, scale = [draw_exact(batch, channels, height, width, seed=i) for i in range(2)], (18 * channels) ** -0.5
    convolutions = [draw_exact(n * channels, 2 * channels, 3, 3, seed=3 + n, scale=scale) for n in (2, 1)]
    biases = [draw_exact(n * channels, seed=6 + n) for n in (2, 1)]
    return [*states, convolutions[0], biases[0], convolutions[1], biases[1]]


def make_problem(shape, peers):
    batch, channels, height, width = shape
    numbers = batch * channels * height * width
    return Problem(
        "conv_gru_cell", "x".join(map(str, shape)), functools.partial(make_inputs, *shape), compute_gru_cell, peers,
        2 * 9 * 2 * channels * 3 * numbers, (8 * numbers, 0), modes=("forward",),
    )  # fmt: skip


def make_rows(small: bool) -> list[Row]:
    if small:
        peers = [("fastds", conv_gru_cell), ("torch eager", compute_gru_cell)]
        return replace(make_problem((1, 8, 6, 6), peers), first=True).make_rows(BOTH[1:])
    peers = [("fastds triton", conv_gru_cell), ("fastds cuda", conv_gru_cell), ("torch eager", compute_gru_cell)]
    in_16_bits = make_problem(SHAPES[0], [("fastds window", conv_gru_cell), *peers])
    rows = replace(in_16_bits, first=True).make_rows(BOTH[:1])
    rows += make_problem(SHAPES[0], peers).make_rows(BOTH[1:])
    rows += [row for shape in SHAPES[1:] for row in make_problem(shape, peers).make_rows(BOTH)]
    return rows + make_problem(SHAPES[0], [("torch.compile", compile_lazily(compute_gru_cell))]).make_rows(BOTH[:1])
