# SPDX-License-Identifier: Apache-2.0
"""HTML report of probabilities: scores and diagrams if the truth is known, maps, settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from fastds.data import ReflectivityInput, open_input, to_reflectivity
from fastds.data.reading import ReadOptions
from fastds.inference.run_facts import describe_run, get_file, read_settings
from fastds.report import MapGrid, Maps, Page, check_report, make_probability_style, radar_style
from fastds.tasks.nowcast.report import list_map_frames, read_frames_after, read_frames_before
from fastds.tasks.probability.charts import make_probability_charts
from fastds.tasks.probability.forecasts import ProbabilityForecasts
from fastds.tasks.probability.scores import ComparedProbabilities, ProbabilityTable

_RAIN_DBZ = 25.0  # the maps show the initialization time with the most observed cells above this reflectivity


class EvaluationReport:
    """HTML report of an evaluation with scores, diagrams, and maps of the start with most rain.

    Args:
        path: HTML file to write.
        forecasts: the probabilities.
        source: observed fields.
        before: observed fields before the forecasts; it may be the same as source.
        model: see fastds.inference.run_facts.describe_run.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        forecasts: ProbabilityForecasts,
        source: ReflectivityInput,
        before: ReflectivityInput,
        model: str | os.PathLike | None,
    ):
        check_report(path, *map(get_file, (forecasts.dataset, source.dataset, before.dataset)))
        self.path, self.forecasts, self.source, self.model = path, forecasts, source, model
        self.before, self.most = before, -1.0
        self.drawn: Any = None  # number and observed fields of the initialization time on the maps

    def add(self, item: ComparedProbabilities) -> None:
        """Add an initialization time."""
        wet = float(sum(np.sum(z >= _RAIN_DBZ) for z in item.after if z is not None))
        if wet > self.most:
            self.most, self.drawn = wet, (item.number, item.after)

    def write(self, table: ProbabilityTable) -> None:
        """Write the report with the table of scores."""
        number, after = self.drawn
        observed, probable = make_maps(self.forecasts, number, read_before(self.forecasts, number, self.before), after)
        if table.starts > 1:
            observed.notes.insert(0, f"Maps of the start with most rain, one of {table.starts}.")
        files = {
            "probabilities": (self.forecasts.dataset, self.forecasts.variable),
            "truth": (self.source.dataset, self.source.raw),
        }
        facts = describe_run(self.model, read_settings(self.forecasts.dataset), files)
        title = f"Probabilities: {self.forecasts.name} against the truth"
        charts = make_probability_charts(table)
        Page(title, facts, table.tables(), table.list_notes(), probable, charts, [observed]).write(self.path)


def make_maps(
    forecasts: ProbabilityForecasts, number: int, before: np.ndarray, after: Sequence[np.ndarray | None]
) -> tuple[Maps, Maps]:
    """Return maps of observed reflectivity and of the probabilities of one initialization time.

    Args:
        forecasts: the probabilities.
        number: index of the initialization time.
        before: observed frames before it (k, h, w) in dBZ.
        after: observed frame at each lead time in dBZ, or None.
    """
    grid, fields = MapGrid.of(forecasts.variable, forecasts.dataset), forecasts.read(number)
    names = [f"at least {label}" for label in forecasts.labels]
    observed = Maps(grid, ["observed"], radar_style(forecasts.z_r if forecasts.unit == "mm/h" else None))
    probable = Maps(grid, names, make_probability_style())
    frames, note = list_map_frames(forecasts.starts[number], forecasts.leads, len(before))
    observed.notes += note
    for label, earlier, lead in frames:
        observed.add(label, {"observed": before[earlier] if lead is None else after[lead]})
        probable.add(label, {} if lead is None else dict(zip(names, fields[:, lead], strict=True)))
    return observed, probable


def read_before(forecasts: ProbabilityForecasts, number: int, source: ReflectivityInput) -> np.ndarray:
    """Return at most three observed frames (k, h, w) in dBZ up to an initialization time; none without lead times."""
    if (
        not forecasts.has_leads
        or tuple(n // forecasts.cells.factor for n in source.shape[1:]) != forecasts.variable.shape[-2:]
    ):
        return np.empty((0, *forecasts.variable.shape[-2:]), np.float32)
    return read_frames_before(source, forecasts, number)


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
    """Write the report of probabilities without a truth: maps of the first forecast and the observed fields, settings.

    Args:
        output: file of the probabilities.
        given: input of the forecasts.
        report: HTML file to write.
        model: see EvaluationReport.
        var: name of the variable in the input.
        z_r: a and b of Z = a R^b for the input.
        reading: options for reading the input, see fastds.data.reading.
    """
    with open_input(output) as made, open_input(given, var, **reading) as dataset:
        source, forecasts = to_reflectivity(dataset, var, z_r=z_r), ProbabilityForecasts(made)
        after = read_frames_after(source, forecasts, 0)
        observed, probable = make_maps(forecasts, 0, read_before(forecasts, 0, source), after)
        if len(forecasts.starts) > 1:
            observed.notes.insert(0, f"Maps of the first of {len(forecasts.starts)} starts.")
        files = {"probabilities": (made, forecasts.variable), "observed": (dataset, source.raw)}
        facts = describe_run(model, read_settings(made), files)
        Page(f"Probabilities with {forecasts.name}", facts, maps=probable, further_maps=[observed]).write(report)
