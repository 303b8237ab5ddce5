# SPDX-License-Identifier: Apache-2.0
"""HTML report of a training: learning curves, validation scores, configuration, model card."""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

from fastds.inference.run_facts import describe_run, flatten_options
from fastds.inference.tables import make_score_table
from fastds.plot import training_curves
from fastds.report import Chart, Page
from fastds.training.config import RunConfig

_NOT_CURVES = ("epoch", "step")


def write_training_report(path: str | os.PathLike, best: Path, config: RunConfig) -> None:
    """Write the HTML report of a training from the logs in its run directory.

    Args:
        path: HTML file to write.
        best: file of the best weights in the run directory.
        config: configuration of the training.
    """
    logs = _find_logs(best.parent / "csv")
    curves = [name for name in _list_columns(logs) if not name.startswith("lr-") and len(_read_values(name, logs)) > 1]
    charts = [_make_chart(column, logs) for column in curves]  # a curve needs two values
    facts = describe_run(best, dict(flatten_options(dataclasses.asdict(config))), {})
    title = f"Training of {config.model.name}"
    Page(
        title,
        facts,
        [_make_table(logs)],
        ["Validation scores of the averaged weights, by the step of the log."],
        charts=charts,
    ).write(path)


def _find_logs(folder: Path) -> dict[str, Path]:
    """Return the logs of the run in order of time, including those of the runs that it resumed."""
    earlier = [folder / f"metrics.{k}.csv" for k in range(len(list(folder.glob("metrics.*.csv"))))]
    paths = [path for path in (*earlier, folder / "metrics.csv") if path.exists()]
    return {f"part {k}" if len(paths) > 1 else "": path for k, path in enumerate(paths, 1)}


def _read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _list_columns(logs: Mapping[str, Path]) -> list[str]:
    """Return the names of the logged values, first those of the training and then those of the validation."""
    names = dict.fromkeys(name for path in logs.values() for row in _read_rows(path) for name, v in row.items() if v)
    return sorted((name for name in names if name not in _NOT_CURVES), key=lambda name: name.startswith("val"))


def _make_chart(column: str, logs: Mapping[str, Path]) -> Chart:
    values = _read_values(column, logs)
    alt = f"{column} by step: {values[0]:.4g} at first, {values[-1]:.4g} at last"
    return Chart(column, alt, functools.partial(_draw_curve, column, logs, 0 < 10 * min(values) < max(values)))


def _draw_curve(column: str, logs: Mapping[str, Path], wide: bool) -> Figure:
    """Draw the curve of a column. wide: use a logarithmic axis."""
    figure = training_curves(logs, (column,), log_y=wide)
    axes = figure.axes[0]
    axes.set_ylabel(column)
    for line in axes.lines:
        line.set_marker(".")
    if len(logs) == 1:
        legend = axes.get_legend()
        assert legend is not None
        legend.remove()
    return figure


def _read_values(column: str, logs: Mapping[str, Path]) -> list[float]:
    return [float(row[column]) for path in logs.values() for row in _read_rows(path) if row.get(column)]


def _make_table(logs: Mapping[str, Path]) -> Table:
    table = make_score_table("Validation", ("score", "first", "lowest", "highest", "last"))
    for column in _list_columns(logs):
        if column.startswith("val"):
            values = _read_values(column, logs)
            chosen = values[0], min(values), max(values), values[-1]
            table.add_row(column.removeprefix("val_"), *(f"{value:.4g}" for value in chosen))
    return table
