# SPDX-License-Identifier: Apache-2.0
"""DB-ConvLSTM, five frames to five: forward as a CUDA graph and eager and training step, compared with eager torch."""

import copy
import functools

import torch
import torch.nn.functional as F

from bench.gpu_rows import Row, capture_network, get_dtype_name
from fastds.models.db_rnn import DBRNN
from tests.references import db_rnn as db_rnn_reference

BFLOAT16, FLOAT32 = torch.bfloat16, torch.float32
KNOWN, STEPS = 5, 5
MACS = 50.34e9  # multiply-adds of one sample of 160 x 160 pixels


@functools.lru_cache
def make_network(small: bool):
    torch.manual_seed(5)
    return DBRNN("convlstm", hidden=8 if small else 24)


def get_batch_and_size(small):
    return (1, 16) if small else (4, 160)


def make_frames(small, device):
    batch, size = get_batch_and_size(small)
    generator = torch.Generator().manual_seed(6)
    return torch.rand(batch, KNOWN + STEPS, 1, size, size, generator=generator).to(device)


def merge_weights(module):
    """Return one weight and bias for all inputs of a gate."""
    return torch.cat(list(module.weights()), 1), sum(module.bias)


merge_weights_cached = functools.lru_cache(maxsize=64)(merge_weights)


def convolve_merged(module, *sources):
    """Convolve all inputs of a gate at once, as usual in PyTorch. Inference caches the merged weights."""
    weight, bias = merge_weights(module) if torch.is_grad_enabled() else merge_weights_cached(module)
    return F.conv2d(torch.cat(sources, 1), weight, bias, padding=weight.shape[-1] // 2)


def make_runner(small, dtype, device, peer):
    """Return a function from frames to the forecasts of the deblurring module, and the parameters."""
    model = copy.deepcopy(make_network(small)).to(device, memory_format=torch.channels_last)
    if peer.startswith("fastds"):
        return (lambda x: model(x, STEPS)[-1]), list(model.parameters())
    separate = db_rnn_reference.summed

    def eager(x):
        db_rnn_reference.summed = convolve_merged
        try:
            return db_rnn_reference.db_rnn(model, x, STEPS)[1]
        finally:
            db_rnn_reference.summed = separate

    return eager, list(model.parameters())


def build_graph(small, dtype, device):
    x = make_frames(small, device)[:, :KNOWN]
    model = copy.deepcopy(make_network(small)).to(device, memory_format=torch.channels_last)
    run = capture_network(model, x, STEPS, dtype=dtype)

    def timed():
        return run()[-1]

    timed.buffers = run.buffers
    return timed


def build_forward(small, dtype, peer, device):
    run, _ = make_runner(small, dtype, device, peer)
    x = make_frames(small, device)[:, :KNOWN]

    def timed():
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype != FLOAT32, cache_enabled=False):
            return run(x)

    return timed


def build_training_step(small, dtype, peer, device):
    run, parameters = make_runner(small, dtype, device, peer)
    sequence = make_frames(small, device)

    def timed():
        with torch.autocast(sequence.device.type, dtype, enabled=dtype != FLOAT32):
            loss = F.mse_loss(run(sequence[:, :KNOWN]).float(), sequence[:, 1:])
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    return timed


def compute_expected(mode, small, device):
    model, sequence = copy.deepcopy(make_network(small)).to(device).double(), make_frames(small, device).double()
    if mode == "forward":
        with torch.no_grad():
            return db_rnn_reference.db_rnn(model, sequence[:, :KNOWN], STEPS)[1]
    loss = F.mse_loss(db_rnn_reference.db_rnn(model, sequence[:, :KNOWN], STEPS)[1], sequence[:, 1:])
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def make_rows(small: bool) -> list[Row]:
    selected = [  # mode, peer, dtype, tolerance, timing
        ("forward", "fastds graph", BFLOAT16, 5e-2, "eager"),  # replays its own graph
        ("forward", "fastds eager", BFLOAT16, 5e-2, "eager"),
        ("forward", "torch eager", BFLOAT16, 0.2, "eager"),
        ("forward", "torch eager graph", BFLOAT16, 0.2, "graph"),
        ("training step", "fastds eager", BFLOAT16, 0.3, "eager"),
        ("training step", "torch eager", BFLOAT16, 0.5, "eager"),
        ("forward", "fastds graph", FLOAT32, 1e-2, "eager"),
        ("forward", "torch eager", FLOAT32, 1e-2, "eager"),
    ]
    if small:
        selected = [
            ("forward", "fastds", FLOAT32, 1e-3, "eager"),
            ("training step", "torch eager", FLOAT32, 1e-3, "eager"),
        ]
    batch, size = get_batch_and_size(small)
    flops = 2 * MACS * batch * size**2 / 160**2
    return [
        Row(
            "db_rnn convlstm", f"({batch},{KNOWN}+{STEPS},1,{size},{size})", mode, get_dtype_name(dtype), peer,
            build=(
                functools.partial(build_graph, small, dtype) if peer == "fastds graph"
                else functools.partial(build_training_step if "training" in mode else build_forward, small, dtype, peer)
            ),
            expected=functools.partial(compute_expected, mode, small), reference_key=("db_rnn", mode),
            tolerance=tolerance, flops=flops * (3 if "training" in mode else 1), bytes=0, timing=timing,
            buffers=(lambda run: run.buffers) if peer == "fastds graph" else None, first=small or dtype != FLOAT32,
        )
        for mode, peer, dtype, tolerance, timing in selected
    ]  # fmt: skip
