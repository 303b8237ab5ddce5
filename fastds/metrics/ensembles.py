# SPDX-License-Identifier: Apache-2.0
"""Scores of ensembles of fields."""

import torch
from torch import Tensor


def _check(members: Tensor, truth: Tensor) -> None:
    if members.ndim < 2 or members.shape[1:] != truth.shape or members.shape[0] < 2:
        raise ValueError(
            f"members must have shape (M >= 2, *truth.shape), got {tuple(members.shape)} and {tuple(truth.shape)}"
        )


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> float:
    """sum(w x) / sum(w) over all points; weights: broadcastable to values, relative; None: all alike."""
    if weights is None:
        return float(values.double().mean())
    weights = weights.double().expand(values.shape)
    return float((weights * values.double()).sum() / weights.sum())


def crps(members: Tensor, truth: Tensor, weights: Tensor | None = None) -> float:
    """Fair continuous ranked probability score, mean over all points, in the unit of the fields.

    mean_m |x_m - y| - sum_{m,k} |x_m - x_k| / (2 M (M - 1)); compare with the MAE of a single field.

    Args:
        members: (M >= 2, ...). truth: (...). weights: of the points, as in weighted_mean.

    Source: Ferro 2014, equation 8.
    """
    _check(members, truth)
    m, x = len(members), members.double().sort(0).values
    # Of sorted members: sum_{m,k} |x_m - x_k| = 2 sum_k (2 k - M - 1) x_k, k = 1 ... M.
    place = torch.arange(1 - m, m, 2, dtype=torch.float64).reshape(-1, *[1] * truth.ndim)
    difference = (place * x).sum(0) / (m * (m - 1))
    return weighted_mean((x - truth.double()).abs().mean(0) - difference, weights)


def spread(members: Tensor, weights: Tensor | None = None) -> float:
    """Root of the mean variance of the members, variances with M - 1, in the unit of the fields.

    Args: members: (M >= 2, ...). weights: of the points, as in weighted_mean.
    """
    return weighted_mean(members.double().var(0), weights) ** 0.5


def spread_skill(members: Tensor, truth: Tensor, weights: Tensor | None = None) -> float:
    """Spread over error of the ensemble's mean; 1 for members and truth drawn from the same distribution.

    sqrt(mean variance * (M + 1) / M) / sqrt(mean (mean_m x_m - y)^2), variances with M - 1; means over the points with
    weights, as in weighted_mean.

    Source: Fortin et al. 2014, equation 15.
    """
    _check(members, truth)
    m = members.shape[0]
    error = weighted_mean((members.double().mean(0) - truth.double()).square(), weights)
    return ((m + 1) / m / error) ** 0.5 * spread(members, weights) if error > 0 else float("nan")


def rank_histogram(members: Tensor, truth: Tensor, seed: int = 0, weights: Tensor | None = None) -> list[float]:
    """Share of points where the truth has rank 0 .. M among the members; flat (1 / (M + 1)) for a reliable ensemble.

    Ties are broken at random with `seed`. weights: of the points, as in weighted_mean. Source: Hamill 2001.
    """
    _check(members, truth)
    below, equal = (members < truth).sum(0), (members == truth).sum(0)
    draw = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ranks = below + (draw * (equal + 1)).floor().long()
    weights = torch.ones((), dtype=torch.float64) if weights is None else weights.double()
    weights = weights.expand(truth.shape).flatten()
    counts = torch.bincount(ranks.flatten(), weights, minlength=members.shape[0] + 1)
    return (counts / counts.sum()).tolist()


def reliability_counts(members: Tensor, truth: Tensor, threshold: float) -> Tensor:
    """(M + 1, 2): at how many points 0 ... M members reach a threshold, and at how many of these the truth does.

    Forecast probability k / M is reliable where the second over the first is k / M, too. members: (M >= 2, ...), truth:
    (...), one unit without NaN. Source: Murphy 1973.
    """
    _check(members, truth)
    reached, happened = (members >= threshold).sum(0).flatten(), (truth >= threshold).flatten()
    return torch.stack([torch.bincount(part, minlength=len(members) + 1) for part in (reached, reached[happened])], 1)
