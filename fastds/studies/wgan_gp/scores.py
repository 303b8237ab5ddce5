# SPDX-License-Identifier: Apache-2.0
"""The scores of a method on every tile of every test day, and its fields of one day."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastds import metrics, models
from fastds.models.baselines import interpolate
from fastds.studies.wgan_gp.methods import METHODS, SCORES
from fastds.studies.wgan_gp.samples import Region
from fastds.tasks.common.settings import computing, settle
from fastds.tasks.humidity.evaluation import sample

# Coarse fields (T, h, w) of a day -> members (M, T, H, W), one of methods without noise; in the unit of the field.
Predict = Callable[[Tensor], Tensor]


def score(predict: Predict, regions: list[Region], data_range: float) -> dict[str, Any]:
    """By sample, the tiles of each day: "one", SCORES of one member, and of methods with noise "mean", those of the
    mean of the members, with their crps and spread_skill."""
    one, mean = [], []
    for region in regions:
        for fine, coarse in zip(region.days, region.coarse, strict=True):
            members = predict(coarse)
            for rows, columns in region.tiles:
                part, truth = members[..., rows, columns], fine[..., rows, columns]
                one.append(metrics.field_scores(part[0], truth, data_range))
                if len(members) > 1:
                    further = {"crps": metrics.crps(part, truth), "spread_skill": metrics.spread_skill(part, truth)}
                    mean.append(metrics.field_scores(part.mean(0), truth, data_range) | further)
    found = {"one": _collect_scores(one, SCORES)}
    return found | ({"mean": _collect_scores(mean, (*SCORES, "crps", "spread_skill"))} if mean else {})


def _collect_scores(rows: list[dict[str, float]], names: tuple[str, ...]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in names}


def call_with_prediction(
    name: str, weights: str | os.PathLike | None, scale: int, align: str, members: int, threads: int | None,
    device: str, use: Callable[[Predict], object],
) -> object:  # fmt: skip
    """What use(predict) returns, predict being the method; weights: of a network, None: there are none."""
    method = METHODS[name]
    if weights is None:
        other = {"grid": "center", "center": "grid"}[align]
        convention = align if method.aligned else other
        with computing(None, settle(None, threads)):
            return use(lambda coarse: interpolate(coarse, scale, method.interpolation, convention)[None])
    model = models.load(weights)
    settings, card = settle(model, threads, "fp32", device), model.card

    def predict(coarse: Tensor) -> Tensor:
        x = ((coarse - card.offset) / card.range)[None, :, None].float().to(settings.device)
        y = model.ensemble(x, members) if hasattr(model, "noise_shape") else sample(model, x)[None]
        return card.physical(y[:, 0, :, 0]).cpu()

    with computing(model, settings):
        return use(predict)


def find_most_varied_day(regions: list[Region]) -> tuple[int, int]:
    """The region and the day that are drawn: those of the largest variance in space."""
    spread = {(r, d): float(day.var()) for r, region in enumerate(regions) for d, day in enumerate(region.days)}
    return max(spread, key=spread.get)


def predict_field(predict: Predict, regions: list[Region], chosen: tuple[int, int]) -> Tensor:
    """(H, W): one member at the first time of a day."""
    region, day = chosen
    return torch.as_tensor(predict(regions[region].coarse[day])[0, 0])
