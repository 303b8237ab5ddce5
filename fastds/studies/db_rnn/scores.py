# SPDX-License-Identifier: Apache-2.0
"""Contingency tables and errors of a method on every test sample, and the scores that any samples of them make."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastds import models
from fastds.data import RAIN_THRESHOLDS, normalised_rates
from fastds.metrics import NowcastScores, mean_of_defined
from fastds.studies.common.quiet import quietly
from fastds.studies.common.radar import TestedBlock
from fastds.studies.db_rnn.methods import FUTURE, METHODS, SCORES
from fastds.tasks.common.settings import computing, settle
from fastds.tasks.nowcast.methods import BASELINES

PIXELS = 160**2  # of the paper's fields, to which B-MSE and B-MAE, sums over a field, are brought
# A sample -> forecasts (n, 1, H, W) on the scale 0 to 60 dBZ = 0 to 1.
Predict = Callable[[dict[str, Tensor]], Tensor]


def score(predict: Predict, blocks: list[TestedBlock], z_r: Sequence[float]) -> dict[str, Any]:
    """By test sample: counts (samples, n, thresholds, 4) of NowcastScores, errors (samples, n, 2), sums of B-MSE and
    B-MAE, and pixels (samples, n)."""
    thresholds = normalised_rates(RAIN_THRESHOLDS, tuple(z_r))
    found = {"counts": [], "errors": [], "pixels": []}
    for sample in (sample for block in blocks for sample in block.samples):
        sums = NowcastScores(thresholds, FUTURE)
        sums.add(predict(sample)[None], sample["y"][None], sample["valid"][None])
        found["counts"].append(sums.counts.tolist())
        found["errors"].append(sums.sums[:, :2].tolist())
        found["pixels"].append(sums.pixels.tolist())
    return found


class Sums:
    """The scores of a method over test samples that count as often as weights say; means over seeds and leads.

    found: what score returned, one of each seed.
    """

    def __init__(self, found: Sequence[dict[str, Any]]):
        self.counts, self.errors, self.pixels = (
            np.array([one[key] for one in found], float) for key in ("counts", "errors", "pixels")
        )

    @property
    def samples(self) -> int:
        """How many test samples there are."""
        return self.counts.shape[1]

    def by_lead(self, name: str, weights: np.ndarray) -> np.ndarray:
        """(draws, n) of a score of SCORES; weights (draws, samples)."""
        if name in SCORES[-2:]:
            sums = np.einsum("ds,kst->kdt", weights, self.errors[..., SCORES.index(name) - 10])
            return PIXELS * (sums / np.einsum("ds,kst->kdt", weights, self.pixels)).mean(0)
        kind, rate = SCORES.index(name) // 5, SCORES.index(name) % 5
        tp, fn, fp, tn = np.moveaxis(np.einsum("ds,kstc->kdtc", weights, self.counts[:, :, :, rate]), -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            if kind == 0:
                return (tp / (tp + fn + fp)).mean(0)
            return (2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))).mean(0)

    def mean(self, name: str, weights: np.ndarray) -> np.ndarray:
        """(draws,): the mean of a score over the leads where it is defined."""
        return mean_of_defined(self.by_lead(name, weights).T)


def with_prediction(
    name: str, weights: str | os.PathLike | None, threads: int | None, device: str, use: Callable[[Predict], object]
) -> object:
    """What use(predict) returns, predict being the method; weights: of a network, None: there are none."""
    if not METHODS[name].kind:
        function, known = BASELINES[name]

        def simple(sample: dict[str, Tensor]) -> Tensor:
            x = torch.where(sample["known"], sample["x"], torch.nan)[None, -known:]
            return function(x, FUTURE)[0].clamp(0, 1)

        with computing(None, settle(None, threads)):
            return use(simple)
    model = quietly(lambda: models.load(weights))
    settings = settle(model, threads, "fp32", device)
    with computing(model, settings):
        return use(lambda sample: model.forecast(sample["x"][None].to(settings.device), FUTURE)[0].float().cpu())
