# SPDX-License-Identifier: Apache-2.0
"""Location of maps: coordinates of the cells, and conversion of latitudes and longitudes to these coordinates."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.tri import Triangulation

from fastds.data.grid.axes import unwrap_longitudes
from fastds.data.grid.grids import find_grid_mappings, find_latitude_longitude, interpolate_latitude_longitude
from fastds.data.grid.projections import compute_latitude_longitude
from fastds.data.grid.units import get_metres_per_unit

_MOST_NODES = 64  # along each axis, between which positions are interpolated linearly
_MARGIN = 1.0  # degrees around a map in which lines are converted
_FARTHEST = 150.0  # degrees from the centre; maps beyond surround the antipode, where the conversion is ambiguous


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Latitudes and longitudes that a map covers, in degrees. `west` is smaller than `east`, which may exceed 180."""

    south: float
    north: float
    west: float
    east: float

    @property
    def middle_latitude(self) -> float:
        """Latitude halfway between south and north."""
        return (self.south + self.north) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class Nodes:
    """Points of a grid with known positions, including the outer edges of the grid.

    Attributes:
        x: (n,) coordinates as on the axes of the map.
        y: (m,) coordinates as on the axes of the map.
        latitude: (m, n) in degrees, NaN where unknown.
        longitude: (m, n) in degrees.
    """

    x: np.ndarray
    y: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Location:
    """Coordinates of the cells of a map, and their positions on Earth if they are known.

    Attributes:
        x: (W,) cell centres in `unit`; None: pixel numbers.
        y: (H,) cell centres in `unit`; None: pixel numbers, with row 0 at the top.
        unit: "degrees" (x are longitudes and y latitudes, ascending or descending), "km", "pixels", or another unit.
        nodes: positions of a map in other units than degrees; None: unknown.
    """

    x: np.ndarray | None = None
    y: np.ndarray | None = None
    unit: str = "pixels"
    nodes: Nodes | None = None

    @classmethod
    def of(cls, field: xr.DataArray, dataset: xr.Dataset | None = None) -> Location:
        """Find the location of a field (..., y, x).

        The positions of projected grids come from latitudes and longitudes of the cells, or from the grid mapping, for
        which pyproj is needed.

        Args:
            field: field with its coordinates.
            dataset: dataset with the grid mapping of the field; None: the coordinates of the field.
        """
        y, x = (find_axis(field, dim) for dim in field.dims[-2:])
        if x.unit == y.unit == "degrees":
            return cls(x.values, y.values, "degrees")
        if x.unit == y.unit == "km":
            return cls(x.values, y.values, "km", _find_nodes(field, dataset, x, y))
        return cls._in_pixels(field, _find_nodes(field, dataset, Axis(None, "pixels"), Axis(None, "pixels")))

    @classmethod
    def _in_pixels(cls, field: xr.DataArray, nodes: Nodes | None) -> Location:
        """Return a location in pixels, in which north is up and east is right as far as that is known."""
        height, width = field.shape[-2:]
        x, y = np.arange(width) + 0.5, height - 0.5 - np.arange(height)
        if nodes is None:
            up, right = (_is_ascending(field, dim) for dim in field.dims[-2:])
            return cls(width - x if right is False else x, height - y if up else y, "pixels")
        if np.nanmean(np.diff(nodes.latitude, axis=0)) > 0:
            nodes, y = dataclasses.replace(nodes, y=height - nodes.y), height - y
        if np.nanmean(np.diff(np.unwrap(nodes.longitude, period=360.0), axis=1)) < 0:
            nodes, x = dataclasses.replace(nodes, x=width - nodes.x), width - x
        return cls(x, y, "pixels", nodes)

    @property
    def is_known(self) -> bool:
        """Whether the position of the map on Earth is known."""
        if self.unit == "degrees":
            return self.x is not None and self.y is not None
        return self.nodes is not None and self._mesh is not None

    @functools.cached_property
    def x_edges(self) -> tuple[float, float]:
        """Lower and upper limit of the map along x."""
        assert self.x is not None
        return _find_limits(self.x)

    @functools.cached_property
    def y_edges(self) -> tuple[float, float]:
        """Lower and upper limit of the map along y."""
        assert self.y is not None
        return _find_limits(self.y)

    @functools.cached_property
    def bounds(self) -> Bounds:
        """Latitudes and longitudes that the map covers. A map with a pole in it covers all longitudes."""
        if self.unit == "degrees":
            (west, east), (south, north) = self.x_edges, self.y_edges
            return Bounds(max(south, -90.0), min(north, 90.0), west, east)
        assert self.nodes is not None and self._mesh is not None
        latitude, longitude = self.nodes.latitude, self.nodes.longitude
        south, north = float(np.nanmin(latitude)), float(np.nanmax(latitude))
        poles = [np.array([latitude]) for latitude in (90.0, -90.0)]
        has_north, has_south = (not np.isnan(self.project(pole, np.array([0.0]))[0][0]) for pole in poles)
        if has_north or has_south:
            return Bounds(-90.0 if has_south else south, 90.0 if has_north else north, -180.0, 180.0)
        centre = self._mesh.longitude
        relative = (longitude - centre + 180) % 360 - 180
        return Bounds(south, north, centre + float(np.nanmin(relative)), centre + float(np.nanmax(relative)))

    @functools.cached_property
    def _mesh(self) -> _Mesh | None:
        return None if self.nodes is None else _Mesh.of(self.nodes)

    def project(self, latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert positions to the coordinates of the map.

        Args:
            latitude: (n,) in degrees.
            longitude: (n,) in degrees, in any range.

        Returns:
            x and y (n,), NaN outside the map.
        """
        latitude, longitude = np.asarray(latitude, dtype=float), np.asarray(longitude, dtype=float)
        if self.unit == "degrees":
            (west, east), (south, north) = self.x_edges, self.y_edges
            x = west + (longitude - west) % 360
            there = (x <= east) & (latitude >= south) & (latitude <= north)
            return np.where(there, x, np.nan), np.where(there, latitude, np.nan)
        assert self._mesh is not None
        return self._mesh.project(latitude, longitude)

    def project_lines(self, lines: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Convert lines to the coordinates of the map.

        Args:
            lines: lines (n, 2) of longitude and latitude in degrees, with short steps between the points.

        Returns:
            Pieces (m, 2) of x and y of the lines on the map. In units of degrees, a piece may extend beyond the edges.
        """
        pieces = list(self._clip(lines))
        if self.unit == "degrees" or not pieces:
            return pieces
        x, y = self.project(*np.concatenate(pieces).T[::-1])
        ends = np.cumsum([len(piece) for piece in pieces])[:-1]
        inside = ~np.isnan(x)
        points = np.stack([x, y], axis=1)
        return [
            part
            for piece, there in zip(np.split(points, ends), np.split(inside, ends), strict=True)
            for part in _split(piece, there)
        ]

    def _clip(self, lines: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the pieces of lines near the map, moved by multiples of 360 degrees to the longitudes of the map."""
        box = self.bounds
        longest = max(box.north - box.south, box.east - box.west) / 200
        for line in lines:
            (west, south), (east, north) = line.min(axis=0), line.max(axis=0)
            if north < box.south - _MARGIN or south > box.north + _MARGIN:
                continue
            first = int(np.ceil((box.west - _MARGIN - east) / 360))
            for turn in range(first, int(np.floor((box.east + _MARGIN - west) / 360)) + 1):
                moved = line + [360.0 * turn, 0.0]
                near = (moved[:, 0] >= box.west - _MARGIN) & (moved[:, 0] <= box.east + _MARGIN)
                near &= (moved[:, 1] >= box.south - _MARGIN) & (moved[:, 1] <= box.north + _MARGIN)
                for piece in _split(moved, near):
                    yield piece if self.unit == "degrees" else refine_line(piece, longest)


def refine_line(line: np.ndarray, longest: float) -> np.ndarray:
    """Insert points into a line (n, 2), so that no coordinate changes by more than `longest` between two points."""
    pieces = np.ceil(np.abs(np.diff(line, axis=0)).max(axis=1) / longest).clip(min=1).astype(int)
    if np.all(pieces == 1):
        return line
    places = np.concatenate([[0], np.cumsum(pieces)])
    return np.stack([np.interp(np.arange(places[-1] + 1), places, values) for values in line.T], axis=1)


def _split(line: np.ndarray, there: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the runs of at least two points of a line at which `there` is True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(np.int8)))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        if last - first > 1:
            yield line[first:last]


def _find_limits(centres: np.ndarray) -> tuple[float, float]:
    edges = find_edges(centres, len(centres))
    return float(edges.min()), float(edges.max())


def find_edges(centres: Any, size: int) -> np.ndarray:
    """Return the cell edges (size + 1,) halfway between the centres, or pixel numbers if there are no centres.

    Args:
        centres: (size,) cell centres or None.
        size: number of cells.

    Raises:
        ValueError: another number of centres, or centres that neither ascend nor descend.
    """
    if centres is None:
        return np.arange(size + 1, dtype=float)
    centres = np.asarray(centres, dtype=float)
    if centres.shape != (size,):
        raise ValueError(f"coordinate must have {size} cell centres, got shape {centres.shape}")
    if size == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    steps = np.diff(centres)
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError("cell centres must ascend or descend; sort the coordinate with data.sortby first")
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values of a coordinate (None without a usable one) and their unit ("pixels" if it is unknown)."""

    values: np.ndarray | None
    unit: str


def find_axis(field: xr.DataArray, dim: Hashable) -> Axis:
    """Find the coordinate of a dimension in degrees of latitude or longitude, or in km.

    Args:
        field: field with its coordinates.
        dim: dimension of the field.
    """
    if dim not in field.coords or field.sizes[dim] < 2 or field[dim].dtype.kind not in "fiu":
        return Axis(None, "pixels")
    attrs, values = field[dim].attrs, unwrap_longitudes(field[dim].values, field[dim].attrs)
    if any(place is not None and dim == place.name for place in find_latitude_longitude(field)):
        return Axis(values, "degrees")
    metres = get_metres_per_unit(attrs.get("units", ""))
    return Axis(values, "pixels") if metres is None else Axis(values * metres / 1e3, "km")


def _is_ascending(field: xr.DataArray, dim: Hashable) -> bool | None:
    """Return whether the coordinate of a dimension ascends, or None without a coordinate."""
    values = find_axis(field, dim).values
    return None if values is None else bool(values[0] < values[-1])


def _find_nodes(field: xr.DataArray, dataset: xr.Dataset | None, x: Axis, y: Axis) -> Nodes | None:
    """Return positions at nodes of a grid, or None if they are unknown."""
    height, width = field.shape[-2:]
    if min(height, width) < 2:
        return None
    rows, columns = (np.linspace(-0.5, size - 0.5, min(size + 1, _MOST_NODES)) for size in (height, width))
    positions = _find_positions(field, dataset, rows, columns)
    if positions is None:
        return None
    across = columns + 0.5 if x.values is None else _interpolate(x.values, columns)
    up = height - 0.5 - rows if y.values is None else _interpolate(y.values, rows)
    return Nodes(across, up, *positions)


def _find_positions(
    field: xr.DataArray, dataset: xr.Dataset | None, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return latitudes and longitudes at fractional rows and columns of a field, or None if they are unknown."""
    latitude, longitude = find_latitude_longitude(field)
    if latitude is not None and longitude is not None:
        if latitude.ndim != 2 or min(latitude.shape) < 2:
            return None
        places = interpolate_latitude_longitude(field, rows, columns)
        return places[latitude.name].values, places[longitude.name].values
    dataset = field.coords.to_dataset() if dataset is None else dataset
    mappings = find_grid_mappings(dataset, field)
    y, x = (field.coords.get(dim) for dim in field.dims[-2:])
    if not mappings or x is None or y is None:
        return None
    at_nodes = [
        xr.DataArray(_interpolate(axis.values, index), attrs=axis.attrs) for axis, index in ((x, columns), (y, rows))
    ]
    try:
        return compute_latitude_longitude(dataset[mappings[0]].attrs, *at_nodes)
    except (ImportError, RuntimeError, KeyError):  # no pyproj, or no projection
        return None


def _interpolate(centres: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Interpolate cell centres at fractional indices, from -0.5 to their number minus 0.5."""
    return np.interp(index, np.arange(len(centres) + 1) - 0.5, find_edges(centres, len(centres)))


class _Mesh:
    """Triangles between the nodes of a grid on a plane around the centre of the map.

    The plane is the azimuthal equidistant projection of the sphere.
    """

    def __init__(self, latitude: float, longitude: float, triangles: Triangulation, x: np.ndarray, y: np.ndarray):
        self.latitude, self.longitude = latitude, longitude
        self._find: Any = triangles.get_trifinder()
        self._planes = [np.asarray(triangles.calculate_plane_coefficients(values)) for values in (x, y)]

    @classmethod
    def of(cls, nodes: Nodes) -> _Mesh | None:
        """Make the mesh of nodes; None if positions are missing, or the grid surrounds the antipode of its centre."""
        known = np.isfinite(nodes.latitude) & np.isfinite(nodes.longitude)
        if known.sum() < 4:
            return None
        vectors = _compute_vectors(nodes.latitude[known], nodes.longitude[known])
        middle = vectors.mean(axis=1)
        if np.linalg.norm(middle) < 0.05:
            return None
        latitude = float(np.rad2deg(np.arctan2(middle[2], np.hypot(middle[0], middle[1]))))
        longitude = float(np.rad2deg(np.arctan2(middle[1], middle[0])))
        u, v = (np.where(known, part, 0.0) for part in _project(latitude, longitude, nodes.latitude, nodes.longitude))
        if np.hypot(u, v).max() > _FARTHEST:
            return None
        height, width = known.shape
        index = np.arange(height * width).reshape(height, width)
        corners = [index[a : height - 1 + a, b : width - 1 + b].ravel() for a, b in itertools.product((0, 1), (0, 1))]
        triangles = np.concatenate(
            [np.stack([corners[k] for k in chosen], axis=1) for chosen in ((0, 1, 3), (0, 3, 2))]
        )
        triangles = triangles[known.ravel()[triangles].all(axis=1)]
        if not len(triangles):
            return None
        x, y = (part.ravel() for part in np.meshgrid(nodes.x, nodes.y))
        try:
            return cls(latitude, longitude, Triangulation(u.ravel(), v.ravel(), triangles), x, y)
        except (RuntimeError, ValueError):  # cells that overlap
            return None

    def project(self, latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert positions to the coordinates of the map, NaN outside."""
        u, v = _project(self.latitude, self.longitude, latitude, longitude)
        triangle = np.asarray(self._find(u, v))
        x, y = (
            np.where(triangle < 0, np.nan, plane[triangle, 0] * u + plane[triangle, 1] * v + plane[triangle, 2])
            for plane in self._planes
        )
        return x, y


def _compute_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    phi, lam = np.deg2rad(latitude), np.deg2rad(longitude)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)])


def _project(
    centre_latitude: float, centre_longitude: float, latitude: np.ndarray, longitude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the azimuthal equidistant coordinates of positions in degrees of distance from a centre."""
    phi0, phi = np.deg2rad(centre_latitude), np.deg2rad(latitude)
    lam = np.deg2rad(longitude - centre_longitude)
    east = np.cos(phi) * np.sin(lam)
    north = np.cos(phi0) * np.sin(phi) - np.sin(phi0) * np.cos(phi) * np.cos(lam)
    up = np.sin(phi0) * np.sin(phi) + np.cos(phi0) * np.cos(phi) * np.cos(lam)
    across = np.hypot(east, north)
    distance = np.rad2deg(np.arctan2(across, up))
    scale = np.where(across > 0, distance / np.where(across > 0, across, 1.0), np.rad2deg(1.0))
    return east * scale, north * scale
