# SPDX-License-Identifier: Apache-2.0
"""Scores of ensembles of fields."""

import numpy as np
import torch
from torch import Tensor


def _check(members: Tensor, truth: Tensor) -> None:
    if members.ndim < 2 or members.shape[1:] != truth.shape or members.shape[0] < 2:
        raise ValueError(
            f"members must have shape (M >= 2, *truth.shape), got {tuple(members.shape)} and {tuple(truth.shape)}"
        )


def crps(members: Tensor, truth: Tensor) -> float:
    """Fair continuous ranked probability score, mean over all points, in the unit of the fields.

    mean_m |x_m - y| - sum_{m,k} |x_m - x_k| / (2 M (M - 1)); compare with the MAE of the ensemble's mean.

    Args:
        members: (M >= 2, ...). truth: (...).

    Source: Ferro 2014, equation 8; by scoringrules.
    """
    from scoringrules import crps_ensemble

    _check(members, truth)
    observed, forecast = truth.double().numpy(), members.double().movedim(0, -1).numpy()
    return float(np.mean(crps_ensemble(observed, forecast, estimator="fair", backend="numpy")))


def spread_skill(members: Tensor, truth: Tensor) -> float:
    """Spread over error of the ensemble's mean; 1 for members and truth drawn from the same distribution.

    sqrt(mean variance * (M + 1) / M) / sqrt(mean (mean_m x_m - y)^2), variances with M - 1.

    Source: Fortin et al. 2014, equation 15.
    """
    _check(members, truth)
    m = members.shape[0]
    variance = members.double().var(0).mean() * (m + 1) / m
    error = (members.double().mean(0) - truth.double()).square().mean()
    return float((variance / error).sqrt())


def rank_histogram(members: Tensor, truth: Tensor, seed: int = 0) -> list[float]:
    """Share of points where the truth has rank 0 .. M among the members; flat (1 / (M + 1)) for a reliable ensemble.

    Ties are broken at random with `seed`. Source: Hamill 2001.
    """
    _check(members, truth)
    below, equal = (members < truth).sum(0), (members == truth).sum(0)
    draw = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ranks = below + (draw * (equal + 1)).floor().long()
    counts = torch.bincount(ranks.flatten(), minlength=members.shape[0] + 1).double()
    return (counts / counts.sum()).tolist()
