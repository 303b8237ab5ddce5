# SPDX-License-Identifier: Apache-2.0
"""Gradient penalty, and the losses of critic and generator."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

from fastds.models.wgan_gp.layers import cache_kernels

ADVERSARIES = ("wgan_gp", "gan")


@contextmanager
def frozen_spectral_norms(critic: nn.Module) -> Iterator[None]:
    """Context manager that stops the power iteration of spectral norms in a critic.

    Otherwise each forward would change the critic, and the penalty would mix derivatives of different functions.
    """
    norms = [m for m in critic.modules() if isinstance(m, _SpectralNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def interpolate_samples(real: Tensor, fake: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """Interpolate x_i = e_i real_i + (1 - e_i) fake_i with one e_i ~ U(0, 1) per sample.

    Args:
        real: (B, ...).
        fake: (B, ...).
        epsilon: (B,), the factors e_i; None draws them.

    Returns:
        A leaf tensor that requires a gradient.
    """
    if epsilon is None:
        epsilon = torch.rand(len(real), device=real.device)
    e = epsilon.to(real).reshape(-1, *[1] * (real.ndim - 1))
    return (e * real.detach() + (1 - e) * fake.detach()).requires_grad_()


def check_pair(real: Tensor, fake: Tensor) -> None:
    """Raise ValueError if real and fake samples have different shapes."""
    if real.shape != fake.shape:
        raise ValueError(
            f"fake has shape {tuple(fake.shape)}, expected that of real, {tuple(real.shape)}: is the generator's scale "
            "that of the coarse fields?"
        )


def gradient_penalty(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    coarse: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the gradient penalty between real and generated samples.

        P = mean_i (||grad_x D(x_i)||_2 - 1)^2,  x_i = e_i real_i + (1 - e_i) fake_i

    The norm is taken over all entries (steps, channels, pixels) of a sample. The computation uses float32 or better,
    without autocast.

    Args:
        critic: D(x) or D(x, coarse) -> (B,) or (B, T). Scores of several steps are averaged.
        real: (B, T, C, H, W), normalised. It gets no gradient.
        fake: generated samples of the same shape. They get no gradient.
        coarse: coarse fields for a conditional critic.
        epsilon: (B,), in [0, 1]; None draws it.

    Returns:
        P, with gradients of the critic's parameters, and the detached norms (B,).

    Raises:
        ValueError: If real and fake have different shapes.

    Source: Gulrajani et al. 2017, equation 3 and Algorithm 1.
    """
    check_pair(real, fake)
    with torch.autocast(real.device.type, enabled=False), frozen_spectral_norms(critic), torch.enable_grad():
        dtype = torch.promote_types(real.dtype, torch.float32)
        x = interpolate_samples(real.to(dtype), fake.to(dtype), epsilon)
        score = critic(x) if coarse is None else critic(x, coarse.to(dtype))
        # Scores of samples are independent, so the gradient of their sum has the gradients of all scores.
        score = score if score.ndim == 1 else score.mean(1)
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        norms = gradient.flatten(1).norm(dim=1)
        return (norms - 1).square().mean(), norms.detach()


class CriticLoss(nn.Module):
    """The critic and its loss in one module, so that distributed training has one forward and one backward.

        wgan_gp: L = mean D(fake) - mean D(real) + weight * penalty
        gan:     L = binary cross-entropy of D(real) with target 1 and of D(fake) with target 0, D as logits

    Args:
        critic: the network.
        adversary: "wgan_gp" or "gan" (the paper's ablation).
        weight: weight lambda of the penalty.

    Source: Li et al. 2024, Algorithm 1 (their equation 6 has the sign of a maximisation); Gulrajani et al. 2017.
    """

    def __init__(self, critic: nn.Module, adversary: str = "wgan_gp", weight: float = 10.0):
        super().__init__()
        if adversary not in ADVERSARIES:
            raise ValueError(f"adversary must be one of {ADVERSARIES}, got {adversary!r}")
        self.critic, self.adversary, self.weight = critic, adversary, weight
        if adversary == "wgan_gp" and getattr(critic, "config", {}).get("norm") == "batch":
            warnings.warn(
                "batch normalisation couples the samples of a critic: its gradient penalty is no longer per sample",
                UserWarning,
                stacklevel=2,
            )

    def forward(
        self, real: Tensor, fake: Tensor, coarse: Tensor | None = None, epsilon: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss.

        Args:
            real: (B, T, C, H, W), normalised.
            fake: generated samples of the same shape. They get no gradient.
            coarse: coarse fields for a conditional critic.
            epsilon: see gradient_penalty.

        Returns:
            The loss, and values to log: "real", "fake" (mean scores), and for wgan_gp "penalty" and "gradient_norm".

        Raises:
            ValueError: If real and fake have different shapes.
        """
        check_pair(real, fake)
        with cache_kernels():
            return self.compute_loss(real, fake.detach(), coarse, epsilon)

    def compute_loss(
        self, real: Tensor, fake: Tensor, coarse: Tensor | None, epsilon: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss for `forward`, which checks and detaches the samples.

        Args:
            real: (B, T, C, H, W), normalised.
            fake: generated samples of the same shape, detached.
            coarse: coarse fields for a conditional critic, or None.
            epsilon: see gradient_penalty.

        Returns:
            The loss and the values to log, see `forward`.
        """
        extra = () if coarse is None else (coarse,)
        score_real, score_fake = self.compute_scores(real, fake, extra)
        logs = {"real": score_real.mean().detach(), "fake": score_fake.mean().detach()}
        if self.adversary == "gan":
            loss = F.binary_cross_entropy_with_logits(score_real, torch.ones_like(score_real))
            return loss + F.binary_cross_entropy_with_logits(score_fake, torch.zeros_like(score_fake)), logs
        penalty, norms = gradient_penalty(self.critic, real, fake, coarse, epsilon)
        logs |= {"penalty": penalty.detach(), "gradient_norm": norms.mean()}
        return score_fake.mean() - score_real.mean() + self.weight * penalty, logs

    def compute_scores(self, real: Tensor, fake: Tensor, extra: tuple) -> tuple[Tensor, Tensor]:
        """Compute D(real) and D(fake), in one batch if the critic scores its samples independently.

        Args:
            real: (B, T, C, H, W), normalised.
            fake: generated samples of the same shape.
            extra: further arguments of the critic: the coarse fields, or none.

        Returns:
            Scores of the real and of the generated samples, float32.
        """
        if not getattr(self.critic, "has_independent_samples", False):
            return self.critic(real, *extra).float(), self.critic(fake, *extra).float()
        both = self.critic(torch.cat([real, fake]), *(torch.cat([e, e]) for e in extra))
        return both.float().chunk(2)


def adversarial_loss(score: Tensor, adversary: str) -> Tensor:
    """Compute the generator's loss: -mean D(fake), or the non-saturating cross-entropy of the GAN."""
    if adversary == "wgan_gp":
        return -score.float().mean()
    return F.binary_cross_entropy_with_logits(score.float(), torch.ones_like(score.float()))
