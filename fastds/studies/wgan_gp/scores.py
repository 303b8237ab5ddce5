# SPDX-License-Identifier: Apache-2.0
"""Scores of a method on every tile of every test day."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastds import metrics, models
from fastds.inference.execution import inference_context, resolve_execution
from fastds.models.baselines import interpolate
from fastds.studies.wgan_gp.methods import METHODS, SCORES
from fastds.studies.wgan_gp.samples import Region
from fastds.tasks.humidity.evaluation import run_network

# Function from coarse fields (T, h, w) of a day to members (M, T, H, W), both in the unit of the field; M = 1 without
# noise.
Predict = Callable[[Tensor], Tensor]


def score(predict: Predict, regions: list[Region], data_range: float) -> dict[str, Any]:
    """Score a method for each sample, which is a tile of a day.

    Args:
        predict: the method.
        regions: test regions.
        data_range: range of the quantity, for PSNR and SSIM.
    Returns:
        "one": SCORES of one member. "mean", for methods with noise: SCORES of the ensemble mean, and crps and
            spread_skill of the ensemble.
    """
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
    """Call use(predict), where predict makes the fields of a method, and return its result.

    Args:
        name: name of the method.
        weights: weights of the network; None for interpolations.
        scale: downscaling factor.
        align: grid convention of the coarse fields.
        members: number of ensemble members.
        threads: number of threads of torch; None leaves the number unchanged.
        device: device of the network.
        use: function of predict.
    """
    method = METHODS[name]
    if weights is None:
        other = {"grid": "center", "center": "grid"}[align]
        convention = align if method.aligned else other
        with inference_context(None, resolve_execution(None, threads)):
            return use(lambda coarse: interpolate(coarse, scale, method.interpolation, convention)[None])
    model = models.load(weights)
    settings, card = resolve_execution(model, threads, "fp32", device), model.card

    def predict(coarse: Tensor) -> Tensor:
        x = ((coarse - card.offset) / card.range)[None, :, None].float().to(settings.device)
        y = model.ensemble(x, members) if hasattr(model, "noise_shape") else run_network(model, x)[None]
        return card.physical(y[:, 0, :, 0]).cpu()

    with inference_context(model, settings):
        return use(predict)


def find_most_varied_day(regions: list[Region]) -> tuple[int, int]:
    """Return the indices of the region and day with the largest variance, which are drawn."""
    spread = {(r, d): float(day.var()) for r, region in enumerate(regions) for d, day in enumerate(region.days)}
    return max(spread, key=spread.get)


def predict_field(predict: Predict, regions: list[Region], chosen: tuple[int, int]) -> Tensor:
    """Return one member (H, W) at the first time of a day."""
    region, day = chosen
    return torch.as_tensor(predict(regions[region].coarse[day])[0, 0])
