# SPDX-License-Identifier: Apache-2.0
"""Grid of maps: orientation, aspect ratio, ticks in km or degrees, coasts and borders."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import xarray as xr
from matplotlib.ticker import MaxNLocator

from fastds.data.grid.grids import find_latitude_longitude
from fastds.plot.graticule import find_graticule, format_degrees
from fastds.plot.location import Axis, Location, find_axis
from fastds.plot.outlines import find_outlines

SIDE = 2000  # units of SVG along each side of a map
_TICKS = 4


@dataclasses.dataclass(frozen=True)
class MapGrid:
    """The grid that all panels of a map figure cover.

    Attributes:
        left, right, bottom, top: outer edges in `unit`; right > left, and top is the northern edge.
        unit: "km", "degrees" or "pixels".
        flip: whether rows and columns of a field must be flipped so that north is up and east is right.
        aspect: width over height on the ground.
        outlines: drawing of coasts, borders, parallels and meridians, None without a known location.
    """

    left: float
    right: float
    bottom: float
    top: float
    unit: str
    flip: tuple[bool, bool]
    aspect: float
    outlines: Outlines | None = None

    @classmethod
    def of(cls, field: xr.DataArray, dataset: xr.Dataset | None = None) -> MapGrid:
        """Make the grid of a field (..., y, x) from its coordinates; without coordinates, row 0 is the top.

        Args:
            field: field with its coordinates.
            dataset: dataset with the grid mapping of the field; None: the coordinates of the field.
        """
        y, x = (find_axis(field, dim) for dim in field.dims[-2:])
        location = Location.of(field, dataset)
        grid = cls._of_axes(field, y, x)
        return dataclasses.replace(grid, outlines=Outlines.of(location)) if location.is_known else grid

    @classmethod
    def _of_axes(cls, field: xr.DataArray, y: Axis, x: Axis) -> MapGrid:
        flip = _is_flipped(field, y, x)
        unit = y.unit if x.unit == y.unit else "pixels"
        if unit == "pixels":
            height, width = field.shape[-2:]
            return cls(0, width, 0, height, unit, flip, width / height)
        (bottom, top), (left, right) = (_find_limits(axis) for axis in (y, x))
        across = np.cos(np.deg2rad((bottom + top) / 2)) if unit == "degrees" else 1.0
        return cls(left, right, bottom, top, unit, flip, across * (right - left) / (top - bottom))

    def up(self, field: np.ndarray) -> np.ndarray:
        """Flip a field (H, W) so that north is up and east is right."""
        return field[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]

    def ticks(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Return the ticks as (fraction from the left, label) and (fraction from the top, label)."""
        if self.outlines is not None:
            return self.outlines.bottom, self.outlines.left
        return (
            [
                ((v - self.left) / (self.right - self.left), self._label(v, "EW"))
                for v in _make_ticks(self.left, self.right)
            ],
            [
                ((self.top - v) / (self.top - self.bottom), self._label(v, "NS"))
                for v in _make_ticks(self.bottom, self.top)
            ],
        )

    def _label(self, value: float, ends: str) -> str:
        if self.unit != "degrees":
            return f"{value:g}".replace("-", "\N{MINUS SIGN}")
        return format_degrees(value, ends)


@dataclasses.dataclass(frozen=True)
class Outlines:
    """Lines on a map as SVG paths in a square of SIDE units, and the ticks of parallels and meridians.

    Attributes:
        name: identifier, the same for the same lines.
        paths: "coasts", "borders" and "graticule" -> data of an SVG path.
        bottom: ticks as (fraction from the left, label).
        left: ticks as (fraction from the top, label).
    """

    name: str
    paths: dict[str, str]
    bottom: list[tuple[float, str]]
    left: list[tuple[float, str]]

    @classmethod
    def of(cls, location: Location) -> Outlines:
        """Find the lines on a map whose location is known."""
        (west, east), (south, north) = location.x_edges, location.y_edges
        graticule = find_graticule(location, _TICKS)
        lines = {kind: pieces for kind, (pieces, _) in find_outlines(location).items()} | {"graticule": graticule.lines}
        scale = np.array([SIDE / (east - west), -SIDE / (north - south)])
        paths = {kind: _format_path([(p - [west, north]) * scale for p in pieces]) for kind, pieces in lines.items()}
        return cls(
            f"outlines-{zlib.crc32(repr(paths).encode()):08x}",
            paths,
            [((mark.place - west) / (east - west), mark.label) for mark in graticule.bottom],
            [((north - mark.place) / (north - south), mark.label) for mark in graticule.left],
        )


def _format_path(pieces: list[np.ndarray]) -> str:
    """Return the data of an SVG path; points beyond the square are left out, and coordinates are rounded."""
    parts = []
    for piece in pieces:
        near = np.all((piece > -SIDE / 20) & (piece < SIDE * 1.05), axis=1)
        points = np.rint(piece).astype(int)
        starts = True
        for k, (x, y) in enumerate(points):
            if not near[k]:
                starts = True
            elif starts:
                parts.append(f"M{x} {y}")
                starts = False
            elif (x, y) != tuple(points[k - 1]):
                parts.append(f"L{x} {y}")
    return "".join(parts)


def _find_limits(axis: Axis) -> tuple[float, float]:
    """Return the outer edges of the cells of an axis."""
    assert axis.values is not None
    half = abs(axis.values[1] - axis.values[0]) / 2
    return float(axis.values.min() - half), float(axis.values.max() + half)


def _is_flipped(field: xr.DataArray, y: Axis, x: Axis) -> tuple[bool, bool]:
    """Return whether rows and columns must be flipped, so that north is at the top and west at the left.

    The result depends on the 1-D coordinates, or on 2-D latitudes and longitudes if a 1-D coordinate is missing.
    """
    lat, lon = find_latitude_longitude(field)
    if (y.values is None or x.values is None) and lat is not None and lon is not None and lat.ndim == 2:
        north, east = np.diff(lat.values, axis=0), np.diff(np.unwrap(lon.values, period=360.0))
        return bool(np.nanmean(north) > 0), bool(np.nanmean(east) < 0)
    rows = y.values is not None and y.values[0] < y.values[-1]
    return bool(rows), bool(x.values is not None and x.values[0] > x.values[-1])


def _make_ticks(low: float, high: float) -> np.ndarray:
    ticks = np.asarray(MaxNLocator(_TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    return ticks[(ticks >= low) & (ticks <= high)]
