# SPDX-License-Identifier: Apache-2.0
"""Horizontal grids of datasets (latitude-longitude grids, and planes with equally spaced x and y), and target grids."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds._options import OptionError, spell_argument
from fastds.data.grid.axes import (
    FULL_CIRCLE,
    check_degrees,
    check_latitudes,
    check_longitudes,
    find_rows_and_columns,
    is_latitude,
    is_longitude,
)
from fastds.data.grid.grids import find_latitude_longitude
from fastds.data.grid.variables import split_names
from fastds.metrics import latitude_weights
from fastds.ops.impl.inr_query.points import PointSpec, from_index, from_latlon, get_spacing

_ANGLES = (("latitude", is_latitude), ("longitude", is_longitude))
_BRING = "bring them onto one first (cdo remapbil, xarray's interp)"
MAX_POINTS = 1 << 24  # largest number of points along an axis; 2 m spacing around the globe
_GAUSSIAN = 0.012  # relative tolerance of the spacing of latitudes; Gaussian latitudes are 0.8 % closer at the poles


@dataclass(frozen=True)
class Geometry:
    """Regular or Gaussian latitude-longitude grid.

    Attributes:
        latitude: latitudes in degrees, float64, in the order of the file.
        longitude: longitudes in degrees, float64, without a jump of 360 degrees.
        names: names of the coordinates (latitude, longitude).
        west: if the longitudes in the file have a jump of 360 degrees (350, ..., 359, 0, ..., 10), the lower limit of
            the file's convention, -180 or 0; else None.
    """

    latitude: Tensor
    longitude: Tensor
    names: tuple[str, str]
    west: float | None = None

    def to_file_convention(self, longitude: Tensor) -> Tensor:
        """Return longitudes in the convention of the file."""
        return longitude if self.west is None else self.west + torch.remainder(longitude - self.west, FULL_CIRCLE)

    @property
    def steps(self) -> tuple[float, float]:
        """Steps from row to row (the mean step of a Gaussian grid) and from column to column, in degrees."""
        return _find_mean_step(self.names[0], self.latitude), get_spacing(self.names[1], self.longitude)

    @property
    def flipped(self) -> tuple[bool, bool]:
        """Two flags: True if rows run from south to north, and True if columns run from east to west."""
        rows, columns = self.steps
        return rows > 0, columns < 0

    @property
    def periodic(self) -> bool:
        return abs(abs(self.steps[1]) * self.longitude.numel() - FULL_CIRCLE) < 1e-3

    @property
    def has_pole_rows(self) -> bool:
        """True if the outer rows are the poles, so that the values are at points and do not represent cells."""
        return bool((self.latitude[[0, -1]].abs() > 90 - 1e-6).all())

    def positions(self, latitude: Tensor, longitude: Tensor) -> tuple[Tensor, Tensor]:
        """Return fractional row and column indices of coordinates. Longitudes may have any convention."""
        middle = (self.longitude[0] + self.longitude[-1]) / 2
        near = middle + torch.remainder(longitude - middle + 180, FULL_CIRCLE) - 180
        return find_indices(self.latitude, latitude), find_indices(self.longitude, near)

    def to_even_rows(self, latitude: Tensor) -> Tensor:
        """Map latitudes to those of an equally spaced grid with the same row indices.

        The outer cells of a Gaussian grid extend to the poles, 0.77 steps from their centres.
        """
        if _find_even_step(self.latitude) is not None:
            return latitude
        step, n = self.steps[0], self.latitude.numel()
        polar = self.latitude[[0, -1]].abs() + abs(step) > 90
        low, high = (-0.5 if polar[0] else -n, n - 0.5 if polar[1] else 2 * n)
        return self.latitude[0] + step * find_indices(self.latitude, latitude).clamp(low, high)

    def points(self, latitude: Tensor, longitude: Tensor, outside: str) -> PointSpec:
        """Return scattered points.

        Args:
            latitude: (Q,), in degrees.
            longitude: (Q,), in degrees.
            outside: handling of points outside the grid, see from_latlon.
        """
        rows = self.to_even_rows(latitude), self.to_even_rows(self.latitude)
        return from_latlon(rows[0], longitude, rows[1], self.longitude, periodic_x=self.periodic, outside=outside)

    @property
    def weights(self) -> Tensor:
        """Weights (H, 1) of the rows, proportional to the area of the cells, with sum 1."""
        return latitude_weights(self.latitude)

    @property
    def description(self) -> str:
        """Description of the coordinates for messages."""
        return "latitudes and longitudes"

    def compute_factors(self, latitude: Tensor, longitude: Tensor) -> tuple[float | None, ...]:
        """Return the ratios of the density of rows and of columns of another grid to this grid.

        A ratio is None if the other grid has a single row or column.
        """
        axes = (self.latitude, latitude), (self.longitude, longitude)
        spans = [(t.numel() - 1, float(find_indices(axis, t[[0, -1]]).diff().abs())) for axis, t in axes]
        return tuple(count / max(1e-9, span) if count else None for count, span in spans)


@dataclass(frozen=True)
class Plane(Geometry):
    """Plane with equally spaced coordinates other than latitude and longitude, such as y and x of a projection.

    The attributes `latitude` and `longitude` hold y and x.

    Attributes:
        units: units of y and x; "" if the file has none.
        indexed: whether the grid is curvilinear, with latitudes and longitudes of each point only. y and x are then row
            and column numbers, which increase to the north and to the east.
    """

    units: tuple[str, str] = ("", "")
    indexed: bool = False

    @property
    def periodic(self) -> bool:
        return False

    @property
    def has_pole_rows(self) -> bool:
        return False

    def positions(self, latitude: Tensor, longitude: Tensor) -> tuple[Tensor, Tensor]:
        return find_indices(self.latitude, latitude), find_indices(self.longitude, longitude)

    def points(self, latitude: Tensor, longitude: Tensor, outside: str) -> PointSpec:
        """Return scattered points.

        Args:
            latitude: (Q,), y in the units of the grid.
            longitude: (Q,), x in the units of the grid.
            outside: handling of points outside the grid, see from_index.

        Returns:
            The points in rows and columns of the grid.
        """
        at = torch.stack(self.positions(latitude, longitude), -1)
        return from_index(at, (self.latitude.numel(), self.longitude.numel()), outside=outside)

    @property
    def weights(self) -> Tensor:
        """Equal weights of all rows."""
        return torch.full((self.latitude.numel(), 1), 1 / self.latitude.numel(), dtype=torch.float64)

    @property
    def description(self) -> str:
        if self.indexed:
            return f"a curvilinear grid over {' and '.join(self.names)}"
        (y, x), (rows, columns) = self.names, (units or "no units" for units in self.units)
        return f"{y} [{rows}] and {x} [{columns}]"


def _find_mean_step(name: str, latitude: Tensor) -> float:
    """Return the mean step of latitudes. Raises ValueError if they are neither equally spaced nor Gaussian."""
    try:
        return get_spacing(name, latitude)
    except ValueError:
        steps = latitude.diff()
        if steps.numel() and (steps - steps.mean()).abs().max() <= _GAUSSIAN * abs(steps.mean()):
            return float(latitude[-1] - latitude[0]) / steps.numel()
        raise


def _find_even_step(axis: Tensor) -> float | None:
    """Return the step of an equally spaced axis, else None."""
    try:
        return get_spacing("", axis)
    except ValueError:
        return None


def has_even_spacing(axis: Tensor) -> bool:
    """Return whether an axis is equally spaced."""
    return _find_even_step(axis) is not None


def find_indices(axis: Tensor, values: Tensor) -> Tensor:
    """Return fractional indices of values along a sorted axis, extrapolated with the outer steps beyond its ends."""
    if (step := _find_even_step(axis)) is not None:
        return (values - axis[0]) / step
    sign = 1.0 if axis[-1] > axis[0] else -1.0
    before = (torch.searchsorted(sign * axis, sign * values, right=True) - 1).clamp(0, axis.numel() - 2)
    return before + (values - axis[before]) / (axis[before + 1] - axis[before])


def interpolate_axis(axis: Tensor, index: Tensor) -> Tensor:
    """Return the values of an axis at fractional indices: the inverse of find_indices."""
    if (step := _find_even_step(axis)) is not None:
        return axis[0] + step * index
    before = index.floor().long().clamp(0, axis.numel() - 2)
    return axis[before] + (index - before) * (axis[before + 1] - axis[before])


def orient_north_up(dataset: xr.Dataset, grid: Geometry) -> tuple[xr.Dataset, Geometry]:
    """Return the dataset with rows from north to south and columns from west to east, and its grid.

    The output of a network is not equivariant under flips, and the result must not depend on the order of a file's
    axes.
    """
    mirrored = {name: slice(None, None, -1) for name, wrong in zip(grid.names, grid.flipped, strict=True) if wrong}
    if not mirrored:
        return dataset, grid
    dataset = dataset.isel(mirrored)
    if isinstance(grid, Plane):  # the dataset may have further fields on other grids
        axes = zip((grid.latitude, grid.longitude), grid.flipped, strict=True)
        rows, columns = (axis.flip(0) if wrong else axis for axis, wrong in axes)
        return dataset, replace(grid, latitude=rows, longitude=columns)
    return dataset, find_geometry(dataset)


def find_geometry(dataset: xr.Dataset, var: str | None = None) -> Geometry:
    """Return the horizontal grid of a dataset.

    Args:
        dataset: dataset with one latitude and one longitude coordinate, or else with equally spaced coordinates along
            the rows and columns of its fields.
        var: the variables to consider, see split_names; None: all.

    Returns:
        A Geometry for latitudes and longitudes, else a Plane.

    Raises:
        ValueError: no or several coordinates, or coordinates that are unsorted, repeated or unequally spaced.
    """
    plane = _find_plane(dataset, var)
    if plane is not None:
        return plane
    found = [_find_axis(dataset, kind, test) for kind, test in _ANGLES]
    latitude, longitude = (torch.from_numpy(dataset[n].values.astype("float64")) for n in found)
    check_latitudes(found[0], latitude.numpy())
    unwrapped, west = torch.from_numpy(np.unwrap(longitude.numpy(), period=FULL_CIRCLE)), None
    if not torch.equal(unwrapped, longitude):
        west = -FULL_CIRCLE / 2 if longitude.min() < 0 else 0.0
    grid = Geometry(latitude, unwrapped, (found[0], found[1]), west)
    try:
        _ = grid.steps  # raises ValueError for an unevenly spaced axis, before its extent is checked
    except ValueError as error:
        raise ValueError(_describe_uneven_axis(found[1], longitude, error)) from None
    check_longitudes(found[1], unwrapped.numpy())
    return grid


def _find_plane(dataset: xr.Dataset, var: str | None) -> Plane | None:
    """Return the grid of fields without latitudes and longitudes along their dimensions, else None."""
    if any(c.ndim < 2 for kind in _ANGLES for _, c in _find_coordinates(dataset, *kind)):
        return None
    requested = split_names(var, dataset.data_vars)
    considered = dataset[requested] if requested and set(requested) <= set(dataset.data_vars) else dataset
    fields = [v for v in considered.data_vars.values() if v.ndim >= 2 and v.dtype.kind in "fiu"]
    found = dict.fromkeys(find_rows_and_columns(v, v.dims) for v in fields)
    axes_names = [names for names in found if all(n in dataset.coords and dataset.sizes[n] > 1 for n in names)]
    if not axes_names:
        return _find_curvilinear_plane(dataset, fields)
    if len(axes_names) > 1:
        message = " and ".join(f"{y}, {x}" for y, x in axes_names)
        raise ValueError(
            f"expected fields on one grid, found {message}; name the variable with {spell_argument('var')}"
        )
    names: Any = axes_names[0]
    axes = (dataset[n] for n in names)
    units: Any = tuple(str(dataset[n].attrs.get("units", "")) for n in names)
    y, x = (torch.from_numpy(c.values.astype("float64")) for c in axes)
    plane = Plane(y, x, names=names, units=units)
    try:
        _ = plane.steps
    except ValueError as error:
        raise ValueError(f"{error}; the fields are on no regular grid, {_BRING}") from None
    return plane


def _find_curvilinear_plane(dataset: xr.Dataset, fields: Sequence[xr.DataArray]) -> Plane | None:
    """Return row and column numbers of the first field with 2-D latitudes and longitudes, or None."""
    planes = [c.dims for _, c in _find_coordinates(dataset, *_ANGLES[0]) if c.ndim == 2 and min(c.shape) > 1]
    for field, dims in itertools.product(fields, planes):
        if not set(dims) <= set(field.dims) or set(dims) & set(field.coords):
            continue
        named = find_rows_and_columns(field, dims)
        dims = dims if None in named else named
        lat, lon = find_latitude_longitude(field.transpose(..., *dims))
        if lat is None or lon is None:
            continue
        east = np.unwrap(lon.values, period=FULL_CIRCLE)
        ascending = np.nanmean(lat.values[-1] - lat.values[0]) > 0, np.nanmean(east[:, -1] - east[:, 0]) > 0
        counted = (torch.arange(size, dtype=torch.float64) for size in lat.shape)
        y, x = (axis if sign else -axis for axis, sign in zip(counted, ascending, strict=True))
        return Plane(y, x, names=(str(dims[0]), str(dims[1])), indexed=True)
    return None


def _find_coordinates(
    dataset: xr.Dataset, kind: str, test: Callable[[Mapping], bool]
) -> list[tuple[str, xr.DataArray]]:
    """Return the coordinates of a kind, "latitude" or "longitude"."""
    return [(str(n), c) for n, c in dataset.coords.items() if test(c.attrs) or str(n).lower() in (kind, kind[:3])]


def _find_axis(dataset: xr.Dataset, kind: str, test: Callable[[Mapping], bool]) -> str:
    """Return the name of the only coordinate of a kind that is along a dimension."""
    named = _find_coordinates(dataset, kind, test)
    names = [n for n, c in named if c.ndim == 1 and c.size > 1]
    if len(names) == 1:
        check_degrees(names[0], dataset[names[0]].attrs)
        return names[0]
    message = f"expected one {kind} coordinate along a dimension, found {names or 'none'}"
    if names:
        raise ValueError(message)
    single = [n for n, c in named if c.size == 1]
    if single:
        raise ValueError(f"{message}: {single[0]} has a single value, and a field has two rows and columns at least")
    curved = [f"{n} over {' and '.join(map(str, c.dims))}" for n, c in named if c.ndim == 2]
    where = f" (it has {curved[0]})" if curved else ""
    raise ValueError(f"{message}: the fields are on no regular or Gaussian latitude-longitude grid{where}, {_BRING}")


def _describe_uneven_axis(name: str, longitude: Tensor, error: ValueError) -> str:
    """Describe why an axis is not equally spaced and how to correct that."""
    steps = longitude.diff()
    if longitude.numel() > 2 and ((steps > 0).all() or (steps < 0).all()):
        half, text = FULL_CIRCLE / 2, "longitude % 360" if longitude.min() < 0 else "(longitude + 180) % 360 - 180"
        unwrapped = longitude % FULL_CIRCLE if longitude.min() < 0 else (longitude + half) % FULL_CIRCLE - half
        widths, gap = unwrapped.sort().values.diff(), int(steps.abs().argmax())
        if widths.max() < 1.5 * widths.median() < steps.abs().max():
            first, last = sorted(longitude[gap : gap + 2].tolist())
            return (
                f"{name} has a gap from {first:g} to {last:g}: the region crosses the seam of the longitudes, "
                f"and is contiguous as {text}, sorted"
            )
    return f"{error}; the fields are on no regular or Gaussian latitude-longitude grid, {_BRING}"


def make_target_by_scale(grid: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """Return target coordinates that are `scale` times finer.

    Grids with both poles keep their outer rows; other grids keep their outer cell edges.
    """
    if not 0 < scale < float("inf"):
        raise OptionError("scale", f"must be a positive number, got {scale!r}")
    result = []
    for values, keep_ends in (
        (grid.latitude, grid.has_pole_rows),
        (grid.longitude, grid.periodic and grid.has_pole_rows),
    ):
        n = values.numel()
        _check_count("scale", scale, n * scale)
        if keep_ends and values is grid.latitude:
            m = max(2, round((n - 1) * scale) + 1)
            u = torch.arange(m, dtype=torch.float64) * (n - 1) / (m - 1)
        elif keep_ends:
            m = max(1, round(n * scale))
            u = torch.arange(m, dtype=torch.float64) * n / m
        else:
            m = max(1, round(n * scale))
            u = ((2 * torch.arange(m, dtype=torch.float64) + 1) * n - m) / (2 * m)
        result.append(interpolate_axis(values, u))
    return result[0], result[1]


def _check_count(name: str, value: float, count: float) -> None:
    """Raise ValueError if an option results in too many points along an axis."""
    if count > MAX_POINTS:
        raise OptionError(
            name, f"must leave at most {MAX_POINTS} points along an axis, got {value:g}: {count:.3g} points"
        )


def make_target_by_spacing(grid: Geometry, degrees: float) -> tuple[Tensor, Tensor]:
    """Return target coordinates from the first row and column to the last ones with a given spacing.

    Args:
        grid: grid of the fields.
        degrees: spacing in degrees; for a Plane in the units of its coordinates.

    Raises:
        ValueError: the spacing is not positive, or does not divide the full circle of a periodic grid.
    """
    if isinstance(grid, Plane) and grid.indexed:
        message = f"needs coordinates along rows and columns, and the fields are on {grid.description}"
        raise OptionError("grid", f"{message}; give {spell_argument('scale')}")
    if not 0 < degrees < (math.inf if isinstance(grid, Plane) else 90):
        unit = "the units of x and y" if isinstance(grid, Plane) else "degrees"
        raise OptionError("grid", f"must be a spacing in {unit}, got {degrees!r}")
    result = []
    for values, step, periodic in (
        (grid.latitude, grid.steps[0], False), (grid.longitude, grid.steps[1], grid.periodic),
    ):  # fmt: skip
        _check_count("grid", degrees, values.numel() * abs(step) / degrees)
        if periodic:
            m = round(FULL_CIRCLE / degrees)
            if abs(m * degrees - FULL_CIRCLE) > 1e-6:
                raise OptionError("grid", f": {degrees:g} degrees do not divide the full circle of this global field")
        else:
            m = int(float(abs(values[-1] - values[0])) / degrees + 1e-6) + 1
        sign = 1.0 if step > 0 else -1.0
        result.append(values[0] + sign * degrees * torch.arange(m, dtype=torch.float64))
    return result[0], result[1]
