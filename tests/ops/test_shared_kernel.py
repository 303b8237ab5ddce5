# SPDX-License-Identifier: Apache-2.0
"""Tests of several convolutions of a graph that share a weight, against separate convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastds
from fastds.models.wgan_gp import CriticLoss, HumidityCritic
from fastds.models.wgan_gp import layers as shared
from fastds.models.wgan_gp.layers import SharedKernel


def chain(x, weight, bias, residual, steps=3):
    """Compute a recurrence that uses one weight."""
    kernel = SharedKernel(weight)
    for _ in range(steps):
        x = torch.tanh(kernel(x, bias, residual))
    return x


def own_kernels(x, weight, bias, residual, steps=3):
    for _ in range(steps):
        x = torch.tanh(F.conv2d(x, weight, bias, padding=1) + residual)
    return x


def tensors(dtype=torch.float64, channels=3, size=(4, 5), batch=2):
    torch.manual_seed(2)
    shapes = [(batch, channels, *size), (channels, channels, 3, 3), (channels,), (batch, channels, *size)]
    return [(0.4 * torch.randn(s, dtype=torch.float64)).to(dtype).requires_grad_() for s in shapes]


def penalty_gradients(function, inputs):
    """Compute gradients of |df/dx|^2 + f^2, which need first and second derivatives."""
    y = function(*inputs)
    (gradient,) = torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
    return torch.autograd.grad(gradient.square().sum() + y.square().sum(), inputs)


def test_derivatives_of_both_orders():
    inputs = tensors(channels=2, size=(3, 2), batch=1)
    assert gradcheck(chain, inputs) and gradgradcheck(chain, inputs)


# Channels and size at which oneDNN, and at which the Winograd engine computes the steps on some processors.
@pytest.mark.parametrize("channels,size", [(128, (4, 4)), (16, (24, 28))], ids=["library", "engine"])
def test_float32_paths(channels, size, monkeypatch):
    calls = []
    library = shared._convolve_onednn
    monkeypatch.setattr(shared, "_convolve_onednn", lambda *args: calls.append(1) or library(*args))
    monkeypatch.setattr(shared, "_is_onednn_faster", lambda x, outputs, channels: channels == 128)
    got = penalty_gradients(chain, tensors(torch.float32, channels, size, batch=1))
    expected = penalty_gradients(own_kernels, tensors(torch.float64, channels, size, batch=1))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)
    if torch.backends.mkldnn.is_available():
        assert bool(calls) == (channels == 128)


def test_backward_that_misses_the_kernel():
    x, weight, bias, residual = tensors()
    expected = penalty_gradients(own_kernels, (x, weight, bias, residual))
    y = chain(x, weight, bias, residual)
    for _ in range(2):  # the graph is retained, and two backward passes use it
        (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        loss = gradient.square().sum() + y.square().sum()
        got = torch.autograd.grad(loss, (x, weight, bias, residual), retain_graph=True)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_failed_backward_leaves_no_state():
    inputs = tensors()
    expected = torch.autograd.grad(own_kernels(*inputs).sum(), inputs)
    y = chain(*inputs)

    def fail(_):
        raise RuntimeError("stop")

    hook = inputs[0].register_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        torch.autograd.grad(y.sum(), inputs, retain_graph=True)
    hook.remove()
    for a, b in zip(torch.autograd.grad(y.sum(), inputs), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_kernel_and_no_gradients():
    x, weight, bias, residual = tensors()
    frozen = weight.detach()
    (got,) = torch.autograd.grad(chain(x, frozen, None, residual).sum(), x)
    (expected,) = torch.autograd.grad(own_kernels(x, frozen, None, residual).sum(), x)
    torch.testing.assert_close(got, expected)
    with torch.no_grad():
        torch.testing.assert_close(chain(x, weight, bias, residual), own_kernels(x, weight, bias, residual))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_critic_loss_equals_separate_passes(norm):
    torch.manual_seed(3)
    critic = HumidityCritic(width=8, down_blocks=2, post_blocks=1, reduction=2, norm=norm).double()
    real, fake = (torch.randn(2, 3, 1, 8, 8, dtype=torch.float64) for _ in range(2))
    with pytest.warns(UserWarning) if norm == "batch" else torch.no_grad():
        module = CriticLoss(critic)
    epsilon = torch.tensor([0.2, 0.7])
    got = torch.autograd.grad(module(real, fake, None, epsilon)[0], list(critic.parameters()))
    penalty = fastds.models.wgan_gp.gradient_penalty(critic, real, fake, None, epsilon)[0]
    loss = critic(fake).mean() - critic(real).mean() + 10 * penalty
    for a, b in zip(got, torch.autograd.grad(loss, list(critic.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)
