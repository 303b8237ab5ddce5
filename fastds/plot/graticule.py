# SPDX-License-Identifier: Apache-2.0
"""Parallels and meridians on maps in a projection."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike


def draw_graticule(axes: Axes, x: ArrayLike, y: ArrayLike, latitude: ArrayLike, longitude: ArrayLike) -> None:
    """Draw parallels and meridians on a map in a projection, and label them at its left and lower edge.

    Args:
        axes: matplotlib axes of the map.
        x: (W,) cell centres, as on the axes.
        y: (H,) cell centres, as on the axes.
        latitude: (H, W) in degrees; without NaN at the edges of the map.
        longitude: (H, W) in degrees.
    """
    x, y, latitude = (np.asarray(values, dtype=float) for values in (x, y, latitude))
    longitude = np.unwrap(np.unwrap(np.asarray(longitude, dtype=float), period=360.0), axis=0, period=360.0)
    axes.grid(False)
    lower = int(np.argmin(y))
    edges = (
        (latitude, y, latitude[:, int(np.argmin(x))], axes.set_yticks, "NS"),
        (longitude, x, longitude[lower], axes.set_xticks, "EW"),
    )
    for values, position, along, set_ticks, ends in edges:
        low, high = np.nanmin(values), np.nanmax(values)
        levels = np.asarray(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        levels = levels[(levels > low) & (levels < high)]
        if levels.size:
            axes.contour(x, y, values, levels=levels, colors="0.55", linewidths=0.4, linestyles="solid")
        order = np.argsort(along)
        labelled = levels[(levels >= along.min()) & (levels <= along.max())]
        set_ticks(
            np.interp(labelled, along[order], position[order]), [format_degrees(level, ends) for level in labelled]
        )


def format_degrees(value: float, ends: str) -> str:
    """Format a latitude or longitude such as "46.5°N".

    Args:
        value: in degrees.
        ends: letters of positive and negative values, "NS" or "EW".
    """
    value = (value + 180) % 360 - 180 if ends == "EW" else value
    return f"{abs(value):g}°{ends[int(value < 0)] if value else ''}"
