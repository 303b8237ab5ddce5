# SPDX-License-Identifier: Apache-2.0
"""Verification of gridded fields from networks and interpolation against a fine truth."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
import xarray as xr
from torch import Tensor

from fastds.data.samples.degradation import compute_area_mean
from fastds.inference.scoring import ScoreItems, ScoreSums, sum_scores
from fastds.metrics import detail_ratio, psnr
from fastds.models.baselines.interpolation import METHODS, interpolate_at
from fastds.models.card import Network
from fastds.ops import GridSpec
from fastds.tasks.fields.geometry import Plane, find_geometry
from fastds.tasks.fields.pairs import TRUTH, Pair, Pairs
from fastds.tasks.fields.scores import FieldTable, VariableScores
from fastds.tasks.fields.variables import list_fields, select_field, select_main_fields


class EvaluationItems:
    """Pairs of fields to score, in the form needed by fastds.inference.scoring. The arguments are those of evaluate."""

    def __init__(
        self,
        prediction: xr.Dataset,
        truth: xr.Dataset,
        *,
        coarse: xr.Dataset | None = None,
        var: str | None = None,
    ):
        self.pairs = Pairs(prediction, truth, coarse, var)
        self.name = make_row_label(prediction, self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def read_item(self, number: int) -> Pair:
        """Read a pair of fields."""
        return self.pairs[number]

    def score(self, pair: Pair) -> ScoreSums:
        """Compute the scores of a pair of fields, by variable."""
        field = self.pairs.sources[TRUTH][pair.name].field
        score = VariableScores(field, self.pairs.grid.weights, self.pairs.members, self.name)
        score.add(pair)
        return ScoreSums({pair.name: score})


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    coarse: xr.Dataset | None = None,
    var: str | None = None,
    progress: bool = False,
    report: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    score_items: ScoreItems | None = None,
) -> FieldTable:
    """Compare downscaled fields or ensembles, and interpolated coarse fields, with the truth.

    Args:
        prediction: fields (..., latitude, longitude); an ensemble has the dimension realization.
        truth: the same variables on the same grid or a larger grid. Times and levels that both have are compared.
        coarse: input of the downscaling. None: the truth, averaged or subsampled according to the attributes of the
            prediction.
        var: name of the only variable; None: all that all datasets have.
        progress: show a progress bar.
        report: HTML file with scores and maps; None: no report.
        model: name or file of the weights whose card is in the report; None: the model named by the prediction.
        score_items: function that computes the scores in other processes, see fastds.inference.scoring.

    Returns:
        Scores over the cells that are not missing in any field of a row.

    Raises:
        ValueError: grids, units, variables or times that do not fit.
    """
    scoring = EvaluationItems(prediction, truth, coarse=coarse, var=var)
    pairs, name = scoring.pairs, scoring.name
    pairs.check()
    page = None
    if report is not None:
        from fastds.tasks.fields.report import EvaluationReport

        page = EvaluationReport(report, pairs, truth, coarse, name, model)
    sums = sum_scores(scoring, "fields", progress, None if page is None else page.add, score_items)
    fields = {key: source.field for key, source in pairs.sources[TRUTH].items()}
    table = FieldTable(
        rows={key: score.rows() for key, score in sums.items()},
        units={key: str(field.attrs.get("units", "")) for key, field in fields.items()},
        fields=sum(score.sums[name].fields for score in sums.values()),
        cells=sum(score.n_cells for score in sums.values()),
        left_out=sum(score.n_cells - score.sums[name].cells for score in sums.values()),
        shape=(pairs.grid.latitude.numel(), pairs.grid.longitude.numel()),
        members=pairs.members,
        ranks={key: score.ensemble.rank_histogram() for key, score in sums.items() if pairs.members > 1},
        by_latitude=not isinstance(pairs.grid, Plane),
        notes=tuple(pairs.notes),
    )
    if page is not None:
        page.write(table)
    return table


def plan_evaluate(dataset: xr.Dataset, var: str | None = None) -> list[str]:
    """Return the variables of a dataset that evaluate would compare. Raises ValueError if there are none."""
    grid = find_geometry(dataset, var)
    return list_fields(select_field(dataset, grid, var), grid) or select_main_fields(dataset, grid)[0]


def check_truth(truth: xr.Dataset, output: xr.Dataset, coarse: xr.Dataset) -> None:
    """Check before the downscaling that its result can be evaluated. All values of the truth are read.

    Args:
        truth: fine fields.
        output: dataset with the coordinates and attributes of the result.
        coarse: input of the downscaling.

    Raises:
        ValueError: the truth has another grid, other units, no common variable or time, or implausible values.
    """
    Pairs(output, truth, coarse, None, "the output").check(quietly=True, only=[TRUTH])


def make_row_label(prediction: xr.Dataset, pairs: Pairs) -> str:
    """Return the label of the prediction in the table of scores."""
    name = str(prediction.attrs.get("fastds_model", "prediction"))
    name = f"{name} (PRED)" if name in METHODS else name
    return f"{name}, mean" if pairs.members > 1 else name


def make_coarse_and_fine(truth: Tensor, scale: float | tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Average fields (B, C, H, W) by `scale`; return the means and the truth cropped to whole coarse cells."""
    pair = scale if isinstance(scale, tuple) else (scale, scale)
    coarse = [int(n / s + 1e-6) for n, s in zip(truth.shape[2:], pair, strict=True)]
    fine = [round(n * s) for n, s in zip(coarse, pair, strict=True)]
    truth = truth[..., : fine[0], : fine[1]]
    return compute_area_mean(truth, coarse), truth


def resize_bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (B, C, H, W) to a grid of `size` cells with the bicubic kernel a = -0.5.

    torch uses this kernel with antialias=True; for finer grids antialias has no other effect.
    """
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (B, C, H, W) bilinearly to a grid of `size` cells."""
    return interpolate_at(x, GridSpec.cells(tuple(x.shape[2:]), size)).unflatten(1, size).permute(0, 3, 1, 2)


def resize_bicubic_torch(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate (B, C, H, W) to a grid of `size` cells with torch's bicubic kernel (a = -0.75)."""
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False)


def compute_margin(scale: float) -> int:
    """Return the width in fine pixels of the margin that is not scored."""
    return math.ceil(scale) + 6


def compute_scores(
    model: Network,
    truth: Tensor,
    scales: Sequence[float],
    value_range: Tensor,
    static: Tensor | None = None,
) -> dict[str, float]:
    """Compute scores of a model and of bicubic interpolation by scale factor and variable.

    Args:
        model: network with forward(x, size).
        truth: fields (B, C, H, W), which are averaged to the coarse input.
        scales: scale factors.
        value_range: (C,) range of each variable, for the PSNR.
        static: static maps (S, H, W) on the grid of truth, averaged for the model; None: the model reads none.

    Returns:
        PSNR in dB and detail_ratio (power at unresolved wavelengths relative to the truth), with keys such as
        "model/psnr/x2/0".
    """
    result = {}
    for scale in scales:
        x, y = make_coarse_and_fine(truth, scale)
        shave = compute_margin(scale)
        inputs = {} if static is None else {"static": make_coarse_and_fine(static[None], scale)[0]}
        ours = model(x, size=tuple(y.shape[2:]), **inputs)
        for name, prediction in (("model", ours), ("bicubic", resize_bicubic(x, (y.shape[2], y.shape[3])))):
            for c in range(y.shape[1]):
                inner, truth_inner = (t[:, c, shave:-shave, shave:-shave] for t in (prediction, y))
                result[f"{name}/psnr/x{scale:g}/{c}"] = psnr(inner, truth_inner, float(value_range[c]))["psnr"]
                result[f"{name}/detail/x{scale:g}/{c}"] = detail_ratio(inner, truth_inner, scale)
    return result
