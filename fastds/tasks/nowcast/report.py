# SPDX-License-Identifier: Apache-2.0
"""HTML report of forecasts: scores if the truth is known, maps, settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch

from fastds.data import RAIN_THRESHOLDS, ReflectivityInput, open_input, reflectivity_to_rate, to_reflectivity
from fastds.data.grid.times import add_seconds
from fastds.data.reading import ReadOptions
from fastds.inference.files import compute_mean_spacing
from fastds.inference.run_facts import describe_run, format_utc, get_file, read_settings
from fastds.inference.tables import format_count
from fastds.report import (
    MAX_FRAMES,
    Chart,
    MapGrid,
    Maps,
    Page,
    check_report,
    make_lead_chart,
    radar_style,
    select_evenly,
)
from fastds.report.curves import Curves
from fastds.tasks.nowcast.ensemble_report import make_ensemble_charts, make_ensemble_maps
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.scores import ComparedFields, NowcastTable
from fastds.tasks.nowcast.starts import Timeline, read_frames_at
from fastds.tasks.probability.charts import make_probability_charts
from fastds.tasks.probability.forecasts import ProbabilityForecasts

_BASELINES = ("extrapolation", "persistence")  # the first available one is next to the forecast on the maps
_MAX_BEFORE = 3  # number of observed frames on the maps before the forecast
_HEAVY_RATE = 10.0  # mm/h; the maps show the initialization time with the most pixels above this rate
_RATES = (0.5, 5.0)  # mm/h, for the curves


class EvaluationReport:
    """HTML report of an evaluation with scores, maps and curves.

    Args:
        path: HTML file to write.
        forecasts: forecasts of the prediction.
        sources: observed fields before and after the initialization times.
        name: label of the forecasts among the methods.
        model: see fastds.inference.run_facts.describe_run.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        forecasts: Forecasts,
        sources: Sequence[ReflectivityInput],
        name: str,
        model: str | os.PathLike | None,
    ):
        check_report(path, *map(get_file, (forecasts.dataset, *(source.dataset for source in sources))))
        self.path, self.forecasts, self.sources, self.name, self.model = path, forecasts, sources, name, model
        spacing = compute_mean_spacing(sources[1])
        self.curves = Curves(None if spacing is None else forecasts.cells.factor * spacing / 1e3)
        self.heaviest = -1.0
        self.drawn: Any = None  # number, fields before and after, and forecasts by method

    def add(self, start: ComparedFields) -> None:
        """Add an initialization time."""
        after, there = start.after, ~np.isnan(start.made[self.name])
        valid = torch.from_numpy(there & ~np.isnan(after))
        fields = {name: torch.from_numpy(np.where(there, z, np.nan)) for name, z in start.made.items()}
        truth = torch.from_numpy(after)
        self.curves.add_errors(fields, truth, valid)
        last = {name: torch.where(valid[-1], z[-1], torch.nan) for name, z in {**fields, "truth": truth}.items()}
        self.curves.add_spectra(last)
        heavy = float(np.sum(reflectivity_to_rate(after, self.forecasts.z_r) >= _HEAVY_RATE))
        if heavy > self.heaviest:
            self.heaviest = heavy
            self.drawn = start.number, start.before, after, {name: z.numpy() for name, z in fields.items()}

    def write(self, table: NowcastTable) -> None:
        """Write the report with the table of scores."""
        number, before, after, made = self.drawn
        baseline = next((name for name in _BASELINES if name in made), None)
        shown = {name: made[name] for name in (self.name, baseline) if name is not None}
        maps = make_maps(self.forecasts, number, before, after, shown)
        if table.starts > 1:
            maps.notes.insert(0, f"Maps of the start with most rain, one of {table.starts}.")
        files = {"forecasts": (self.forecasts.dataset, self.forecasts.variable)}
        files |= {name: (s.dataset, s.raw) for name, s in zip(("observed", "truth"), self.sources, strict=True)}
        facts = describe_run(self.model, read_settings(self.forecasts.dataset), files)
        charts = [*make_lead_charts(table), *self.curves.charts(f"at {table.leads[-1] / 60:g} min")]
        if table.ensemble is not None:
            charts += make_ensemble_charts(table.ensemble)
        if table.shares is not None:
            charts += make_probability_charts(table.shares)
        title = f"Forecasts: {self.forecasts.name} against the truth"
        further = list_further_maps(self.forecasts, number, before)
        Page(title, facts, table.tables(), table.list_notes(), maps, charts, further).write(self.path)


def make_maps(
    forecasts: Forecasts, number: int, before: np.ndarray, after: Sequence, made: Mapping[str, np.ndarray]
) -> Maps:
    """Return maps of one initialization time: observed frames before it, then observed and forecast frames.

    Args:
        forecasts: forecasts.
        number: index of the initialization time.
        before: observed frames (k, h, w) in dBZ.
        after: observed frame at each lead time in dBZ, or None.
        made: forecasts (n, h, w) in dBZ by method.
    """
    grid = MapGrid.of(forecasts.variable, forecasts.dataset)
    maps = Maps(grid, ["observed", *made], radar_style(forecasts.z_r))
    if forecasts.count:
        maps.notes.append(f"Maps of the ensemble are the mean of its {format_count(forecasts.count, 'member')}.")
    before = before[-_MAX_BEFORE:]
    frames, note = list_map_frames(forecasts.starts[number], forecasts.leads, len(before))
    maps.notes += note
    for label, earlier, k in frames:
        if k is None:
            maps.add(label, {"observed": before[earlier]})
        else:
            maps.add(label, {"observed": after[k], **{name: fields[k] for name, fields in made.items()}})
    return maps


def list_further_maps(forecasts: Forecasts, number: int, before: np.ndarray) -> list[Maps]:
    """Return the maps of an ensemble, with the frames of make_maps; none for a single forecast."""
    if forecasts.count < 2:
        return []
    frames, _ = list_map_frames(forecasts.starts[number], forecasts.leads, len(before[-_MAX_BEFORE:]))
    return make_ensemble_maps(forecasts, number, frames)


def list_map_frames(start: Any, leads: np.ndarray, before: int) -> tuple[list[tuple[str, int, int | None]], list[str]]:
    """Return the frames of maps of one initialization time.

    Args:
        start: initialization time.
        leads: (n,) lead times in seconds; a single 0 for a field without a lead time.
        before: number of observed frames up to the initialization time.

    Returns:
        Frames (label, index of the observed frame, None) and (label, 0, index of the lead time), and a note if there
        are more lead times than frames.
    """
    frames: list[tuple[str, int, int | None]] = [
        (f"{format_utc(add_seconds(start, (k + 1 - before) * leads[0]))}, observed", k, None) for k in range(before)
    ]
    chosen = select_evenly(len(leads), MAX_FRAMES - before)
    for k in chosen:
        frames.append((f"{format_utc(add_seconds(start, leads[k]))}, +{leads[k] / 60:g} min", 0, k))
    return frames, [f"Maps of {len(chosen)} of {len(leads)} leads."] * (len(chosen) < len(leads))


def make_lead_charts(table: NowcastTable) -> list[Chart]:
    """Return charts of CSI, squared error and mean rain by lead time; none for a single lead time."""
    if len(table.leads) < 2:
        return []
    columns = {f"CSI at {rate:g} mm/h": ("csi", RAIN_THRESHOLDS.index(rate)) for rate in _RATES}
    columns |= {"Squared error (dBZ²)": ("mse", 0), "Mean rain over the truth's": ("rain", 0)}
    charts = []
    for title, (score, column) in columns.items():
        curves = {name: row[score].reshape(len(table.leads), -1)[:, column] for name, row in table.rows.items()}
        if any(np.isfinite(values).any() for values in curves.values()):
            charts.append(make_lead_chart(title, table.leads, curves))
    return charts


def report_files(
    output: str | os.PathLike,
    given: str | os.PathLike,
    *,
    report: str | os.PathLike,
    model: str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    **reading: Unpack[ReadOptions],
) -> None:
    """Write the report of forecasts without a truth: maps of the first forecast and the observed fields, settings.

    Args:
        output: file of the forecasts.
        given: input of the forecasts.
        report: HTML file to write.
        model: see EvaluationReport.
        var: name of the variable in the input.
        z_r: a and b of Z = a R^b for the input.
        reading: options for reading the input, see fastds.data.reading.
    """
    with open_input(output) as made, open_input(given, var, **reading) as observed:
        source = to_reflectivity(observed, var, z_r=z_r)
        forecasts = Forecasts(made)
        before, after = read_frames_before(source, forecasts, 0), read_frames_after(source, forecasts, 0)
        maps = make_maps(forecasts, 0, before, after, {forecasts.name: forecasts.read_frames(0)})
        if len(forecasts.starts) > 1:
            maps.notes.insert(0, f"Maps of the first of {len(forecasts.starts)} starts.")
        files = {"forecasts": (made, forecasts.variable), "observed": (observed, source.raw)}
        facts, further = describe_run(model, read_settings(made), files), list_further_maps(forecasts, 0, before)
        Page(f"Forecast with {forecasts.name}", facts, maps=maps, further_maps=further).write(report)


def read_frames_before(
    source: ReflectivityInput, forecasts: Forecasts | ProbabilityForecasts, number: int
) -> np.ndarray:
    """Return at most three observed frames (k, h, w) in dBZ up to an initialization time.

    Args:
        source: observed fields.
        forecasts: forecasts, which give initialization times, lead times and cells.
        number: index of the initialization time.
    """
    shifts = forecasts.leads[0] * np.arange(1 - _MAX_BEFORE, 1)
    frames = read_frames_at(source, Timeline.of(source), forecasts.starts[number], shifts, forecasts.cells)
    known = [frame for frame in frames if frame is not None]
    if not known:
        return np.empty((0, *(n // forecasts.cells.factor for n in source.shape[1:])), np.float32)
    return np.stack(known)


def read_frames_after(
    source: ReflectivityInput, forecasts: Forecasts | ProbabilityForecasts, number: int
) -> list[np.ndarray | None]:
    """Return the observed frame (h, w) in dBZ at each lead time, or None where there is none.

    Args:
        source: observed fields.
        forecasts: forecasts, which give initialization times, lead times and cells.
        number: index of the initialization time.
    """
    return read_frames_at(source, Timeline.of(source), forecasts.starts[number], forecasts.leads, forecasts.cells)
