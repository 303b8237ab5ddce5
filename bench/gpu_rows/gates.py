# SPDX-License-Identifier: Apache-2.0
"""Pointwise gates of LSTM and GRU: CUDA C++, eager torch and torch.compile.

The memory bandwidth limits all of them.
"""

import functools

import torch

from bench.gpu_rows import Problem, Row, compile_lazily, draw_exact
from bench.torch_cells import compute_gru, compute_lstm
from fastds.ops import gru_update, lstm_gates

# By name of the op: the op, the formula in PyTorch, the number of channels of each input divided by that of the state,
# and the number of state-sized tensors that the forward pass and the backward pass read or write.
OPS = {
    "lstm_gates": (lstm_gates, compute_lstm, (4, 1), 7, 12),
    "gru_update": (gru_update, compute_gru, (1, 1, 1), 4, 7),
}


def make_inputs(parts, batch, channels, *size):
    return [draw_exact(batch, n * channels, *size, seed=9 + i) for i, n in enumerate(parts)]


def make_rows(small: bool) -> list[Row]:
    shape = (1, 8, 6, 6) if small else (8, 64, 160, 160)
    numbers, rows = shape[0] * shape[1] * shape[2] * shape[3], []
    for name, (function, formula, parts, *traffic) in OPS.items():
        peers = [("fastds" if small else "fastds cuda", function), ("torch eager", formula)]
        peers += [] if small else [("torch.compile", compile_lazily(formula))]
        problem = Problem(
            name, "x".join(map(str, shape)), functools.partial(make_inputs, parts, *shape), formula, peers,
            10 * len(parts) * numbers, (traffic[0] * numbers, traffic[1] * numbers),
            first=True,
        )  # fmt: skip
        rows += problem.make_rows([(torch.bfloat16, 2e-2, 0.1)])
    return rows
