# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of deform_conv2d compiled for GPUs that are not there: tensor cores, vectors, L1, no spills."""

import pytest
import torch
from fastds.kernels import deform_conv2d as forward_kernels
from fastds.kernels import deform_conv2d_backward as backward_kernels
from gpuless.triton_rig import ARCHS, compiled_launches

TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


def maps(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def compiled(arch, dtype, *, size=200, wide=None, **options):
    """FC-ZSM's guided layer at a level of `size` pixels: forward, gradients of the maps, gradient of the weight."""
    x, raw, weight = maps(1, 64, size, size, dtype=dtype), maps(1, 216, size, size, dtype=dtype), maps(64, 64, 3, 3)
    weight, bias = weight.to(dtype), torch.empty(64, dtype=dtype, device="meta")
    base = torch.empty(1, 2, size, size, device="meta")
    problem = forward_kernels.Problem((3, 3), (1, 1), (1, 1), (1, 1), 1, 8)
    grad_x, grad_raw = maps(1, 64, size, size, dtype=torch.float32), maps(1, 216, size, size, dtype=dtype)
    shared = {"base": base, "sigmoid": True, "wide": wide}

    def launch():
        forward_kernels.launch_forward(
            x, raw[:, :144], raw[:, 144:], weight, bias, x, problem, slope=0.1, **shared, **options
        )
        args = (x, x, raw[:, :144], raw[:, 144:], weight)
        grads = (grad_x, grad_raw[:, :144], grad_raw[:, 144:])
        backward_kernels.launch_maps(*args, *grads, problem, **shared)
        backward_kernels.weight_gradient(*args, problem, **shared)

    return compiled_launches(arch, launch)


CASES = [(arch, torch.bfloat16, 200, None) for arch in ARCHS]
CASES += [(90, torch.float32, 200, None), (90, torch.bfloat16, 200, True)]


@pytest.mark.parametrize("arch, dtype, size, wide", CASES, ids=str)
def test_machine_code(arch, dtype, size, wide):
    forward, grad_maps, grad_weight = compiled(arch, dtype, size=size, wide=wide)
    for kernel in (forward, grad_maps, grad_weight):
        kernel.check(registers=255 if wide or arch == 80 else 184, shared=112 << 10)
        assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
        # Gathers: 16 bytes a thread, past no cache (BYPASS would go round L1).
        loads = {n: c for n, c in kernel.counts.items() if n.startswith(("LDGSTS.E.128", "LDG.E.128"))}
        assert sum(loads.values()) >= 8, kernel.counts
    if arch >= 90:  # additions to grad_x: four channels at a time
        assert any(name.startswith("REDG.E.ADD.F32x4") for name in grad_maps.counts), grad_maps.counts


def test_odd_channels_compile_too():
    """19 channels a segment, groups not nested, offsets of their own dtype: nothing is aligned."""
    x, offset, weight = maps(1, 38, 21, 23), maps(1, 36, 21, 23, dtype=torch.float32), maps(17, 38, 3, 3)
    y, grad_x = maps(1, 17, 21, 23), maps(1, 38, 21, 23, dtype=torch.float32)
    problem = forward_kernels.Problem((3, 3), (1, 1), (1, 1), (1, 1), 1, 2)

    def launch():
        forward_kernels.launch_forward(x, offset, None, weight, None, y, problem)
        backward_kernels.launch_maps(y, x, offset, None, weight, grad_x, offset, None, problem)
        backward_kernels.weight_gradient(y, x, offset, None, weight, problem)

    kernels = compiled_launches(90, launch)
    assert len(kernels) == 3
    for kernel in kernels:
        kernel.check()
