# SPDX-License-Identifier: Apache-2.0
"""Scores of forecasts and of the baselines by lead, from the same starts and on the same pixels."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import nn

from fastds.data import (
    RAIN_THRESHOLDS,
    ReflectivityInput,
    normalised_rates,
    rate_to_reflectivity,
    reflectivity_to_rate,
    to_reflectivity,
)
from fastds.data.grid.axes import upright
from fastds.data.grid.times import text_of
from fastds.data.samples.radar_windows import RadarWindows
from fastds.metrics import NowcastScores
from fastds.tasks.common.radar_files import check_quietly, differ, open_reflectivity
from fastds.tasks.common.scoring import Elsewhere, Sums, added_up
from fastds.tasks.common.tables import tracked
from fastds.tasks.nowcast.ensemble_scores import EnsembleSums
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.members import known_echo, paths_of
from fastds.tasks.nowcast.methods import BASELINES, Method, baseline
from fastds.tasks.nowcast.scores import Compared, Comparison, NowcastTable
from fastds.tasks.nowcast.starts import Timeline, coarse_fields, wet_shares
from fastds.tasks.nowcast.wet_area import keep_wet_area

_NAMES = ("the observed file", "TRUTH")


class Scoring:
    """Starts, the forecasts of every method from them and their scores; see fastds.tasks.common.scoring.Scoring.
    Arguments as in evaluate."""

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
        names = _installed() if baselines is None else list(baselines)
        name = f"{forecasts.name} (PRED)" if forecasts.name in names else forecasts.name
        self.own = [f"{name}, mean", f"{name}, one member"] if forecasts.count else [name]
        self.methods = {key: baseline(key) for key in names}
        self.known = max((method.known for method in self.methods.values()), default=1)
        self.fields = _Fields(forecasts, truth, truth if observed is None else observed, self.known, var, z_r)

    def __len__(self) -> int:
        return len(self.forecasts.starts)

    def item(self, number: int) -> Compared | None:
        """See Scoring."""
        observed = self.fields.around(number)
        if observed is None:
            return None
        before, after, wet = observed
        order = upright(self.fields.sources[0].raw)
        known, wet = before[order].copy(), wet[order].copy()
        made = {key: _forecast(method, known, wet, len(after))[order] for key, method in self.methods.items()}
        made[self.own[0]] = self.forecasts.fields(number)
        members = self.forecasts.members(number) if self.forecasts.count else None
        if members is not None:
            made[self.own[1]] = rate_to_reflectivity(members[0], self.forecasts.z_r)
        return Compared(number, before, after, made, members)

    def scores(self, start: Compared) -> Sums:
        """See Scoring: of all methods, and of the members."""
        forecasts = self.forecasts
        comparison = Comparison(list(start.made), forecasts.leads, forecasts.z_r)
        valid = {key: np.nan_to_num(fields) for key, fields in start.made.items()}
        comparison.add(np.where(np.isnan(start.made[self.own[0]]), np.nan, start.after), valid)
        sums = Sums(comparison=comparison)
        if forecasts.count > 1:
            sums["members"] = self._members(start)
        return sums

    def _members(self, start: Compared) -> EnsembleSums:
        forecasts = self.forecasts
        sums = EnsembleSums(forecasts.count, forecasts.leads)
        for lead, truth in enumerate(start.after):
            rain = np.where(np.isnan(truth), np.nan, reflectivity_to_rate(truth, forecasts.z_r, forecasts.floor))
            sums.add(lead, start.members[:, lead], rain)
        return sums


def _forecast(method: Method, known: np.ndarray, wet: np.ndarray, steps: int) -> np.ndarray:
    """What `fastds nowcast` makes by a method of the known fields (n, h, w) in dBZ: (steps, h, w); wet: (h, w), see
    wet_shares, of the last."""
    known, floor = known[-method.known :], method.card.floor_dbz
    forecast = method(known, steps)
    if method.keeps_area:
        paths = paths_of(known_echo(known, floor), steps) if method.moves else None
        keep_wet_area(forecast, wet, paths, floor)
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
    elsewhere: Elsewhere | None = None,
) -> NowcastTable:
    """Compare forecasts, and the baselines from the same starts, with the fields that came.

    Scores are those of the DB-RNN paper on reflectivity between 0 and 60 dBZ, with the Z-R law of the forecasts, FSS
    and the CSI of nearby events in windows of 9 cells, and the power of the forecast over that of the truth by
    wavelength; of members these of their mean rain and of the first of them, and CRPS, spread, ranks and reliability.
    Pixels count that are missing neither in the truth nor in the forecast.

    Args:
        prediction: as fastds.nowcast gives it, with one start or several.
        truth: the fields after the starts, on the grid the forecasts were made from; averaged to theirs where they are
            coarser.
        observed: the fields before the starts, for the baselines; None: truth holds them, too.
        var, z_r: as in fastds.data.to_reflectivity, for truth and observed.
        baselines: names of fastds.tasks.nowcast.methods.BASELINES; None: all, pysteps where it is installed.
        progress: show a progress bar.
        report: an HTML page to write, with the scores, maps and curves. model: name or file of the weights whose card
            it tells; None: as prediction names them. elsewhere: see fastds.tasks.common.scoring.

    Returns: the NowcastTable, of starts with all fields.

    Raises: ValueError where grids do not fit or no start has all its fields.
    """
    scoring = Scoring(prediction, truth, observed=observed, var=var, z_r=z_r, baselines=baselines)
    forecasts, fields = scoring.forecasts, scoring.fields
    page = None
    if report is not None:
        from fastds.tasks.nowcast.report import EvaluationReport

        page = EvaluationReport(report, forecasts, fields.sources, scoring.own[0], model)
    sums = added_up(scoring, "starts", progress, None if page is None else page.add, elsewhere)
    if not sums:
        raise _no_start(scoring.known, forecasts.leads, forecasts.starts, fields.lines[1])
    comparison, members = sums["comparison"], sums.get("members")
    left_out = len(forecasts.starts) - comparison.starts
    notes = [f"{left_out} of {len(forecasts.starts)} starts left out, fields before or after them are missing"]
    table = comparison.table(notes * bool(left_out), None if members is None else members.rows())
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
) -> None:
    """What would make evaluate fail after the fields of source have been forecast; truth is read once for it.

    starts: times. leads: seconds. Raises: ValueError where truth is on another grid or has the fields after no start,
    source has not the fields before it that the baselines need, or truth is not plausible."""
    fields = to_reflectivity(truth, var, z_r=z_r)
    if fields.shape[1:] != source.shape[1:]:
        raise ValueError(f"the grids differ: it has {fields.shape[1:]} pixels, the input {source.shape[1:]}")
    for dim, own in zip(fields.dims[1:], source.dims[1:], strict=True):
        if dim in fields.raw.coords and own in source.raw.coords and differ(source.raw[own], fields.raw[dim]):
            raise ValueError(f"the grids differ: its coordinate {dim} and {own} of the input are other places")
    before, after = (Timeline(s.raw[s.dims[0]].values, s.cadence) for s in (source, fields))
    known = max((baseline(name).known for name in _installed()), default=1)
    wanted = (before, leads[0] * np.arange(1 - known, 1)), (after, leads)
    if not any(all(line.has(start, shifts) for line, shifts in wanted) for start in starts):
        raise _no_start(known, leads, starts, after)
    check_quietly(fields)


def _no_start(known: int, leads: np.ndarray, starts: Sequence, truth: Timeline) -> ValueError:
    return ValueError(
        f"no start has {known} observed fields before it and all {len(leads)} after it: forecasts start "
        f"from {text_of(starts[0])}, the truth ends {text_of(truth.times[-1])}"
    )


def _installed() -> list[str]:
    return [name for name in BASELINES if name != "pysteps" or importlib.util.find_spec("pysteps")]


def window_scores(
    model: nn.Module, windows: RadarWindows, z_r: tuple[float, float], progress: bool = False
) -> NowcastScores:
    """Scores over windows as in the tables of the DB-RNN paper: all m + n - 1 frames that the network predicts.

    model: with roll(frames, steps); its last output counts. windows: normalised as the model wants. z_r: for the
    thresholds. progress: show a progress bar. Returns NowcastScores with the n future frames as `future`; its
    means("all") is the paper's convention."""
    n = windows.index.shape[1] - windows.known
    thresholds = normalised_rates(RAIN_THRESHOLDS, z_r, windows.floor, windows.ceiling)
    scores = NowcastScores(thresholds, windows.known + n - 1, future=n)
    for sample in tracked(windows, progress, "windows"):
        with torch.inference_mode():
            y = model.roll(sample["x"][None], n)[-1]
        truth = torch.cat([sample["x"], sample["y"]])[None, 1:]
        scores.add(y, truth, sample["valid"][None, 1:])
    return scores


class _Fields:
    """The known fields before starts and the true ones after them, in dBZ on the forecasts' grid."""

    def __init__(
        self,
        forecasts: Forecasts,
        truth: xr.Dataset,
        observed: xr.Dataset,
        known: int,
        var: str | None,
        z_r: tuple[float, float] | None,
    ):
        self.forecasts, self.known = forecasts, known
        datasets = zip((observed, truth), _NAMES, strict=True)
        self.sources = [open_reflectivity(dataset, var, z_r, what) for dataset, what in datasets]
        self.lines = [Timeline(s.raw[s.dims[0]].values, s.cadence) for s in self.sources]
        for source, what in zip(self.sources, _NAMES, strict=True):
            _check_grid(forecasts, source, what)

    def around(self, number: int) -> list[np.ndarray] | None:
        """The fields before and after a start, and the wet shares of the last before; None where a field is missing."""
        forecasts = self.forecasts
        shifts = forecasts.leads[0] * np.arange(1 - self.known, 1), forecasts.leads
        found = []
        for source, line, some in zip(self.sources, self.lines, shifts, strict=True):
            places = [line.find(line.seconds_at(forecasts.starts[number]) + shift) for shift in some]
            if None in places:
                return None
            found.append((source, places))
        (source, places), form = found[0], (forecasts.factor, forecasts.floor)
        return [*(self._read(*one) for one in found), wet_shares(source, places[-1], *form)]

    def _read(self, source, places: list[int]) -> np.ndarray:
        return coarse_fields(source, places, self.forecasts.factor, self.forecasts.floor)


def _check_grid(forecasts: Forecasts, source, what: str) -> None:
    """ValueError where cells of a source do not make the cells of the forecasts, or lie elsewhere."""
    factor, grid = forecasts.factor, forecasts.variable.shape[-2:]
    if tuple(n // factor for n in source.shape[1:]) != grid:
        raise ValueError(
            f"the grids differ: PRED has {grid} cells of {factor} x {factor} pixels, {what} {source.shape[1:]} pixels"
        )
    for dim, own in zip(source.dims[1:], forecasts.variable.dims[-2:], strict=True):
        if dim in source.raw.coords and own in forecasts.variable.coords:
            here, there = forecasts.variable[own].values, np.asarray(source.raw[dim].values, float)
            if differ(here, there[: factor * len(here)].reshape(-1, factor).mean(1)):
                raise ValueError(f"the grids differ: coordinate {own} of PRED and {dim} of {what} are other places")
