# SPDX-License-Identifier: Apache-2.0
"""Errors of gridded fields, of arbitrary-scale networks and of interpolation where the fine truth is known."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import xarray as xr
from torch import Tensor

from fastds.data.samples.degradation import area_mean
from fastds.metrics import detail_ratio, psnr
from fastds.models.baselines.interpolation import METHODS, bilinear_at
from fastds.ops import GridSpec
from fastds.tasks.common.scoring import Elsewhere, Sums, added_up
from fastds.tasks.fields.geometry import Plane, geometry
from fastds.tasks.fields.pairs import TRUTH, Pair, Pairs
from fastds.tasks.fields.scores import FieldTable, Scores
from fastds.tasks.fields.variables import alike, names_of_fields, with_fields


class Scoring:
    """Fields by every method, and their scores; see fastds.tasks.common.scoring.Scoring. Arguments as in evaluate."""

    def __init__(
        self,
        prediction: xr.Dataset,
        truth: xr.Dataset,
        *,
        coarse: xr.Dataset | None = None,
        var: str | None = None,
    ):
        self.pairs = Pairs(prediction, truth, coarse, var)
        self.name = name_of(prediction, self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def item(self, number: int) -> Pair:
        """See Scoring."""
        return self.pairs[number]

    def scores(self, pair: Pair) -> Sums:
        """See Scoring: by variable."""
        field = self.pairs.sources[TRUTH][pair.name].field
        score = Scores(field, self.pairs.grid.weights, self.pairs.members, self.name)
        score.add(pair)
        return Sums({pair.name: score})


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    coarse: xr.Dataset | None = None,
    var: str | None = None,
    progress: bool = False,
    report: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    elsewhere: Elsewhere | None = None,
) -> FieldTable:
    """Compare downscaled fields, or ensembles of them, and interpolation of the coarse fields with the truth.

    Args:
        prediction: fields (..., latitude, longitude), an ensemble with the dimension realization. truth: the same
            variables on the same grid or a larger one; times and levels that both have are compared.
        coarse: what was downscaled; None: truth averaged, or thinned, as the attributes of the prediction tell.
        var: the only variable; None: all that all datasets have. progress: show a progress bar.
        report: an HTML page to write, with the scores and maps. model: name or file of the weights whose card it tells;
            None: as prediction names them. elsewhere: see fastds.tasks.common.scoring.

    Returns: the FieldTable, over the cells that are missing in no field of any row.

    Raises: ValueError where grids, units, variables or times do not fit.
    """
    scoring = Scoring(prediction, truth, coarse=coarse, var=var)
    pairs, name = scoring.pairs, scoring.name
    pairs.check()
    page = None
    if report is not None:
        from fastds.tasks.fields.report import EvaluationReport

        page = EvaluationReport(report, pairs, truth, coarse, name, model)
    sums = added_up(scoring, "fields", progress, None if page is None else page.add, elsewhere)
    fields = {key: source.field for key, source in pairs.sources[TRUTH].items()}
    table = FieldTable(
        rows={key: score.rows() for key, score in sums.items()},
        units={key: str(field.attrs.get("units", "")) for key, field in fields.items()},
        fields=sum(score.sums[name].fields for score in sums.values()),
        cells=sum(score.seen for score in sums.values()),
        left_out=sum(score.seen - score.sums[name].cells for score in sums.values()),
        shape=(pairs.grid.latitude.numel(), pairs.grid.longitude.numel()),
        members=pairs.members,
        ranks={key: score.ensemble.rank_histogram() for key, score in sums.items() if pairs.members > 1},
        by_latitude=not isinstance(pairs.grid, Plane),
        notes=tuple(pairs.notes),
    )
    if page is not None:
        page.write(table)
    return table


def evaluate_plan(dataset: xr.Dataset, var: str | None = None) -> list[str]:
    """The variables of a dataset that evaluate compares. Raises: ValueError where there are none."""
    grid = geometry(dataset, var)
    return names_of_fields(with_fields(dataset, grid, var), grid) or alike(dataset, grid)[0]


def check_truth(truth: xr.Dataset, output: xr.Dataset, coarse: xr.Dataset) -> None:
    """What would make evaluate fail after coarse has been downscaled; truth is read once for it.

    output: a dataset with the coordinates and attributes of the result. Raises: ValueError where truth has another
    grid, other units or no common variable or time, or is not plausible."""
    Pairs(output, truth, coarse, None, "the output").check(quietly=True, only=[TRUTH])


def name_of(prediction: xr.Dataset, pairs: Pairs) -> str:
    """What the rows of the prediction are called."""
    name = str(prediction.attrs.get("fastds_model", "prediction"))
    name = f"{name} (PRED)" if name in METHODS else name
    return f"{name}, mean" if pairs.members > 1 else name


def coarse_and_fine(truth: Tensor, scale: float | tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Area mean of (B, C, H, W) by `scale`, and truth cut to the whole fine size that belongs to it."""
    pair = scale if isinstance(scale, tuple) else (scale, scale)
    coarse = [int(n / s + 1e-6) for n, s in zip(truth.shape[2:], pair, strict=True)]
    fine = [round(n * s) for n, s in zip(coarse, pair, strict=True)]
    truth = truth[..., : fine[0], : fine[1]]
    return area_mean(truth, coarse), truth


def resize_bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) interpolated to cells of `size`, a = -0.5: the kernel that torch uses where it would smooth."""
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) interpolated to cells of `size`."""
    return bilinear_at(x, GridSpec.cells(tuple(x.shape[2:]), size)).unflatten(1, size).permute(0, 3, 1, 2)


def resize_bicubic_torch(x: Tensor, size: tuple[int, int]) -> Tensor:
    """bicubic with a = -0.75, torch's default: better for rough fields, worse for smooth ones."""
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False)


def scored_margin(scale: float) -> int:
    """Fine pixels along each edge that are not scored."""
    return math.ceil(scale) + 6


def scores(
    model: torch.nn.Module,
    truth: Tensor,
    scales: Sequence[float],
    value_range: Tensor,
    static: Tensor | None = None,
) -> dict[str, float]:
    """PSNR and the ratio of unresolved power, of the model and of bicubic interpolation, per variable and scale.

    model: with forward(x, size). truth: (B, C, H, W), averaged to the coarse input. scales: factors. value_range: (C,).
    static: (S, H, W) on the grid of truth, for a model that reads its area means.
    """
    result = {}
    for scale in scales:
        x, y = coarse_and_fine(truth, scale)
        shave = scored_margin(scale)
        beside = {} if static is None else {"static": coarse_and_fine(static[None], scale)[0]}
        ours = model(x, size=tuple(y.shape[2:]), **beside)
        for name, prediction in (("model", ours), ("bicubic", resize_bicubic(x, tuple(y.shape[2:])))):
            for c in range(y.shape[1]):
                inner = [t[:, c, shave:-shave, shave:-shave] for t in (prediction, y)]
                result[f"{name}/psnr/x{scale:g}/{c}"] = psnr(*inner, float(value_range[c]))["psnr"]
                result[f"{name}/detail/x{scale:g}/{c}"] = detail_ratio(*inner, scale)
    return result
