# SPDX-License-Identifier: Apache-2.0
"""conv3x3 compared with the convolution of torch in channels_last.

The shapes are those of the networks, odd sizes, and few and many channels. Both are timed interleaved. The rows of AVX2
come from a separate process, in which fastds and oneDNN are limited to AVX2.
"""

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from bench.interleaved_timing import measure_medians
from fastds.ops import conv3x3
from fastds.ops.core import native as _native
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference

AVX2 = os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2"
if AVX2:
    _native.get_module().set_isa("avx2")


@dataclass(frozen=True)
class Case:
    """A 3x3 convolution of images (batch, channels, height, width) to `outputs` channels."""

    batch: int
    height: int
    width: int
    channels: int
    outputs: int

    def __str__(self):
        return f"({self.batch},{self.height},{self.width}) {self.channels}->{self.outputs}"

    def count_flops(self, mode):
        """Return the FLOPs of the direct convolution; the backward pass has two products."""
        forward = 2 * self.batch * self.height * self.width * 9 * self.channels * self.outputs
        return forward * (2 if mode == "backward" else 1)

    def count_bytes(self, mode, itemsize):
        """Return the least memory traffic in bytes: each image is read or written once, in the backward pass twice."""
        forward = self.batch * self.height * self.width * (self.channels + self.outputs) * itemsize
        return forward * (2 if mode == "backward" else 1)

    def make_tensors(self, dtype):
        """Return x, weight, bias, residual and the gradient of the result, weight and bias in float32."""
        generator = torch.Generator().manual_seed(7)

        def draw_images(channels):
            x = torch.randn(self.batch, channels, self.height, self.width, generator=generator)
            return x.to(dtype).contiguous(memory_format=torch.channels_last)

        weight = torch.randn(self.outputs, self.channels, 3, 3, generator=generator) / (9 * self.channels) ** 0.5
        bias = torch.randn(self.outputs, generator=generator)
        return draw_images(self.channels), weight, bias, draw_images(self.outputs), draw_images(self.outputs)


CASES = {
    str(case): case
    for case in (
        Case(4, 160, 160, 48, 96), Case(4, 80, 80, 48, 96), Case(1, 200, 200, 64, 64), Case(1, 200, 200, 64, 216),
        Case(1, 200, 200, 128, 64), Case(1, 50, 50, 64, 64), Case(8, 64, 64, 128, 128), Case(1, 400, 400, 64, 64),
        Case(8, 32, 32, 256, 1024), Case(1, 200, 200, 16, 16), Case(1, 200, 200, 24, 24), Case(1, 200, 200, 32, 32),
        Case(1, 101, 77, 96, 96), Case(1, 37, 53, 256, 256),
    )
}  # fmt: skip
AVX2_CASES = ("(1,200,200) 64->64", "(4,80,80) 48->96", "(1,101,77) 96->96", "(8,64,64) 128->128", "(1,200,200) 24->24")
MODES = ("forward", "backward", "fused")  # fused: with bias, residual and leaky ReLU
PEERS = [
    ("fastds", torch.float32), ("fastds", torch.bfloat16), ("conv2d", torch.float32), ("conv2d", torch.bfloat16),
]  # fmt: skip


def build(peer, case, mode, dtype):
    """Build the callable to time.

    Args:
        peer: "fastds" or "conv2d".
        case: key of CASES.
        mode: one of MODES. "backward" returns the gradients of x, weight and bias.
        dtype: dtype of the images.
    """
    x, weight, bias, residual, grad = CASES[case].make_tensors(dtype)
    if peer == "conv2d":
        weight, bias = weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)
    if mode == "backward":
        x, weight, bias = (t.requires_grad_() for t in (x, weight, bias))
        y = conv3x3(x, weight, bias) if peer == "fastds" else F.conv2d(x, weight, bias, padding=1)
        return lambda: torch.autograd.grad(y, (x, weight, bias), grad, retain_graph=True)

    def run():
        with torch.no_grad():
            if peer == "fastds":
                extras = {"residual": residual, "activation": "leaky_relu"} if mode == "fused" else {}
                return conv3x3(x, weight, bias, **extras)
            y = F.conv2d(x, weight, bias, padding=1)
            return F.leaky_relu_(y.add_(residual), 0.1) if mode == "fused" else y

    return run


@functools.lru_cache(maxsize=1)
def compute_expected(case, mode, dtype):
    """Compute the result in float64 from inputs that are rounded to dtype."""
    x, weight, bias, residual, grad = (t.double() for t in CASES[case].make_tensors(dtype))
    if mode == "fused":
        return reference(x, weight, bias, None, residual, "leaky_relu")
    if mode == "forward":
        return reference(x, weight, bias)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    return torch.autograd.grad(F.conv2d(*leaves, padding=1), leaves, grad)


@functools.lru_cache(maxsize=1)
def measure_seconds(case, mode):
    """Return the median seconds by (peer, dtype), measured interleaved."""
    peers = [peer for peer in PEERS if not AVX2 or peer[1] == torch.float32]
    return measure_medians({(peer, dtype): build(peer, case, mode, dtype) for peer, dtype in peers})


@pytest.mark.parametrize("peer,dtype", PEERS, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", AVX2_CASES if AVX2 else CASES)
def test_conv3x3(measure, case, mode, peer, dtype):
    measure(
        build, (peer, case, mode, dtype), op="conv3x3", case=case, mode=mode, peer=peer,
        dtype=str(dtype).removeprefix("torch."), flops=CASES[case].count_flops(mode),
        bytes=CASES[case].count_bytes(mode, dtype.itemsize), expected=compute_expected(case, mode, dtype),
        tolerance=1e-4 if dtype == torch.float32 else 3e-2, get_median=lambda: measure_seconds(case, mode)[peer, dtype],
    )  # fmt: skip


@pytest.mark.skipif(AVX2, reason="this process is limited to AVX2")
def test_avx2(benchmark, other_rows, tmp_path):
    path = tmp_path / "avx2.json"
    command = [sys.executable, "-m", "pytest", __file__, "-q", "--benchmark-only", f"--benchmark-json={path}"]
    command += ["-k", "float32 and not fused"]
    run = functools.partial(subprocess.run, command, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True)
    benchmark.pedantic(run, rounds=1)
    other_rows.extend(json.loads(path.read_text())["benchmarks"])
