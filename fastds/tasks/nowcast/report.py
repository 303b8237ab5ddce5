# SPDX-License-Identifier: Apache-2.0
"""The HTML report of forecasts: with a truth as they are evaluated, without one what was forecast from what."""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import torch

from fastds.data import (
    RAIN_THRESHOLDS,
    ReflectivityInput,
    opened,
    reflectivity_to_rate,
    to_reflectivity,
)
from fastds.data.reading import Reading
from fastds.plot import draw_by_lead
from fastds.report import MAX_FRAMES, Chart, MapGrid, Maps, Page, check_report, radar_style, select_evenly
from fastds.report.curves import Curves
from fastds.tasks.common.inference import mean_spacing_m
from fastds.tasks.common.reports import facts, file_of, settings_of, utc
from fastds.tasks.common.tables import counted
from fastds.tasks.nowcast.forecasts import Forecasts
from fastds.tasks.nowcast.scores import Compared, NowcastTable
from fastds.tasks.nowcast.starts import Timeline, coarse_fields

_BASELINES = ("extrapolation", "persistence")  # the first that was made is beside the forecast on the maps
_BEFORE = 3  # observed fields on the maps before the forecast
_HEAVY = 10.0  # mm/h: the start with most of it is drawn
_RATES = (0.5, 5.0)  # mm/h, of the curves


class EvaluationReport:
    """Maps and curves of an evaluation, filled start by start.

    Args: path: of the report; forecasts; sources: what was observed before and after the starts; name: of the
    forecasts among the methods; model: see fastds.tasks.common.reports.facts.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        forecasts: Forecasts,
        sources: Sequence[ReflectivityInput],
        name: str,
        model: str | os.PathLike | None,
    ):
        check_report(path, *map(file_of, (forecasts.dataset, *(source.dataset for source in sources))))
        self.path, self.forecasts, self.sources, self.name, self.model = path, forecasts, sources, name, model
        spacing = mean_spacing_m(sources[1])
        self.curves = Curves(None if spacing is None else forecasts.factor * spacing / 1e3)
        self.heaviest, self.drawn = -1.0, None

    def add(self, start: Compared) -> None:
        """One start."""
        after, there = start.after, ~np.isnan(start.made[self.name])
        valid = torch.from_numpy(there & ~np.isnan(after))
        fields = {name: torch.from_numpy(np.where(there, z, np.nan)) for name, z in start.made.items()}
        truth = torch.from_numpy(after)
        self.curves.add_errors(fields, truth, valid)
        last = {name: torch.where(valid[-1], z[-1], torch.nan) for name, z in {**fields, "truth": truth}.items()}
        self.curves.add_spectra(last)
        heavy = float(np.sum(reflectivity_to_rate(after, self.forecasts.z_r) >= _HEAVY))
        if heavy > self.heaviest:
            self.heaviest = heavy
            self.drawn = start.number, start.before, after, {name: z.numpy() for name, z in fields.items()}

    def write(self, table: NowcastTable) -> None:
        """Write the page with the scores."""
        number, before, after, made = self.drawn
        beside = next((name for name in _BASELINES if name in made), None)
        shown = {name: made[name] for name in (self.name, beside) if name is not None}
        maps = draw(self.forecasts, number, before, after, shown)
        if table.starts > 1:
            maps.notes.insert(0, f"Maps of the start with most rain, one of {table.starts}.")
        files = {"forecasts": (self.forecasts.dataset, self.forecasts.variable)}
        files |= {name: (s.dataset, s.raw) for name, s in zip(("observed", "truth"), self.sources, strict=True)}
        told = facts(self.model, settings_of(self.forecasts.dataset), files)
        charts = [*by_lead(table), *self.curves.charts(f"at {table.leads[-1] / 60:g} min")]
        title = f"Forecasts: {self.forecasts.name} against the truth"
        Page(title, told, table.tables(), table.sentences(), maps, charts).write(self.path)


def draw(
    forecasts: Forecasts, number: int, before: np.ndarray, after: Sequence, made: Mapping[str, np.ndarray]
) -> Maps:
    """Maps of one start: observed fields before it, then those after it (None where there is none) and of every
    method, in dBZ."""
    grid = MapGrid.of(forecasts.variable)
    maps = Maps(grid, ["observed", *made], radar_style(forecasts.z_r))
    if forecasts.count:
        maps.notes.append(f"Maps of the ensemble are the mean of its {counted(forecasts.count, 'member')}.")
    start, leads, before = forecasts.starts[number], forecasts.leads, before[-_BEFORE:]
    for back, field in enumerate(before, 1 - len(before)):
        maps.add(f"{utc(later(start, back * leads[0]))}, observed", {"observed": field})
    chosen = select_evenly(len(leads), MAX_FRAMES - len(before))
    if len(chosen) < len(leads):
        maps.notes.append(f"Maps of {len(chosen)} of {len(leads)} leads.")
    for k in chosen:
        label = f"{utc(later(start, leads[k]))}, +{leads[k] / 60:g} min"
        maps.add(label, {"observed": after[k], **{name: fields[k] for name, fields in made.items()}})
    return maps


def later(time, seconds: float):
    """A time so many seconds after another."""
    step = datetime.timedelta(seconds=float(seconds))
    return time + (np.timedelta64(step) if isinstance(time, np.datetime64) else step)


def by_lead(table: NowcastTable) -> list[Chart]:
    """CSI, squared error and mean rain of every method by lead; none of a single lead."""
    if len(table.leads) < 2:
        return []
    columns = {f"CSI at {rate:g} mm/h": ("csi", RAIN_THRESHOLDS.index(rate)) for rate in _RATES}
    columns |= {"Squared error (dBZ²)": ("mse", 0), "Mean rain over the truth's": ("rain", 0)}
    charts = []
    for title, (score, column) in columns.items():
        curves = {name: row[score].reshape(len(table.leads), -1)[:, column] for name, row in table.rows.items()}
        if any(np.isfinite(values).any() for values in curves.values()):
            figure = functools.partial(draw_by_lead, table.leads / 60, curves, title)
            ends = "; ".join(f"{name}: {values[0]:.3g} to {values[-1]:.3g}" for name, values in curves.items())
            charts.append(Chart(f"{title} by lead", f"From the first to the last lead. {ends}", figure))
    return charts


def report_files(
    output: str | os.PathLike,
    given: str | os.PathLike,
    *,
    report: str | os.PathLike,
    model: str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    **reading: Unpack[Reading],
) -> None:
    """Write a report of forecasts without a truth: maps of the first of them and of what was observed, where `given`
    has it, and what was run.

    output: the file that was made. given: the file it was made of. report: the page. model: as in EvaluationReport.
    var, z_r: as in fastds.tasks.nowcast.run.nowcast_file. reading: of given, see fastds.data.reading.
    """
    with opened(output) as made, opened(given, var, **reading) as observed:
        source = to_reflectivity(observed, var, z_r=z_r)
        forecasts = Forecasts(made)
        maps = draw(forecasts, 0, *_observed(forecasts, source), {forecasts.name: forecasts.fields(0)})
        if len(forecasts.starts) > 1:
            maps.notes.insert(0, f"Maps of the first of {len(forecasts.starts)} starts.")
        files = {"forecasts": (made, forecasts.variable), "observed": (observed, source.raw)}
        Page(f"Forecast with {forecasts.name}", facts(model, settings_of(made), files), maps=maps).write(report)


def _observed(forecasts: Forecasts, source: ReflectivityInput) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """Fields before the first start, and after it at every lead, None where the source has none."""
    line = Timeline(source.raw[source.dims[0]].values, source.cadence)
    start, form = line.seconds_at(forecasts.starts[0]), (forecasts.factor, forecasts.floor)
    back = forecasts.leads[0] * np.arange(1 - _BEFORE, 1)
    known = [place for shift in back if (place := line.find(start + shift)) is not None]
    places = [line.find(start + lead) for lead in forecasts.leads]
    after = [None if place is None else coarse_fields(source, [place], *form)[0] for place in places]
    return coarse_fields(source, known, *form), after
