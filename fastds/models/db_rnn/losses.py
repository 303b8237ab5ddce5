# SPDX-License-Identifier: Apache-2.0
"""Losses of DB-RNN.

Pixel losses are sums over pixels and means over samples and frames, because the weights in the paper have this scale.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.db_rnn.discriminator import Discriminator

GDL_WEIGHT = 0.001
ADVERSARIAL_WEIGHT = 1.0
TERMS = ("none", "gdl", "adversarial")
WEIGHTS = ("fixed", "scheduled")


def _check_shapes(y: Tensor, target: Tensor) -> None:
    if y.shape != target.shape or y.dim() != 5:
        raise ValueError(
            f"forecasts and truth must have one shape (B, T, 1, H, W), got {tuple(y.shape)} and {tuple(target.shape)}"
        )


def pixel_loss(y: Tensor, target: Tensor) -> Tensor:
    """Compute the sum over pixels of |x - y| + (x - y)^2, averaged over samples and frames.

    Args:
        y: forecasts, (B, T, 1, H, W).
        target: truth x, the same shape.

    Returns:
        A scalar.
    """
    _check_shapes(y, target)
    difference = y - target
    return (difference.abs() + difference.square()).sum((2, 3, 4)).mean()


def gradient_difference_loss(y: Tensor, target: Tensor) -> Tensor:
    """Compute the gradient difference loss: a sum over pixels, averaged over samples and frames.

        sum_ij ||x_{i+1,j} - x_ij| - |y_{i+1,j} - y_ij|| + ||x_{i,j+1} - x_ij| - |y_{i,j+1} - y_ij||

    The sum runs over the first H-1 rows and W-1 columns.

    Args:
        y: forecasts, (B, T, 1, H, W).
        target: truth x, the same shape.

    Source: Mathieu, Couprie and LeCun 2016, equation 6 with exponent 1.
    """
    _check_shapes(y, target)

    def gradients(z: Tensor) -> tuple[Tensor, Tensor]:
        corner = z[..., :-1, :-1]
        return (z[..., 1:, :-1] - corner).abs(), (z[..., :-1, 1:] - corner).abs()

    pairs = zip(gradients(target), gradients(y), strict=True)
    total: Any = sum((a - b).abs().sum((2, 3, 4)) for a, b in pairs)
    return total.mean()


def adversarial_loss(discriminator: Discriminator, y: Tensor) -> Tensor:
    """Compute the mean of -log D(y) over frames, the adversarial loss of the generator.

    Args:
        discriminator: D.
        y: forecasts, (B, T, 1, H, W).
    """
    logits = discriminator(y.flatten(0, 1))
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def discriminator_loss(discriminator: Discriminator, y: Tensor, target: Tensor) -> Tensor:
    """Compute the mean of -log D(x) plus the mean of -log(1 - D(y)) over frames.

    Args:
        discriminator: D.
        y: forecasts, (B, T, 1, H, W), without gradient.
        target: truth x, the same shape.
    """
    real, fake = discriminator(target.flatten(0, 1)), discriminator(y.detach().flatten(0, 1))
    return F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss: forecast, deblurred forecast, gradient difference, adversarial."""

    forecast: float
    deblurred: float
    gradient: float = GDL_WEIGHT
    adversarial: float = ADVERSARIAL_WEIGHT


def compute_scheduled_weights(epoch: int) -> Weights:
    """Compute the weights of the pixel losses at an epoch.

    With a = min(epoch / 20, 1), the weight of the forecast falls from 1 to 0.01 and that of the deblurred forecast
    rises from 0.01 to 1: forecast 1 - 0.99 a, deblurred 0.01 + 0.99 a.

    Args:
        epoch: number of the epoch, from 0.

    Raises:
        ValueError: If the epoch is negative.

    Source: Ma, Zhang and Liu 2024, DB-RNN, section IV.
    """
    if epoch < 0:
        raise ValueError(f"epoch must be >= 0, got {epoch}")
    progress = min(epoch / 20, 1.0)
    return Weights(1 - 0.99 * progress, 0.01 + 0.99 * progress)


def compute_loss_weights(epoch: int, terms: str = "adversarial", scheduled: bool = True) -> Weights:
    """Compute the weights of all terms of the loss at an epoch.

    The rows of Table VIII of the DB-RNN paper differ in `terms` and `scheduled`.

    Args:
        epoch: number of the epoch, from 0.
        terms: "none" (pixel losses only), "gdl" (also the gradient difference) or "adversarial" (also the adversarial
            loss, the full method).
        scheduled: True uses compute_scheduled_weights for the pixel losses, False uses weights of 1.

    Raises:
        ValueError: If `terms` has another value.
    """
    if terms not in TERMS:
        raise ValueError(f"terms must be one of {', '.join(TERMS)}, got {terms!r}")
    errors = compute_scheduled_weights(epoch) if scheduled else Weights(1.0, 1.0)
    gradient, adversarial = GDL_WEIGHT * (terms != "none"), ADVERSARIAL_WEIGHT * (terms == "adversarial")
    return Weights(errors.forecast, errors.deblurred, gradient, adversarial)


def generator_loss(
    forecasts: Tensor, deblurred: Tensor, target: Tensor, weights: Weights, discriminator: Discriminator | None = None
) -> Tensor:
    """Compute the weighted sum of all terms for a DB network.

    The gradient difference and the adversarial loss are computed for the deblurred forecasts.

    Args:
        forecasts: output of the forecasting module, (B, T, 1, H, W).
        deblurred: output of the deblurring module, the same shape.
        target: truth, the same shape.
        weights: see compute_loss_weights.
        discriminator: required if weights.adversarial is not 0. Its parameters should not require gradients, because
            this loss trains the generator only.

    Raises:
        ValueError: If the shapes differ, or if the discriminator is missing.
    """
    loss = weights.forecast * pixel_loss(forecasts, target) + weights.deblurred * pixel_loss(deblurred, target)
    if weights.gradient:
        loss = loss + weights.gradient * gradient_difference_loss(deblurred, target)
    if weights.adversarial:
        if discriminator is None:
            raise ValueError("discriminator is None, but weights.adversarial is not 0")
        loss = loss + weights.adversarial * adversarial_loss(discriminator, deblurred)
    return loss
