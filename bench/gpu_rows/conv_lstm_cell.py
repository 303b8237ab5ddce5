# SPDX-License-Identifier: Apache-2.0
"""A ConvLSTM step in channels_last, by the kernels of fastds, cuDNN, eager torch, and torch.compile.

The kernels are those of Triton and of CUDA C++ ("window"), and the pointwise kernel after cuDNN ("cuda").
"""

import functools
from dataclasses import replace

import torch

from bench.gpu_rows import Problem, Row, compile_lazily, draw_exact
from bench.torch_cells import compute_lstm_cell
from fastds.ops import conv_lstm_cell

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
BOTH = [(BFLOAT16, 3e-2, 0.1), (FLOAT32, 1e-2, 1e-2)]  # cuDNN computes float32 convolutions in TF32
SHAPES = [(4, 24, 160, 160), (4, 24, 40, 40), (8, 64, 64, 64)]  # batch, channels of x and of the state, height, width
# Tile sizes to compare with that of kernels/conv_rnn.py: arguments of fastds.kernels.device.Tiles.
TILES = [(128, 32, 32, 8, 2), (128, 32, 32, 8, 4), (128, 32, 32, 4, 3), (128, 32, 32, 4, 4), (128, 16, 32, 4, 3)]


def make_inputs(batch, channels, height, width):
    states = [draw_exact(batch, channels, height, width, seed=i) for i in range(3)]
    weight = draw_exact(4 * channels, 2 * channels, 3, 3, seed=4, scale=(18 * channels) ** -0.5)
    return [*states, weight, draw_exact(4 * channels, seed=5)]


def run_with_tiles(tiles, x, h, c, weight, bias):
    from fastds.kernels.conv_rnn import Tiles, launch

    new_h, new_c = torch.empty_like(h), torch.empty_like(c)
    launch("lstm_gates", 0.0, 0.0, (x, h, weight, bias, None), [c], [new_h, new_c], None, tiles=Tiles(*tiles))
    return new_h, new_c


def make_problem(shape, peers):
    batch, channels, height, width = shape
    numbers = batch * channels * height * width
    return Problem(
        "conv_lstm_cell", "x".join(map(str, shape)), functools.partial(make_inputs, *shape), compute_lstm_cell, peers,
        2 * 9 * 2 * channels * 4 * numbers, (7 * numbers, 16 * numbers), float32_inputs=(2,),
    )  # fmt: skip


def make_rows(small: bool) -> list[Row]:
    if small:
        peers = [("fastds", conv_lstm_cell), ("torch eager", compute_lstm_cell)]
        return replace(make_problem((1, 8, 6, 6), peers), first=True).make_rows(BOTH[1:])
    ours = [("fastds triton", conv_lstm_cell), ("fastds cuda", conv_lstm_cell)]
    rows = []
    for shape in SHAPES:
        peers = [*ours, ("torch eager", compute_lstm_cell)]
        in_16_bits = make_problem(shape, [("fastds window", conv_lstm_cell), *peers])
        rows += replace(in_16_bits, first=shape == SHAPES[0]).make_rows(BOTH[:1])
        rows += make_problem(shape, peers).make_rows(BOTH[1:])
    tried = [(f"fastds {t}", functools.partial(run_with_tiles, t)) for t in TILES]
    tiles = replace(make_problem(SHAPES[0], tried), op="conv_lstm_cell tiles", modes=("forward",)).make_rows(BOTH[:1])
    last = make_problem(SHAPES[0], [("torch.compile", compile_lazily(compute_lstm_cell))]).make_rows(BOTH[:1])
    return [*rows[:8], *tiles, *rows[8:], *last]
