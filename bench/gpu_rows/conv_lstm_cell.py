# SPDX-License-Identifier: Apache-2.0
"""A ConvLSTM step: ours in Triton, as cuDNN and our pass, eager torch and torch.compile in channels_last."""

import functools
from dataclasses import replace

import torch
import torch.nn.functional as F

from bench.gpu_rows import Problem, Row, compiled, exact
from bench.gpu_rows.gates import lstm_formula
from fastds.ops import conv_lstm_cell

BRAIN, FULL = torch.bfloat16, torch.float32
BOTH = [(BRAIN, 3e-2, 0.1), (FULL, 1e-2, 1e-2)]  # float32 convolutions of cuDNN are tf32
SHAPES = [(4, 24, 160, 160), (4, 24, 40, 40), (8, 64, 64, 64)]  # B, C1 = C, H, W
# Tiles to try beside that of kernels/conv_cells.py, named in the row: pixels, channels, slab, warps, stages.
TILES = [(128, 32, 32, 8, 2), (128, 32, 32, 8, 4), (128, 32, 32, 4, 3), (128, 32, 32, 4, 4), (128, 16, 32, 4, 3)]


def composition(x, h, c, weight, bias):
    pre = F.conv2d(torch.cat([x, h], 1), weight, bias, padding=1)
    return lstm_formula(pre, c)


def inputs(batch, channels, height, width):
    maps = [exact(batch, channels, height, width, seed=i) for i in range(3)]
    weight = exact(4 * channels, 2 * channels, 3, 3, seed=4, scale=(18 * channels) ** -0.5)
    return [*maps, weight, exact(4 * channels, seed=5)]


def with_tiles(tiles, x, h, c, weight, bias):
    from fastds.kernels.conv_cells import Tiles, launch

    new_h, new_c = torch.empty_like(h), torch.empty_like(c)
    launch("lstm_gates", 0.0, 0.0, (x, h, weight, bias, None), [c], [new_h, new_c], None, tiles=Tiles(*tiles))
    return new_h, new_c


def problem(shape, peers):
    batch, channels, height, width = shape
    maps = batch * channels * height * width
    return Problem(
        "conv_lstm_cell", "x".join(map(str, shape)), functools.partial(inputs, *shape), composition, peers,
        2 * 9 * 2 * channels * 4 * maps, (7 * maps, 16 * maps), wide=(2,),
    )  # fmt: skip


def rows(small: bool) -> list[Row]:
    if small:
        return problem((1, 8, 6, 6), [("fastds", conv_lstm_cell), ("torch eager", composition)]).rows(BOTH[1:])
    ours = [("fastds triton", conv_lstm_cell), ("fastds cuda", conv_lstm_cell)]
    found = []
    for shape in SHAPES:
        found += problem(shape, [*ours, ("torch eager", composition)]).rows(BOTH)
    tried = [(f"fastds {t}", functools.partial(with_tiles, t)) for t in TILES]
    tiles = replace(problem(SHAPES[0], tried), op="conv_lstm_cell tiles", modes=("forward",)).rows(BOTH[:1])
    last = problem(SHAPES[0], [("torch.compile", compiled(composition))]).rows(BOTH[:1])
    return [*found[:6], *tiles, *found[6:], *last]
