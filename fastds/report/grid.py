# SPDX-License-Identifier: Apache-2.0
"""Grid of maps: orientation, aspect ratio, and ticks in km or degrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import numpy as np
import xarray as xr
from matplotlib.ticker import MaxNLocator

from fastds.data.grid.axes import unwrap_longitudes
from fastds.data.grid.grids import find_latitude_longitude
from fastds.data.grid.units import get_metres_per_unit
from fastds.plot.graticule import format_degrees

_TICKS = 4


@dataclasses.dataclass(frozen=True)
class MapGrid:
    """The grid that all panels of a map figure cover.

    Attributes:
        left, right, bottom, top: outer edges in `unit`; right > left, and top is the northern edge.
        unit: "km", "degrees" or "pixels".
        flip: whether rows and columns of a field must be flipped so that north is up and east is right.
        aspect: width over height on the ground.
    """

    left: float
    right: float
    bottom: float
    top: float
    unit: str
    flip: tuple[bool, bool]
    aspect: float

    @classmethod
    def of(cls, field: xr.DataArray) -> MapGrid:
        """Make the grid of a field (..., y, x) from its coordinates; without coordinates, row 0 is the top."""
        y, x = (_axis(field, dim) for dim in field.dims[-2:])
        flip = _is_flipped(field, y, x)
        unit = y.unit if x.unit == y.unit else "pixels"
        if unit == "pixels":
            height, width = field.shape[-2:]
            return cls(0, width, 0, height, unit, flip, width / height)
        (bottom, top), (left, right) = y.edges, x.edges
        across = np.cos(np.deg2rad((bottom + top) / 2)) if unit == "degrees" else 1.0
        return cls(left, right, bottom, top, unit, flip, across * (right - left) / (top - bottom))

    def up(self, field: np.ndarray) -> np.ndarray:
        """Flip a field (H, W) so that north is up and east is right."""
        return field[:: -1 if self.flip[0] else 1, :: -1 if self.flip[1] else 1]

    def ticks(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Return the ticks as (fraction from the left, label) and (fraction from the top, label)."""
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
class _Axis:
    """Cell centres of an axis (None without a coordinate) and their unit ("pixels" if it is unknown)."""

    values: np.ndarray | None
    unit: str

    @property
    def edges(self) -> tuple[float, float]:
        assert self.values is not None
        half = abs(self.values[1] - self.values[0]) / 2
        return float(self.values.min() - half), float(self.values.max() + half)


def _axis(field: xr.DataArray, dim: Hashable) -> _Axis:
    if dim not in field.coords or field.sizes[dim] < 2 or field[dim].dtype.kind not in "fiu":
        return _Axis(None, "pixels")
    attrs, values = field[dim].attrs, unwrap_longitudes(field[dim].values, field[dim].attrs)
    if any(place is not None and dim == place.name for place in find_latitude_longitude(field)):
        return _Axis(values, "degrees")
    metres = get_metres_per_unit(attrs.get("units", ""))
    return _Axis(values, "pixels") if metres is None else _Axis(values * metres / 1e3, "km")


def _is_flipped(field: xr.DataArray, y: _Axis, x: _Axis) -> tuple[bool, bool]:
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
