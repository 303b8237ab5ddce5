# SPDX-License-Identifier: Apache-2.0
"""pixel_shuffle with bias and activation: CUDA C++, eager torch and torch.compile."""

import functools

import torch
import torch.nn.functional as F

from bench.gpu_rows import Problem, Row, compile_lazily, draw_exact
from fastds.ops import pixel_shuffle

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
# Batch, fine channels, coarse height, coarse width, factor.
SHAPES = [(8, 256, 64, 64, 2), (1, 64, 400, 400, 2), (2, 64, 128, 128, 3), (1, 32, 96, 96, 8)]


def compute(r, x, bias):
    return pixel_shuffle(x, r, bias, "leaky_relu")


def compute_in_torch(r, x, bias):
    return F.pixel_shuffle(F.leaky_relu(x + bias[:, None, None], 0.1), r)


def make_inputs(batch, channels, height, width, r):
    return [draw_exact(batch, channels * r * r, height, width, seed=3), draw_exact(channels * r * r, seed=4)]


def make_rows(small: bool) -> list[Row]:
    rows = []
    for shape in [(1, 8, 3, 5, 2)] if small else SHAPES:
        batch, channels, height, width, r = shape
        function, formula = functools.partial(compute, r), functools.partial(compute_in_torch, r)
        peers = [("fastds" if small else "fastds cuda", function), ("torch eager", formula)]
        peers += [] if small else [("torch.compile", compile_lazily(formula))]
        numbers = batch * channels * r * r * height * width
        # Backward reads the gradient and y and writes the gradient of x.
        problem = Problem(
            "pixel_shuffle", f"({batch},{channels}*{r * r},{height},{width}) x{r}",
            functools.partial(make_inputs, *shape), formula, peers, 0, (2 * numbers, 3 * numbers),
        )  # fmt: skip
        rows += problem.make_rows([(BFLOAT16, 2e-2, 0.1), (FLOAT32, 1e-4, 1e-4)])
    return rows
