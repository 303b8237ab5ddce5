# SPDX-License-Identifier: Apache-2.0
"""Recurrent gates, ConvLSTM, ConvGRU and ST-LSTM steps against eager torch, on the finest and coarsest maps of DB-RNN.

Cells also against torch.compile of the same in channels_last: its compiler runs before the timing, but
its memory counts in the peak.
"""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastds.ops import (
    conv_gru_cell,
    conv_lstm_cell,
    conv_memory_gates,
    conv_output_gate,
    conv_st_lstm_gates,
    gru_update,
    lstm_gates,
)

SHAPES = {"(4,24,160,160)": (4, 24, 160, 160), "(4,24,40,40)": (4, 24, 40, 40)}
GATES = {"lstm_gates": (5, 2), "gru_update": (3, 1)}  # maps read and written by the forward
# Gates; maps read and written by the forward.
CELLS = {"conv_lstm_cell": (4, 5), "conv_gru_cell": (3, 7), "st_lstm_cell": (8, 13)}
PEERS = ("fastds", "eager", "eager_channels_last", "torch_compile")


def eager_lstm(pre, c):
    i, f, g, o = pre.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def eager_gru(z, pre_n, h):
    return z * h + (1 - z) * torch.tanh(pre_n)


def eager_cell(x, h, c, weight, bias):
    return eager_lstm(F.conv2d(torch.cat([x, h], 1), weight, bias, padding=1), c)


def eager_gru_cell(x, h, gates, gates_bias, candidate, candidate_bias):
    z, r = torch.sigmoid(F.conv2d(torch.cat([x, h], 1), gates, gates_bias, padding=1)).chunk(2, 1)
    return eager_gru(z, F.conv2d(torch.cat([x, r * h], 1), candidate, candidate_bias, padding=1), h)


def st_lstm_cell(x, h, c, m, temporal, temporal_bias, spatial, spatial_bias, out):
    """The stages of PredRNN's cell, without the 1x1 convolution of its output."""
    c, q = conv_st_lstm_gates(x, h, c, temporal, temporal_bias)
    m = conv_memory_gates(x, m, m, spatial, spatial_bias)
    return conv_output_gate(c, m, c, out, None, q), c, m


def eager_st_lstm_cell(x, h, c, m, temporal, temporal_bias, spatial, spatial_bias, out):
    def updated(memory, gates):
        i, f, g = gates
        return torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)

    *gates, q = F.conv2d(torch.cat([x, h], 1), temporal, temporal_bias, padding=1).chunk(4, 1)
    c = updated(c, gates)
    m = updated(m, F.conv2d(torch.cat([x, m], 1), spatial, spatial_bias, padding=1).chunk(3, 1))
    return torch.sigmoid(q + F.conv2d(torch.cat([c, m], 1), out, padding=1)) * torch.tanh(c), c, m


FUNCTIONS = {
    "lstm_gates": (lstm_gates, eager_lstm), "gru_update": (gru_update, eager_gru),
    "conv_lstm_cell": (conv_lstm_cell, eager_cell), "conv_gru_cell": (conv_gru_cell, eager_gru_cell),
    "st_lstm_cell": (st_lstm_cell, eager_st_lstm_cell),
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

    def filters(gates):
        weight = torch.randn(gates * channels, 2 * channels, 3, 3, generator=generator) / (18 * channels) ** 0.5
        return weight, torch.randn(gates * channels, generator=generator)

    if op == "st_lstm_cell":
        return [*(normal(channels) for _ in range(4)), *filters(4), *filters(3), filters(1)[0]]
    if op == "conv_gru_cell":
        return [normal(channels), normal(channels), *filters(2), *filters(1)]
    return [normal(channels), normal(channels), normal(channels), *filters(4)]


def build(op, case, mode, peer):
    arguments = tensors(op, case)
    if peer != "eager":
        arguments = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in arguments]
    function = FUNCTIONS[op][peer != "fastds"]
    if peer == "torch_compile":
        function = torch.compile(function)
    if mode == "forward":

        def run():
            with torch.no_grad():
                return function(*arguments)

        return run
    return functools.partial(gradients, function, [t.requires_grad_() for t in arguments])


def gradients(function, arguments):
    """Of all arguments; the second of them, a state, is the gradient of each result: dense, as networks give it."""
    result = function(*arguments)
    result = result if isinstance(result, tuple) else (result,)
    return torch.autograd.grad(result, arguments, [arguments[1].detach()] * len(result))


@functools.lru_cache(maxsize=1)
def expected(op, case, mode):
    arguments = [t.double() for t in tensors(op, case)]
    if mode == "forward":
        return FUNCTIONS[op][1](*arguments)
    return gradients(FUNCTIONS[op][1], [t.requires_grad_() for t in arguments])


def work(op, case, mode):
    """(flops, bytes) of one call."""
    batch, channels, height, width = SHAPES[case]
    one = batch * channels * height * width
    if op in CELLS:
        gates, maps = CELLS[op]
        flops = 2 * one * gates * 9 * 2 * channels
        return (flops, maps * one * 4) if mode == "forward" else (3 * flops, 4 * maps * one * 4)
    read, written = GATES[op]
    if mode == "forward":
        return 0, (read + written) * one * 4
    return 0, (2 * (read + written) + read) * one * 4


def rows():
    for op in FUNCTIONS:
        for peer in PEERS if op in CELLS else PEERS[:3]:
            for mode in ("forward", "forward+backward"):
                yield from (pytest.param(op, case, mode, peer, id=f"{op}-{case}-{mode}-{peer}") for case in SHAPES)


@pytest.mark.parametrize("op, case, mode, peer", rows())
def test_gates(measure, op, case, mode, peer):
    flops, least = work(op, case, mode)
    measure(
        build, (op, case, mode, peer), op=op, case=case, mode=mode, peer=peer, dtype="float32", flops=flops,
        bytes=least, expected=expected(op, case, mode), tolerance=1e-4,
    )  # fmt: skip
