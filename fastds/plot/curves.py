# SPDX-License-Identifier: Apache-2.0
"""Line figures: training curves from CSV logs, power spectra, scores by day and lead time, rank histograms."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _dash_many(axes)
    return figure, axes


def _dash_many(axes: Axes) -> None:
    """Dash the lines after the tenth, because the colours repeat."""
    axes.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * rcParams["axes.prop_cycle"])


def training_curves(
    logs: Mapping[str, str | Path],
    columns: Sequence[str] = ("train_loss", "val_loss"),
    x: str = "step",
    log_y: bool = True,
) -> Figure:
    """Draw columns of CSV training logs against step or epoch and return the Figure.

    Args:
        logs: label -> path of a metrics.csv by Lightning's CSVLogger; empty cells are ignored.
        columns: columns to draw; columns that a log lacks are ignored.
        x: "step" or "epoch".
        log_y: use a logarithmic y axis.

    Raises:
        ValueError: if no log has any of the columns.
    """
    figure, axes = _figure(6.4, 4.0)
    found: set[str] = set()
    for label, path in logs.items():
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows, found_here = list(reader), reader.fieldnames or []
        found.update(found_here)
        for column in columns:
            points = [(float(r[x]), float(r[column])) for r in rows if r.get(x) and r.get(column)]
            if points:
                axes.plot(*zip(*sorted(points), strict=True), label=f"{label} {column}", linewidth=1.2)
    if not axes.lines:
        raise ValueError(f"no column named {' or '.join(columns)} in the logs; they have {', '.join(sorted(found))}")
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel("loss")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    return figure


def spectra(curves: Mapping[str, tuple[Any, Any]], unit: str = "km") -> Figure:
    """Draw radially averaged power spectra against wavelength and return the Figure.

    Both axes are logarithmic, and long waves are on the left.

    Args:
        curves: label -> (wavenumber in cycles per `unit`, power in dB^2). Points with a wavenumber or power of 0 are
            not drawn.
        unit: unit of length.
    """
    figure, axes = _figure(6.0, 4.0)
    for label, curve in curves.items():
        wavenumber, power = (np.asarray(values, float) for values in curve)
        keep = (wavenumber > 0) & (power > 0)
        axes.loglog(1 / wavenumber[keep], power[keep], label=label, linewidth=1.2)
    axes.invert_xaxis()
    axes.set_xlabel(f"wavelength ({unit})")
    axes.set_ylabel("power (dB$^2$)")
    axes.grid(True, which="both", linewidth=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_daily_series(days: Sequence, curves: Mapping[str, Sequence[float]], score: str) -> Figure:
    """Draw a score of several methods by day and return the Figure.

    Args:
        days: dates or numbers.
        curves: label -> one number per day, such as from fastds.metrics.daily_series.
        score: name and unit of the score.

    Raises:
        ValueError: if a curve has another length than days.
    """
    figure, axes = _figure(8.0, 3.4)
    for label, values in curves.items():
        if len(values) != len(days):
            raise ValueError(f"curves[{label!r}] has {len(values)} values for {len(days)} days")
        axes.plot(days, values, label=label, linewidth=1.0)
    axes.set_xlabel("day")
    axes.set_ylabel(score)
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_by_lead(minutes: ArrayLike, curves: Mapping[str, ArrayLike], score: str) -> Figure:
    """Draw a score of several methods by lead time and return the Figure.

    Args:
        minutes: lead times.
        curves: label -> one number per lead time, NaN where undefined.
        score: name and unit of the score.
    """
    figure, axes = _figure(6.0, 4.0)
    _lines(axes, minutes, curves, "lead (min)", score)
    axes.legend(fontsize=8)
    return figure


def draw_panels_by_lead(minutes: Sequence[float], panels: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Draw several scores of the same methods by lead time in adjacent panels and return the Figure.

    Args:
        minutes: lead times.
        panels: name of the score -> label -> one number per lead time, NaN where undefined.
    """
    figure = Figure(figsize=(3.2 * len(panels) + 0.6, 3.4), layout="constrained")
    for axes, (score, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _dash_many(axes)
        _lines(axes, minutes, curves, "lead (min)", score)
    axes.legend(fontsize=7)
    return figure


def draw_by_factor(factors: Sequence[str], curves: Mapping[str, Mapping[str, float]], score: str) -> Figure:
    """Draw a score of several methods by downscaling factor and return the Figure.

    Args:
        factors: names of the factors, in order.
        curves: label -> factor -> number; factors may be missing.
        score: name and unit of the score.
    """
    figure, axes = _figure(6.4, 4.4)
    for label, values in curves.items():
        known = [k for k, factor in enumerate(factors) if factor in values]
        axes.plot(known, [values[factors[k]] for k in known], label=label, linewidth=1.0, marker=".", markersize=6)
    axes.set_xticks(range(len(factors)), factors)
    axes.set_xlabel("factor")
    axes.set_ylabel(score)
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=7, ncols=2)
    return figure


def draw_errors_by_intensity(
    intensity: ArrayLike, bias: Mapping[str, ArrayLike], rmse: Mapping[str, ArrayLike]
) -> Figure:
    """Draw mean error and root mean square error by intensity of the truth, in two panels, and return the Figure.

    Args:
        intensity: centres of the intensity classes in dBZ.
        bias: label -> mean error of each class in dB, NaN for empty classes.
        rmse: label -> root mean square error of each class in dB, NaN for empty classes.
    """
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _lines(upper, intensity, bias, "", "mean error (dB)")
    upper.axhline(0, color="0.5", linewidth=0.8)
    _lines(lower, intensity, rmse, "reflectivity of the truth (dBZ)", "rms error (dB)")
    lower.set_ylim(bottom=0)
    upper.legend(fontsize=8)
    return figure


def _lines(axes: Axes, x: Any, curves: Mapping[str, Any], x_label: str, y_label: str) -> None:
    for label, values in curves.items():
        axes.plot(x, values, label=label, linewidth=1.2, marker=".", markersize=4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(True, linewidth=0.3)


def draw_rank_histogram(shares: Mapping[str, Sequence[float]]) -> Figure:
    """Draw the frequency of each rank of the truth among the members and return the Figure.

    The frequencies are uniform for a reliable ensemble.

    Args:
        shares: label -> frequencies, such as from fastds.metrics.rank_histogram.
    """
    figure, axes = _figure(6.0, 3.4)
    for label, values in shares.items():
        line = axes.step(range(len(values)), values, where="mid", label=label, linewidth=1.2)[0]
        axes.axhline(1 / len(values), color=line.get_color(), linewidth=0.6, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank of the truth among the members")
    axes.set_ylabel("share of points")
    axes.legend(fontsize=8)
    return figure
