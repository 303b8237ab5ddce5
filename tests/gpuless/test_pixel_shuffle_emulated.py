# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of pixel_shuffle on the CPU, by the emulator."""

import pytest
import torch
import torch.nn.functional as F
from gpuless.emu import ptxas_report

from fastds.ops import pixel_shuffle, pixel_unshuffle
from fastds.ops.impl.pixel_shuffle.reference import pixel_shuffle as reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def gradients(function, x, bias, grad_y):
    leaves = [t.detach().requires_grad_() for t in (x, bias)]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r,channels", [(1, 5), (2, 33), (3, 7), (4, 150), (8, 33)])
def test_emulated(emulated, r, channels, dtype):
    emulator = emulated("pixel_shuffle", seed=r)
    x = (
        torch.randn(1, channels * r * r, 3, 2, dtype=torch.float64)
        .to(dtype)
        .contiguous(memory_format=torch.channels_last)
    )
    bias = torch.randn(channels * r * r, dtype=torch.float64).to(dtype)
    grad_y = torch.randn(1, channels, 3 * r, 2 * r, dtype=torch.float64).to(dtype)
    got = gradients(lambda x, b: pixel_shuffle(x, r, b, "leaky_relu"), x, bias, grad_y)
    factor = torch.where(got[0] > 0, 1.0, 0.1).double()
    expected = reference(x.double(), r, bias.double(), "leaky_relu").to(dtype).double()
    torch.testing.assert_close(got[0].double(), expected)
    grad_x = F.pixel_unshuffle(grad_y.double() * factor, r)
    torch.testing.assert_close(got[1].double(), grad_x.to(dtype).double())
    torch.testing.assert_close(got[2].double(), grad_x.sum((0, 2, 3)), rtol=8 * torch.finfo(dtype).eps, atol=1e-5)
    assert torch.equal(pixel_unshuffle(pixel_shuffle(x, r), r), x)
    assert len(emulator.launches) == 6  # forward, three of backward, and a permutation each way


@pytest.mark.sanitized
def test_many_tiles(emulated):
    emulated("pixel_shuffle", seed=3)
    x = torch.randn(2, 4 * 70, 9, 5).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(280)
    got = gradients(lambda x, b: pixel_shuffle(x, 2, b, "relu"), x, bias, torch.ones(2, 70, 18, 10))
    expected = gradients(lambda x, b: reference(x, 2, b, "relu"), x, bias, torch.ones(2, 70, 18, 10))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_empty(emulated):
    emulated("pixel_shuffle")
    got = gradients(
        lambda x, b: pixel_shuffle(x, 2, b, "relu"), torch.zeros(0, 8, 2, 2), torch.zeros(8), torch.zeros(0, 2, 4, 4)
    )
    assert torch.equal(got[2], torch.zeros(8))


def test_no_spills():
    for kernel in ptxas_report("pixel_shuffle", 90):
        assert kernel.spills == 0, kernel
