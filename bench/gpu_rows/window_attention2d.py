# SPDX-License-Identifier: Apache-2.0
"""window_attention2d with window 30 on 24 channels: Triton, unfolding, and a loop over window rows on views."""

import functools
from dataclasses import replace

import torch

from bench.bench_window_attention2d import WINDOW, attend_by_unfolding, attend_by_views
from bench.gpu_rows import Problem, Row, compile_lazily, draw_exact
from fastds.ops import window_attention2d

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
BOTH = [(BFLOAT16, 3e-2, 0.2), (FLOAT32, 1e-3, 1e-2)]
SHAPES = [(1, 24, 80, 80), (4, 24, 160, 160)]
# Tile sizes to compare with that of kernels/window_attention2d.py: arguments of Tiles in that file.
TILES = [(8, 64, 4, 1), (8, 64, 4, 3), (8, 32, 4, 2), (8, 128, 4, 2), (16, 64, 8, 2)]


def make_inputs(*shape):
    return [draw_exact(*shape, seed=i, scale=scale) for i, scale in enumerate((0.7, 0.7, 1.0))]


def compute(q, k, v):
    return window_attention2d(q, k, v, window=WINDOW)


def run_with_tiles(tiles, q, k, v):
    from fastds.kernels.window_attention2d import Tiles, launch_forward

    y, lse = torch.empty_like(v), torch.empty((q.shape[0], *q.shape[2:]), device=q.device)
    launch_forward(q, k, v, y, lse, WINDOW, tiles=Tiles(*tiles))
    return y


def make_problem(shape, peers):
    numbers = shape[0] * shape[1] * shape[2] * shape[3]
    return Problem(
        "window_attention2d", "x".join(map(str, shape)), functools.partial(make_inputs, *shape), attend_by_views, peers,
        4 * WINDOW**2 * numbers, (4 * numbers, 8 * numbers), backward=2.5,
    )  # fmt: skip


def make_rows(small: bool) -> list[Row]:
    if small:
        return make_problem((1, 8, 6, 7), [("fastds", compute), ("view loop", attend_by_views)]).make_rows(BOTH[1:])
    rows = []
    for shape in SHAPES:
        rows += make_problem(shape, [("fastds triton", compute), ("view loop", attend_by_views)]).make_rows(BOTH)
    first = SHAPES[0]
    rows += make_problem(first, [("unfold", attend_by_unfolding)]).make_rows(BOTH[1:])
    tried = [(f"fastds {t}", functools.partial(run_with_tiles, t)) for t in TILES]
    rows += replace(make_problem(first, tried), op="window_attention2d tiles", modes=("forward",)).make_rows(BOTH[:1])
    last = replace(make_problem(first, [("torch.compile", compile_lazily(attend_by_views))]), modes=("forward",))
    return [*rows, *last.make_rows(BOTH[:1])]
