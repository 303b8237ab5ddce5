# SPDX-License-Identifier: Apache-2.0
"""The LSTM's and the GRU's pointwise pass: ours in CUDA C++ against eager torch and torch.compile; bound by memory."""

import functools

import torch

from bench.gpu_rows import Problem, Row, compiled, exact
from fastds.ops import gru_update, lstm_gates


def lstm_formula(pre, c):
    i, f, g, o = pre.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_formula(z, pre_n, h):
    return z * h + (1 - z) * torch.tanh(pre_n)


# ours, the formula in torch, channels of each input, elements that forward and backward read or write, per C
PASSES = {
    "lstm_gates": (lstm_gates, lstm_formula, (4, 1), 7, 12),
    "gru_update": (gru_update, gru_formula, (1, 1, 1), 4, 7),
}


def inputs(parts, batch, channels, *size):
    return [exact(batch, n * channels, *size, seed=9 + i) for i, n in enumerate(parts)]


def rows(small: bool) -> list[Row]:
    shape = (1, 8, 6, 6) if small else (8, 64, 160, 160)
    maps, found = shape[0] * shape[1] * shape[2] * shape[3], []
    for name, (function, formula, parts, *moved) in PASSES.items():
        peers = [("fastds" if small else "fastds cuda", function), ("torch eager", formula)]
        peers += [] if small else [("torch.compile", compiled(formula))]
        problem = Problem(
            name, "x".join(map(str, shape)), functools.partial(inputs, parts, *shape), formula, peers,
            10 * len(parts) * maps, (moved[0] * maps, moved[1] * maps),
        )  # fmt: skip
        found += problem.rows([(torch.bfloat16, 2e-2, 0.1)])
    return found
