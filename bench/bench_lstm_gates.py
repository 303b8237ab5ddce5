# SPDX-License-Identifier: Apache-2.0
"""Recurrent gates and steps of ConvLSTM, ConvGRU and ST-LSTM compared with eager torch.

The shapes are those of DB-RNN at its finest and coarsest resolution. Steps are also compared with torch.compile in
channels_last. The compilation runs before the timing, but its memory counts as peak memory.
"""

import functools

import pytest
import torch
import torch.nn.functional as F

from bench.torch_cells import compute_gru, compute_gru_cell, compute_lstm, compute_lstm_cell, update_memory
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
# Tensors of the size of the state that the forward pass reads and writes.
GATES = {"lstm_gates": (5, 2), "gru_update": (3, 1)}
# Number of gates, and tensors of the size of the state that the forward pass reads or writes.
CELLS = {"conv_lstm_cell": (4, 5), "conv_gru_cell": (3, 7), "st_lstm_cell": (8, 13)}
PEERS = ("fastds", "eager", "eager_channels_last", "torch_compile")


def run_st_lstm_cell(x, h, c, m, temporal, temporal_bias, spatial, spatial_bias, out):
    """Run the stages of the cell of PredRNN by ops of fastds, without the 1x1 convolution of the output."""
    c, q = conv_st_lstm_gates(x, h, c, temporal, temporal_bias)
    m = conv_memory_gates(x, m, m, spatial, spatial_bias)
    return conv_output_gate(c, m, c, out, None, q), c, m


def compute_st_lstm_cell(x, h, c, m, temporal, temporal_bias, spatial, spatial_bias, out):
    *gates, q = F.conv2d(torch.cat([x, h], 1), temporal, temporal_bias, padding=1).chunk(4, 1)
    c = update_memory(c, *gates)
    m = update_memory(m, *F.conv2d(torch.cat([x, m], 1), spatial, spatial_bias, padding=1).chunk(3, 1))
    return torch.sigmoid(q + F.conv2d(torch.cat([c, m], 1), out, padding=1)) * torch.tanh(c), c, m


# By op: fastds and eager torch.
FUNCTIONS = {
    "lstm_gates": (lstm_gates, compute_lstm), "gru_update": (gru_update, compute_gru),
    "conv_lstm_cell": (conv_lstm_cell, compute_lstm_cell), "conv_gru_cell": (conv_gru_cell, compute_gru_cell),
    "st_lstm_cell": (run_st_lstm_cell, compute_st_lstm_cell),
}  # fmt: skip


def make_tensors(op, case):
    """Return the arguments of the functions of an op."""
    batch, channels, height, width = SHAPES[case]
    generator = torch.Generator().manual_seed(7)

    def draw_normal(count):
        return torch.randn(batch, count, height, width, generator=generator)

    if op == "lstm_gates":
        return [draw_normal(4 * channels), draw_normal(channels)]
    if op == "gru_update":
        return [draw_normal(channels).sigmoid(), draw_normal(channels), draw_normal(channels)]

    def draw_filters(gates):
        weight = torch.randn(gates * channels, 2 * channels, 3, 3, generator=generator) / (18 * channels) ** 0.5
        return weight, torch.randn(gates * channels, generator=generator)

    if op == "st_lstm_cell":
        return [*(draw_normal(channels) for _ in range(4)), *draw_filters(4), *draw_filters(3), draw_filters(1)[0]]
    if op == "conv_gru_cell":
        return [draw_normal(channels), draw_normal(channels), *draw_filters(2), *draw_filters(1)]
    return [draw_normal(channels), draw_normal(channels), draw_normal(channels), *draw_filters(4)]


def build(op, case, mode, peer):
    """Build the callable to time.

    Args:
        op: key of FUNCTIONS.
        case: key of SHAPES.
        mode: "forward" for the value, "forward+backward" for the gradients of all arguments.
        peer: one of PEERS. All peers but "eager" get tensors in channels_last.
    """
    arguments = make_tensors(op, case)
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
    return functools.partial(compute_gradients, function, [t.requires_grad_() for t in arguments])


def compute_gradients(function, arguments):
    """Return the gradients of all arguments. The gradient of each result is the second argument, a dense state."""
    result = function(*arguments)
    result = result if isinstance(result, tuple) else (result,)
    return torch.autograd.grad(result, arguments, [arguments[1].detach()] * len(result))


@functools.lru_cache(maxsize=1)
def compute_expected(op, case, mode):
    arguments = [t.double() for t in make_tensors(op, case)]
    if mode == "forward":
        return FUNCTIONS[op][1](*arguments)
    return compute_gradients(FUNCTIONS[op][1], [t.requires_grad_() for t in arguments])


def count_work(op, case, mode):
    """Return the FLOPs and the least memory traffic in bytes of one call."""
    batch, channels, height, width = SHAPES[case]
    numbers = batch * channels * height * width
    if op in CELLS:
        gates, count = CELLS[op]
        flops = 2 * numbers * gates * 9 * 2 * channels
        return (flops, count * numbers * 4) if mode == "forward" else (3 * flops, 4 * count * numbers * 4)
    read, written = GATES[op]
    if mode == "forward":
        return 0, (read + written) * numbers * 4
    return 0, (2 * (read + written) + read) * numbers * 4


def list_rows():
    for op in FUNCTIONS:
        for peer in PEERS if op in CELLS else PEERS[:3]:
            for mode in ("forward", "forward+backward"):
                yield from (pytest.param(op, case, mode, peer, id=f"{op}-{case}-{mode}-{peer}") for case in SHAPES)


@pytest.mark.parametrize("op, case, mode, peer", list_rows())
def test_gates(measure, op, case, mode, peer):
    flops, least = count_work(op, case, mode)
    measure(
        build, (op, case, mode, peer), op=op, case=case, mode=mode, peer=peer, dtype="float32", flops=flops,
        bytes=least, expected=compute_expected(op, case, mode), tolerance=1e-4,
    )  # fmt: skip
