# SPDX-License-Identifier: Apache-2.0
"""Tests of the gradient penalty and its second derivatives against five independent computations."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, jvp

import fastds
from fastds.models.wgan_gp import CriticLoss, HumidityCritic, gradient_penalty
from fastds.models.wgan_gp.layers import (
    CBAM,
    ConvGRU,
    MixedConv,
    ResidualAttentionBlock,
    SqueezeExcitation,
    cache_kernels,
    compute_mean_and_max,
)
from fastds.models.wgan_gp.penalty import adversarial_loss, interpolate_samples
from fastds.ops import pixel_shuffle
from tests.references import wgan_gp as reference

SMALL = dict(width=4, down_blocks=2, post_blocks=1, reduction=2)


def days(batch=2, dtype=torch.float64, size=(8, 12), steps=3):
    return [torch.randn(batch, steps, 1, *size, dtype=torch.float64).to(dtype) for _ in range(2)]


def critic(dtype=torch.float64, **options):
    torch.manual_seed(5)
    return HumidityCritic(**{**SMALL, **options}).to(dtype)


class Linear(nn.Module):
    """D(x) = <a, x>."""

    def __init__(self, entries, dtype=torch.float64):
        super().__init__()
        self.a = nn.Parameter(torch.randn(entries, dtype=dtype))

    def forward(self, x):
        return x.flatten(1) @ self.a


def test_closed_form_of_a_linear_critic():
    """For D(x) = <a, x>, P = (|a| - 1)^2 and dP/da = 2 (|a| - 1) a / |a|, for any samples."""
    real, fake = days()
    d = Linear(real[0].numel())
    penalty, norms = gradient_penalty(d, real, fake)
    penalty.backward()
    length = d.a.detach().norm()
    torch.testing.assert_close(norms, length.expand(2))
    torch.testing.assert_close(penalty.detach(), (length - 1) ** 2)
    torch.testing.assert_close(d.a.grad, 2 * (length - 1) * d.a.detach() / length)


def test_scores_of_each_step_are_averaged():
    """For D_t(x) = <a_t, x_t>, the gradient of the mean over T steps is a / T."""

    class PerStep(Linear):
        def forward(self, x):
            return (x.flatten(2) * self.a.unflatten(0, (x.shape[1], -1))).sum(2)

    real, fake = days(steps=3)
    d = PerStep(real[0].numel())
    penalty, norms = gradient_penalty(d, real, fake)
    length = d.a.detach().norm() / 3
    torch.testing.assert_close(norms, length.expand(2))
    torch.testing.assert_close(penalty.detach(), (length - 1) ** 2)


def test_zero_gradient_gives_no_nan():
    real, fake = days()
    d = Linear(real[0].numel())
    d.a.data.zero_()
    penalty, _ = gradient_penalty(d, real, fake)
    penalty.backward()
    assert penalty == 1 and torch.equal(d.a.grad, torch.zeros_like(d.a))


def penalty_and_gradients(module, real, fake, epsilon, coarse=None):
    penalty, _ = gradient_penalty(module, real, fake, coarse, epsilon)
    return [penalty, *torch.autograd.grad(penalty, list(module.parameters()), allow_unused=True)]


class Composite(nn.Module):
    """Reference critic with the parameters of another critic."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, x, coarse=None):
        return reference.critic(dict(self.fused.named_parameters()), self.fused.config, x, coarse, training=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "none"}, {"mixing": "sum"}, {"conditional": True}, {"per_step": True}, {"use_cbam": False}],
    ids=str,
)
def test_fused_path_equals_composite_in_float64(options):
    d, (real, fake), epsilon = critic(**options), days(), torch.rand(2, dtype=torch.float64)
    coarse = torch.randn(2, 3, 1, 4, 6, dtype=torch.float64) if options.get("conditional") else None
    ours = penalty_and_gradients(d, real, fake, epsilon, coarse)
    expected = penalty_and_gradients(Composite(d), real, fake, epsilon, coarse)
    for name, a, b in zip(["penalty", *dict(d.named_parameters())], ours, expected, strict=True):
        if b is None:
            assert a is None or torch.equal(a, torch.zeros_like(a)), name
        else:
            torch.testing.assert_close(
                a, b, rtol=1e-10, atol=1e-10 * float(b.detach().abs().max()), msg=lambda m, n=name: f"{n}: {m}"
            )


def test_fused_path_equals_composite_in_float32(native):
    """The layers have enough channels for the Winograd engine."""
    d, (real, fake), epsilon = critic(torch.float32, width=16, reduction=8), days(dtype=torch.float32), torch.rand(2)
    with fastds.use_conv_algorithm("winograd"):
        ours = penalty_and_gradients(d, real, fake, epsilon)
    expected = penalty_and_gradients(Composite(d.double()), real.double(), fake.double(), epsilon.double())
    for name, a, b in zip(["penalty", *dict(d.named_parameters())], ours, expected, strict=True):
        if b is not None:
            error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-12)
            assert error < 1e-4, (name, float(error))


def test_reverse_over_forward_identity():
    """With v = g / |g| fixed, grad_w (|g| - 1)^2 = 2 (|g| - 1) grad_w <g, v>, where g = grad_x D."""
    d, (real, fake), epsilon = critic(), days(1), torch.rand(1, dtype=torch.float64)
    composite = Composite(d)  # torch's GroupNorm has no forward-mode rule for these strides
    names, ours = list(dict(d.named_parameters())), penalty_and_gradients(d, real, fake, epsilon)[1:]
    x = interpolate_samples(real, fake, epsilon)
    (g,) = torch.autograd.grad(d(x).sum(), x)
    v, length = g / g.norm(), g.norm()
    leaves = {k: p.detach().requires_grad_() for k, p in composite.named_parameters()}

    def along(x):
        return functional_call(composite, leaves, (x,)).sum()

    _, slope = jvp(along, (x.detach(),), (v,))
    expected = torch.autograd.grad(slope, list(leaves.values()), allow_unused=True)
    for name, a, b in zip(names, ours, expected, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(
                a, 2 * (length - 1) * b, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("norm,couples", [("layer", False), ("none", False), ("batch", True)])
def test_no_gradient_between_samples(norm, couples):
    d, x = critic(norm=norm), days()[0].requires_grad_()
    (g,) = torch.autograd.grad(d(x)[0], x)
    assert (g[1].abs().max() > 1e-8) == couples and g[0].abs().max() > 0


def test_one_epsilon_per_sample():
    real, fake = torch.zeros(64, 2, 1, 3, 3), torch.ones(64, 2, 1, 3, 3)
    x = interpolate_samples(real, fake)
    assert torch.equal(x.flatten(1).amin(1), x.flatten(1).amax(1)) and x[:, 0, 0, 0, 0].unique().numel() > 60
    assert x.min() >= 0 and x.max() <= 1 and x.is_leaf and x.requires_grad
    d = critic(torch.float32)
    real, fake = days(dtype=torch.float32)
    assert torch.equal(*(gradient_penalty(d, real, fake, None, torch.full((2,), e))[0] for e in (0.25, 0.25)))


def test_neither_sample_gets_a_gradient():
    real, fake = (t.requires_grad_() for t in days())
    loss, logs = CriticLoss(critic())(real, fake)
    loss.backward()
    assert fake.grad is None and set(logs) == {"real", "fake", "penalty", "gradient_norm"}
    assert logs["gradient_norm"] > 0


def nudged(module):
    """Convert to float64 and add noise to the parameters, so that no derivative is zero."""
    for p in module.parameters():
        p.data.add_(0.2 * torch.randn_like(p))
    return module.double()


BLOCKS = {
    "mixed": lambda: MixedConv(2, 4),
    "mixed stride 2": lambda: MixedConv(2, 4, 2),
    "mixed sequential": lambda: MixedConv(2, 2, mixing="sequential"),
    "se": lambda: SqueezeExcitation(4, 2),
    "cbam": lambda: CBAM(4, 2),
    "block layer": lambda: ResidualAttentionBlock(2, 4, "layer", 2, reduction=2),
    "block none": lambda: ResidualAttentionBlock(2, 2, "none", reduction=2),
    "block batch": lambda: ResidualAttentionBlock(2, 2, "batch", reduction=2),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_gradgradcheck_of_every_block(name):
    torch.manual_seed(11)
    block = nudged(BLOCKS[name]())
    channels = 4 if name in ("se", "cbam") else 2
    x = torch.randn(2, channels, 4, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(block.named_parameters())

    def function(x, *values):
        return functional_call(block, dict(zip(parameters, values, strict=True)), (x,))

    inputs = (x, *(p.detach().requires_grad_() for p in parameters.values()))
    assert gradcheck(function, inputs, fast_mode=True, check_undefined_grad=True)
    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dims", [(2, 3), (1,)], ids=["space", "channels"])
def test_mean_and_maximum_share_ties_as_torch_does(dims):
    torch.manual_seed(5)
    x = torch.randint(0, 3, (2, 4, 3, 3), dtype=torch.float64).requires_grad_()  # several values are largest
    weights = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)

    def gradients(pair):
        (first,) = torch.autograd.grad((weights[0] * pair[0] ** 2 + pair[1] ** 3).sum(), x, create_graph=True)
        return first, torch.autograd.grad((weights[1] * first**2).sum(), x)[0]

    expected = gradients((x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)))
    for got, right in zip(gradients(compute_mean_and_max(x, dims)), expected, strict=True):
        torch.testing.assert_close(got, right)


@pytest.mark.parametrize("kernels", [nullcontext, cache_kernels])
def test_gradgradcheck_of_the_recurrence(kernels):
    gru = nudged(ConvGRU(2, 2))
    x = torch.randn(1, 3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = dict(gru.named_parameters())

    def function(x, *values):
        return functional_call(gru, dict(zip(parameters, values, strict=True)), (x,))

    inputs = (x, *(p.detach().requires_grad_() for p in parameters.values()))

    def checked(*values):
        with kernels():
            return function(*values)

    assert gradcheck(checked, inputs, fast_mode=True) and gradgradcheck(checked, inputs, fast_mode=True)


def test_mixed_graphs_keep_every_second_order_term():
    """Terms would be missing without an error if a backward omitted an input."""

    def pieces(function):
        torch.manual_seed(2)
        x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
        y = function(x)
        (g,) = torch.autograd.grad((y * y.tanh()).sum() + (x**3).sum(), x, create_graph=True)
        (along,) = torch.autograd.grad((g * x).sum(), x, retain_graph=True)
        return [*torch.autograd.grad(g.sum(), x), along]

    weight = torch.randn(4, 4, 3, 3, dtype=torch.float64)
    cases = [
        (lambda x: fastds.ops.conv3x3(x, weight, activation="relu", residual=x),
         lambda x: torch.relu(torch.conv2d(x, weight, padding=1) + x)),
        (lambda x: pixel_shuffle(x, 2, x.mean((0, 2, 3)), "leaky_relu"),
         lambda x: nn.functional.leaky_relu(nn.functional.pixel_shuffle(x + x.mean((0, 2, 3))[:, None, None], 2), 0.1)),
    ]  # fmt: skip
    for fused, plain in cases:
        for a, b in zip(pieces(fused), pieces(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_penalty_is_float32_under_autocast():
    d, (real, fake), epsilon = critic(torch.float32), days(dtype=torch.float32), torch.rand(2)
    expected, _ = gradient_penalty(d, real, fake, None, epsilon)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_penalty(d, real, fake, None, epsilon)[0], expected)


def test_penalty_does_not_update_spectral_norm():
    d, (real, fake) = critic(norm="spectral"), days()
    before = {k: v.clone() for k, v in d.named_buffers()}
    gradient_penalty(d, real, fake)
    assert all(torch.equal(v, before[k]) for k, v in d.named_buffers())
    d(real)
    assert any(not torch.equal(v, before[k]) for k, v in d.named_buffers())


def test_batch_normalised_critic_warns():
    with pytest.warns(UserWarning, match="couples the samples"):
        CriticLoss(critic(norm="batch"))
    with pytest.raises(ValueError, match="adversary must be one of"):
        CriticLoss(critic(), "wgan")


def test_gan_losses():
    d, (real, fake) = critic(), days()
    loss, logs = CriticLoss(d, "gan")(real, fake)
    expected = nn.functional.softplus(-d(real)).mean() + nn.functional.softplus(d(fake)).mean()
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-6)
    assert "penalty" not in logs
    torch.testing.assert_close(adversarial_loss(d(fake), "gan"), nn.functional.softplus(-d(fake).float()).mean())
    torch.testing.assert_close(adversarial_loss(d(fake), "wgan_gp"), -d(fake).float().mean())


def test_gradient_norm_goes_to_one():
    """Train a critic on two Gaussians with different means."""
    torch.manual_seed(0)
    d = nn.Sequential(nn.Flatten(), nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1), nn.Flatten(0))
    loss, optimiser = CriticLoss(d), torch.optim.Adam(d.parameters(), lr=5e-3, betas=(0.5, 0.9))
    for _ in range(200):
        real, fake = torch.randn(64, 1, 1, 2, 2) + 1, torch.randn(64, 1, 1, 2, 2) - 1
        optimiser.zero_grad()
        value, logs = loss(real, fake)
        value.backward()
        optimiser.step()
    assert abs(logs["gradient_norm"] - 1) < 0.25 and logs["real"] > logs["fake"]
