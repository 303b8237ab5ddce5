# SPDX-License-Identifier: Apache-2.0
"""Verification of forecasts and baselines by lead time, from the same initialization times and on the same pixels."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import torch
import xarray as xr

from fastds.data import (
    RAIN_THRESHOLDS,
    ReflectivityInput,
    normalised_rates,
    rate_to_reflectivity,
    reflectivity_to_rate,
    to_reflectivity,
)
from fastds.data.grid.axes import get_north_up_index
from fastds.data.grid.times import format_time
from fastds.data.samples.radar_windows import RadarWindows
from fastds.inference.scoring import ScoreItems, ScoreSums, sum_scores
from fastds.inference.tables import track_progress
from fastds.metrics import NowcastScores
from fastds.models.card import Network
from fastds.tasks.nowcast.ensemble_scores import RATES, EnsembleSums
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.members import find_trajectories, scale_known_frames
from fastds.tasks.nowcast.methods import BASELINES, Method, make_baseline
from fastds.tasks.nowcast.scores import ComparedFields, Comparison, NowcastTable
from fastds.tasks.nowcast.starts import Timeline, compute_wet_shares, find_frames_before, read_coarse_frames
from fastds.tasks.nowcast.wet_area import limit_wet_area
from fastds.tasks.probability.scores import ProbabilitySums, ProbabilityTable
from fastds.training.radar_files import are_different, check_without_warnings, open_reflectivity

_NAMES = ("the observed file", "TRUTH")


class EvaluationItems:
    """Initialization times to score, in the form that fastds.inference.scoring needs.

    The arguments are those of evaluate.
    """

    def __init__(
        self,
        prediction: xr.Dataset,
        truth: xr.Dataset,
        *,
        observed: xr.Dataset | None = None,
        var: str | None = None,
        z_r: tuple[float, float] | None = None,
        baselines: Sequence[str] | None = None,
    ):
        self.forecasts = forecasts = Forecasts(prediction)
        names = _list_installed() if baselines is None else list(baselines)
        name = f"{forecasts.name} (PRED)" if forecasts.name in names else forecasts.name
        self.labels = [f"{name}, mean", f"{name}, one member"] if forecasts.count else [name]
        self.methods = {key: make_baseline(key) for key in names}
        self.fewest = max((method.fewest for method in self.methods.values()), default=1)
        known = max((method.known for method in self.methods.values()), default=1)
        source = truth if observed is None else observed
        self.fields = _ObservedFields(forecasts, truth, source, known, self.fewest, var, z_r)

    def __len__(self) -> int:
        return len(self.forecasts.starts)

    def read_item(self, number: int) -> ComparedFields | None:
        """Read observed fields and forecasts of an initialization time; None if an observed field is missing."""
        observed = self.fields.read_frames(number)
        if observed is None:
            return None
        before, after, wet = observed
        order = get_north_up_index(self.fields.sources[0].raw)
        known, wet = before[order].copy(), wet[order].copy()
        made = {key: _compute_forecast(method, known, wet, len(after))[order] for key, method in self.methods.items()}
        made[self.labels[0]] = self.forecasts.read_frames(number)
        members = self.forecasts.read_members(number) if self.forecasts.count else None
        if members is not None:
            made[self.labels[1]] = rate_to_reflectivity(members[0], self.forecasts.z_r)
        return ComparedFields(number, before, after, made, members)

    def score(self, start: ComparedFields) -> ScoreSums:
        """Compute the scores of all methods and of the ensemble for an initialization time."""
        forecasts = self.forecasts
        comparison = Comparison(list(start.made), forecasts.leads, forecasts.z_r)
        valid = {key: np.nan_to_num(fields) for key, fields in start.made.items()}
        comparison.add(np.where(np.isnan(start.made[self.labels[0]]), np.nan, start.after), valid)
        sums = ScoreSums(comparison=comparison)
        if forecasts.count > 1:
            sums |= self._score_members(start)
        return sums

    def _score_members(self, start: ComparedFields) -> ScoreSums:
        """Compute the scores of the members, and of the shares of members that reach each rate as probabilities."""
        forecasts = self.forecasts
        sums, shares = EnsembleSums(forecasts.count, forecasts.leads), ProbabilitySums(len(RATES), len(forecasts.leads))
        shares.starts = 1
        for lead, truth in enumerate(start.after):
            rain = np.where(np.isnan(truth), np.nan, reflectivity_to_rate(truth, forecasts.z_r, forecasts.cells.floor))
            assert start.members is not None
            members = start.members[:, lead]
            sums.add(lead, members, rain)
            missing = np.isnan(members).any(0)
            counts = (np.sum(members >= rate, axis=0, dtype=np.uint16) for rate in RATES)
            probability = np.stack([np.where(missing, np.nan, count / np.float32(forecasts.count)) for count in counts])
            events = np.stack([rain >= rate for rate in RATES])
            shares.add(start.number, len(self), lead, probability, events, rain)
        return ScoreSums(members=sums, shares=shares)


def _compute_forecast(method: Method, known: np.ndarray, wet: np.ndarray, steps: int) -> np.ndarray:
    """Compute a forecast of a baseline as `fastds nowcast` does.

    Args:
        method: baseline.
        known: input frames (n, h, w) in dBZ.
        wet: (h, w), wet fractions of the last frame, see compute_wet_shares.
        steps: number of forecast frames.

    Returns:
        (steps, h, w) in dBZ.
    """
    known, floor = known[-method.known :], cast(float, method.card.floor_dbz)
    forecast = method(known, steps)
    if method.has_limited_wet_area:
        paths = find_trajectories(scale_known_frames(known, floor), steps) if method.uses_motion else None
        limit_wet_area(forecast, wet, paths, floor)
    return forecast


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    observed: xr.Dataset | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    baselines: Sequence[str] | None = None,
    progress: bool = False,
    report: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
    score_items: ScoreItems | None = None,
) -> NowcastTable:
    """Compare forecasts, and baselines from the same initialization times, with the observed fields.

    Scores are those of the DB-RNN paper on reflectivity between 0 and 60 dBZ with the Z-R relation of the forecasts,
    FSS and the CSI of nearby events in windows of 9 cells, and the power of the forecast relative to the truth by
    wavelength. For ensembles, these scores are computed for the mean rain and for the first member, and CRPS, spread,
    ranks and reliability are added. Pixels that are missing in the truth or in the forecast are ignored.

    Args:
        prediction: output of fastds.nowcast with one or several initialization times.
        truth: observed fields after the initialization times, on the grid from which the forecasts were made; averaged
            if the forecasts are coarser.
        observed: observed fields before the initialization times, for the baselines; None: truth contains them.
        var: name of the variable in truth and observed, see fastds.data.to_reflectivity.
        z_r: a and b of Z = a R^b for truth and observed; None: the default. If forecasts and truth are rain, the
            relation of the forecasts converts both, so that rain is compared with rain.
        baselines: names in fastds.tasks.nowcast.methods.BASELINES; None: all, pysteps if it is installed.
        progress: show a progress bar.
        report: HTML file with scores, maps and curves; None: no report.
        model: name or file of the weights whose card is in the report; None: the model named by the prediction.
        score_items: function that computes the scores in other processes, see fastds.inference.scoring.

    Returns:
        Scores over the initialization times for which all fields exist.

    Raises:
        ValueError: grids do not fit, or no initialization time has all its fields.
    """
    scoring = EvaluationItems(prediction, truth, observed=observed, var=var, z_r=z_r, baselines=baselines)
    forecasts, fields = scoring.forecasts, scoring.fields
    page = None
    if report is not None:
        from fastds.tasks.nowcast.report import EvaluationReport

        page = EvaluationReport(report, forecasts, fields.sources, scoring.labels[0], model)
    sums = sum_scores(scoring, "starts", progress, None if page is None else page.add, score_items)
    if not sums:
        raise _make_start_error(scoring.fewest, forecasts.leads, cast(Sequence, forecasts.starts), fields.lines[1])
    comparison, members = sums["comparison"], sums.get("members")
    left_out = len(forecasts.starts) - comparison.starts
    notes = [f"{left_out} of {len(forecasts.starts)} starts left out, fields before or after them are missing"]
    shares = None
    if members is not None:
        labels = [f"{rate:g} mm/h" for rate in RATES]
        shares = ProbabilityTable.of(sums["shares"], labels, forecasts.leads, True, scoring.labels[0])
    table = comparison.table(notes * bool(left_out), None if members is None else members.rows(), shares)
    if page is not None:
        page.write(table)
    return table


def check_truth(
    truth: xr.Dataset,
    source: ReflectivityInput,
    starts: Sequence,
    leads: np.ndarray,
    *,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    baselines: Sequence[str] | None = None,
) -> None:
    """Check before the forecast that its result can be evaluated. All values of the truth are read.

    Args:
        truth: observed fields.
        source: input of the forecast.
        starts: initialization times.
        leads: lead times in seconds.
        var: name of the variable in truth.
        z_r: a and b of Z = a R^b for truth.
        baselines: names of the baselines to compare; None: all.

    Raises:
        ValueError: the truth has another grid, lacks the fields after all initialization times or has implausible
            values, or the source lacks the fields before that the baselines need.
    """
    fields = to_reflectivity(truth, var, z_r=z_r)
    if fields.shape[1:] != source.shape[1:]:
        raise ValueError(f"the grids differ: it has {fields.shape[1:]} pixels, the input {source.shape[1:]}")
    for dim, input_dim in zip(fields.dims[1:], source.dims[1:], strict=True):
        if (
            dim in fields.raw.coords
            and input_dim in source.raw.coords
            and are_different(source.raw[input_dim], fields.raw[dim])
        ):
            raise ValueError(
                f"the grids differ: its coordinate {dim} and {input_dim} of the input are different places"
            )
    before, after = (Timeline.of(s) for s in (source, fields))
    names = _list_installed() if baselines is None else baselines
    fewest = max((make_baseline(name).fewest for name in names), default=1)
    required = (before, leads[0] * np.arange(1 - fewest, 1)), (after, leads)
    if not any(all(line.has(start, shifts) for line, shifts in required) for start in starts):
        raise _make_start_error(fewest, leads, starts, after)
    check_without_warnings(fields)


def _make_start_error(fewest: int, leads: np.ndarray, starts: Sequence, truth: Timeline) -> ValueError:
    return ValueError(
        f"no start has {fewest} observed fields before it and all {len(leads)} after it: forecasts start "
        f"from {format_time(starts[0])}, the truth ends {format_time(truth.times[-1])}"
    )


def _list_installed() -> list[str]:
    return [name for name in BASELINES if name != "pysteps" or importlib.util.find_spec("pysteps")]


def compute_window_scores(
    model: Network, windows: RadarWindows, z_r: tuple[float, float], progress: bool = False
) -> NowcastScores:
    """Compute scores over windows as in the tables of the DB-RNN paper: of all m + n - 1 predicted frames.

    Args:
        model: network with roll(frames, steps), whose last output is scored.
        windows: samples, normalised as for the model.
        z_r: a and b of Z = a R^b, for the thresholds.
        progress: show a progress bar.

    Returns:
        Scores with the n forecast frames as `future`; means("all") follows the paper.
    """
    n = windows.index.shape[1] - windows.known
    thresholds = normalised_rates(RAIN_THRESHOLDS, z_r, windows.floor, windows.ceiling)
    scores = NowcastScores(thresholds, windows.known + n - 1, future=n)
    for sample in track_progress(cast(Collection, windows), progress, "windows"):
        with torch.inference_mode():
            y = model.roll(sample["x"][None], n)[-1]
        truth = torch.cat([sample["x"], sample["y"]])[None, 1:]
        scores.add(y, truth, sample["valid"][None, 1:])
    return scores


class _ObservedFields:
    """Observed fields before and after the initialization times, in dBZ on the grid of the forecasts."""

    def __init__(
        self,
        forecasts: Forecasts,
        truth: xr.Dataset,
        observed: xr.Dataset,
        known: int,
        fewest: int,
        var: str | None,
        z_r: tuple[float, float] | None,
    ):
        self.forecasts, self.known, self.fewest = forecasts, known, fewest
        datasets = zip((observed, truth), _NAMES, strict=True)
        rain_z_r = forecasts.z_r if forecasts.has_rain else None
        self.sources = [open_reflectivity(dataset, var, z_r, what, rain_z_r=rain_z_r) for dataset, what in datasets]
        if self.sources[1].z_r is not None:  # baselines are compared with the truth
            self.sources[0] = self.sources[0].replace_z_r(self.sources[1].z_r, "that of the truth")
        self.lines = [Timeline.of(s) for s in self.sources]
        for source, what in zip(self.sources, _NAMES, strict=True):
            check_grid(forecasts.variable, forecasts.cells.factor, source, what)

    def read_frames(self, number: int) -> list[np.ndarray] | None:
        """Return the frames before and after an initialization time, and the wet fractions of the last frame before.

        There are `fewest` to `known` frames before. The result is None if there are fewer, or if a frame after the
        initialization time is missing.
        """
        forecasts, (before, after) = self.forecasts, self.lines
        start = forecasts.starts[number]
        earlier = find_frames_before(before, before.seconds_at(start), self.known, forecasts.leads[0])
        later: list[Any] = [after.find(after.seconds_at(start) + lead) for lead in forecasts.leads]
        if len(earlier) < self.fewest or None in later:
            return None
        wet = compute_wet_shares(self.sources[0], earlier[-1], forecasts.cells)
        found = zip(self.sources, (earlier, later), strict=True)
        return [*(read_coarse_frames(*one, forecasts.cells) for one in found), wet]


def check_grid(variable: xr.DataArray, factor: int, source: ReflectivityInput, what: str) -> None:
    """Check that the cells of a source form the cells of a forecast, at the same coordinates.

    Args:
        variable: the forecast (..., y, x).
        factor: number of cells of the source along the side of a forecast cell.
        source: observed fields.
        what: name of the source for the message.

    Raises:
        ValueError: the grids differ.
    """
    grid = variable.shape[-2:]
    if tuple(n // factor for n in source.shape[1:]) != grid:
        raise ValueError(
            f"the grids differ: PRED has {grid} cells of {factor} x {factor} pixels, {what} {source.shape[1:]} pixels"
        )
    for dim, forecast_dim in zip(source.dims[1:], variable.dims[-2:], strict=True):
        if dim in source.raw.coords and forecast_dim in variable.coords:
            here, there = variable[forecast_dim].values, np.asarray(source.raw[dim].values, float)
            if are_different(here, there[: factor * len(here)].reshape(-1, factor).mean(1)):
                raise ValueError(
                    f"the grids differ: coordinate {forecast_dim} of PRED and {dim} of {what} are different places"
                )
