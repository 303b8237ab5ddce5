# SPDX-License-Identifier: Apache-2.0
"""Figures of probability forecasts: maps by lead and threshold, reliability diagrams, ROC curves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from fastds.plot.location import Location
from fastds.plot.maps import colour_bar, compute_ratio, draw_cells, finish_map, make_location, note_missing
from fastds.plot.style import probability_style

_MIN_WIDTH = 5.0  # inches
_LETTERS_PER_INCH = 11  # of the title


def draw_probability(
    axes: Axes, probability: ArrayLike, x: ArrayLike | None = None, y: ArrayLike | None = None
) -> QuadMesh:
    """Draw probabilities as cells on axes and return the artist.

    Args:
        axes: matplotlib axes.
        probability: (H, W) from 0 to 1, NaN where missing (grey). Values below 5 % are white.
        x: see draw_field.
        y: see draw_field.
    """
    percent = np.round(100 * np.asarray(probability, dtype=float), 4)  # 7 / 10 in float32 is 70 %
    return draw_cells(axes, percent, x, y, probability_style())


def draw_probability_maps(
    probabilities: Sequence[Sequence[ArrayLike]],
    events: Sequence[str],
    times: Sequence[str],
    *,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    unit: str = "km",
    location: Location | None = None,
    title: str = "",
) -> Figure:
    """Draw one map per event (rows) and time (columns), and return the Figure.

    Args:
        probabilities: for each event, one field (H, W) from 0 to 1 per time, NaN where missing.
        events: names of the rows, such as "at least 5 mm/h".
        times: names of the columns.
        x: (W,) cell centres in `unit`; None: pixel numbers.
        y: (H,) cell centres in `unit`; None: pixel numbers.
        unit: unit of x and y.
        location: location of the fields in place of x, y and unit, for coasts, borders, cities and a graticule.
        title: title of the figure.

    Raises:
        ValueError: the numbers of maps differ from those of events and times.
    """
    if len(probabilities) != len(events) or any(len(row) != len(times) for row in probabilities):
        shape = len(probabilities), [len(row) for row in probabilities]
        raise ValueError(f"expected {len(events)} x {len(times)} maps, one per event and time, got {shape}")
    location = make_location(x, y, unit) if location is None else location
    side = min(3.6, 17.0 / len(times))
    high = side * compute_ratio(np.shape(probabilities[0][0]), location)
    size = (max(side * len(times) + 0.9, _MIN_WIDTH), (high + 0.28) * len(events) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(events), len(times), squeeze=False, sharex=True, sharey=True)
    image = None
    for row, (event, maps) in enumerate(zip(events, probabilities, strict=True)):
        for column, (time, field) in enumerate(zip(times, maps, strict=True)):
            axes, left, bottom = grid[row, column], column == 0, row == len(events) - 1
            image = draw_probability(axes, field, location.x, location.y)
            finish_map(axes, f"{event}, {time}", location, left, bottom, size=(side, high))
    assert image is not None
    label = "probability (%)" + note_missing(field for maps in probabilities for field in maps)
    colour_bar(figure, image, grid, probability_style()[2], label, "neither")
    if title:
        figure.suptitle(textwrap.fill(title, int(_LETTERS_PER_INCH * size[0])), fontsize=11)
    return figure


def draw_reliability_diagram(curves: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Draw observed frequencies against forecast probabilities, above the numbers of forecasts, and return the Figure.

    Points on the diagonal are reliable. The horizontal line in the colour of a curve is the frequency of the event.

    Args:
        curves: label -> arrays of the classes with forecasts: "probability" (mean of the class, 0 to 1), "observed"
            (frequency of the event), "cells" (number of forecasts), and optionally "low" and "high" (interval of the
            frequency, NaN where unknown); and the number "frequency" (of the event in the sample).
    """
    figure = Figure(figsize=(6.0, 4.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
    for label, curve in curves.items():
        p, observed = (np.asarray(curve[name], dtype=float) for name in ("probability", "observed"))
        line = upper.plot(p, observed, label=label, linewidth=1.2, marker=".", markersize=5)[0]
        if "low" in curve:
            ends = np.stack([observed - np.asarray(curve["low"]), np.asarray(curve["high"]) - observed])
            upper.errorbar(
                p, observed, ends.clip(min=0), color=line.get_color(), linewidth=0, elinewidth=0.8, capsize=2
            )
        upper.axhline(float(np.asarray(curve["frequency"])), color=line.get_color(), linewidth=0.6, linestyle=":")
        lower.step(p, np.asarray(curve["cells"]), where="mid", color=line.get_color(), linewidth=1.0)
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="observed frequency")
    lower.set(yscale="log", xlabel="forecast probability", ylabel="cells")
    for axes in (upper, lower):
        axes.grid(True, linewidth=0.3)
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    lower.xaxis.set_major_formatter(PercentFormatter(1.0))
    upper.legend(fontsize=8)
    return figure


def draw_roc_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Draw hit rates against false alarm rates and return the Figure.

    Args:
        curves: label -> false alarm rates and hit rates, each from 0 to 1, ascending.
    """
    figure = Figure(figsize=(5.0, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
    for label, (alarms, hits) in curves.items():
        axes.plot(alarms, hits, label=label, linewidth=1.2, marker=".", markersize=4)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false alarm rate", ylabel="hit rate")
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=8, loc="lower right")
    return figure
