# SPDX-License-Identifier: Apache-2.0
"""Tests of convolutions with a stride against those of torch, with derivatives up to the third order."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from fastds.models.wgan_gp.layers import strided_conv3x3


def tensors(dtype=torch.float64, size=(5, 4), channels=(3, 4), batch=2):
    torch.manual_seed(4)
    shapes = [(batch, channels[0], *size), (channels[1], channels[0], 3, 3), (channels[1],)]
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def compute_in_torch(x, weight, bias, stride):
    return F.conv2d(x, weight, bias, stride, 1)


def gradients(function, inputs, stride):
    """Compute gradients of |d(f^3)/dx|^2 + f^2, which need first and second derivatives."""
    y = function(*inputs, stride)
    (gradient,) = torch.autograd.grad((y**3).sum(), inputs[0], create_graph=True)
    return torch.autograd.grad(gradient.square().sum() + y.square().sum(), inputs)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_derivatives_of_both_orders(stride):
    inputs = tensors()
    assert gradcheck(lambda *t: strided_conv3x3(*t, stride), inputs)
    assert gradgradcheck(lambda *t: strided_conv3x3(*t, stride), inputs)


def test_third_order():
    def gradient(x, weight):
        y = strided_conv3x3(x, weight, None, 2)
        return torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)

    assert gradgradcheck(gradient, tensors(size=(3, 3), channels=(2, 2), batch=1)[:2])


@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_equals_torch(size, layout):
    inputs = tensors(size=size)
    ours = [t.detach().contiguous(memory_format=layout).requires_grad_() if t.ndim == 4 else t for t in inputs]
    for a, b in zip(gradients(strided_conv3x3, ours, 2), gradients(compute_in_torch, inputs, 2), strict=True):
        torch.testing.assert_close(a, b)


def test_autocast():
    x, weight, bias = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = strided_conv3x3(x, weight, bias, 2), compute_in_torch(x, weight, bias, 2)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    for gradient in torch.autograd.grad(y.float().sum(), (x, weight, bias)):
        assert gradient.dtype == torch.float32


def test_transforms_use_the_library():
    x, weight, bias = (t.detach() for t in tensors())
    _, tangent = torch.func.jvp(lambda w: strided_conv3x3(x, w, bias, 2), (weight,), (torch.ones_like(weight),))
    torch.testing.assert_close(tangent, compute_in_torch(x, torch.ones_like(weight), None, 2))
