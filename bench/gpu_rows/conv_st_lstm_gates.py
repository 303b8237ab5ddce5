# SPDX-License-Identifier: Apache-2.0
"""The stages of an ST-LSTM: ours in Triton, as cuDNN and our pass, and eager torch, in channels_last."""

import functools

import torch
import torch.nn.functional as F

from bench.gpu_rows import Problem, Row, exact
from bench.gpu_rows.conv_lstm_cell import BOTH, SHAPES
from fastds.ops import conv_memory_gates, conv_output_gate, conv_st_lstm_gates


def convolution(x, x2, weight, bias):
    return F.conv2d(torch.cat([x, x2], 1), weight, bias, padding=1)


def st_lstm(x, h, c, weight, bias):
    i, f, g, q = convolution(x, h, weight, bias).chunk(4, 1)
    return f.sigmoid() * c + i.sigmoid() * g.tanh(), q


def memory(x, m, c, weight, bias):
    i, f, g = convolution(x, m, weight, bias).chunk(3, 1)
    return f.sigmoid() * c + i.sigmoid() * g.tanh()


def output(c, m, value, weight, bias):
    return convolution(c, m, weight, bias).sigmoid() * value.tanh()


# ours, the formula in torch, gates, maps that forward and backward read or write
STAGES = {
    "conv_st_lstm_gates": (conv_st_lstm_gates, st_lstm, 4, 5, 14),
    "conv_memory_gates": (conv_memory_gates, memory, 3, 4, 11),
    "conv_output_gate": (conv_output_gate, output, 1, 4, 8),
}


def inputs(gates, batch, channels, height, width):
    maps = [exact(batch, channels, height, width, seed=i) for i in range(3)]
    weight = exact(gates * channels, 2 * channels, 3, 3, seed=4, scale=(18 * channels) ** -0.5)
    return [*maps, weight, exact(gates * channels, seed=5)]


def rows(small: bool) -> list[Row]:
    found = []
    for name, (function, formula, gates, *moved) in STAGES.items():
        ours = ("fastds",) if small else ("fastds triton", "fastds cuda")
        peers = [*((peer, function) for peer in ours), ("torch eager", formula)]
        for shape in [(1, 8, 6, 6)] if small else SHAPES[:2]:
            maps = shape[0] * shape[1] * shape[2] * shape[3]
            problem = Problem(
                name, "x".join(map(str, shape)), functools.partial(inputs, gates, *shape), formula, peers,
                2 * 9 * 2 * shape[1] * gates * maps, (moved[0] * maps, moved[1] * maps), wide=(2,),
            )  # fmt: skip
            found += problem.rows(BOTH[1:] if small else BOTH)
    return found
