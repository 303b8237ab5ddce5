# SPDX-License-Identifier: Apache-2.0
"""Fit of an error model to pixels, by the CRPS of its distribution."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastds.models.ensembles import ErrorModel, convert_to_rain_rate, quadrature, sample_reflectivity

NODES, WEIGHTS = quadrature(25)  # quadrature nodes of a standard normal distribution, and their weights
_MEAN_WEIGHT = 0.1  # weight of the squared error of the mean rain, relative to the variance of rain
_WIDTH = 0.5  # dB, width of the soft detection threshold
_LEAST_VARIANCE = 0.05  # dB^2, added to both variances of the spread term


class Scores(NamedTuple):
    """Scores (N,) of an error model: CRPS in dB, CRPS in mm/h, and squared error of the mean rain rate in (mm/h)^2."""

    echo: Tensor
    rain: Tensor
    mean: Tensor


def score(error_model: ErrorModel, features: Tensor, truth: Tensor, least: Tensor, z_r: tuple[float, float]) -> Scores:
    """Score an error model by numerical quadrature over NODES; differentiable.

    Args:
        error_model: the error model.
        features: (F, N).
        truth: (N,) dB above the floor.
        least: (N,) detection threshold, dB above the floor. It is applied as a soft threshold, so that the score is
            differentiable.
        z_r: (a, b) of the Z-R relation.
    """
    z = sample_reflectivity(tuple(part[:, None] for part in error_model(features)), NODES)
    wet = torch.sigmoid((z - least[:, None]) / _WIDTH)
    z = z.clamp(0, 60)
    rain, seen = convert_to_rain_rate(z, z_r) * wet, rain_of(truth, z_r)
    return Scores(_crps(z * wet, truth), _crps(rain, seen), ((rain * WEIGHTS).sum(1) - seen).square())


def rain_of(z: Tensor, z_r: tuple[float, float]) -> Tensor:
    """Convert reflectivity above the floor, where 0 means no echo, to mm/h."""
    return torch.where(z > 0, convert_to_rain_rate(z, z_r), 0.0)


def _crps(x: Tensor, truth: Tensor) -> Tensor:
    """Compute the CRPS of distributions whose quantiles at NODES are x (N, nodes)."""
    place = 2 * WEIGHTS.cumsum(0) - WEIGHTS - 1
    return ((x - truth[:, None]).abs() * WEIGHTS).sum(1) - (x * WEIGHTS * place).sum(1)


class Pool:
    """Pixels of a block, from which batches are drawn.

    Args:
        features: (F, N).
        truth: (N,) dB above the floor.
        least: (N,) detection threshold, dB above the floor.
        z_r: (a, b) of the Z-R relation.
        weights: (N,) weights of the draws; None for equal weights.
        spread: weight of the spread term in the loss, the squared logarithm of (mean variance / mean squared error of
            the mean). The term calibrates the spread of the whole block, to which the CRPS of single pixels is
            insensitive.
    """

    def __init__(
        self,
        features: Tensor,
        truth: Tensor,
        least: Tensor,
        z_r: tuple[float, float],
        weights: Tensor | None = None,
        spread: float = 0.0,
    ):
        self.features, self.truth, self.least, self.z_r, self.spread = features, truth, least, z_r, spread
        weights = torch.ones(len(truth), dtype=torch.float64) if weights is None else weights
        self.shares = weights.cumsum(0)
        rain = rain_of(self.truth, self.z_r)
        self.units = float(self.truth.mean()) + 0.3, float(rain.mean()) + 0.03, float(rain.var()) / _MEAN_WEIGHT

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` pixels by their weights."""
        places = torch.rand(count, generator=generator, dtype=torch.float64) * self.shares[-1]
        return torch.searchsorted(self.shares, places).clamp(max=len(self.shares) - 1)

    def loss(self, error_model: ErrorModel, index: Tensor) -> Tensor:
        """Compute the loss on some pixels.

        The loss is the sum of the CRPS in dB, the CRPS in mm/h, the squared error of the mean rain and the spread term.
        Each of the first three is divided by a constant of the block.

        Args:
            error_model: the error model.
            index: indices of the pixels.
        """
        features, truth = self.features[:, index], self.truth[index]
        parts = score(error_model, features, truth, self.least[index], self.z_r)
        found: Any = sum(part.mean() / unit for part, unit in zip(parts, self.units, strict=True))
        return found + self.spread * self._compute_spread_term(error_model(features), truth) if self.spread else found

    @staticmethod
    def _compute_spread_term(distribution: tuple[Tensor, ...], truth: Tensor) -> Tensor:
        z = sample_reflectivity(tuple(part[:, None] for part in distribution), NODES).clamp(0, 60)
        mean = (z * WEIGHTS).sum(1)
        variance = (z.square() * WEIGHTS).sum(1) - mean.square()
        both = (part.mean() + _LEAST_VARIANCE for part in (variance, (mean - truth).square()))
        return torch.log(torch.stack(list(both))).diff().square().sum()


def fit_pools(
    error_model: ErrorModel, pools: Sequence[Pool], steps: int, seed: int = 0, batch: int = 1000
) -> list[float]:
    """Fit an error model with Adam and cosine decay. The result is deterministic for a given number of threads.

    Args:
        error_model: the error model, fitted in place.
        pools: pixels of the blocks.
        steps: number of steps.
        seed: random seed of the draws.
        batch: pixels of each pool in a step.

    Returns:
        The loss of each step.
    """
    generator, losses = torch.Generator().manual_seed(seed), []
    optimiser = torch.optim.Adam(error_model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss: Any = sum(pool.loss(error_model, pool.draw(batch, generator)) for pool in pools) / len(pools)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return losses
