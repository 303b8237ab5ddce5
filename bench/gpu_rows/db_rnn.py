# SPDX-License-Identifier: Apache-2.0
"""DB-ConvLSTM, five frames in and five out: as a CUDA graph and eager, training step, against plain eager torch."""

import copy
import functools

import torch
import torch.nn.functional as F

from bench.gpu_rows import Row, name_of
from fastds import compile_graph
from fastds.models.db_rnn import DBRNN
from fastds.models.db_rnn import oracle as db_rnn_reference

BRAIN, FULL = torch.bfloat16, torch.float32
KNOWN, STEPS = 5, 5
MACS = 50.34e9  # of one sample at 160 x 160, networks/dbrnn.md 6


@functools.lru_cache
def network(small: bool):
    torch.manual_seed(5)
    return DBRNN("convlstm", hidden=8 if small else 24)


def frames(small, device):
    size, batch = (16, 1) if small else (160, 4)
    generator = torch.Generator().manual_seed(6)
    return torch.rand(batch, KNOWN + STEPS, 1, size, size, generator=generator).to(device)


def merged(module):
    return torch.cat(list(module.weights()), 1), sum(module.bias)


kept = functools.lru_cache(maxsize=64)(merged)


def one_convolution(module, *sources):
    """What one writes in eager torch: all sources of a gate in one convolution; a training step merges the weights."""
    weight, bias = merged(module) if torch.is_grad_enabled() else kept(module)
    return F.conv2d(torch.cat(sources, 1), weight, bias, padding=weight.shape[-1] // 2)


def runner(small, dtype, device, peer):
    """frames -> forecasts of the deblurring module, and the parameters."""
    model = copy.deepcopy(network(small)).to(device, memory_format=torch.channels_last)
    if peer.startswith("fastds"):
        return (lambda x: model(x, STEPS)[-1]), list(model.parameters())
    separate = db_rnn_reference.summed

    def eager(x):
        db_rnn_reference.summed = one_convolution
        try:
            return db_rnn_reference.db_rnn(model, x, STEPS)[1]
        finally:
            db_rnn_reference.summed = separate

    return eager, list(model.parameters())


def graphed(small, dtype, device):
    x = frames(small, device)[:, :KNOWN]
    model = copy.deepcopy(network(small)).to(device, memory_format=torch.channels_last)
    run = compile_graph(model, x, STEPS, dtype=dtype)
    return lambda: run(x, STEPS)[-1]


def forward(small, dtype, peer, device):
    run, _ = runner(small, dtype, device, peer)
    x = frames(small, device)[:, :KNOWN]

    def timed():
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype != FULL, cache_enabled=False):
            return run(x)

    return timed


def training_step(small, dtype, peer, device):
    run, parameters = runner(small, dtype, device, peer)
    sequence = frames(small, device)

    def timed():
        with torch.autocast(sequence.device.type, dtype, enabled=dtype != FULL):
            loss = F.mse_loss(run(sequence[:, :KNOWN]).float(), sequence[:, 1:])
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    return timed


def expected(mode, small, device):
    model, sequence = copy.deepcopy(network(small)).to(device).double(), frames(small, device).double()
    if mode == "forward":
        with torch.no_grad():
            return db_rnn_reference.db_rnn(model, sequence[:, :KNOWN], STEPS)[1]
    loss = F.mse_loss(db_rnn_reference.db_rnn(model, sequence[:, :KNOWN], STEPS)[1], sequence[:, 1:])
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def rows(small: bool) -> list[Row]:
    wanted = [  # mode, peer, dtype, tolerance, whether a captured graph is timed
        ("forward", "fastds graph", BRAIN, 5e-2, False),  # which replays its own
        ("forward", "fastds eager", BRAIN, 5e-2, False),
        ("forward", "torch eager", BRAIN, 0.2, False),
        ("forward", "torch eager graph", BRAIN, 0.2, True),
        ("training step", "fastds eager", BRAIN, 0.3, False),
        ("training step", "torch eager", BRAIN, 0.5, False),
        ("forward", "fastds graph", FULL, 1e-2, False),
        ("forward", "torch eager", FULL, 1e-2, False),
    ]
    if small:
        wanted = [("forward", "fastds", FULL, 1e-3, False), ("training step", "torch eager", FULL, 1e-3, False)]
    batch, _, _, size, _ = frames(small, "cpu").shape
    work = 2 * MACS * batch * size**2 / 160**2
    return [
        Row(
            "db_rnn convlstm", f"({batch},{KNOWN}+{STEPS},1,{size},{size})", mode, name_of(dtype), peer,
            build=(
                functools.partial(graphed, small, dtype) if peer == "fastds graph"
                else functools.partial(training_step if "training" in mode else forward, small, dtype, peer)
            ),
            expected=functools.partial(expected, mode, small), oracle=("db_rnn", mode), tolerance=tolerance,
            flops=work * (3 if "training" in mode else 1), bytes=0, graph=graph,
        )
        for mode, peer, dtype, tolerance, graph in wanted
    ]  # fmt: skip
