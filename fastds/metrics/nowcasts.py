# SPDX-License-Identifier: Apache-2.0
"""Scores of nowcasts by lead time: contingency tables at rain rates, and errors weighted by rain rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Weights of pixels in B-MSE and B-MAE: below the first threshold, then from each threshold on.
BALANCE_WEIGHTS = (1.0, 1.0, 2.0, 5.0, 10.0, 30.0)
CONTINGENCY_SCORES = ("csi", "hss", "pod", "far")
ERROR_SCORES = ("b_mse", "b_mae", "mse", "mae")


class NowcastScores:
    """Scores of a test set. Sums are accumulated per frame; scores are computed per frame and averaged over frames.

        CSI = TP / (TP + FN + FP);  POD = TP / (TP + FN);  FAR = FP / (TP + FP)
        HSS = 2 (TP TN - FN FP) / ((TP + FN) (FN + TN) + (TP + FP) (FP + TN))
        B-MSE = mean over samples of sum over pixels of w(x) (x - y)^2;  B-MAE with w(x) |x - y|

    x is the truth and y the prediction, both clipped to [0, 1]. The event is "value >= threshold". The weights w depend
    on the rain of the truth. mse and mae are unweighted means over valid pixels. Missing pixels are ignored.

    Args:
        thresholds: ascending, on the scale of the fields. fastds.data.normalised_rates computes them for the five
            RAIN_THRESHOLDS of the published tables.
        frames: number T of frames of every prediction.
        future: number of frames at the end that forecast the future; None for all. Networks that also forecast input
            frames return m + n - 1 frames for m input frames, and the last n are in the future. The published tables
            score all frames.
        weights: weights of pixels, one more than thresholds.

    Attributes:
        counts: (T, thresholds, 4) int64, numbers of TP, FN, FP and TN.
        samples: number of samples.

    Raises:
        ValueError: If thresholds, weights or future do not fit.

    Source: Ma, Zhang and Liu 2024, DB-RNN, section V-C. The factor 2 of HSS is missing there, but their numbers include
    it. Shi et al. 2017 for B-MSE and B-MAE.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        frames: int,
        future: int | None = None,
        weights: Sequence[float] = BALANCE_WEIGHTS,
    ):
        if len(weights) != len(thresholds) + 1 or list(thresholds) != sorted(thresholds):
            raise ValueError(
                f"thresholds must ascend and weights be one more than they are, got {list(thresholds)} and "
                f"{list(weights)}"
            )
        self.thresholds, self.weights = torch.tensor(thresholds, dtype=torch.float64), torch.tensor(weights).double()
        self.frames, self.future = frames, frames if future is None else future
        if not 1 <= self.future <= frames:
            raise ValueError(f"future must lie in 1..{frames} frames, got {future}")
        self.counts = np.zeros((frames, len(thresholds), 4), np.int64)
        self.sums = np.zeros((frames, len(ERROR_SCORES)))
        self.pixels, self.samples = np.zeros(frames, np.int64), 0

    def add(self, prediction: Tensor, truth: Tensor, valid: Tensor | None = None) -> None:
        """Add samples.

        Args:
            prediction: (B, T, H, W) or (B, T, 1, H, W), on the scale of the thresholds, [0, 1].
            truth: the same shape and scale.
            valid: bool, the same shape; None selects the pixels where truth is not NaN.

        Raises:
            ValueError: If a shape does not fit, or if the prediction is missing at a valid pixel.
        """
        if prediction.shape != truth.shape or truth.ndim not in (4, 5) or truth.shape[1] != self.frames:
            raise ValueError(
                f"prediction and truth must both have shape (B, {self.frames}, [1,] H, W), got "
                f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
            )
        present = ~torch.isnan(truth)
        valid = present if valid is None else present & valid
        if torch.isnan(prediction[valid]).any():
            raise ValueError("prediction has missing values on valid pixels")
        self.samples += len(truth)
        for frame in range(self.frames):
            keep = valid[:, frame]
            x, y = truth[:, frame][keep].double().clamp(0, 1), prediction[:, frame][keep].double().clamp(0, 1)
            self._count(frame, x, y)
            weight = self.weights[torch.bucketize(x, self.thresholds, right=True)]
            error = (x - y).abs()
            sums = [weight * error.square(), weight * error, error.square(), error]
            self.sums[frame] += [part.sum().item() for part in sums]
            self.pixels[frame] += x.numel()

    def __iadd__(self, other: NowcastScores) -> NowcastScores:
        """Add the samples of another object with the same arguments."""
        self.counts, self.sums = self.counts + other.counts, self.sums + other.sums
        self.pixels, self.samples = self.pixels + other.pixels, self.samples + other.samples
        return self

    def _count(self, frame: int, x: Tensor, y: Tensor) -> None:
        for i, threshold in enumerate(self.thresholds):
            observed, predicted = x >= threshold, y >= threshold
            hits, events, alarms = (a.sum().item() for a in (observed & predicted, observed, predicted))
            self.counts[frame, i] += [hits, events - hits, alarms - hits, x.numel() - events - alarms + hits]

    def by_frame(self) -> dict[str, np.ndarray]:
        """Compute the scores of each frame; NaN for scores that are not defined.

        Returns:
            csi, hss, pod, far: (T, thresholds). b_mse, b_mae, mse, mae: (T,).
        """
        scores = contingency_scores(self.counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores |= {name: self.sums[:, i] / max(self.samples, 1) for i, name in enumerate(ERROR_SCORES[:2])}
            scores |= {name: self.sums[:, i + 2] / self.pixels for i, name in enumerate(ERROR_SCORES[2:])}
        return scores

    def means(self, frames: str = "future") -> dict[str, np.ndarray]:
        """Average the scores over frames. Frames in which a score is not defined are ignored.

        Args:
            frames: "future", or "all" for the published tables.

        Returns:
            csi, hss, pod, far: (thresholds,). b_mse, b_mae, mse, mae: a number each.

        Raises:
            ValueError: If `frames` has another value.
        """
        if frames not in ("all", "future"):
            raise ValueError(f"frames must be 'all' or 'future', got {frames!r}")
        selected = slice(-self.future if frames == "future" else None, None)
        return {name: mean_of_defined(values[selected]) for name, values in self.by_frame().items()}


def contingency_scores(table: np.ndarray) -> dict[str, np.ndarray]:
    """Compute CSI, HSS, POD and FAR from contingency tables.

    Args:
        table: (..., 4), numbers of TP, FN, FP and TN.

    Returns:
        csi, hss, pod and far, each (...) float64; NaN where a score is not defined.
    """
    tp, fn, fp, tn = np.moveaxis(table.astype(np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "csi": tp / (tp + fn + fp),
            "hss": 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn)),
            "pod": tp / (tp + fn),
            "far": fp / (tp + fp),
        }


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Compute the mean of the values that are not NaN over the first axis; NaN if there are none.

    Args:
        values: Array of any shape.
    """
    defined = ~np.isnan(values)
    total, count = np.where(defined, values, 0.0).sum(0), defined.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[()]
