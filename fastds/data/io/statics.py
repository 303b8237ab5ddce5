# SPDX-License-Identifier: Apache-2.0
"""Maps that do not change with time (orography, land-sea mask), found in files and brought onto the grid of a field."""

import os
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from fastds.data.formats.opening import open_dataset
from fastds.data.grid.axes import check_order, is_latitude, is_longitude, unwrap
from fastds.data.grid.grids import grid_mappings, grid_spacing_m, latitude_longitude, refine_grid
from fastds.data.grid.projections import in_metres
from fastds.data.grid.units import metres_of
from fastds.data.grid.variables import same_units
from fastds.data.packages import how_to_install, import_pyproj

_MOST_POINTS = 16  # along a side of a cell, whose mean over a much finer map is taken
_CIRCLE = 360.0
_TEXTS = ("crs_wkt", "spatial_ref", "proj4", "proj4_params", "long_name", "GeoTransform", "comment")

# A map, the dataset that it belongs to, and where that is from, in words.
_Found: TypeAlias = tuple[xr.DataArray, xr.Dataset, str]


class StaticMaps(NamedTuple):
    """values (S, H, W) float32 in their own units; variables [{"name", "standard_name", "units"}]; origin: words."""

    values: np.ndarray
    variables: list[dict]
    origin: str


def static_maps(
    sources: xr.Dataset | str | os.PathLike | Iterable[str | os.PathLike],
    field: xr.DataArray,
    dataset: xr.Dataset,
    wanted: Sequence[dict[str, Any]] | None = None,
) -> StaticMaps:
    """Static maps on the grid of a field, every cell the mean of a finer map, or interpolated in a coarser one.

    Args:
        sources: a Dataset, or a list of files, each as FILE.nc (the wanted maps are found in it) or FILE.nc:VARIABLE.
        field: DataArray (..., y, x), and the dataset it belongs to, which holds its grid mapping.
        wanted: [{"name", "standard_name", "units"}] in channel order: maps are found by name, then by standard name,
            the others taken in the order given, and units compared; None: all that is named, in the order given.
    Returns: StaticMaps.
    Raises: FileNotFoundError; ValueError for a map that is missing, not over (y, x), in other units, on a grid that
        does not cover the field or cannot be compared with it, and for missing values on the grid.
    """
    found = _from_dataset(sources, wanted) if isinstance(sources, xr.Dataset) else _from_files(sources, wanted)
    if wanted is not None:
        found = _in_order(found, wanted)
    values = np.stack([_onto_grid(variable, of, field, dataset) for variable, of, _ in found])
    variables = [
        {"name": str(v.name), **{key: v.attrs[key] for key in ("standard_name", "units") if key in v.attrs}}
        for v, *_ in found
    ]
    origin = "static maps: " + ", ".join(f"{v.name}{where}" for v, _, where in found)
    return StaticMaps(values, variables, origin)


def _from_dataset(dataset: xr.Dataset, wanted: Sequence[dict[str, Any]] | None, where: str = "") -> list[_Found]:
    names = [n for n, v in dataset.data_vars.items() if _is_map(v)]
    chosen = names if wanted is None else [n for n in names if any(_is(dataset[n], w) for w in wanted)]
    if not chosen:
        asked = "map" if wanted is None else " or ".join(w["name"] for w in wanted)
        held = ", ".join(map(str, dataset.data_vars)) or "nothing"
        raise ValueError(f"no {asked} over (y, x) was found{where}, which holds {held}; name one as FILE:VARIABLE")
    return [(dataset[n], dataset, where) for n in chosen]


def _from_files(
    sources: str | os.PathLike | Iterable[str | os.PathLike], wanted: Sequence[dict[str, Any]] | None
) -> list[_Found]:
    found = []
    for source in [sources] if isinstance(sources, (str, os.PathLike)) else sources:
        path, variable = _split(os.fspath(source))
        with open_dataset(path) as dataset:
            dataset, where = dataset.load(), f" of {os.path.basename(path)}"
        if variable is None:
            found += _from_dataset(dataset, wanted, where)
        elif variable in dataset.data_vars:
            found.append((dataset[variable], dataset, where))
        else:
            held = ", ".join(map(str, dataset.data_vars))
            raise ValueError(f"static map: there is no variable {variable!r} in {path}, which has {held}")
    return found


def _split(source: str) -> tuple[str, str | None]:
    """(path, variable or None) of FILE or FILE:VARIABLE; a colon in the name of a file that exists is part of it."""
    path, colon, variable = source.rpartition(":")
    return (path, variable) if colon and variable and not os.path.exists(source) else (source, None)


def _in_order(found: list[_Found], wanted: Sequence[dict[str, Any]]) -> list[_Found]:
    """The maps in channel order. Raises: ValueError for another number of them or other units."""
    needed = ", ".join(f"{w['name']} ({w.get('units', 'no units')})" for w in wanted)
    if len(found) != len(wanted):
        given = ", ".join(f"{v.name}{where}" for v, _, where in found)
        raise ValueError(f"the model reads {len(wanted)} static maps, {needed}; {len(found)} were given: {given}")
    rest, chosen = list(found), [None] * len(wanted)
    for i, want in enumerate(wanted):
        at = next((k for k, (variable, *_) in enumerate(rest) if _is(variable, want)), None)
        chosen[i] = None if at is None else rest.pop(at)
    chosen = [rest.pop(0) if c is None else c for c in chosen]
    for want, (variable, _, where) in zip(wanted, chosen, strict=True):
        units = variable.attrs.get("units", "")
        if "units" in want and not same_units(units, want["units"]):
            raise ValueError(
                f"static map {variable.name}{where} is in {units!r}, the model was trained with {want['name']} in "
                f"{want['units']!r}"
            )
    return chosen


def _is(variable: xr.DataArray, wanted: dict[str, Any]) -> bool:
    standard = variable.attrs.get("standard_name")
    return variable.name == wanted["name"] or (standard is not None and standard == wanted.get("standard_name"))


def _is_map(variable: xr.DataArray) -> bool:
    return variable.dtype.kind in "fiu" and sum(n > 1 for n in variable.shape) == 2


def _onto_grid(variable: xr.DataArray, of: xr.Dataset, field: xr.DataArray, dataset: xr.Dataset) -> np.ndarray:
    """(H, W) float32."""
    label = f"static map {variable.name}"
    if not _is_map(variable):
        raise ValueError(f"{label} has dimensions {dict(variable.sizes)}, expected a map over (y, x) alone")
    variable = variable.squeeze(drop=True).load()
    field = field.isel(dict.fromkeys(field.dims[:-2], 0))
    values = _same_grid(variable, field)
    if values is None:
        values = _regridded(label, variable, of, field, dataset)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{label} has {bad} missing values on the grid of the field; fill them first")
    return values.astype(np.float32)


def _same_grid(variable: xr.DataArray, field: xr.DataArray) -> np.ndarray | None:
    """The values where dimensions are the field's and so are their coordinates, or neither has any; else None."""
    if set(variable.dims) != set(field.dims):
        return None
    variable = variable.transpose(*field.dims)
    for dim in field.dims:
        coordinates = [array[dim].values for array in (variable, field) if dim in array.coords]
        same = variable.sizes[dim] == field.sizes[dim] and len(coordinates) != 1
        if not same or (coordinates and not np.allclose(*coordinates, rtol=0, atol=1e-3 * _step(coordinates[1]))):
            return None
    places = [latitude_longitude(array) for array in (variable, field)]
    if all(lat is not None for lat, _ in places):
        for one, other in zip(*places, strict=True):
            if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=1e-3):
                return None
    return variable.values


def _step(values: np.ndarray) -> float:
    return abs(float(values[-1]) - float(values[0])) / max(1, len(values) - 1)


def _regridded(
    label: str, variable: xr.DataArray, of: xr.Dataset, field: xr.DataArray, dataset: xr.Dataset
) -> np.ndarray:
    axes = _axes(label, variable)
    k = _points_a_side(variable, field)
    fine = refine_grid(dataset, field, k)
    places = _places(label, variable, of, axes, field, dataset, fine)
    target = {}
    for dim, place in zip(axes, places, strict=True):
        variable, target[dim] = _within(label, variable, dim, place)
    values = variable.interp(target, method="linear").transpose(*field.dims).values
    height, width = values.shape
    return values.reshape(height // k, k, width // k, k).mean((1, 3))


def _axes(label: str, variable: xr.DataArray) -> tuple[Hashable, ...]:
    """The dimensions (y, x) of a map, which have coordinates."""
    lat, lon = latitude_longitude(variable)
    axes = (lat.dims[0], lon.dims[0]) if lat is not None and lat.ndim == 1 else variable.dims
    for dim in axes:
        if dim not in variable.coords:
            raise ValueError(f"{label} has no coordinate along {dim} and is not on the grid of the field")
        check_order(variable, dim)
    return axes


def _points_a_side(variable: xr.DataArray, field: xr.DataArray) -> int:
    """How many points along the side of a cell see every cell of the map."""
    ours, theirs = grid_spacing_m(field), grid_spacing_m(variable)
    if ours is None or theirs is None or None in (*ours, *theirs):
        return 1
    return int(min(_MOST_POINTS, max(1, *(round(a / b) for a, b in zip(ours, theirs, strict=True)))))


def _places(
    label: str,
    variable: xr.DataArray,
    of: xr.Dataset,
    axes: tuple[Hashable, ...],
    field: xr.DataArray,
    dataset: xr.Dataset,
    fine: xr.Dataset,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Where the map is read: a DataArray per axis of it, over the dimensions of the field."""
    y, x = field.dims
    if not is_latitude(variable[axes[0]].attrs) and latitude_longitude(variable)[0] is None:
        _check_projection(label, variable, of, axes, field, dataset)
        return fine[y], fine[x]
    lat, lon = latitude_longitude(xr.DataArray(np.zeros((fine.sizes[y], fine.sizes[x]), np.int8), fine.coords, (y, x)))
    if lat is None:
        lat, lon = _unprojected(label, field, dataset, fine)
    return lat, lon


def _check_projection(
    label: str,
    variable: xr.DataArray,
    of: xr.Dataset,
    axes: tuple[Hashable, ...],
    field: xr.DataArray,
    dataset: xr.Dataset,
) -> None:
    for ours, theirs in zip(field.dims, axes, strict=True):
        if ours not in field.coords or field[ours].attrs.get("units") != variable[theirs].attrs.get("units"):
            raise ValueError(
                f"{label} lies on projected coordinates ({', '.join(axes)}), which the field ({', '.join(field.dims)}) "
                "does not have in the same units; give it on latitudes and longitudes"
            )
    mine, other = ([of_[n].attrs for n in grid_mappings(of_, v)[:1]] for of_, v in ((dataset, field), (of, variable)))
    for a, b in zip(mine, other, strict=False):
        differing = [key for key in a.keys() & b.keys() if key not in _TEXTS and not np.all(a[key] == b[key])]
        if differing:
            raise ValueError(f"{label} is in another projection than the field: they differ in {', '.join(differing)}")


def _unprojected(
    label: str, field: xr.DataArray, dataset: xr.Dataset, fine: xr.Dataset
) -> tuple[xr.DataArray, xr.DataArray]:
    """Latitudes and longitudes of a projected grid, by pyproj."""
    names = grid_mappings(dataset, field)
    if not names or not all(dim in fine.coords for dim in field.dims):
        raise ValueError(f"{label} is on latitudes and longitudes, and the field has neither these nor a projection")
    try:
        pyproj = import_pyproj()
    except ImportError:
        raise ImportError(
            f"{label}: latitudes of a projected grid need the package pyproj: {how_to_install('pyproj')}"
        ) from None
    crs = pyproj.CRS.from_cf(dataset[names[0]].attrs)
    y, x = field.dims
    metres = [fine[dim].values for dim in (x, y)]
    if not crs.is_geographic:  # of a rotated pole both are degrees
        crs, own = in_metres(crs)
        metres = [fine[dim].values * (metres_of(fine[dim].attrs.get("units", "")) or own) for dim in (x, y)]
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(*metres))
    return xr.DataArray(lat, dims=(y, x)), xr.DataArray(lon, dims=(y, x))


def _within(
    label: str, variable: xr.DataArray, dim: Hashable, place: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """The map and the places along one of its axes: longitudes in its convention, none farther out than a cell."""
    own = variable[dim]
    values, at = unwrap(own.values, own.attrs), place.astype("float64")
    step = _step(values)
    variable = variable.assign_coords({dim: values})
    if is_longitude(own.attrs) or str(dim) in ("lon", "longitude"):
        middle = (values[0] + values[-1]) / 2
        at = middle + (at - middle + _CIRCLE / 2) % _CIRCLE - _CIRCLE / 2
        if abs(step * len(values) - _CIRCLE) < 0.5 * step:
            turn = np.sign(values[-1] - values[0]) * _CIRCLE
            before, after = variable.isel({dim: slice(-1, None)}), variable.isel({dim: slice(0, 1)})
            before, after = (v.assign_coords({dim: v[dim] + t}) for v, t in ((before, -turn), (after, turn)))
            return xr.concat([before, variable, after], dim), at
    low, high = float(values.min()), float(values.max())
    if float(at.min()) < low - 1.001 * step or float(at.max()) > high + 1.001 * step:
        raise ValueError(
            f"{label} does not cover the field: its {dim} goes from {low:g} to {high:g}, the field's from "
            f"{float(at.min()):g} to {float(at.max()):g}"
        )
    return variable, at.clip(low, high)
