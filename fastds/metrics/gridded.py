# SPDX-License-Identifier: Apache-2.0
"""Scores of gridded fields and ensembles, accumulated field by field, with area weights and missing values."""

from __future__ import annotations

import math

import numpy as np
import scipy  # its submodules are imported at first use
import torch
from torch import Tensor

from fastds.metrics.ensembles import compute_crps_parts, rank_histogram, sum_crps_bins
from fastds.metrics.fields import compute_band_powers

FINE_BAND = (2.0, 4.0)  # wavelengths, cells


class FieldScores:
    """Errors of one method, accumulated field by field.

    Args:
        wet: for precipitation, the threshold in the unit of the fields from which a cell counts as wet; None for other
            variables.

    Attributes:
        fields: number of fields with at least one valid cell.
        cells: number of valid cells.
    """

    def __init__(self, wet: float | None = None):
        self.wet, self.fields, self.cells = wet, 0, 0
        self.sums, self.power = np.zeros(8), np.zeros(2)
        self.correlations: list = []

    def add(self, prediction: Tensor, truth: Tensor, weights: Tensor) -> None:
        """Add a field.

        Args:
            prediction: (H, W).
            truth: (H, W), in the same unit. A cell counts if neither prediction nor truth is NaN.
            weights: (H, 1) or (H, W), >= 0, for example latitude_weights.
        """
        valid = ~(torch.isnan(prediction) | torch.isnan(truth))
        if not valid.any():
            return
        self.fields, self.cells = self.fields + 1, self.cells + int(valid.sum())
        w, p, t = weights.double().expand(truth.shape)[valid], prediction[valid].double(), truth[valid].double()
        threshold = math.inf if self.wet is None else self.wet
        parts = 1.0, p - t, (p - t).abs(), (p - t).square(), p, t, p >= threshold, t >= threshold
        self.sums += [float((w * part).sum()) for part in parts]
        self.correlations.append(weighted_correlation(p, t, w))
        self.power += _compute_fine_power(prediction, truth)

    def __iadd__(self, other: FieldScores) -> FieldScores:
        """Add the fields of another object."""
        self.fields, self.cells = self.fields + other.fields, self.cells + other.cells
        self.sums, self.power = self.sums + other.sums, self.power + other.power
        self.correlations += other.correlations
        return self

    def means(self) -> dict[str, float]:
        """Compute the scores over all fields; NaN for scores that are not defined.

        Returns:
            mae: weighted mean of |p - t| over all cells of all fields, in the unit of the fields; p is the prediction
                and t the truth.
            rmse: square root of the weighted mean of (p - t)^2.
            bias: weighted mean of p - t.
            correlation: weighted correlation over the cells of a field, averaged over the fields.
            power: power of p at wavelengths of FINE_BAND relative to that of t, each summed over the fields,
                unweighted, see spectral_ratio.
            wet: wet area relative to the truth, sum(w [p >= wet]) / sum(w [t >= wet]); only for precipitation.
            rain: mean relative to the truth, sum(w p) / sum(w t); only for precipitation.
        """
        weight, error, absolute, square, p, t, p_wet, t_wet = self.sums
        scores = {
            "mae": _divide(absolute, weight), "rmse": _divide(square, weight) ** 0.5, "bias": _divide(error, weight),
            "correlation": _average_defined(self.correlations), "power": _divide(*self.power),
        }  # fmt: skip
        return scores if self.wet is None else scores | {"wet": _divide(p_wet, t_wet), "rain": _divide(p, t)}


class EnsembleScores:
    """Scores of ensembles of M members, accumulated field by field."""

    def __init__(self):
        self.sums = np.zeros(3)
        self.ranks: float | np.ndarray = 0.0
        self.bins: float | np.ndarray = 0.0

    def add(self, members: Tensor, truth: Tensor, weights: Tensor) -> None:
        """Add a field.

        Args:
            members: (M >= 2, H, W).
            truth: (H, W), in the same unit. A cell counts if neither truth nor a member is NaN.
            weights: (H, 1) or (H, W), >= 0, for example latitude_weights.
        """
        valid = ~(torch.isnan(members).any(0) | torch.isnan(truth))
        if not valid.any():
            return
        w, x, t = weights.double().expand(truth.shape)[valid], members[:, valid], truth[valid]
        total, m = float(w.sum()), len(members)
        self.ranks = self.ranks + total * np.array(rank_histogram(x, t, weights=w))
        # Cells where all members equal the truth, such as dry cells, have no error and no spread.
        differ = (x != t).any(0)
        w, x, t = w[differ], x[:, differ].double(), t[differ].double()
        error = float((w * (x.mean(0) - t).square()).sum())
        self.sums += [total, float((w * x.var(0)).sum()), error * m / (m + 1)]
        self.bins = self.bins + sum_crps_bins(x, t, w)

    def __iadd__(self, other: EnsembleScores) -> EnsembleScores:
        """Add the fields of another object."""
        self.sums, self.ranks, self.bins = self.sums + other.sums, self.ranks + other.ranks, self.bins + other.bins
        return self

    def means(self) -> dict[str, float]:
        """Compute the scores over all cells of all fields; NaN without any cell.

        Returns:
            crps, crps_ensemble, crps_reliability, crps_potential: fair CRPS, CRPS of the members as they are, and its
                two parts, see compute_crps_parts.
            spread: see spread.
            spread_skill: see spread_skill.
            outliers: share of cells where the truth is outside of all members; 2 / (M + 1) for a reliable ensemble.
        """
        weight, variance, error = self.sums
        histogram = self.rank_histogram()
        return {
            **compute_crps_parts(np.atleast_2d(self.bins), weight), "spread": _divide(variance, weight) ** 0.5,
            "spread_skill": _divide(variance, error) ** 0.5, "outliers": histogram[0] + histogram[-1],
        }  # fmt: skip

    def rank_histogram(self) -> list[float]:
        """Return the shares of the ranks 0 ... M of the truth; [NaN] without any cell."""
        return (np.atleast_1d(self.ranks) / self.sums[0]).tolist() if self.sums[0] else [math.nan]


def weighted_correlation(prediction: Tensor, truth: Tensor, weights: Tensor) -> float:
    """Compute the weighted Pearson correlation over all points; NaN if a field is constant.

    Args:
        prediction: tensor of any shape.
        truth: tensor of the same shape.
        weights: tensor of the same shape, >= 0.
    """
    p, t = (z.double() - (weights * z.double()).sum() / weights.sum() for z in (prediction, truth))
    power = ((weights * p * p).sum() * (weights * t * t).sum()).sqrt()
    scale = float((weights * prediction.double().square()).sum() * (weights * truth.double().square()).sum()) ** 0.5
    return float((weights * p * t).sum() / power) if power > 1e-12 * scale else math.nan


def _compute_fine_power(prediction: Tensor, truth: Tensor) -> list[float]:
    """Compute the power of both fields (H, W) at wavelengths of FINE_BAND.

    Cells that are missing in one of the fields take the value of the nearest valid cell, in both fields.
    """
    missing = torch.isnan(prediction) | torch.isnan(truth)
    if missing.any():
        nearest = scipy.ndimage.distance_transform_edt(missing.numpy(), return_distances=False, return_indices=True)
        prediction, truth = (z[tuple(torch.from_numpy(nearest).long())] for z in (prediction, truth))
    return [compute_band_powers(z, (FINE_BAND,))[0] for z in (prediction, truth)]


def _divide(a: float, b: float) -> float:
    return float(a / b) if b else math.nan


def _average_defined(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
