# SPDX-License-Identifier: Apache-2.0
"""Coasts, borders and cities on maps.

The data are Natural Earth at 1:10m (https://www.naturalearthdata.com, public domain), simplified and rounded by
docs/make_outlines.py. They are read from outlines.npz of this package; nothing is downloaded. Arrays of the file:

* `unit`: degrees; coordinates are multiples of it. `source`: source and licence.
* `{detail}_{kind}_start` (n, 2), `_step` (2, m), `_count` (n,): first longitude and latitude of n lines, differences
  between successive points of all lines, and numbers of points. `detail` is "fine" or "coarse", `kind` is "coasts"
  (with the shores of large lakes) or "borders" (of countries).
* `city_names` (bytes, separated by newlines), `city_places` (n, 2), `city_populations` (n,), in descending order of the
  population.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patheffects import withStroke

from fastds.plot.location import Location, refine_line

OUTLINE_COLOUR = "#2b2b2b"
_FILE = Path(__file__).with_name("outlines.npz")
_COARSE_EXTENT = 25.0  # degrees; larger maps have the coarse lines
_CITIES_EXTENT = 45.0  # degrees; larger maps have no cities
_LONGEST_STEP = 0.5  # degrees between points of a line, so that straight borders bend with the projection
# points, by detail
_WIDTHS = {"fine": {"coasts": 0.6, "borders": 0.45}, "coarse": {"coasts": 0.4, "borders": 0.25}}
_NAME_SIZE = 5.5  # points
_LETTER_WIDTH = 0.58  # mean width of a letter in units of the font size
_MOST_CITIES = 12
_CITIES_PER_SQUARE_INCH = 0.8


class City(NamedTuple):
    """A place: name, longitude and latitude in degrees, population."""

    name: str
    longitude: float
    latitude: float
    population: int


@functools.cache
def load_lines(detail: str, kind: str) -> tuple[np.ndarray, ...]:
    """Load lines (n, 2) of longitude and latitude in degrees.

    Args:
        detail: "fine" (to about 1.5 km) or "coarse" (to about 13 km).
        kind: "coasts" or "borders".
    """
    with np.load(_FILE) as file:
        unit = float(file["unit"])
        start, step, count = (file[f"{detail}_{kind}_{part}"] for part in ("start", "step", "count"))
    ends = np.cumsum(count - 1)
    lines = []
    for first, steps in zip(start, np.split(step.T.astype(np.int64), ends[:-1]), strict=True):
        lines.append(refine_line(np.concatenate([[first], first + np.cumsum(steps, axis=0)]) * unit, _LONGEST_STEP))
    return tuple(lines)


@functools.cache
def load_cities() -> tuple[City, ...]:
    """Load the most populous places of the world, in descending order of the population."""
    with np.load(_FILE) as file:
        names = file["city_names"].tobytes().decode().split("\n")
        places, populations = file["city_places"] * float(file["unit"]), file["city_populations"]
    return tuple(
        City(name, float(place[0]), float(place[1]), int(population))
        for name, place, population in zip(names, places, populations, strict=True)
    )


def draw_outlines(axes: Axes, location: Location, size: tuple[float, float] = (3.0, 3.0)) -> None:
    """Draw coasts, borders of countries and the largest cities on a map. Maps without a known location stay unchanged.

    Args:
        axes: matplotlib axes of the map, with the coordinates of `location`.
        location: coordinates of the map.
        size: (width, height) of the map in inches, on which the number of cities depends.
    """
    if not location.is_known:
        return
    for kind, (pieces, width) in find_outlines(location).items():
        # the pale lines below make the dark ones visible on dark colours
        below = LineCollection(pieces, colors="white", alpha=0.4, linewidths=width + 0.8, zorder=2.4)
        lines = LineCollection(pieces, colors=OUTLINE_COLOUR, linewidths=width, zorder=2.5, label=kind)
        axes.add_collection(below, autolim=False)
        axes.add_collection(lines, autolim=False)
    if _find_extent(location) <= _CITIES_EXTENT:
        _draw_cities(axes, location, size)


@functools.lru_cache(maxsize=8)  # all maps of a figure have the same location
def find_outlines(location: Location) -> dict[str, tuple[list[np.ndarray], float]]:
    """Find coasts and borders on a map.

    Args:
        location: coordinates of the map; the location must be known.

    Returns:
        "coasts" and "borders" -> pieces (n, 2) of x and y, and line width in points.
    """
    detail = "coarse" if _find_extent(location) > _COARSE_EXTENT else "fine"
    return {kind: (location.project_lines(load_lines(detail, kind)), width) for kind, width in _WIDTHS[detail].items()}


def _find_extent(location: Location) -> float:
    """Return the larger extent of a map in degrees of latitude."""
    box = location.bounds
    return max(box.north - box.south, (box.east - box.west) * float(np.cos(np.deg2rad(box.middle_latitude))))


def _draw_cities(axes: Axes, location: Location, size: tuple[float, float]) -> None:
    (left, right), (bottom, top) = location.x_edges, location.y_edges
    most = int(np.clip(_CITIES_PER_SQUARE_INCH * size[0] * size[1], 1, _MOST_CITIES))
    taken: list[tuple[float, float, float, float]] = []
    halo = [withStroke(linewidth=1.2, foreground="white")]
    for city, x, y in _iterate_cities(location):
        if len(taken) >= most:
            break
        # position and extent in points from the lower left corner
        across, up = 72 * size[0] * (x - left) / (right - left), 72 * size[1] * (y - bottom) / (top - bottom)
        width, half = _LETTER_WIDTH * _NAME_SIZE * len(city.name), 0.6 * _NAME_SIZE
        to_right = across + width + 6 < 72 * size[0]
        ends = (across - 3, across + width + 4) if to_right else (across - width - 4, across + 3)
        room = (ends[0], ends[1], up - half, up + half)
        if ends[0] < 0 or room[2] < 2 or room[3] > 72 * size[1] - 2 or any(_overlaps(room, other) for other in taken):
            continue
        taken.append(room)
        axes.plot([x], [y], "s", color=OUTLINE_COLOUR, markersize=1.6, zorder=2.6, scalex=False, scaley=False)
        name = axes.annotate(
            city.name, (x, y), (2.5 if to_right else -2.5, 0), textcoords="offset points", fontsize=_NAME_SIZE,
            ha="left" if to_right else "right", va="center_baseline", color="#111111", zorder=2.7, path_effects=halo,
            annotation_clip=True,
        )  # fmt: skip
        name.set_in_layout(False)


def _iterate_cities(location: Location) -> Iterator[tuple[City, float, float]]:
    """Iterate over the cities on a map, with their coordinates."""
    cities = load_cities()
    xy = location.project(np.array([c.latitude for c in cities]), np.array([c.longitude for c in cities]))
    for k in np.flatnonzero(~np.isnan(xy[0])):
        yield cities[k], float(xy[0][k]), float(xy[1][k])


def _overlaps(room: Sequence[float], other: Sequence[float]) -> bool:
    return room[0] < other[1] and other[0] < room[1] and room[2] < other[3] and other[2] < room[3]
