# SPDX-License-Identifier: Apache-2.0
"""Training and test samples of the WGAN-GP study, and the scores of a method on them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastds import metrics, models
from fastds._options import OptionError
from fastds.data.samples.fields import coarsen_fields
from fastds.inference.execution import inference_context, resolve_execution
from fastds.models.baselines import interpolate
from fastds.models.card import Network
from fastds.studies.wgan_gp.methods import METHODS, SCORES
from fastds.tasks.humidity.config import DataConfig
from fastds.tasks.humidity.evaluation import run_network
from fastds.tasks.humidity.samples import find_sources, read_regions


@dataclasses.dataclass
class Region:
    """A test region.

    Attributes:
        name: label.
        days: fine fields (days, T, H, W) in the unit of the file.
        coarse: the coarsened fields.
        tiles: (rows, columns) of the tiles that are scored separately.
    """

    name: str
    days: Tensor
    coarse: Tensor
    tiles: list[tuple[slice, slice]]

    def __len__(self) -> int:
        return len(self.days) * len(self.tiles)


def read_test_regions(config: DataConfig, scale: int, tile: int) -> list[Region]:
    """Read the test regions of a training.

    Args:
        config: data configuration of the training.
        scale: downscaling factor of its generator.
        tile: side of the tiles in grid points.

    Raises:
        FileNotFoundError: if a data file is missing.
        ValueError: if no region has a whole day and a whole tile.
    """
    found, config = [], find_sources(config)
    for name, source in (config.sources or {pathlib.Path(config.path).name: {}}).items():
        regions = read_regions(dataclasses.replace(config, sources={name: source}), "test")
        for k, region in enumerate(regions):
            label = name if len(regions) == 1 else f"{name} {k + 1}"
            found.append(_cut(label, region * config.range + config.offset, config, scale, tile))
    found = [region for region in found if len(region)]
    if not found:
        raise OptionError(
            "data.path", f": the training names no test region of {config.steps} times and {tile} x {tile} points"
        )
    return found


def _cut(name: str, fields: Tensor, config: DataConfig, scale: int, tile: int) -> Region:
    """Crop fields (T, H, W) to whole days and to multiples of the scale."""
    count = len(fields) // config.steps
    h, w = (n - n % scale for n in fields.shape[1:])
    days = fields[: count * config.steps, :h, :w].unflatten(0, (count, config.steps))
    corners = [(i, j) for i in range(0, h - tile + 1, tile) for j in range(0, w - tile + 1, tile)]
    tiles = [(slice(i, i + tile), slice(j, j + tile)) for i, j in corners]
    return Region(name, days, coarsen_fields(days, scale, config.coarsening), tiles)


def make_sample_labels(regions: Iterable[Region]) -> np.ndarray:
    """Return (samples, 2), the numbers of day and tile of each sample; the samples are the tiles of each day."""
    labels, days, tiles = [], 0, 0
    for region in regions:
        labels += [(days + d, tiles + t) for d in range(len(region.days)) for t in range(len(region.tiles))]
        days, tiles = days + len(region.days), tiles + len(region.tiles)
    return np.array(labels)


# A Predict is a function from coarse fields (T, h, w) of a day to members (M, T, H, W), both in the unit of the field.
# M is 1 without noise.
Predict = Callable[[Tensor], Tensor]


def score(predict: Predict, regions: list[Region], data_range: float) -> dict[str, Any]:
    """Score a method for each sample, which is a tile of a day.

    Args:
        predict: the method.
        regions: test regions.
        data_range: range of the quantity, for PSNR and SSIM.

    Returns:
        A dictionary. "one" has the SCORES of one member. For methods with noise, "mean" has the SCORES of the ensemble
            mean, and crps and spread_skill of the ensemble.
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
    model: Network = models.load(weights)
    settings, card = resolve_execution(model, threads, "fp32", device), model.card

    def predict(coarse: Tensor) -> Tensor:
        x = ((coarse - card.offset) / card.range)[None, :, None].float().to(settings.device)
        y = model.ensemble(x, members) if hasattr(model, "noise_shape") else run_network(model, x)[None]
        return card.denormalise(y[:, 0, :, 0]).cpu()

    with inference_context(model, settings):
        return use(predict)


def find_most_varied_day(regions: list[Region]) -> tuple[int, int]:
    """Return the indices of the region and of the day with the largest variance."""
    spread = {(r, d): float(day.var()) for r, region in enumerate(regions) for d, day in enumerate(region.days)}
    return max(spread, key=spread.__getitem__)


def predict_field(predict: Predict, regions: list[Region], chosen: tuple[int, int]) -> Tensor:
    """Predict one member at the first time of a day.

    Args:
        predict: function from coarse fields (T, h, w) to members (M, T, H, W).
        regions: test regions.
        chosen: indices of the region and of the day.

    Returns:
        (H, W).
    """
    region, day = chosen
    return torch.as_tensor(predict(regions[region].coarse[day])[0, 0])
