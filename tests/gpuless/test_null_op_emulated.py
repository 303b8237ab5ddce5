# SPDX-License-Identifier: Apache-2.0
"""Tests of the CUDA kernel of null_op on the emulator, a template for the tests of other CUDA kernels."""

import pytest
import torch
from gpuless.emu import ptxas_report

from fastds.ops import null_op
from fastds.ops.impl.null_op import reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_kernel_agrees_with_the_reference(emulated, dtype):
    x, other = (torch.randn(3, 301).to(dtype).requires_grad_() for _ in range(2))
    emulator = emulated("null_op")
    y = null_op(x, other, 0.5)
    expected = reference.null_op(x.double(), other.double(), 0.5)
    torch.testing.assert_close(y, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-7)
    assert [launch.grid[0] for launch in emulator.launches] == [4]
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, torch.full_like(x, 0.5)) and torch.equal(other.grad, torch.ones_like(x))
    assert len(emulator.launches) == 3  # one more for each gradient


def test_cuda_kernel_without_a_second_tensor(emulated):
    emulated("null_op", seed=1)
    x = torch.randn(3, 301)
    assert torch.equal(null_op(x), x) and null_op(x[:0]).shape == (0, 301)


def test_registers_and_spills():
    for kernel in ptxas_report("null_op", 80):
        assert kernel.spills == 0 and kernel.stack == 0 and kernel.registers <= 32, kernel
