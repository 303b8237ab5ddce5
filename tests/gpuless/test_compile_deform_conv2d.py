# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels of deform_conv2d for several GPUs and checks the machine code."""

import pytest
import torch
from fastds.kernels import deform_conv2d as forward_kernels
from fastds.kernels import deform_conv2d_backward as backward_kernels
from gpuless.triton_rig import TENSOR_CORES, compiled_launches


def maps(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)


def compiled(arch, dtype, wide, names, size=200):
    """Compile kernels for the guided layer of FC-ZSM.

    Args:
        arch: compute capability, 90 for sm_90.
        dtype: dtype of the maps.
        wide: True for 64-bit addresses.
        names: names of the kernels: forward, maps, weight.
        size: height and width.
    """
    x, raw, weight = maps(1, 64, size, size, dtype=dtype), maps(1, 216, size, size, dtype=dtype), maps(64, 64, 3, 3)
    weight, bias = weight.to(dtype), torch.empty(64, dtype=dtype, device="meta")
    base = torch.empty(1, 2, size, size, device="meta")
    problem = forward_kernels.Problem((3, 3), (1, 1), (1, 1), (1, 1), 1, 8)
    grad_x, grad_raw = maps(1, 64, size, size, dtype=torch.float32), maps(1, 216, size, size, dtype=dtype)
    shared = {"base": base, "sigmoid": True, "use_int64": wide}

    args = (x, x, raw[:, :144], raw[:, 144:], weight)
    grads = (grad_x, grad_raw[:, :144], grad_raw[:, 144:])

    def launch():
        if "forward" in names:
            forward_kernels.launch_forward(*args[1:], bias, x, problem, slope=0.1, **shared)
        if "maps" in names:
            backward_kernels.launch_maps(*args, *grads, problem, **shared)
        if "weight" in names:
            backward_kernels.compute_weight_gradient(*args, problem, **shared)

    return compiled_launches(arch, launch)


CASES = [
    pytest.param(90, torch.bfloat16, None, ("forward", "maps", "weight"), id="sm_90"),
    pytest.param(90, torch.bfloat16, True, ("forward", "maps"), id="sm_90-wide"),
    pytest.param(90, torch.float32, None, ("forward", "maps", "weight"), id="sm_90-float32"),
    pytest.param(80, torch.bfloat16, None, ("forward", "maps"), id="sm_80"),
    pytest.param(100, torch.bfloat16, None, ("forward", "maps"), id="sm_100"),
]


@pytest.mark.parametrize("arch, dtype, wide, names", CASES)
def test_deform_conv2d_kernels_compile(arch, dtype, wide, names):
    kernels = compiled(arch, dtype, wide, names)
    assert [kernel.name for kernel in kernels] == [f"_{name}_kernel" for name in names]
    for kernel in kernels:
        # For sm_100 ptxas takes 64 registers, for four programs, and keeps 3 values from before the loop to its end.
        stack = 16 if arch == 100 and kernel.name == "_forward_kernel" else 0
        kernel.check(registers=255 if wide or arch == 80 else 184, shared=112 << 10, stack=stack)
        assert any(name.startswith(TENSOR_CORES[arch]) for name in kernel.counts), kernel.counts
        # Loads of gathers have 16 bytes per thread and use all caches (loads with BYPASS skip L1).
        loads = {n: c for n, c in kernel.counts.items() if n.startswith(("LDGSTS.E.128", "LDG.E.128"))}
        assert sum(loads.values()) >= 8, kernel.counts
        if arch >= 90 and kernel.name == "_maps_kernel":  # additions to grad_x: four channels at a time
            assert any(name.startswith("REDG.E.ADD.F32x4") for name in kernel.counts), kernel.counts


def test_deform_conv2d_compiles_for_odd_channels():
    x, offset, weight = maps(1, 38, 21, 23), maps(1, 36, 21, 23, dtype=torch.float32), maps(17, 38, 3, 3)
    y, grad_x = maps(1, 17, 21, 23), maps(1, 38, 21, 23, dtype=torch.float32)
    problem = forward_kernels.Problem((3, 3), (1, 1), (1, 1), (1, 1), 1, 2)

    def launch():
        forward_kernels.launch_forward(x, offset, None, weight, None, y, problem)
        backward_kernels.launch_maps(y, x, offset, None, weight, grad_x, offset, None, problem)
        backward_kernels.compute_weight_gradient(y, x, offset, None, weight, problem)

    kernels = compiled_launches(90, launch)
    assert len(kernels) == 3
    for kernel in kernels:
        kernel.check()
