# SPDX-License-Identifier: Apache-2.0
"""Latitude-longitude grids, regular or Gaussian, and planes of evenly spaced x and y: that of a dataset, and finer ones
by factor or spacing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data.grid.axes import (
    FULL_CIRCLE,
    check_degrees,
    check_latitudes,
    check_longitudes,
    is_latitude,
    is_longitude,
    rows_and_columns,
)
from fastds.data.grid.grids import latitude_longitude
from fastds.metrics import latitude_weights
from fastds.ops.impl.inr_query.points import PointSpec, from_index, from_latlon, spacing

_ANGLES = (("latitude", is_latitude), ("longitude", is_longitude))
_BRING = "bring them onto one first (cdo remapbil, xarray's interp)"
MOST_POINTS = 1 << 24  # along one axis: 2 metres around the globe
_GAUSSIAN = 0.012  # share by which steps of latitudes may differ: Gaussian ones are 0.8 % shorter at the poles


@dataclass(frozen=True)
class Geometry:
    """Coordinates of a regular or Gaussian latitude-longitude grid, degrees float64; rows in the order of the file.

    longitude: without a jump of 360 degrees. west: lowest longitude of the file's convention where it has that jump
    (350, ..., 359, 0, ..., 10), else None.
    """

    latitude: Tensor
    longitude: Tensor
    names: tuple[str, str]
    west: float | None = None

    def written(self, longitude: Tensor) -> Tensor:
        """Longitudes in the convention of the file."""
        return longitude if self.west is None else self.west + torch.remainder(longitude - self.west, FULL_CIRCLE)

    @property
    def steps(self) -> tuple[float, float]:
        """Degrees from row to row, their mean on a Gaussian grid, and from column to column."""
        return _mean_step(self.names[0], self.latitude), spacing(self.names[1], self.longitude)

    @property
    def turned(self) -> tuple[bool, bool]:
        """Whether rows go from south to north, and columns from east to west."""
        rows, columns = self.steps
        return rows > 0, columns < 0

    @property
    def periodic(self) -> bool:
        return abs(abs(self.steps[1]) * self.longitude.numel() - FULL_CIRCLE) < 1e-3

    @property
    def nodes(self) -> bool:
        """Outer rows are the poles: a grid of points, not of cells."""
        return bool((self.latitude[[0, -1]].abs() > 90 - 1e-6).all())

    def positions(self, latitude: Tensor, longitude: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns, fractions between, of coordinates; longitudes in either convention."""
        middle = (self.longitude[0] + self.longitude[-1]) / 2
        near = middle + torch.remainder(longitude - middle + 180, FULL_CIRCLE) - 180
        return indices(self.latitude, latitude), indices(self.longitude, near)

    def even(self, latitude: Tensor) -> Tensor:
        """Where latitudes would be if those of the grid were evenly spaced. The outer cells of a Gaussian grid reach as
        far as the poles, 0.77 steps from their centres."""
        if _even_step(self.latitude) is not None:
            return latitude
        step, n = self.steps[0], self.latitude.numel()
        polar = self.latitude[[0, -1]].abs() + abs(step) > 90
        low, high = (-0.5 if polar[0] else -n, n - 0.5 if polar[1] else 2 * n)
        return self.latitude[0] + step * indices(self.latitude, latitude).clamp(low, high)

    def points(self, latitude: Tensor, longitude: Tensor, outside: str) -> PointSpec:
        """Scattered points by coordinates (Q,), longitudes in either convention; outside: see from_latlon."""
        rows = self.even(latitude), self.even(self.latitude)
        return from_latlon(rows[0], longitude, rows[1], self.longitude, periodic_x=self.periodic, outside=outside)

    @property
    def weights(self) -> Tensor:
        """(H, 1) by the area of the cells, sum 1."""
        return latitude_weights(self.latitude)

    @property
    def said(self) -> str:
        """What its coordinates are."""
        return "latitudes and longitudes"

    def finer(self, latitude: Tensor, longitude: Tensor) -> tuple[float | None, ...]:
        """How many times as many rows and columns another grid has in the same place; None of a single one."""
        axes = (self.latitude, latitude), (self.longitude, longitude)
        spans = [(t.numel() - 1, float(indices(axis, t[[0, -1]]).diff().abs())) for axis, t in axes]
        return tuple(count / max(1e-9, span) if count else None for count, span in spans)


@dataclass(frozen=True)
class Plane(Geometry):
    """Evenly spaced coordinates other than latitudes and longitudes, such as y and x of a projection: y in the place of
    latitude, x in that of longitude. units: theirs, "" where they have none. indexed: of a curvilinear grid, which has
    latitudes and longitudes of every point alone, they are its rows and columns, counted to the north and east."""

    units: tuple[str, str] = ("", "")
    indexed: bool = False

    @property
    def periodic(self) -> bool:
        return False

    @property
    def nodes(self) -> bool:
        return False

    def positions(self, latitude: Tensor, longitude: Tensor) -> tuple[Tensor, Tensor]:
        return indices(self.latitude, latitude), indices(self.longitude, longitude)

    def points(self, latitude: Tensor, longitude: Tensor, outside: str) -> PointSpec:
        at = torch.stack(self.positions(latitude, longitude), -1)
        return from_index(at, (self.latitude.numel(), self.longitude.numel()), outside=outside)

    @property
    def weights(self) -> Tensor:
        """All cells alike."""
        return torch.full((self.latitude.numel(), 1), 1 / self.latitude.numel(), dtype=torch.float64)

    @property
    def said(self) -> str:
        if self.indexed:
            return f"a curvilinear grid over {' and '.join(self.names)}"
        (y, x), (rows, columns) = self.names, (units or "no units" for units in self.units)
        return f"{y} [{rows}] and {x} [{columns}]"


def _mean_step(name: str, latitude: Tensor) -> float:
    """As spacing, of latitudes that may be Gaussian."""
    try:
        return spacing(name, latitude)
    except ValueError:
        steps = latitude.diff()
        if steps.numel() and (steps - steps.mean()).abs().max() <= _GAUSSIAN * abs(steps.mean()):
            return float(latitude[-1] - latitude[0]) / steps.numel()
        raise


def _even_step(axis: Tensor) -> float | None:
    """The step of an axis that is evenly spaced, else None."""
    try:
        return spacing("", axis)
    except ValueError:
        return None


def indices(axis: Tensor, values: Tensor) -> Tensor:
    """Where values lie among those of a sorted axis, fractions between; beyond its ends by the outer steps."""
    if (step := _even_step(axis)) is not None:
        return (values - axis[0]) / step
    way = 1.0 if axis[-1] > axis[0] else -1.0
    before = (torch.searchsorted(way * axis, way * values, right=True) - 1).clamp(0, axis.numel() - 2)
    return before + (values - axis[before]) / (axis[before + 1] - axis[before])


def values_at(axis: Tensor, index: Tensor) -> Tensor:
    """The inverse of indices."""
    if (step := _even_step(axis)) is not None:
        return axis[0] + step * index
    before = index.floor().long().clamp(0, axis.numel() - 2)
    return axis[before] + (index - before) * (axis[before + 1] - axis[before])


def upright(dataset: xr.Dataset, grid: Geometry) -> tuple[xr.Dataset, Geometry]:
    """The dataset with rows from north to south and columns from west to east, and its grid: a network gives a mirrored
    field another answer, and the order of a file's axes must not matter."""
    mirrored = {name: slice(None, None, -1) for name, wrong in zip(grid.names, grid.turned, strict=True) if wrong}
    if not mirrored:
        return dataset, grid
    dataset = dataset.isel(mirrored)
    if isinstance(grid, Plane):  # beside which the dataset may have fields on other ones
        axes = zip((grid.latitude, grid.longitude), grid.turned, strict=True)
        rows, columns = (axis.flip(0) if wrong else axis for axis, wrong in axes)
        return dataset, replace(grid, latitude=rows, longitude=columns)
    return dataset, geometry(dataset)


def geometry(dataset: xr.Dataset, var: str | None = None) -> Geometry:
    """The grid of a dataset with one latitude and one longitude coordinate, or a Plane where it has neither but evenly
    spaced coordinates along the rows and columns of its fields; var: the only one that counts.

    Raises:
        ValueError: none or several of either, or coordinates that are unsorted, repeated or unequally spaced.
    """
    plane = _plane_of(dataset, var)
    if plane is not None:
        return plane
    found = [_axis_of(dataset, kind, test) for kind, test in _ANGLES]
    latitude, longitude = (torch.from_numpy(dataset[n].values.astype("float64")) for n in found)
    check_latitudes(found[0], latitude.numpy())
    turned, west = torch.from_numpy(np.unwrap(longitude.numpy(), period=FULL_CIRCLE)), None
    if not torch.equal(turned, longitude):
        west = -FULL_CIRCLE / 2 if longitude.min() < 0 else 0.0
    grid = Geometry(latitude, turned, tuple(found), west)
    try:
        _ = grid.steps  # refuses uneven axes, whose span means nothing
    except ValueError as error:
        raise ValueError(_uneven(found[1], longitude, error)) from None
    check_longitudes(found[1], turned.numpy())
    return grid


def _plane_of(dataset: xr.Dataset, var: str | None) -> Plane | None:
    """The grid of fields without latitudes and longitudes along their dimensions; None where there are such, or no
    coordinates at all."""
    if any(c.ndim < 2 for kind in _ANGLES for _, c in _candidates(dataset, *kind)):
        return None
    considered = dataset[[var]] if var in dataset.data_vars else dataset
    fields = [v for v in considered.data_vars.values() if v.ndim >= 2 and v.dtype.kind in "fiu"]
    found = dict.fromkeys(rows_and_columns(v, v.dims) for v in fields)
    places = [names for names in found if all(n in dataset.coords and dataset.sizes[n] > 1 for n in names)]
    if not places:
        return _curvilinear(dataset, fields)
    if len(places) > 1:
        said = " and ".join(f"{y}, {x}" for y, x in places)
        raise ValueError(f"expected fields on one grid, found {said}; name the variable with the argument var")
    names = places[0]
    axes = (dataset[n] for n in names)
    units = tuple(str(dataset[n].attrs.get("units", "")) for n in names)
    plane = Plane(*(torch.from_numpy(c.values.astype("float64")) for c in axes), names=names, units=units)
    try:
        _ = plane.steps
    except ValueError as error:
        raise ValueError(f"{error}; the fields are on no regular grid, {_BRING}") from None
    return plane


def _curvilinear(dataset: xr.Dataset, fields: Sequence[xr.DataArray]) -> Plane | None:
    """The rows and columns of the first of the fields that has 2-D latitudes and longitudes; None where none has."""
    planes = [c.dims for _, c in _candidates(dataset, *_ANGLES[0]) if c.ndim == 2 and min(c.shape) > 1]
    for field, dims in itertools.product(fields, planes):
        if not set(dims) <= set(field.dims) or set(dims) & set(field.coords):
            continue
        named = rows_and_columns(field, dims)
        dims = dims if None in named else named
        lat, lon = latitude_longitude(field.transpose(..., *dims))
        if lat is None:
            continue
        east = np.unwrap(lon.values, period=FULL_CIRCLE)
        ascending = np.nanmean(lat.values[-1] - lat.values[0]) > 0, np.nanmean(east[:, -1] - east[:, 0]) > 0
        counted = (torch.arange(size, dtype=torch.float64) for size in lat.shape)
        axes = (axis if way else -axis for axis, way in zip(counted, ascending, strict=True))
        return Plane(*axes, names=tuple(map(str, dims)), indexed=True)
    return None


def _candidates(dataset: xr.Dataset, kind: str, test: Callable[[Mapping], bool]) -> list[tuple[str, xr.DataArray]]:
    """The coordinates of a kind, latitude or longitude."""
    return [(str(n), c) for n, c in dataset.coords.items() if test(c.attrs) or str(n).lower() in (kind, kind[:3])]


def _axis_of(dataset: xr.Dataset, kind: str, test: Callable[[Mapping], bool]) -> str:
    """The only coordinate of a kind along a dimension."""
    named = _candidates(dataset, kind, test)
    names = [n for n, c in named if c.ndim == 1 and c.size > 1]
    if len(names) == 1:
        check_degrees(names[0], dataset[names[0]].attrs)
        return names[0]
    said = f"expected one {kind} coordinate along a dimension, found {names or 'none'}"
    if names:
        raise ValueError(said)
    single = [n for n, c in named if c.size == 1]
    if single:
        raise ValueError(f"{said}: {single[0]} has a single value, and a field has two rows and columns at least")
    curved = [f"{n} over {' and '.join(map(str, c.dims))}" for n, c in named if c.ndim == 2]
    where = f" (it has {curved[0]})" if curved else ""
    raise ValueError(f"{said}: the fields are on no regular or Gaussian latitude-longitude grid{where}, {_BRING}")


def _uneven(name: str, longitude: Tensor, error: ValueError) -> str:
    """What is wrong with an axis that is not evenly spaced, and what to do about it."""
    steps = longitude.diff()
    if longitude.numel() > 2 and ((steps > 0).all() or (steps < 0).all()):
        half, text = FULL_CIRCLE / 2, "longitude % 360" if longitude.min() < 0 else "(longitude + 180) % 360 - 180"
        turned = longitude % FULL_CIRCLE if longitude.min() < 0 else (longitude + half) % FULL_CIRCLE - half
        widths, gap = turned.sort().values.diff(), int(steps.abs().argmax())
        if widths.max() < 1.5 * widths.median() < steps.abs().max():
            first, last = sorted(longitude[gap : gap + 2].tolist())
            return (
                f"{name} has a gap from {first:g} to {last:g}: the region lies on both sides of the longitudes' seam, "
                f"and is in one piece as {text}, sorted"
            )
    return f"{error}; the fields are on no regular or Gaussian latitude-longitude grid, {_BRING}"


def target_by_scale(grid: Geometry, scale: float) -> tuple[Tensor, Tensor]:
    """Coordinates `scale` times as fine. Grids with both poles keep their outer rows, others their outer cell edges."""
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    result = []
    for values, keep_ends in ((grid.latitude, grid.nodes), (grid.longitude, grid.periodic and grid.nodes)):
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
        result.append(values_at(values, u))
    return result[0], result[1]


def _check_count(name: str, value: float, count: float) -> None:
    """ValueError where an option asks for too many points along an axis."""
    if count > MOST_POINTS:
        raise ValueError(
            f"{name} must leave at most {MOST_POINTS} points along an axis, got {value:g}: {count:.3g} points"
        )


def target_by_spacing(grid: Geometry, degrees: float) -> tuple[Tensor, Tensor]:
    """Coordinates `degrees` apart from the first row and column on, up to the last ones; on a Plane that is a number in
    the units of its coordinates.

    Raises: ValueError: degrees that are not positive, or a periodic grid they do not divide.
    """
    if isinstance(grid, Plane) and grid.indexed:
        said = f"grid needs coordinates along rows and columns, and the fields are on {grid.said}"
        raise ValueError(f"{said}; give the argument scale")
    if not 0 < degrees < (math.inf if isinstance(grid, Plane) else 90):
        unit = "the units of x and y" if isinstance(grid, Plane) else "degrees"
        raise ValueError(f"grid must be a spacing in {unit}, got {degrees!r}")
    result = []
    for values, step, periodic in (
        (grid.latitude, grid.steps[0], False), (grid.longitude, grid.steps[1], grid.periodic),
    ):  # fmt: skip
        _check_count("grid", degrees, values.numel() * abs(step) / degrees)
        if periodic:
            m = round(FULL_CIRCLE / degrees)
            if abs(m * degrees - FULL_CIRCLE) > 1e-6:
                raise ValueError(f"grid: {degrees:g} degrees do not divide the full circle of this global field")
        else:
            m = int(float(abs(values[-1] - values[0])) / degrees + 1e-6) + 1
        sign = 1.0 if step > 0 else -1.0
        result.append(values[0] + sign * degrees * torch.arange(m, dtype=torch.float64))
    return result[0], result[1]
