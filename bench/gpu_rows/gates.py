# SPDX-License-Identifier: Apache-2.0
"""The LSTM's and the GRU's pointwise pass: ours in CUDA C++ against eager torch and torch.compile; bound by memory."""

import functools

import torch

from bench.gpu_rows import Row, name_of
from bench.peers import forward_or_backward
from fastds.ops import gru_update, lstm_gates


def lstm_formula(pre, c):
    i, f, g, o = pre.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_formula(z, pre_n, h):
    return z * h + (1 - z) * torch.tanh(pre_n)


# ours, the formula in torch, channels of each input, elements that forward and backward read or write, per C
PASSES = {
    "lstm_gates": (lstm_gates, lstm_formula, (4, 1), 7, 12),
    "gru_update": (gru_update, gru_formula, (1, 1, 1), 4, 7),
}
SHAPE, TINY = (8, 64, 160, 160), (1, 8, 6, 6)


def inputs(name, small, dtype, device):
    batch, channels, *size = TINY if small else SHAPE
    generator = torch.Generator().manual_seed(9)
    shapes = [(batch, n * channels, *size) for n in PASSES[name][2]]
    tensors = [torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes]  # exact in every dtype
    return [t.to(device, dtype).to(memory_format=torch.channels_last) for t in tensors]


def build(name, mode, peer, small, dtype, device):
    function = PASSES[name][0 if peer.startswith("fastds") else 1]
    function = torch.compile(function) if peer == "torch.compile" else function
    args = inputs(name, small, dtype, device)

    def joined(*args):
        y = function(*args)
        return y[0] + y[1] if isinstance(y, tuple) and mode == "backward" else y

    return forward_or_backward(joined, args, torch.ones_like(args[-1]), mode)


def rows(small: bool) -> list[Row]:
    peers = ("fastds", "torch eager") if small else ("fastds cuda", "torch eager", "torch.compile")
    found = []
    for name, (_, _, parts, forward, backward) in PASSES.items():
        for mode, moved in (("forward", forward), ("backward", backward)):
            for peer in peers:
                batch, channels, height, width = TINY if small else SHAPE
                elements = batch * channels * height * width
                shape = "x".join(map(str, TINY if small else SHAPE))
                found.append(
                    Row(
                        name, shape, mode, name_of(torch.bfloat16), peer,
                        build=functools.partial(build, name, mode, peer, small, torch.bfloat16),
                        expected=functools.partial(build_exact, name, mode, small), oracle=(name, mode),
                        tolerance=2e-2 if peer.startswith("fastds") else 0.1,
                        flops=10 * len(parts) * elements, bytes=2 * moved * elements,
                    )
                )  # fmt: skip
    return found


def build_exact(name, mode, small, device):
    return build(name, mode, "float64", small, torch.float64, device)()
