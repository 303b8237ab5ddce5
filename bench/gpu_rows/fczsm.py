# SPDX-License-Identifier: Apache-2.0
"""FC-ZSM: forward as a CUDA graph and eager, training step, against eager torch with torchvision's op."""

import copy
import functools

import torch
import torch.nn.functional as F

from bench.bench_fczsm import network, sample
from bench.gpu_rows import Row, name_of
from fastds.models import create
from fastds.models.fczsm.oracle import ReferenceFCZSM

FLOPS_OF_A_PIXEL = 40_999_816  # of the forward pass, two inputs; tests/gpuless/test_gpu_suite.py counts them
SIZES = {"forward": 200, "training step": 100}  # coarse grid, both sides


@functools.lru_cache
def network_of(small: bool):
    if not small:
        return network()
    torch.manual_seed(5)
    return create("fczsm", num_features=8, offset_groups=2, extractor_blocks=1, reconstruction_blocks=1)


def torchvision_deform(x, offset, weight, bias, mask):
    from torchvision.ops import deform_conv2d

    return deform_conv2d(x, offset.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype), padding=1, mask=mask)


def inputs(mode, small, device):
    x, truth = sample(16 if small else SIZES[mode])
    return x.to(device), truth.to(device)


def model_of(small, device):
    return copy.deepcopy(network_of(small)).to(device, memory_format=torch.channels_last)


def graph(small, dtype, device):
    x, _ = inputs("forward", small, device)
    run = model_of(small, device).compile_graph(x, dtype=dtype)
    return lambda: run(x)


def forward(small, dtype, device, peer):
    x, _ = inputs("forward", small, device)
    model = model_of(small, device)
    if peer != "fastds eager":
        deform = {"deform": torchvision_deform} if peer == "torchvision eager" else {}
        model = ReferenceFCZSM(dict(model.named_parameters()), model.config, **deform)
        model = torch.compile(model.__call__) if peer == "torch.compile" else model

    def run():
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return model(x)

    return run


def training_step(small, dtype, device, peer):
    x, truth = inputs("training step", small, device)
    model = model_of(small, device)
    parameters = list(model.parameters())
    run = model
    if peer == "torchvision eager":
        run = ReferenceFCZSM(dict(model.named_parameters()), model.config, deform=torchvision_deform)

    def step():
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = F.mse_loss(run(x).float(), truth)
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    return step


def expected(mode, small, device):
    model = model_of(small, device).double()
    x, truth = (z.double() for z in inputs(mode, small, device))
    oracle = ReferenceFCZSM(dict(model.named_parameters()), model.config)
    if mode == "forward":
        with torch.no_grad():
            return oracle(x)
    loss = F.mse_loss(oracle(x), truth)
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def rows(small: bool) -> list[Row]:
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    wanted = [
        ("forward", "fastds graph", brain, 5e-2, lambda d: graph(small, brain, d)),
        ("forward", "fastds eager", brain, 5e-2, lambda d: forward(small, brain, d, "fastds eager")),
        ("forward", "torchvision eager", half, 0.2, lambda d: forward(small, half, d, "torchvision eager")),
        ("forward", "torchvision eager", full, 1e-2, lambda d: forward(small, full, d, "torchvision eager")),
        ("forward", "fastds graph", full, 1e-2, lambda d: graph(small, full, d)),
        ("training step", "fastds eager", brain, 0.3, lambda d: training_step(small, brain, d, "fastds eager")),
        ("training step", "torchvision eager", half, 0.5, lambda d: training_step(small, half, d, "torchvision eager")),
        ("forward", "torch.compile", full, 1e-2, lambda d: forward(small, full, d, "torch.compile")),
    ]
    if small:  # what a machine without a GPU and without torchvision can run
        wanted = [(mode, "fastds", *rest) for mode, peer, *rest in wanted if peer == "fastds eager"]
    size = {mode: 16 if small else n for mode, n in SIZES.items()}
    passes = {"forward": 1, "training step": 3}
    parameters = 4 * sum(p.numel() for p in network_of(small).parameters())
    return [
        Row(
            "fczsm", f"(1,2,1,{size[mode]},{size[mode]})", mode, name_of(dtype), peer, build,
            expected=lambda device, mode=mode: expected(mode, small, device), oracle=("fczsm", mode),
            tolerance=tolerance, flops=passes[mode] * FLOPS_OF_A_PIXEL * size[mode] ** 2, bytes=parameters,
            graph=False,  # the graphed forward replays its own; the others are what a user gets
        )
        for mode, peer, dtype, tolerance, build in wanted
    ]  # fmt: skip
