# SPDX-License-Identifier: Apache-2.0
"""Recurrent gates and the fused ConvLSTM step against eager torch, on the finest and coarsest maps of DB-RNN."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import conv_lstm_cell, gru_update, lstm_gates

SHAPES = {"(4,24,160,160)": (4, 24, 160, 160), "(4,24,40,40)": (4, 24, 40, 40)}
GATES = {"lstm_gates": (5, 2), "gru_update": (3, 1)}  # maps read and written by the forward
PEERS = ("fastds", "eager", "eager_channels_last")


def eager_lstm(pre, c):
    i, f, g, o = pre.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def eager_gru(z, pre_n, h):
    return z * h + (1 - z) * torch.tanh(pre_n)


def eager_cell(x, h, c, weight, bias):
    return eager_lstm(F.conv2d(torch.cat([x, h], 1), weight, bias, padding=1), c)


FUNCTIONS = {
    "lstm_gates": (lstm_gates, eager_lstm), "gru_update": (gru_update, eager_gru),
    "conv_lstm_cell": (conv_lstm_cell, eager_cell),
}  # fmt: skip


def tensors(op, case):
    batch, channels, height, width = SHAPES[case]
    generator = torch.Generator().manual_seed(7)

    def normal(maps):
        return torch.randn(batch, maps, height, width, generator=generator)

    if op == "lstm_gates":
        return [normal(4 * channels), normal(channels)]
    if op == "gru_update":
        return [normal(channels).sigmoid(), normal(channels), normal(channels)]
    weight = torch.randn(4 * channels, 2 * channels, 3, 3, generator=generator) / (18 * channels) ** 0.5
    return [
        normal(channels),
        normal(channels),
        normal(channels),
        weight,
        torch.randn(4 * channels, generator=generator),
    ]


def build(op, case, mode, peer):
    arguments = tensors(op, case)
    if peer != "eager":
        arguments = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in arguments]
    function = FUNCTIONS[op][peer != "fastds"]
    if mode == "forward":

        def run():
            with torch.no_grad():
                return function(*arguments)

        return run
    arguments = [t.requires_grad_() for t in arguments]

    def step():
        result = function(*arguments)
        result = result if isinstance(result, tuple) else (result,)
        return torch.autograd.grad([y.sum() for y in result], arguments)

    return step


@functools.lru_cache(maxsize=1)
def expected(op, case, mode):
    arguments = [t.double() for t in tensors(op, case)]
    if mode == "forward":
        return FUNCTIONS[op][1](*arguments)
    arguments = [t.requires_grad_() for t in arguments]
    result = FUNCTIONS[op][1](*arguments)
    result = result if isinstance(result, tuple) else (result,)
    return torch.autograd.grad([y.sum() for y in result], arguments)


def work(op, case, mode):
    """(flops, bytes) of one call."""
    batch, channels, height, width = SHAPES[case]
    one = batch * channels * height * width
    if op == "conv_lstm_cell":
        flops = 2 * one * 4 * 9 * 2 * channels
        return (flops, 5 * one * 4) if mode == "forward" else (3 * flops, 20 * one * 4)
    read, written = GATES[op]
    if mode == "forward":
        return 0, (read + written) * one * 4
    return 0, (2 * (read + written) + read) * one * 4


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("op", FUNCTIONS)
def test_gates(measure, op, case, mode, peer):
    flops, least = work(op, case, mode)
    measure(
        build, (op, case, mode, peer), op=op, case=case, mode=mode, peer=peer, dtype="float32", flops=flops,
        bytes=least, expected=expected(op, case, mode), tolerance=1e-4,
    )  # fmt: skip
