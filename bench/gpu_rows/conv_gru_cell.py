# SPDX-License-Identifier: Apache-2.0
"""A ConvGRU step without gradients: ours in Triton, as cuDNN and our passes, eager torch and torch.compile.

Where a gradient is wanted the step is cuDNN's convolutions and our passes.
"""

import functools

import torch
import torch.nn.functional as F

from bench.gpu_rows import Problem, Row, compiled, exact
from bench.gpu_rows.conv_lstm_cell import BOTH, SHAPES
from fastds.ops import conv_gru_cell


def composition(x, h, gates, gates_bias, candidate, candidate_bias):
    z, r = F.conv2d(torch.cat([x, h], 1), gates, gates_bias, padding=1).sigmoid().chunk(2, 1)
    n = F.conv2d(torch.cat([x, r * h], 1), candidate, candidate_bias, padding=1).tanh()
    return z * h + (1 - z) * n


def inputs(batch, channels, height, width):
    maps, scale = [exact(batch, channels, height, width, seed=i) for i in range(2)], (18 * channels) ** -0.5
    convolutions = [exact(n * channels, 2 * channels, 3, 3, seed=3 + n, scale=scale) for n in (2, 1)]
    biases = [exact(n * channels, seed=6 + n) for n in (2, 1)]
    return [*maps, convolutions[0], biases[0], convolutions[1], biases[1]]


def problem(shape, peers):
    batch, channels, height, width = shape
    maps = batch * channels * height * width
    return Problem(
        "conv_gru_cell", "x".join(map(str, shape)), functools.partial(inputs, *shape), composition, peers,
        2 * 9 * 2 * channels * 3 * maps, (8 * maps, 0), modes=("forward",),
    )  # fmt: skip


def rows(small: bool) -> list[Row]:
    if small:
        return problem((1, 8, 6, 6), [("fastds", conv_gru_cell), ("torch eager", composition)]).rows(BOTH[1:])
    peers = [("fastds triton", conv_gru_cell), ("fastds cuda", conv_gru_cell), ("torch eager", composition)]
    found = [row for shape in SHAPES for row in problem(shape, peers).rows(BOTH)]
    return found + problem(SHAPES[0], [("torch.compile", compiled(composition))]).rows(BOTH[:1])
