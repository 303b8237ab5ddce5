# SPDX-License-Identifier: Apache-2.0
"""A strip of maps over time: observed, forecast, difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fastds.plot.colours import difference_style, reflectivity_style
from fastds.plot.maps import colour_bar, draw_difference, draw_field, label_map

# Below the colour scale nothing is drawn, so differences there are left out.
_FLOOR_DBZ = 5.0


def forecast_strip(
    observed: Sequence, forecast: Sequence, times: Sequence[str], *, x=None, y=None, unit: str = "km", title: str = ""
) -> Figure:
    """Draw observed fields over forecasts over their difference, one column per time, and return the Figure.

    observed, forecast: one (H, W) field in dBZ per time, None where there is none; a column with both has a difference,
    taken of fields lifted to 5 dBZ. times: column titles. x (W,), y (H,): cell centres in `unit`; without them pixel
    numbers. title: above the strip.
    Raises ValueError where observed and forecast have another number of fields than there are times.
    """
    if len(observed) != len(times) or len(forecast) != len(times):
        raise ValueError(f"expected {len(times)} fields, one per time, got {len(observed)} and {len(forecast)}")
    differences = [
        None if o is None or f is None else np.maximum(f, _FLOOR_DBZ) - np.maximum(o, _FLOOR_DBZ)
        for o, f in zip(observed, forecast, strict=True)
    ]
    rows = [("observed", observed, draw_field), ("forecast", forecast, draw_field)]
    if any(d is not None for d in differences):
        rows.append(("forecast minus observed", differences, draw_difference))
    height, width = next(np.shape(f) for f in (*observed, *forecast) if f is not None)
    side = min(3.0, 17.0 / len(times))
    size = (side * len(times) + 0.7, (side * height / width + 0.28) * len(rows) + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(times), squeeze=False, sharex=True, sharey=True)
    drawn = {}
    for row, (name, maps, draw) in enumerate(rows):
        first = next(column for column, values in enumerate(maps) if values is not None)
        for column, values in enumerate(maps):
            axes = grid[row, column]
            axes.set_visible(values is not None)
            if values is not None:
                drawn[draw] = draw(axes, values, x, y)
                label_map(axes, f"{name}, {times[column]}", unit, left=column == first, bottom=row == len(rows) - 1)
    colour_bar(figure, drawn[draw_field], grid[:2], reflectivity_style()[2], "reflectivity (dBZ)", "neither")
    if len(rows) == 3:
        colour_bar(
            figure, drawn[draw_difference], grid[2], difference_style()[2], "forecast minus observed (dB)", "both"
        )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
