# SPDX-License-Identifier: Apache-2.0
"""Losses of DB-RNN. Sums over pixels, means over samples and frames: the scale the paper's weights stand for."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.db_rnn.discriminator import Discriminator

GDL_WEIGHT = 0.001
ADVERSARIAL_WEIGHT = 1.0
TERMS = ("none", "gdl", "adversarial")
WEIGHTS = ("fixed", "scheduled")


def _check(y: Tensor, target: Tensor) -> None:
    if y.shape != target.shape or y.dim() != 5:
        raise ValueError(
            f"forecasts and truth must have one shape (B, T, 1, H, W), got {tuple(y.shape)} and {tuple(target.shape)}"
        )


def pixel_loss(y: Tensor, target: Tensor) -> Tensor:
    """mean over B and T of sum over pixels of |x - y| + (x - y)^2; both (B, T, 1, H, W). A scalar."""
    _check(y, target)
    difference = y - target
    return (difference.abs() + difference.square()).sum((2, 3, 4)).mean()


def gradient_difference_loss(y: Tensor, target: Tensor) -> Tensor:
    """Mean over B and T of the sum over the (H-1) x (W-1) grid of the differences of absolute gradients.

    sum_ij ||x_{i+1,j} - x_ij| - |y_{i+1,j} - y_ij|| + ||x_{i,j+1} - x_ij| - |y_{i,j+1} - y_ij||

    Source: Mathieu, Couprie and LeCun 2016, equation 6 with exponent 1.
    """
    _check(y, target)

    def gradients(z: Tensor) -> tuple[Tensor, Tensor]:
        corner = z[..., :-1, :-1]
        return (z[..., 1:, :-1] - corner).abs(), (z[..., :-1, 1:] - corner).abs()

    pairs = zip(gradients(target), gradients(y), strict=True)
    return sum((a - b).abs().sum((2, 3, 4)) for a, b in pairs).mean()


def adversarial_loss(discriminator: Discriminator, y: Tensor) -> Tensor:
    """mean -log D(y): how far the frames y (B, T, 1, H, W) are from being taken for observed."""
    logits = discriminator(y.flatten(0, 1))
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def discriminator_loss(discriminator: Discriminator, y: Tensor, target: Tensor) -> Tensor:
    """mean of -log D(x) and -log(1 - D(y)) over frames, added; y gets no gradient."""
    real, fake = discriminator(target.flatten(0, 1)), discriminator(y.detach().flatten(0, 1))
    return F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )


@dataclass(frozen=True)
class Weights:
    """Weights of the loss's terms: forecast, deblurred forecast, gradient difference, adversarial."""

    forecast: float
    deblurred: float
    gradient: float = GDL_WEIGHT
    adversarial: float = ADVERSARIAL_WEIGHT


def scheduled_weights(epoch: int) -> Weights:
    """The forecast's weight falls from 1 to 0.01 over 20 epochs, the deblurred forecast's rises from 0.01 to 1.

    a = min(epoch / 20, 1);  forecast 1 - 0.99 a;  deblurred 0.01 + 0.99 a

    Args:
        epoch: from 0.

    Source: Ma, Zhang and Liu 2024, DB-RNN, section IV.
    """
    if epoch < 0:
        raise ValueError(f"epoch must be >= 0, got {epoch}")
    progress = min(epoch / 20, 1.0)
    return Weights(1 - 0.99 * progress, 0.01 + 0.99 * progress)


def weights_of(epoch: int, terms: str = "adversarial", scheduled: bool = True) -> Weights:
    """The weights at an epoch; the rows of the paper's Table VIII are made of both arguments.

    Args:
        epoch: from 0.
        terms: one of TERMS: "none", "gdl" with the gradient difference, "adversarial" with both, the full method.
        scheduled: see scheduled_weights; False: 1 and 1 for the errors of forecasts and deblurred forecasts.

    Raises: ValueError for other terms.
    """
    if terms not in TERMS:
        raise ValueError(f"terms must be one of {', '.join(TERMS)}, got {terms!r}")
    errors = scheduled_weights(epoch) if scheduled else Weights(1.0, 1.0)
    gradient, adversarial = GDL_WEIGHT * (terms != "none"), ADVERSARIAL_WEIGHT * (terms == "adversarial")
    return Weights(errors.forecast, errors.deblurred, gradient, adversarial)


def generator_loss(
    forecasts: Tensor, deblurred: Tensor, target: Tensor, weights: Weights, discriminator: Discriminator | None = None
) -> Tensor:
    """The sum of all terms for a DB network; gradient difference and adversarial term see the deblurred forecasts.

    Args:
        forecasts, deblurred, target: (B, T, 1, H, W).
        weights: see weights_of.
        discriminator: needed where weights.adversarial > 0; its own gradients are not wanted: freeze it.

    Raises:
        ValueError: shapes differ, or an adversarial weight without discriminator.
    """
    loss = weights.forecast * pixel_loss(forecasts, target) + weights.deblurred * pixel_loss(deblurred, target)
    if weights.gradient:
        loss = loss + weights.gradient * gradient_difference_loss(deblurred, target)
    if weights.adversarial:
        if discriminator is None:
            raise ValueError("discriminator is None, but weights.adversarial is not 0")
        loss = loss + weights.adversarial * adversarial_loss(discriminator, deblurred)
    return loss
