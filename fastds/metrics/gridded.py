# SPDX-License-Identifier: Apache-2.0
"""Scores of gridded fields and ensembles, summed field by field: weighted means over the cells that count."""

from __future__ import annotations

import math

import numpy as np
import scipy  # its parts are imported at first use
import torch
from torch import Tensor

from fastds.metrics.ensembles import crps, rank_histogram, spread
from fastds.metrics.fields import band_powers

FINE_BAND = (2.0, 4.0)  # wavelengths, cells


class FieldScores:
    """Errors of one method, added field by field.

    Args:
        wet: fields of rain: from which value on a cell is wet, in their unit; None: no fields of rain.

    Attributes: fields: number of those with a cell that counts; cells: number of these.
    """

    def __init__(self, wet: float | None = None):
        self.wet, self.fields, self.cells = wet, 0, 0
        self.sums, self.power, self.correlations = np.zeros(8), np.zeros(2), []

    def add(self, prediction: Tensor, truth: Tensor, weights: Tensor) -> None:
        """Add a field.

        Args:
            prediction, truth: (H, W), one unit; a cell counts where neither is NaN.
            weights: (H, 1) or (H, W), relative, >= 0, such as latitude_weights.
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
        self.power += _fine_power(prediction, truth)

    def __iadd__(self, other: FieldScores) -> FieldScores:
        """Add the fields of another."""
        self.fields, self.cells = self.fields + other.fields, self.cells + other.cells
        self.sums, self.power = self.sums + other.sums, self.power + other.power
        self.correlations += other.correlations
        return self

    def means(self) -> dict[str, float]:
        """The scores over all fields, NaN where one is not defined.

        bias, mae, rmse: sum(w (p - t)) / sum(w) over all cells of all fields, of |p - t|, root of that of (p - t)^2, in
        the unit of the fields;  correlation: weighted, over the cells of a field, mean over fields;  power: that of p
        at wavelengths of FINE_BAND over that of t, both summed over fields, without weights, by DCT-II as in
        spectral_ratio;  and of rain wet, sum(w [p >= wet]) / sum(w [t >= wet]), and rain, sum(w p) / sum(w t).
        """
        weight, error, absolute, square, p, t, p_wet, t_wet = self.sums
        scores = {
            "mae": _ratio(absolute, weight), "rmse": _ratio(square, weight) ** 0.5, "bias": _ratio(error, weight),
            "correlation": _mean(self.correlations), "power": _ratio(*self.power),
        }  # fmt: skip
        return scores if self.wet is None else scores | {"wet": _ratio(p_wet, t_wet), "rain": _ratio(p, t)}


class EnsembleScores:
    """Scores of ensembles of M members, added field by field."""

    def __init__(self):
        self.sums, self.ranks = np.zeros(4), 0.0

    def add(self, members: Tensor, truth: Tensor, weights: Tensor) -> None:
        """Add a field: members (M >= 2, H, W), truth (H, W); the rest as in FieldScores.add."""
        valid = ~(torch.isnan(members).any(0) | torch.isnan(truth))
        if not valid.any():
            return
        w, x, t = weights.double().expand(truth.shape)[valid], members[:, valid].double(), truth[valid].double()
        total, m = float(w.sum()), len(members)
        error = float((w * (x.mean(0) - t).square()).sum())
        self.sums += [total, total * crps(x, t, w), total * spread(x, w) ** 2, error * m / (m + 1)]
        self.ranks = self.ranks + total * np.array(rank_histogram(x, t, weights=w))

    def __iadd__(self, other: EnsembleScores) -> EnsembleScores:
        """Add the fields of another."""
        self.sums, self.ranks = self.sums + other.sums, self.ranks + other.ranks
        return self

    def means(self) -> dict[str, float]:
        """crps, fair; spread; spread_skill; outliers, the share of the truth outside all members (see rank_histogram,
        whose ends they are): 2 / (M + 1) for a reliable ensemble. Means over all cells of all fields; NaN without any.
        """
        weight, score, variance, error = self.sums
        histogram = self.rank_histogram()
        return {
            "crps": _ratio(score, weight), "spread": _ratio(variance, weight) ** 0.5,
            "spread_skill": _ratio(variance, error) ** 0.5, "outliers": histogram[0] + histogram[-1],
        }  # fmt: skip

    def rank_histogram(self) -> list[float]:
        """Shares of the ranks 0 ... M of the truth; [NaN] without any cell."""
        return (np.atleast_1d(self.ranks) / self.sums[0]).tolist() if self.sums[0] else [math.nan]


def weighted_correlation(prediction: Tensor, truth: Tensor, weights: Tensor) -> float:
    """Pearson correlation over all points with weights; NaN where a field does not vary. Shapes are equal."""
    p, t = (z.double() - (weights * z.double()).sum() / weights.sum() for z in (prediction, truth))
    power = ((weights * p * p).sum() * (weights * t * t).sum()).sqrt()
    scale = float((weights * prediction.double().square()).sum() * (weights * truth.double().square()).sum()) ** 0.5
    return float((weights * p * t).sum() / power) if power > 1e-12 * scale else math.nan


def _fine_power(prediction: Tensor, truth: Tensor) -> list[float]:
    """Power of both fields (H, W) at wavelengths of FINE_BAND. Cells that are missing in either have the value of the
    nearest one that is not, in both."""
    missing = torch.isnan(prediction) | torch.isnan(truth)
    if missing.any():
        nearest = scipy.ndimage.distance_transform_edt(missing.numpy(), return_distances=False, return_indices=True)
        prediction, truth = (z[tuple(torch.from_numpy(nearest).long())] for z in (prediction, truth))
    return [band_powers(z, (FINE_BAND,))[0] for z in (prediction, truth)]


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else math.nan


def _mean(values: list[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
