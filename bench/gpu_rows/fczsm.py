# SPDX-License-Identifier: Apache-2.0
"""FC-ZSM, forward as a CUDA graph and eager and training step, compared with eager torch and the op of torchvision.

The rows of torchvision run on the default stream of CUDA, see load_torchvision_op.
"""

import copy
import functools

import torch
import torch.nn.functional as F

import fastds
from bench.bench_fczsm import make_network, make_sample
from bench.gpu_rows import Row, capture_network, get_dtype_name, load_torchvision_op
from fastds.models import create
from tests.references.fczsm import ReferenceFCZSM

FLOPS_PER_PIXEL = 40_999_816  # of the forward pass with two input fields; tests/gpuless/test_gpu_suite.py checks it
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
SIZES = {"forward": 200, "training step": 100}  # coarse pixels each way


@functools.lru_cache
def make_cached_network(small: bool):
    if not small:
        return make_network()
    torch.manual_seed(5)
    return create("fczsm", num_features=8, offset_groups=2, extractor_blocks=1, reconstruction_blocks=1)


def deform_by_torchvision(x, offset, weight, bias, mask):
    return load_torchvision_op()(x, offset.to(x.dtype), weight.to(x.dtype), bias.to(x.dtype), padding=1, mask=mask)


def make_inputs(mode, small, device):
    x, truth = make_sample(16 if small else SIZES[mode])
    return x.to(device), truth.to(device)


def copy_model(small, device):
    return copy.deepcopy(make_cached_network(small)).to(device, memory_format=torch.channels_last)


def build_graph(small, dtype, peer, device):
    """Build the forward pass as a CUDA graph; the only peers are fastds and its kernel of convolutions on request."""
    x, _ = make_inputs("forward", small, device)
    algorithm = "window" if "window" in peer else "auto"
    with fastds.use_conv_algorithm(algorithm):
        captured = capture_network(copy_model(small, device), x, dtype=dtype)

    def run():
        with fastds.use_conv_algorithm(algorithm):
            return captured()

    run.buffers = captured.buffers
    return run


def build_forward(small, dtype, peer, device):
    """Build the forward pass under autocast.

    Args:
        small: use the small network.
        dtype: dtype of autocast.
        peer: "fastds eager", "torchvision eager" (the reference with the op of torchvision) or "torch.compile" (of the
            reference).
        device: device of the tensors.
    """
    x, _ = make_inputs("forward", small, device)
    model = copy_model(small, device)
    if peer != "fastds eager":
        deform = {"deform": deform_by_torchvision} if peer == "torchvision eager" else {}
        model = ReferenceFCZSM(dict(model.named_parameters()), model.config, **deform)
        model = torch.compile(model.__call__) if peer == "torch.compile" else model

    def run():
        with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return model(x)

    return run


def build_training_step(small, dtype, peer, device):
    """Build the loss and all gradients; see build_forward() for the arguments."""
    x, truth = make_inputs("training step", small, device)
    model = copy_model(small, device)
    parameters = list(model.parameters())
    run = model
    if peer == "torchvision eager":
        run = ReferenceFCZSM(dict(model.named_parameters()), model.config, deform=deform_by_torchvision)

    def step():
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = F.mse_loss(run(x).float(), truth)
        return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    return step


def compute_expected(mode, small, device):
    model = copy_model(small, device).double()
    x, truth = (z.double() for z in make_inputs(mode, small, device))
    reference = ReferenceFCZSM(dict(model.named_parameters()), model.config)
    if mode == "forward":
        with torch.no_grad():
            return reference(x)
    loss = F.mse_loss(reference(x), truth)
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def make_rows(small: bool) -> list[Row]:
    # Mode, peer, dtype, tolerance, builder.
    selected = [
        ("forward", "fastds graph", BFLOAT16, 5e-2, build_graph),
        ("forward", "fastds graph, window", BFLOAT16, 5e-2, build_graph),
        ("forward", "fastds eager", BFLOAT16, 5e-2, build_forward),
        ("forward", "torchvision eager", FLOAT16, 0.2, build_forward),
        ("forward", "torchvision eager", FLOAT32, 1e-2, build_forward),
        ("forward", "fastds graph", FLOAT32, 1e-2, build_graph),
        ("training step", "fastds eager", BFLOAT16, 0.3, build_training_step),
        ("training step", "torchvision eager", FLOAT16, 0.5, build_training_step),
        ("forward", "torch.compile", FLOAT32, 1e-2, build_forward),
    ]
    if small:  # torchvision and graphs need not be there
        selected = [row for row in selected if row[1] == "fastds eager"]
    size = {mode: 16 if small else n for mode, n in SIZES.items()}
    passes = {"forward": 1, "training step": 3}
    parameters = 4 * sum(p.numel() for p in make_cached_network(small).parameters())
    return [
        Row(
            "fczsm", f"(1,2,1,{size[mode]},{size[mode]})", mode, get_dtype_name(dtype),
            "fastds" if small else peer, functools.partial(build, small, dtype, peer),
            expected=lambda device, mode=mode: compute_expected(mode, small, device), reference_key=("fczsm", mode),
            tolerance=tolerance, flops=passes[mode] * FLOPS_PER_PIXEL * size[mode] ** 2, bytes=parameters,
            timing="default stream" if peer == "torchvision eager" else "eager",  # "fastds graph" replays its own graph
            buffers=(lambda run: run.buffers) if peer.startswith("fastds graph") else None,
            first=small or dtype != FLOAT32 or peer == "torchvision eager",
        )
        for mode, peer, dtype, tolerance, build in selected
    ]  # fmt: skip
