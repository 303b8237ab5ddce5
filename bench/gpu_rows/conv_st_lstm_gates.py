# SPDX-License-Identifier: Apache-2.0
"""The stages of an ST-LSTM in channels_last, by the kernels of fastds as for a ConvLSTM, and eager torch."""

import functools
from dataclasses import replace

import torch
import torch.nn.functional as F

from bench.gpu_rows import Problem, Row, draw_exact
from bench.gpu_rows.conv_lstm_cell import BOTH, SHAPES
from bench.torch_cells import update_memory
from fastds.ops import conv_memory_gates, conv_output_gate, conv_st_lstm_gates


def convolve(x, x2, weight, bias):
    return F.conv2d(torch.cat([x, x2], 1), weight, bias, padding=1)


def compute_st_lstm(x, h, c, weight, bias):
    *gates, q = convolve(x, h, weight, bias).chunk(4, 1)
    return update_memory(c, *gates), q


def compute_memory(x, m, c, weight, bias):
    return update_memory(c, *convolve(x, m, weight, bias).chunk(3, 1))


def compute_output(c, m, value, weight, bias):
    return convolve(c, m, weight, bias).sigmoid() * value.tanh()


# By op: the op, the formula in PyTorch, gates, and state-sized tensors that forward and backward read or write.
STAGES = {
    "conv_st_lstm_gates": (conv_st_lstm_gates, compute_st_lstm, 4, 5, 14),
    "conv_memory_gates": (conv_memory_gates, compute_memory, 3, 4, 11),
    "conv_output_gate": (conv_output_gate, compute_output, 1, 4, 8),
}


def make_inputs(gates, batch, channels, height, width):
    states = [draw_exact(batch, channels, height, width, seed=i) for i in range(3)]
    weight = draw_exact(gates * channels, 2 * channels, 3, 3, seed=4, scale=(18 * channels) ** -0.5)
    return [*states, weight, draw_exact(gates * channels, seed=5)]


def make_rows(small: bool) -> list[Row]:
    rows = []
    for name, (function, formula, gates, *traffic) in STAGES.items():
        ours = ("fastds",) if small else ("fastds triton", "fastds cuda")
        peers = [*((peer, function) for peer in ours), ("torch eager", formula)]
        for shape in [(1, 8, 6, 6)] if small else SHAPES[:2]:
            numbers = shape[0] * shape[1] * shape[2] * shape[3]
            problem = Problem(
                name, "x".join(map(str, shape)), functools.partial(make_inputs, gates, *shape), formula, peers,
                2 * 9 * 2 * shape[1] * gates * numbers, (traffic[0] * numbers, traffic[1] * numbers),
                float32_inputs=(2,), first=small,
            )  # fmt: skip
            if small:
                rows += problem.make_rows(BOTH[1:])
                continue
            of_cell = name == "conv_st_lstm_gates" and shape == SHAPES[0]
            in_16_bits = replace(problem, peers=[("fastds window", function), *peers], first=of_cell)
            rows += in_16_bits.make_rows(BOTH[:1]) + problem.make_rows(BOTH[1:])
    return rows
