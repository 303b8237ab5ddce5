# SPDX-License-Identifier: Apache-2.0
"""Tests of the CUDA kernels of pixel_shuffle on the emulator."""

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


def agrees(r, channels, dtype):
    """Check pixel_shuffle and pixel_unshuffle and their gradients against the reference."""
    x = torch.randn(2, channels * r * r, 3, 2, dtype=torch.float64).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(channels * r * r, dtype=torch.float64).to(dtype)
    grad_y = torch.randn(2, channels, 3 * r, 2 * r, dtype=torch.float64).to(dtype)
    got = gradients(lambda x, b: pixel_shuffle(x, r, b, "leaky_relu"), x, bias, grad_y)
    factor = torch.where(got[0] > 0, 1.0, 0.1).double()
    expected = reference(x.double(), r, bias.double(), "leaky_relu").to(dtype).double()
    torch.testing.assert_close(got[0].double(), expected)
    grad_x = F.pixel_unshuffle(grad_y.double() * factor, r)
    torch.testing.assert_close(got[1].double(), grad_x.to(dtype).double())
    torch.testing.assert_close(got[2].double(), grad_x.sum((0, 2, 3)), rtol=8 * torch.finfo(dtype).eps, atol=1e-5)
    assert torch.equal(pixel_unshuffle(pixel_shuffle(x, r), r), x)


def started(emulator):
    return [launch.name.removeprefix("pixel_") for launch in emulator.launches]


# The kernels of pixel_shuffle and its gradients; then those of pixel_shuffle and pixel_unshuffle.
GRADIENTS = ["unshuffle_kernel", "shuffle_sum_kernel"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("r,channels", [(1, 5), (2, 33), (3, 7), (4, 150), (8, 32)])
def test_pixel_shuffle_agrees_with_the_reference(emulated, r, channels, dtype):
    emulator = emulated("pixel_shuffle", seed=r)
    agrees(r, channels, dtype)
    assert started(emulator) == ["shuffle_kernel", *GRADIENTS, "shuffle_kernel", "unshuffle_kernel"]


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("r,channels", [(1, 24), (2, 16), (3, 8), (4, 8)])
def test_pixel_shuffle_in_registers(emulated, r, channels, dtype):
    emulator = emulated("pixel_shuffle", seed=r)
    agrees(r, channels, dtype)
    assert started(emulator) == ["shuffle_run_kernel", *GRADIENTS, "shuffle_run_kernel", "unshuffle_kernel"]


def test_unaligned_storage(emulated):
    emulator = emulated("pixel_shuffle")
    x = torch.randn(1 + 32 * 6).as_strided((1, 32, 2, 3), (192, 1, 96, 32), 1)
    assert torch.equal(pixel_shuffle(x, 2), F.pixel_shuffle(x, 2))
    assert started(emulator) == ["shuffle_kernel"]


@pytest.mark.sanitized
def test_many_tiles(emulated):
    emulated("pixel_shuffle", seed=3)
    x = torch.randn(2, 4 * 70, 9, 5).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(280)
    got = gradients(lambda x, b: pixel_shuffle(x, 2, b, "relu"), x, bias, torch.ones(2, 70, 18, 10))
    expected = gradients(lambda x, b: reference(x, 2, b, "relu"), x, bias, torch.ones(2, 70, 18, 10))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_empty_batch(emulated):
    emulated("pixel_shuffle")
    got = gradients(
        lambda x, b: pixel_shuffle(x, 2, b, "relu"), torch.zeros(0, 8, 2, 2), torch.zeros(8), torch.zeros(0, 2, 4, 4)
    )
    assert torch.equal(got[2], torch.zeros(8))


@pytest.mark.parametrize("source", ["cuda.cu", "cuda_backward.cu"])
def test_no_spills(source):
    for kernel in ptxas_report("pixel_shuffle", 90, source=source):
        assert kernel.spills == 0, kernel
