# SPDX-License-Identifier: Apache-2.0
"""window_attention2d, window 30 on 24 channels: ours in Triton against unfolding and a loop over rows on views."""

import functools
from dataclasses import replace

import torch

from bench.bench_window_attention2d import WINDOW, unfold, view_loop
from bench.gpu_rows import Problem, Row, compiled, exact
from fastds.ops import window_attention2d

BRAIN, FULL = torch.bfloat16, torch.float32
BOTH = [(BRAIN, 3e-2, 0.2), (FULL, 1e-3, 1e-2)]
SHAPES = [(1, 24, 80, 80), (4, 24, 160, 160)]
# Tiles to try beside that of kernels/window_attention2d.py, named in the row: side, block, warps, stages.
TILES = [(8, 64, 4, 1), (8, 64, 4, 3), (8, 32, 4, 2), (8, 128, 4, 2), (16, 64, 8, 2)]


def inputs(*shape):
    return [exact(*shape, seed=i, scale=scale) for i, scale in enumerate((0.7, 0.7, 1.0))]


def ours(q, k, v):
    return window_attention2d(q, k, v, window=WINDOW)


def with_tiles(tiles, q, k, v):
    from fastds.kernels.window_attention2d import Tiles, launch_forward

    y, lse = torch.empty_like(v), torch.empty((q.shape[0], *q.shape[2:]), device=q.device)
    launch_forward(q, k, v, y, lse, WINDOW, tiles=Tiles(*tiles))
    return y


def problem(shape, peers):
    maps = shape[0] * shape[1] * shape[2] * shape[3]
    return Problem(
        "window_attention2d", "x".join(map(str, shape)), functools.partial(inputs, *shape), view_loop, peers,
        4 * WINDOW**2 * maps, (4 * maps, 8 * maps), backward=2.5,
    )  # fmt: skip


def rows(small: bool) -> list[Row]:
    if small:
        return problem((1, 8, 6, 7), [("fastds", ours), ("view loop", view_loop)]).rows(BOTH[1:])
    found = []
    for shape in SHAPES:
        found += problem(shape, [("fastds triton", ours), ("view loop", view_loop)]).rows(BOTH)
    first = SHAPES[0]
    found += problem(first, [("unfold", unfold)]).rows(BOTH[1:])
    tried = [(f"fastds {t}", functools.partial(with_tiles, t)) for t in TILES]
    found += replace(problem(first, tried), op="window_attention2d tiles", modes=("forward",)).rows(BOTH[:1])
    last = replace(problem(first, [("torch.compile", compiled(view_loop))]), modes=("forward",))
    return [*found, *last.rows(BOTH[:1])]
