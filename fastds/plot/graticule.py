# SPDX-License-Identifier: Apache-2.0
"""Parallels and meridians on maps."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from fastds.plot.location import Bounds, Location

# Steps of parallels and meridians in degrees, each a divisor of a round number.
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0)
_COLOUR, _WIDTH = "0.55", 0.3
_POINTS = 181  # of a parallel or meridian


class Mark(NamedTuple):
    """A labelled tick: coordinate along the edge of a map, and text."""

    place: float
    label: str


@dataclasses.dataclass(frozen=True)
class Graticule:
    """Parallels and meridians on a map.

    Attributes:
        lines: pieces (n, 2) of x and y.
        bottom: marks of the meridians along x at the lower edge.
        left: marks of the parallels along y at the left edge.
    """

    lines: list[np.ndarray]
    bottom: list[Mark]
    left: list[Mark]


@functools.lru_cache(maxsize=8)  # all maps of a figure have the same location
def find_graticule(location: Location, most: int = 5) -> Graticule:
    """Find round parallels and meridians on a map.

    Args:
        location: coordinates of the map; the location must be known.
        most: maximum number of parallels, and of meridians.
    """
    box = location.bounds
    parallels = select_degrees(box.south, box.north, most)
    meridians = select_degrees(box.west, box.east, most)
    nodes = location.nodes
    if nodes is not None and len(meridians) > 1 and meridians[-1] - meridians[0] >= 360:
        meridians = meridians[:-1]  # the first one
    lines = location.project_lines(_make_lines(box, parallels, meridians))
    if location.unit == "degrees" or nodes is None:
        bottom, left = [(level, level) for level in meridians], [(level, level) for level in parallels]
    else:
        west, lower = int(np.argmin(nodes.x)), int(np.argmin(nodes.y))
        left = _find_crossings(nodes.y, nodes.latitude[:, west], parallels)
        middle = (box.west + box.east) / 2
        bottom = _find_crossings(nodes.x, middle + (nodes.longitude[lower] - middle + 180) % 360 - 180, meridians)
    return Graticule(
        lines,
        [Mark(float(place), format_degrees(level, "EW")) for place, level in bottom],
        [Mark(float(place), format_degrees(level, "NS")) for place, level in left],
    )


def draw_graticule(axes: Axes, location: Location, most: int = 5) -> None:
    """Draw parallels and meridians on a map, and label them at its left and lower edge.

    Args:
        axes: matplotlib axes of the map, with the coordinates of `location`.
        location: coordinates of the map; the location must be known.
        most: maximum number of parallels, and of meridians.
    """
    graticule = find_graticule(location, most)
    axes.grid(False)
    axes.add_collection(
        LineCollection(graticule.lines, colors=_COLOUR, linewidths=_WIDTH, zorder=2.2, label="graticule"), autolim=False
    )
    axes.set_xticks([mark.place for mark in graticule.bottom], [mark.label for mark in graticule.bottom])
    axes.set_yticks([mark.place for mark in graticule.left], [mark.label for mark in graticule.left])


def select_degrees(low: float, high: float, most: int = 5) -> np.ndarray:
    """Select round latitudes or longitudes within a range, at equal distances.

    Args:
        low: lower end in degrees.
        high: upper end in degrees.
        most: maximum number of values, at least 2.
    """
    for step in _STEPS:
        first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
        if last - first < most:
            return np.round(np.arange(first, last + 1) * step, 6)
    return np.arange(np.ceil(low / 180), np.floor(high / 180) + 1) * 180


def _make_lines(box: Bounds, parallels: np.ndarray, meridians: np.ndarray) -> list[np.ndarray]:
    """Return the lines (n, 2) of longitude and latitude."""
    across, up = np.linspace(box.west, box.east, _POINTS), np.linspace(box.south, box.north, _POINTS)
    return [
        *(np.stack([across, np.full(_POINTS, level)], axis=1) for level in parallels),
        *(np.stack([np.full(_POINTS, level), up], axis=1) for level in meridians),
    ]


def _find_crossings(places: np.ndarray, values: np.ndarray, levels: np.ndarray) -> list[tuple[float, float]]:
    """Return (place, level) wherever values along an edge of the map cross a level.

    Args:
        places: (n,) coordinates along the edge.
        values: (n,) latitudes or longitudes there, NaN where unknown; a jump of 180 degrees or more is no crossing.
        levels: levels in degrees.
    """
    found = []
    for level in levels:
        off = values - level
        with np.errstate(invalid="ignore"):
            change = (off[:-1] <= 0) & (off[1:] > 0) | (off[:-1] > 0) & (off[1:] <= 0)
            change &= np.abs(np.diff(values)) < 180
        for k in np.flatnonzero(change):
            share = off[k] / (off[k] - off[k + 1])
            found.append((float(places[k] + share * (places[k + 1] - places[k])), float(level)))
    return found


def format_degrees(value: float, ends: str) -> str:
    """Format a latitude or longitude such as "46.5°N".

    Args:
        value: in degrees.
        ends: letters of positive and negative values, "NS" or "EW".
    """
    value = (value + 180) % 360 - 180 if ends == "EW" else value
    if abs(value) == 180 and ends == "EW":
        return "180°"
    return f"{abs(value):g}°{ends[int(value < 0)] if value else ''}"
