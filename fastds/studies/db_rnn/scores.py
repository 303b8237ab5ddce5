# SPDX-License-Identifier: Apache-2.0
"""Contingency tables and errors of a method on every test sample, and the scores that any samples of them make."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastds import models
from fastds.data import RAIN_THRESHOLDS, normalised_rates
from fastds.metrics import NowcastScores, mean_of_defined
from fastds.metrics.nowcasts import BALANCE_WEIGHTS, contingency_scores
from fastds.studies.common.quiet import suppress_warnings
from fastds.studies.common.radar import EvaluationBlock
from fastds.studies.db_rnn.methods import FUTURE, METHODS
from fastds.studies.db_rnn.published import RATES, SCORES
from fastds.tasks.common.settings import computing, settle
from fastds.tasks.nowcast.methods import BASELINES

PIXELS = 160**2  # of the paper's fields, to which B-MSE and B-MAE, sums over a field, are brought
LONG_RATE = 10.0  # mm/h, of the scores of long forecasts
# (sample, steps) -> forecasts (k + steps, 1, H, W) on the scale 0 to 60 dBZ = 0 to 1, the k first of known frames.
Predict = Callable[[dict[str, Tensor], int], Tensor]


def score(predict: Predict, blocks: list[EvaluationBlock], z_r: Sequence[float]) -> dict[str, Any]:
    """What NowcastScores counts of every test sample, by lead, of the FUTURE frames that are forecast.

    Returns: counts (samples, n, thresholds, 4), errors (samples, n, 2), sums of B-MSE and B-MAE, and pixels (samples,
        n); "all": the same of all frames that a network forecasts, those of known frames included, where there are any.
    """
    thresholds = normalised_rates(RAIN_THRESHOLDS, tuple(z_r))
    found, whole = _make_counts(), _make_counts()
    for sample in (sample for block in blocks for sample in block.samples):
        made = predict(sample, FUTURE)
        _add_counts(found, made[-FUTURE:], sample["y"], sample["valid"], thresholds)
        earlier = len(made) - FUTURE
        if earlier:
            truth = torch.cat([sample["x"][-earlier:], sample["y"]])
            valid = torch.cat([sample["known"][-earlier:], sample["valid"]])
            _add_counts(whole, made, truth, valid, thresholds)
    return found | ({"all": whole} if whole["counts"] else {})


def score_long(predict: Predict, samples: Sequence[dict[str, Tensor]], z_r: Sequence[float]) -> list:
    """Contingency tables (samples, n / FUTURE, 4) at LONG_RATE of forecasts of the n frames y of samples, summed over
    each FUTURE frames."""
    threshold, counts = normalised_rates([LONG_RATE], tuple(z_r)), []
    for sample in samples:
        found, steps = _make_counts(), len(sample["y"])
        made = predict(sample, steps)[-steps:]
        _add_counts(found, made, sample["y"], sample["valid"], threshold, BALANCE_WEIGHTS[:2])
        counts.append(np.array(found["counts"][0])[:, 0].reshape(-1, FUTURE, 4).sum(1).tolist())
    return counts


def _make_counts() -> dict[str, list]:
    return {"counts": [], "errors": [], "pixels": []}


def _add_counts(
    found: dict[str, list],
    made: Tensor,
    truth: Tensor,
    valid: Tensor,
    thresholds: Sequence[float],
    weights: Sequence[float] = BALANCE_WEIGHTS,
) -> None:
    """Add what NowcastScores counts of one sample to found."""
    sums = NowcastScores(thresholds, len(truth), weights=weights)
    sums.add(made[None], truth[None], valid[None])
    found["counts"].append(sums.counts.tolist())
    found["errors"].append(sums.sums[:, :2].tolist())
    found["pixels"].append(sums.pixels.tolist())


class ScoreSums:
    """The scores of a method over test samples that count as often as weights say; means over seeds and leads.

    found: what score returned, one of each seed.
    """

    def __init__(self, found: Sequence[Mapping[str, Any]]):
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
            sums = np.einsum("ds,kst->kdt", weights, self.errors[..., SCORES[-2:].index(name)])
            return PIXELS * (sums / np.einsum("ds,kst->kdt", weights, self.pixels)).mean(0)
        kind, rate = name.split()
        table = np.einsum("ds,kstc->kdtc", weights, self.counts[:, :, :, RATES.index(rate)])
        return contingency_scores(table)[kind.lower()].mean(0)

    def mean(self, name: str, weights: np.ndarray) -> np.ndarray:
        """(draws,): the mean of a score over the leads where it is defined."""
        return mean_of_defined(self.by_lead(name, weights).T)


def call_with_prediction(
    name: str,
    weights: str | os.PathLike | None,
    threads: int | None,
    device: str,
    use: Callable[[Predict], object],
    restart: bool = False,
) -> object:
    """What use(predict) returns, predict being the method.

    Args:
        name: of METHODS. weights: of a network, None: there are none. threads, device: see settle.
        restart: forecasts of more than FUTURE steps start anew from the last frames that were forecast.
    """
    if not METHODS[name].kind:
        function, known = BASELINES[name]

        def simple(sample: dict[str, Tensor], steps: int) -> Tensor:
            x = torch.where(sample["known"], sample["x"], torch.nan)[None, -known:]
            return function(x, steps)[0].clamp(0, 1)

        with computing(None, settle(None, threads)):
            return use(simple)
    model = suppress_warnings(lambda: models.load(weights))
    settings = settle(model, threads, "fp32", device)

    def learned(sample: dict[str, Tensor], steps: int) -> Tensor:
        x = sample["x"][None].to(settings.device)
        if steps == FUTURE:
            return model(x, steps)[-1][0].clamp(0, 1).float().cpu()
        known = x.shape[1]
        while restart and x.shape[1] < known + steps:
            x = torch.cat([x, model.forecast(x[:, -known:], FUTURE)], 1)
        made = x[:, known:][:, :steps] if restart else model.forecast(x, steps)
        return made[0].float().cpu()

    with computing(model, settings):
        return use(learned)
