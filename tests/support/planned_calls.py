# SPDX-License-Identifier: Apache-2.0
"""Calls of public ops that have plans, with and without gradients."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastds import ops
from fastds.ops.impl.inr_query.points import GridSpec, from_index

C = 8  # channels of most feature maps


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers; feature maps are channels_last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last) if len(shape) == 4 else x


def list_calls() -> dict[str, tuple[Callable, tuple[Tensor, ...]]]:
    """Return functions of float32 tensors and their arguments, by name."""
    x, h, c, bias, three = draw(1, C, 6, 5), draw(1, C, 6, 5), draw(1, C, 6, 5), draw(C), draw(C, C, 3, 3)
    large = draw(1, C, 24, 20)
    grid, points = GridSpec.cells((6, 5), (9, 7)), from_index(draw(11, 2).abs(), (6, 5))
    attention = {"heads": 2, "dk": 2}
    return {
        "conv3x3 by torch": (
            lambda x, w, b, r: ops.conv3x3(x, w, b, residual=r, activation="relu"),
            (x, three, bias, h),
        ),
        "conv3x3": (lambda x, w: ops.conv3x3(x, w, algorithm="winograd", activation="relu"), (large, three)),
        "conv1x1": (lambda x, w, b, h: ops.conv1x1(x, w, b, second_input=h), (x, draw(C, 2 * C, 1, 1), bias, h)),
        "conv2d": (lambda x, w, b: ops.conv2d(x, w, b), (x, draw(C, C, 5, 5), bias)),
        "deform_conv2d": (
            lambda x, o, w, m: ops.deform_conv2d(x, o, w, padding=1, mask=m),
            (x, draw(1, 18, 6, 5), three, draw(1, 9, 6, 5)),
        ),
        "lstm_gates": (ops.lstm_gates, (draw(1, 4 * C, 6, 5), c)),
        "gru_update": (ops.gru_update, (x, h, c)),
        "conv_lstm_cell": (ops.conv_lstm_cell, (x, h, c, draw(4 * C, 2 * C, 3, 3), draw(4 * C))),
        "conv_gru_cell": (
            lambda *t: ops.conv_gru_cell(*t, keep="1-z"),
            (x, h, draw(2 * C, 2 * C, 3, 3), draw(2 * C), draw(C, 2 * C, 3, 3), bias),
        ),
        "inr_query of a grid": (
            lambda x, r, b, w, u: ops.inr_query(x, grid, [(w, u)], rho_w=r, bias=b, **attention),
            (draw(1, C + 8, 6, 5), draw(C, 2), bias, draw(3, C), draw(3)),
        ),
        "inr_query of points": (
            lambda x, r, w, u, skip: ops.inr_query(x, points, [(w, u)], ensemble="late", rho_w=r, skip=skip),
            (x, draw(C, 2), draw(3, C), draw(3), draw(1, 3, 6, 5)),
        ),
        "pixel_shuffle": (lambda x, b: ops.pixel_shuffle(x, 2, bias=b), (x, draw(C))),
        "null_op": (lambda x, y: ops.null_op(x, y, 2.0), (x, h)),
    }  # fmt: skip


def list_further_calls() -> dict[str, tuple[Callable, tuple[Tensor, ...]]]:
    """Return calls of the ops that list_calls lacks."""
    x, h, c, bias = draw(1, C, 6, 5), draw(1, C, 6, 5), draw(1, C, 6, 5), draw(C)
    return {
        "st_lstm_gates": (ops.st_lstm_gates, (draw(1, 4 * C, 6, 5), c)),
        "memory_gates": (ops.memory_gates, (draw(1, 3 * C, 6, 5), c)),
        "output_gate": (ops.output_gate, (x, c)),
        "gru_reset": (ops.gru_reset, (x, h, c)),
        "traj_gru_gates": (ops.traj_gru_gates, (draw(1, 3 * C, 6, 5), draw(1, 3 * C, 6, 5, seed=1), c)),
        "conv_st_lstm_gates": (ops.conv_st_lstm_gates, (x, h, c, draw(4 * C, 2 * C, 3, 3), draw(4 * C))),
        "conv_memory_gates": (ops.conv_memory_gates, (x, h, c, draw(3 * C, 2 * C, 3, 3), draw(3 * C))),
        "conv_output_gate": (ops.conv_output_gate, (x, h, c, draw(C, 2 * C, 3, 3), bias)),
        "pixel_unshuffle": (lambda x: ops.pixel_unshuffle(x, 2), (draw(1, C, 6, 4),)),
        "window_attention2d": (lambda q, k, v: ops.window_attention2d(q, k, v, window=3), (x, h, c)),
    }
