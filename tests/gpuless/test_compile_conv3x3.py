# SPDX-License-Identifier: Apache-2.0
"""The pass behind a library's convolution compiled for GPUs that are not there; and what it, and convolutions as one
kernel, save FC-ZSM."""

import collections

import pytest
import torch
from fastds.kernels.conv3x3 import epilogue
from gpuless.fake_cuda import Watched, on_cuda
from gpuless.triton_rig import ARCHS, compiled_launches
from triton.runtime.jit import JITFunction

import fastds
from fastds.models.graph import as_captured, frozen
from fastds.ops.core.registry import Op
from fastds.ops.impl.conv3x3 import direct


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("shuffle", [1, 2])
def test_machine_code(arch, shuffle):
    def maps(channels, size):
        y = torch.empty(1, channels, size, size, dtype=torch.bfloat16, device="meta")
        return y.to(memory_format=torch.channels_last)

    y = maps(64 * shuffle**2, 200)
    out, bias = maps(64, 200 * shuffle), torch.empty(y.shape[1], dtype=torch.bfloat16, device="meta")
    (kernel,) = compiled_launches(arch, lambda: epilogue(y, out, bias, y, y, 0.1, shuffle))
    kernel.check(registers=72, shared=16 << 10)
    wide = {name: n for name, n in kernel.counts.items() if name.startswith("LDG.E.128")}
    assert shuffle > 1 or sum(wide.values()) >= 3, kernel.counts  # y, second and residual: 16 bytes a thread


# Operations that start no kernel.
VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "device", "empty", "empty_like", "empty_strided", "expand",
    "permute", "rand", "select", "slice", "split", "split_with_sizes", "squeeze", "transpose", "unbind", "unsqueeze",
    "view",
}  # fmt: skip


def size(tensors):
    return sum(z.numel() * z.element_size() for z in tensors)


def counted(monkeypatch, algorithm, in_one_pass=True):
    """Kernels of FC-ZSM (1, 2, 1, 200, 200) in bfloat16, by name, and the bytes that each kind reads and writes."""
    inside, launches, traffic = Op._computed, collections.Counter(), collections.Counter()

    def note(name, tensors):
        launches[name] += 1
        traffic[name] += size(tensors)

    def computed(self, args, visible=False):  # convolutions with what is in them, other ops as one kernel
        return inside(self, args, visible and self.name not in ("conv1x1", "conv3x3"))

    def run(self, *args, grid, warmup, **options):
        note(self.fn.__name__, [z for z in args if isinstance(z, torch.Tensor)])

    monkeypatch.setattr(Op, "_computed", computed)
    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(direct, "fused", lambda x: in_one_pass)  # fake tensors are refused
    model = frozen(on_cuda("fczsm"), torch.bfloat16)
    with Watched() as seen, torch.no_grad(), as_captured(torch.bfloat16), fastds.convolution(algorithm):
        model(torch.rand(1, 2, 1, 200, 200, device="cuda"))
    for func, given, made in seen.calls:
        name = func._overloadpacket.__name__
        if name not in VIEWS:
            note(name, [*given, *made])
        if name == "convolution" and len(given) == 3:  # torch adds cuDNN's bias by a kernel of its own
            note("bias", [*made, *made])
    return launches, traffic


PRODUCTS = ("convolution", "_convolution_kernel", "guided_deform_conv2d")


def test_launches_and_traffic_of_fczsm(fake_cuda, monkeypatch):
    """By cuDNN and torch, by cuDNN and one pass behind it, and as one kernel."""
    after = ("_epilogue_kernel", "bias", "add_", "leaky_relu_", "relu_", "pixel_shuffle", "clone")
    ways = (counted(monkeypatch, *way) for way in (("direct", False), ("direct",), ("auto",)))
    launches, traffic = zip(*ways, strict=True)
    assert [n["convolution"] for n in launches] == [276, 276, 8] and launches[2]["_convolution_kernel"] == 258
    assert [sum(n.values()) for n in launches] == [966, 777, 445], launches

    def gigabytes(chosen):
        return [round(sum(n for name, n in counts.items() if chosen(name)) / 1e9, 1) for counts in traffic]

    assert gigabytes(lambda name: name in after) == [7.6, 5.1, 0.0]
    assert gigabytes(lambda name: name not in PRODUCTS) == [10.0, 7.5, 1.2]
