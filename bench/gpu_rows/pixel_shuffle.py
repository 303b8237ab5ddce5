# SPDX-License-Identifier: Apache-2.0
"""pixel_shuffle with bias and activation: ours in CUDA C++ against eager torch and torch.compile; bound by memory."""

import functools

import torch
import torch.nn.functional as F

from bench.gpu_rows import Problem, Row, compiled, exact
from fastds.ops import pixel_shuffle

BRAIN, FULL = torch.bfloat16, torch.float32
SHAPES = [(8, 256, 64, 64, 2), (1, 64, 400, 400, 2), (2, 64, 128, 128, 3), (1, 32, 96, 96, 8)]  # B, C, H, W coarse, r


def ours(r, x, bias):
    return pixel_shuffle(x, r, bias, "leaky_relu")


def composition(r, x, bias):
    return F.pixel_shuffle(F.leaky_relu(x + bias[:, None, None], 0.1), r)


def inputs(batch, channels, height, width, r):
    return [exact(batch, channels * r * r, height, width, seed=3), exact(channels * r * r, seed=4)]


def rows(small: bool) -> list[Row]:
    found = []
    for shape in [(1, 8, 3, 5, 2)] if small else SHAPES:
        batch, channels, height, width, r = shape
        own, formula = functools.partial(ours, r), functools.partial(composition, r)
        peers = [("fastds" if small else "fastds cuda", own), ("torch eager", formula)]
        peers += [] if small else [("torch.compile", compiled(formula))]
        maps = batch * channels * r * r * height * width
        # Backward reads the gradient and y and writes the gradient of x.
        problem = Problem(
            "pixel_shuffle", f"({batch},{channels}*{r * r},{height},{width}) x{r}", functools.partial(inputs, *shape),
            formula, peers, 0, (2 * maps, 3 * maps),
        )  # fmt: skip
        found += problem.rows([(BRAIN, 2e-2, 0.1), (FULL, 1e-4, 1e-4)])
    return found
