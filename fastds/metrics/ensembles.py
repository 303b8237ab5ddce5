# SPDX-License-Identifier: Apache-2.0
"""Scores of ensembles of fields."""

import numpy as np
import torch
from torch import Tensor


def _check_members(members: Tensor, truth: Tensor) -> None:
    if members.ndim < 2 or members.shape[1:] != truth.shape or members.shape[0] < 2:
        raise ValueError(
            f"members must have shape (M >= 2, *truth.shape), got {tuple(members.shape)} and {tuple(truth.shape)}"
        )


def compute_weighted_mean(values: Tensor, weights: Tensor | None = None) -> float:
    """Compute sum(w x) / sum(w) over all points.

    Args:
        values: x, any shape.
        weights: w, broadcastable to values; None weights all points equally.
    """
    if weights is None:
        return float(values.double().mean())
    weights = weights.double().expand(values.shape)
    return float((weights * values.double()).sum() / weights.sum())


def crps(members: Tensor, truth: Tensor, weights: Tensor | None = None) -> float:
    """Compute the fair continuous ranked probability score, averaged over all points.

        mean_m |x_m - y| - sum_{m,k} |x_m - x_k| / (2 M (M - 1))

    The score has the unit of the fields and is comparable with the mean absolute error of a single field.

    Args:
        members: x, (M >= 2, ...).
        truth: y, (...).
        weights: weights of the points, broadcastable to (...); None weights all points equally.

    Raises:
        ValueError: If the shapes do not fit or there are fewer than two members.

    Source: Ferro 2014, equation 8.
    """
    _check_members(members, truth)
    m, x = len(members), members.double().sort(0).values
    # For sorted members: sum_{m,k} |x_m - x_k| = 2 sum_k (2 k - M - 1) x_k, k = 1 ... M.
    rank_weights = torch.arange(1 - m, m, 2, dtype=torch.float64).reshape(-1, *[1] * truth.ndim)
    difference = (rank_weights * x).sum(0) / (m * (m - 1))
    return compute_weighted_mean((x - truth.double()).abs().mean(0) - difference, weights)


def sum_crps_bins(members: Tensor, truth: Tensor, weights: Tensor) -> np.ndarray:
    """Sum the distances between the sorted members below and above the truth, from which the CRPS follows.

    Args:
        members: (M >= 2, N), without NaN.
        truth: (N,), without NaN.
        weights: (N,), weights of the points.

    Returns:
        (M + 1, 3) float64, weighted sums over the points. Row i is the interval between the sorted members i and i + 1;
        rows 0 and M are outside of all members. Columns: alpha, the part of the interval below the truth; beta, the
        part above it; in rows 0 and M: weight of the points whose truth is in this interval.

    Source: Hersbach 2000, equation 26 and Table 1.
    """
    x = members.sort(0).values
    limits = x[:-1], x[1:]
    middle = torch.maximum(torch.minimum(truth, limits[1]), limits[0])
    below, above = (truth - x[-1]).clamp(min=0), (x[0] - truth).clamp(min=0)
    sums = np.zeros((len(x) + 1, 3))
    sums[1:-1, 0], sums[1:-1, 1] = (middle - limits[0]) @ weights, (limits[1] - middle) @ weights
    sums[-1, 0], sums[0, 1] = float(below @ weights), float(above @ weights)
    sums[-1, 2], sums[0, 2] = float(weights[below > 0].sum()), float(weights[above > 0].sum())
    return sums


def compute_crps_parts(bins: np.ndarray, weight: float) -> dict[str, float]:
    """Compute the CRPS and its decomposition from sums over all points.

        crps_ensemble = sum_i alpha_i p_i^2 + beta_i (1 - p_i)^2 = crps_reliability + crps_potential,  p_i = i / M

    Args:
        bins: (M + 1, 3), see sum_crps_bins; sums of several fields can be added.
        weight: sum of the weights of all points.

    Returns:
        crps: fair CRPS, that of an unlimited number of such members, see crps.
        crps_ensemble: CRPS of the M members as they are.
        crps_reliability: part of crps_ensemble that a calibration of the probabilities would remove.
        crps_potential: crps_ensemble of the calibrated probabilities: uncertainty minus resolution.
        All in the unit of the fields, NaN if the weight is 0.

    Source: Hersbach 2000, equations 27 and 35 to 39; Ferro 2014, equation 8.
    """
    if not weight:
        return dict.fromkeys(("crps", "crps_ensemble", "crps_reliability", "crps_potential"), float("nan"))
    m = len(bins) - 1
    p = np.arange(m + 1) / m
    alpha, beta = bins[:, 0] / weight, bins[:, 1] / weight
    width = alpha + beta
    with np.errstate(divide="ignore", invalid="ignore"):
        frequency = beta / width
        # Outside of all members: the frequency is that of the truth, the width follows from it.
        frequency[0], frequency[-1] = bins[0, 2] / weight, 1 - bins[-1, 2] / weight
        width[0], width[-1] = beta[0] / frequency[0], alpha[-1] / (1 - frequency[-1])
        reliability = np.where(width > 0, width * (frequency - p) ** 2, 0).sum()
        potential = np.where(width > 0, width * frequency * (1 - frequency), 0).sum()
    total = float((alpha * p**2 + beta * (1 - p) ** 2).sum())
    # The sum over all pairs of members is 2 sum_i i (M - i) (alpha_i + beta_i).
    pairs = 2 * float((np.arange(1, m) * np.arange(m - 1, 0, -1) * (alpha + beta)[1:-1]).sum())
    return {
        "crps": total - pairs / (2 * m * m * (m - 1)), "crps_ensemble": total,
        "crps_reliability": float(reliability), "crps_potential": float(potential),
    }  # fmt: skip


def spread(members: Tensor, weights: Tensor | None = None) -> float:
    """Compute the square root of the mean ensemble variance (normalised by M - 1), in the unit of the fields.

    Args:
        members: (M >= 2, ...).
        weights: weights of the points, broadcastable to (...); None weights all points equally.
    """
    return compute_weighted_mean(members.double().var(0), weights) ** 0.5


def spread_skill(members: Tensor, truth: Tensor, weights: Tensor | None = None) -> float:
    """Compute the ratio of ensemble spread to the error of the ensemble mean.

        sqrt(mean variance * (M + 1) / M) / sqrt(mean (mean_m x_m - y)^2)

    The ratio is 1 if members and truth have the same distribution. Variances are normalised by M - 1.

    Args:
        members: x, (M >= 2, ...).
        truth: y, (...).
        weights: weights of the points, broadcastable to (...); None weights all points equally.

    Returns:
        The ratio; NaN if the error is 0.

    Raises:
        ValueError: If the shapes do not fit or there are fewer than two members.

    Source: Fortin et al. 2014, equation 15.
    """
    _check_members(members, truth)
    m = members.shape[0]
    error = compute_weighted_mean((members.double().mean(0) - truth.double()).square(), weights)
    return ((m + 1) / m / error) ** 0.5 * spread(members, weights) if error > 0 else float("nan")


def rank_histogram(members: Tensor, truth: Tensor, seed: int = 0, weights: Tensor | None = None) -> list[float]:
    """Compute the share of points at which the truth has rank 0 ... M among the members.

    A reliable ensemble has a flat histogram, 1 / (M + 1). Ties are broken at random.

    Args:
        members: (M >= 2, ...).
        truth: (...).
        seed: seed of the random numbers.
        weights: weights of the points, broadcastable to (...); None weights all points equally.

    Returns:
        M + 1 numbers with sum one.

    Raises:
        ValueError: If the shapes do not fit or there are fewer than two members.

    Source: Hamill 2001.
    """
    _check_members(members, truth)
    below, equal = (members < truth).sum(0), (members == truth).sum(0)
    draw = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ranks = below + (draw * (equal + 1)).floor().long()
    weights = torch.ones((), dtype=torch.float64) if weights is None else weights.double()
    weights = weights.expand(truth.shape).flatten()
    counts = torch.bincount(ranks.flatten(), weights, minlength=members.shape[0] + 1)
    return (counts / counts.sum()).tolist()


def reliability_counts(members: Tensor, truth: Tensor, threshold: float) -> Tensor:
    """Count the points at which k of M members reach a threshold, for k = 0 ... M.

    The second column counts only the points at which the truth also reaches the threshold. A forecast probability of
    k / M is reliable if the second count divided by the first is k / M.

    Args:
        members: (M >= 2, ...), without NaN.
        truth: (...), in the same unit, without NaN.
        threshold: in the same unit.

    Returns:
        (M + 1, 2), the two counts for each k.

    Raises:
        ValueError: If the shapes do not fit or there are fewer than two members.

    Source: Murphy 1973.
    """
    _check_members(members, truth)
    counts, events = (members >= threshold).sum(0).flatten(), (truth >= threshold).flatten()
    return torch.stack([torch.bincount(part, minlength=len(members) + 1) for part in (counts, counts[events])], 1)
