# SPDX-License-Identifier: Apache-2.0
"""Verification of downscaled radar fields and baselines against the truth, on the same pixels."""

from __future__ import annotations

import os

import xarray as xr

from fastds.data import ReflectivityInput, refine_grid, refine_time, to_reflectivity
from fastds.data.grid.times import JITTER, match_times
from fastds.data.packages import format_install_command
from fastds.inference.scoring import ScoreItems, ScoreSums, sum_scores
from fastds.tasks.radar import scores
from fastds.tasks.radar.methods import BASELINES, OF_ONE_TIME
from fastds.tasks.radar.pairs import SPACE_FACTOR, Pair, Pairs
from fastds.tasks.radar.scores import EvaluationTable
from fastds.training.radar_files import are_different, check_without_warnings, select_coordinates

_VERIFY = "torchmetrics", "scores"


def check_truth(
    truth: xr.Dataset,
    source: ReflectivityInput,
    *,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    time_factor: int = 2,
) -> None:
    """Check before the downscaling that its result can be evaluated. All values of the truth are read.

    Args:
        truth: true fields.
        source: input of the downscaling.
        var: name of the variable in truth.
        z_r: a and b of Z = a R^b for truth.
        time_factor: ratio of the time resolution of output and input.

    Raises:
        ValueError: the truth does not cover the fine grid, lacks a time for every pair of input times, or has
            implausible values.
    """
    grid = refine_grid(source.dataset, source.raw, SPACE_FACTOR)
    places = [grid[dim].values if dim in grid.coords else None for dim in source.dims[1:]]
    fields = to_reflectivity(select_coordinates(truth, places, var, z_r), var, z_r=z_r, least=min(2, source.shape[0]))
    shape = tuple(SPACE_FACTOR * n for n in source.shape[1:])
    if fields.shape[1:] != shape:
        raise ValueError(f"the grids differ: it has {fields.shape[1:]} pixels, the output will have {shape}")
    for dim, axis in zip(fields.dims[1:], source.dims[1:], strict=True):
        if (
            dim in fields.raw.coords
            and axis in grid.coords
            and are_different(fields.raw[dim].values, grid[axis].values)
        ):
            raise ValueError(f"the grids differ: its coordinate {dim} and that of the output are different places")
    if source.shape[0] == 1:
        expected, message, tolerance = [source.times], f"it has no field of {source.times[0]}", 60.0 * JITTER
    else:
        fine = [refine_time(source.times[part], time_factor) for part in source.segments]
        starts = ((times, i) for times in fine for i in range(0, len(times) - time_factor, time_factor))
        expected = [times[i : i + time_factor + 1] for times, i in starts]
        message = "it has nowhere all times from one input time to the next"
        tolerance = JITTER * source.cadence / time_factor
    if not any((match_times(fields.times, times, tolerance) >= 0).all() for times in expected):
        raise ValueError(message)
    check_without_warnings(fields)


class EvaluationItems:
    """Pairs of frames to score, in the form that fastds.inference.scoring needs.

    The arguments are those of evaluate.
    """

    def __init__(
        self,
        prediction: xr.Dataset,
        truth: xr.Dataset,
        *,
        coarse: xr.Dataset | None = None,
        var: str | None = None,
        z_r: tuple[float, float] | None = None,
    ):
        self.pairs = Pairs(prediction, truth, coarse, var, z_r)
        self.name = f"{self.pairs.name} (PRED)" if self.pairs.name in BASELINES else self.pairs.name
        self.n_members = len(self.pairs.members)
        self.member = f"{self.name}, member 1" if self.n_members > 1 else None
        self.name += f", mean of {self.n_members} members" if self.n_members > 1 else ""

    def __len__(self) -> int:
        return len(self.pairs)

    def read_item(self, number: int) -> Pair:
        """Read a pair of frames."""
        return self.pairs[number]

    def score(self, pair: Pair) -> ScoreSums:
        """Compute the scores of a pair of frames, by method."""
        sums = ScoreSums()
        for name, method in (OF_ONE_TIME if self.pairs.single else BASELINES).items():
            sums[name] = scores.MethodScores()
            sums[name].add(pair, None, method)
        made = {self.name: pair.prediction if pair.members is None else pair.members}
        if self.member is not None:
            assert pair.members is not None
            made[self.member] = pair.members[0]
        for name, fields in made.items():
            sums[name] = scores.MethodScores()
            sums[name].add(pair, fields, None)
        return sums


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    coarse: xr.Dataset | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
    report: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    score_items: ScoreItems | None = None,
) -> EvaluationTable:
    """Compare downscaled fields and baselines with the truth for all pairs of input frames.

    Args:
        prediction: downscaled fields.
        truth: true fields on the same grid or a larger grid, with all times of the prediction between the input times.
        coarse: input of the downscaling; None: truth averaged over 2 x 2 pixels as by coarsen_dataset, at every second
            time.
        var: name of the variable in all datasets, see fastds.data.to_reflectivity.
        z_r: a and b of Z = a R^b for all datasets.
        progress: show a progress bar.
        report: HTML file with scores, maps and curves; None: no report.
        model: name or file of the weights whose card is in the report; None: the model named by the prediction.
        score_items: function that computes the scores in other processes, see fastds.inference.scoring.

    Returns:
        Table of scores.

    Raises:
        ValueError: grids or times do not fit, or there is no common pair of frames.
    """
    scoring = EvaluationItems(prediction, truth, coarse=coarse, var=var, z_r=z_r)
    page = None
    if report is not None:
        from fastds.tasks.radar.report import EvaluationReport

        page = EvaluationReport(report, scoring.pairs, model)
    sums = sum_scores(scoring, "pairs", progress, None if page is None else page.add, score_items)
    rows = {method: score.means() for method, score in sums.items()}
    notes = tuple(
        scoring.pairs.notes
        if scores.HAS_TORCHMETRICS and scores.HAS_SCORES
        else [
            *scoring.pairs.notes,
            f"SSIM and FSS need the packages {' and '.join(_VERIFY)}: {format_install_command(*_VERIFY)}",
        ]
    )
    axis = sums[scoring.name]
    table = EvaluationTable(rows, axis.count, round(axis.pixels / max(axis.count, 1)), notes, scoring.pairs.single)
    if page is not None:
        page.write(table)
    return table
