# SPDX-License-Identifier: Apache-2.0
"""FC-ZSM compared with its reference implementation in eager torch, and with ordinary convolutions.

The reference, tests.references.fczsm, uses contiguous tensors and deformable convolutions by grid_sample, without
fusion. The FLOPs of all rows are those of the reference. The rows of "conv2d" do other work, for comparison: they spend
the FLOPs of the forward pass in convolutions of 64 to 64 channels in channels_last. A training step is forward, mean
squared error, backward and Adam.

"fastds direct" computes all convolutions that are not deformable by oneDNN. fastds and the reference are also measured
with freed memory returned to the system, which is the default of glibc. torch.compile of the reference is only measured
in this manner, if FASTDS_BENCH_COMPILE_SECONDS is set to its time limit.
"""

import functools
import os

import pytest
import torch
import torch.nn.functional as F

import fastds
from fastds.models import FCZSM, create
from tests.references.fczsm import ReferenceFCZSM, count_flops

SIZES = {"forward": 200, "training step": 100}  # coarse pixels each way
ROWS = [  # mode, peer, dtype, freed memory
    ("forward", "fastds", torch.float32, "kept"),
    ("forward", "fastds", torch.bfloat16, "kept"),
    ("forward", "fastds direct", torch.float32, "kept"),
    ("forward", "fastds direct", torch.bfloat16, "kept"),
    ("forward", "torch_eager", torch.float32, "kept"),
    ("forward", "conv2d", torch.float32, "kept"),
    ("forward", "conv2d", torch.bfloat16, "kept"),
    ("forward", "fastds", torch.float32, "returned"),
    ("forward", "torch_eager", torch.float32, "returned"),
    ("forward", "torch_compile", torch.float32, "returned"),
    ("training step", "fastds", torch.float32, "kept"),
    ("training step", "fastds", torch.bfloat16, "kept"),
    ("training step", "fastds direct", torch.float32, "kept"),
    ("training step", "torch_eager", torch.float32, "kept"),
    ("training step", "fastds", torch.float32, "returned"),
    ("training step", "torch_eager", torch.float32, "returned"),
]
COMPILE_SECONDS = float(os.environ.get("FASTDS_BENCH_COMPILE_SECONDS", 0))
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def make_network() -> FCZSM:
    """Return the network of the paper with random weights and offsets of 1 to 2 pixels, as after training."""
    torch.manual_seed(5)
    model = create("fczsm")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv_offset_mask" in name:
                parameter.normal_(std=1.5 if parameter.ndim == 1 else 0.02)
    return model


def make_sample(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input (1, 2, 1, size, size) and truth (1, 3, 1, 2 size, 2 size): smooth fields between 0 and 1."""
    generator = torch.Generator().manual_seed(6)
    truth = torch.rand(3, 1, size // 8, size // 8, generator=generator)
    truth = F.interpolate(truth, size=(2 * size, 2 * size), mode="bicubic").clamp(0, 1)[None]
    return F.avg_pool2d(truth[0, ::2], 2)[None], truth


def make_forward(peer: str, model: FCZSM, dtype: torch.dtype):
    """Return the forward pass of a peer on the weights of the model."""
    if peer.startswith("fastds"):
        algorithm = "direct" if peer == "fastds direct" else "auto"

        def run(x):
            with (
                fastds.use_conv_algorithm(algorithm),
                torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
            ):
                return model(x)

        return run
    reference = ReferenceFCZSM(dict(model.named_parameters()), model.config)
    return torch.compile(reference.__call__) if peer == "torch_compile" else reference


def build(peer: str, mode: str, dtype: torch.dtype):
    """Build the callable to time.

    Args:
        peer: peer of the row.
        mode: "forward" for the output, "training step" for the loss and all gradients in one vector.
        dtype: dtype of autocast (bfloat16) or of all tensors.
    """
    size = SIZES[mode]
    if peer == "conv2d":
        return build_plain_convolutions(size, dtype)
    model = make_network().to(torch.float64 if dtype == torch.float64 else torch.float32)
    x, truth = (z.to(dtype if dtype == torch.float64 else torch.float32) for z in make_sample(size))
    run = make_forward(peer, model, dtype)
    if mode == "forward":

        def forward():
            with torch.no_grad():
                return run(x)

        return forward
    optimizer = torch.optim.Adam(model.parameters(), 1e-7)

    def step():
        optimizer.zero_grad()
        loss = F.mse_loss(run(x).to(truth.dtype), truth)
        loss.backward()
        optimizer.step()
        return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])

    return step


def build_plain_convolutions(size: int, dtype: torch.dtype):
    """Build plain convolutions with the FLOPs of the forward pass, for comparison."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 64, size, size, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 64, 3, 3, generator=generator).to(dtype) / 24

    def run():
        with torch.no_grad():
            for _ in range(round(count_reference_flops("forward") / (2 * 64 * 64 * 9 * size * size))):
                y = F.conv2d(x, weight, padding=1)
        return y

    return run


@functools.lru_cache
def count_reference_flops(mode: str) -> int:
    """Return the FLOPs of the reference; a backward pass has twice the products of a forward pass."""
    model = create("fczsm")
    forward = count_flops(model.state_dict(), model.config, 2, SIZES[mode], SIZES[mode])
    return forward * (1 if mode == "forward" else 3)


@functools.lru_cache
def compute_expected(mode: str, yardstick: bool):
    if yardstick:
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(1, 64, SIZES[mode], SIZES[mode], generator=generator).double()
        return F.conv2d(x, torch.randn(64, 64, 3, 3, generator=generator).double() / 24, padding=1)
    return build("reference", mode, torch.float64)()


def list_rows() -> list:
    params = []
    for mode, peer, dtype, memory in ROWS:
        compiles = peer == "torch_compile"
        reason = "torch.compile takes minutes; set FASTDS_BENCH_COMPILE_SECONDS to its time limit"
        marks = pytest.mark.skipif(compiles and not COMPILE_SECONDS, reason=reason)
        label = "-".join((mode.replace(" ", "_"), peer.replace(" ", "_"), str(dtype).removeprefix("torch."), memory))
        params.append(pytest.param(mode, peer, dtype, memory, id=label, marks=marks))
    return params


@pytest.mark.parametrize("mode, peer, dtype, memory", list_rows())
def test_fczsm(measure, mode, peer, dtype, memory):
    size = SIZES[mode]
    parameters = sum(p.numel() for p in make_network().parameters())
    measure(
        build, (peer, mode, dtype), memory=memory, timeout=COMPILE_SECONDS if peer == "torch_compile" else None,
        op="fczsm", case=f"(1,2,1,{size},{size})", mode=mode, peer=peer, yardstick=peer == "conv2d",
        dtype=str(dtype).removeprefix("torch."), flops=count_reference_flops(mode), bytes=4 * parameters,
        expected=compute_expected(mode, peer == "conv2d"), tolerance=TOLERANCE[dtype],
    )  # fmt: skip
