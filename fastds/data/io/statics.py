# SPDX-License-Identifier: Apache-2.0
"""Time-independent maps, such as orography or a land-sea mask, read from files and regridded to the grid of a field."""

import os
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from fastds.data.formats.opening import open_dataset
from fastds.data.grid.axes import check_order, is_latitude, is_longitude, unwrap_longitudes
from fastds.data.grid.grids import find_grid_mappings, find_latitude_longitude, grid_spacing_m, refine_grid
from fastds.data.grid.projections import compute_latitude_longitude
from fastds.data.grid.variables import is_same_unit
from fastds.data.packages import format_install_command

_MAX_POINTS = 16  # largest number of sampling points along a side of a cell
_FULL_CIRCLE = 360.0
_TEXT_ATTRIBUTES = ("crs_wkt", "spatial_ref", "proj4", "proj4_params", "long_name", "GeoTransform", "comment")

# A map, its dataset, and the description of its source for messages.
_FoundMap: TypeAlias = tuple[xr.DataArray, xr.Dataset, str]


class StaticMaps(NamedTuple):
    """Static maps on the grid of a field.

    Attributes:
        values: (S, H, W) float32 in the maps' own units.
        variables: [{"name", "standard_name", "units"}] of the maps.
        origin: Description of the sources.
    """

    values: np.ndarray
    variables: list[dict]
    origin: str


def static_maps(
    sources: xr.Dataset | str | os.PathLike | Iterable[str | os.PathLike],
    field: xr.DataArray,
    dataset: xr.Dataset,
    requested: Sequence[dict[str, Any]] | None = None,
) -> StaticMaps:
    """Regrid static maps to the grid of a field.

    Each cell gets the mean of a finer map, or the linear interpolation of a coarser one.

    Args:
        sources: A Dataset, or files as FILE.nc (the requested maps are found in it) or FILE.nc:VARIABLE.
        field: DataArray (..., y, x).
        dataset: Dataset of the field, with its grid mapping.
        requested: [{"name", "standard_name", "units"}] in the order of the channels. Maps are found by name, then by
            standard name; other maps fill the remaining channels in the given order. Units are compared. None: all
            maps, in the given order.

    Returns:
        StaticMaps.

    Raises:
        FileNotFoundError: A file does not exist.
        ImportError: The maps need latitudes of a projected grid, and pyproj is not installed.
        ValueError: A map is missing, is not over (y, x), has other units, does not cover the field or is on a grid that
            cannot be compared with it, or has missing values on the grid of the field.
    """
    found = (
        _find_in_dataset(sources, requested) if isinstance(sources, xr.Dataset) else _find_in_files(sources, requested)
    )
    if requested is not None:
        found = _order_maps(found, requested)
    values = np.stack([_read_on_grid(variable, of, field, dataset) for variable, of, _ in found])
    variables = [
        {"name": str(v.name), **{key: v.attrs[key] for key in ("standard_name", "units") if key in v.attrs}}
        for v, *_ in found
    ]
    origin = "static maps: " + ", ".join(f"{v.name}{where}" for v, _, where in found)
    return StaticMaps(values, variables, origin)


def _find_in_dataset(
    dataset: xr.Dataset, requested: Sequence[dict[str, Any]] | None, where: str = ""
) -> list[_FoundMap]:
    """Return the requested maps of a dataset, or all maps if `requested` is None.

    Args:
        dataset: Dataset.
        requested: Descriptions of maps, or None.
        where: Description of the dataset for messages.

    Raises:
        ValueError: No map was found.
    """
    names = [n for n, v in dataset.data_vars.items() if _is_map(v)]
    chosen = names if requested is None else [n for n in names if any(_is_same_map(dataset[n], w) for w in requested)]
    if not chosen:
        missing = "map" if requested is None else " or ".join(w["name"] for w in requested)
        held = ", ".join(map(str, dataset.data_vars)) or "nothing"
        raise ValueError(f"no {missing} over (y, x) was found{where}, which holds {held}; name one as FILE:VARIABLE")
    return [(dataset[n], dataset, where) for n in chosen]


def _find_in_files(
    sources: str | os.PathLike | Iterable[str | os.PathLike], requested: Sequence[dict[str, Any]] | None
) -> list[_FoundMap]:
    """Return the requested maps of files, see `static_maps`."""
    found = []
    for source in [sources] if isinstance(sources, (str, os.PathLike)) else sources:
        path, variable = _split_source(os.fspath(source))
        with open_dataset(path) as dataset:
            dataset, where = dataset.load(), f" of {os.path.basename(path)}"
        if variable is None:
            found += _find_in_dataset(dataset, requested, where)
        elif variable in dataset.data_vars:
            found.append((dataset[variable], dataset, where))
        else:
            held = ", ".join(map(str, dataset.data_vars))
            raise ValueError(f"static map: there is no variable {variable!r} in {path}, which has {held}")
    return found


def _split_source(source: str) -> tuple[str, str | None]:
    """Split FILE or FILE:VARIABLE into path and variable (or None).

    A colon in the name of an existing file is part of the path.
    """
    path, colon, variable = source.rpartition(":")
    return (path, variable) if colon and variable and not os.path.exists(source) else (source, None)


def _order_maps(found: list[_FoundMap], requested: Sequence[dict[str, Any]]) -> list[_FoundMap]:
    """Return the maps in the order of the channels.

    Raises:
        ValueError: The number of maps or the units of a map are wrong.
    """
    needed = ", ".join(f"{w['name']} ({w.get('units', 'no units')})" for w in requested)
    if len(found) != len(requested):
        given = ", ".join(f"{v.name}{where}" for v, _, where in found)
        raise ValueError(f"the model reads {len(requested)} static maps, {needed}; {len(found)} were given: {given}")
    rest = list(found)
    placed: list[tuple[xr.DataArray, xr.Dataset, str] | None] = [None] * len(requested)
    for i, channel in enumerate(requested):
        at = next((k for k, (variable, *_) in enumerate(rest) if _is_same_map(variable, channel)), None)
        placed[i] = None if at is None else rest.pop(at)
    chosen = [rest.pop(0) if c is None else c for c in placed]
    for channel, (variable, _, where) in zip(requested, chosen, strict=True):
        units = variable.attrs.get("units", "")
        if "units" in channel and not is_same_unit(units, channel["units"]):
            raise ValueError(
                f"static map {variable.name}{where} is in {units!r}, the model was trained with {channel['name']} in "
                f"{channel['units']!r}"
            )
    return chosen


def _is_same_map(variable: xr.DataArray, requested: dict[str, Any]) -> bool:
    standard = variable.attrs.get("standard_name")
    return variable.name == requested["name"] or (standard is not None and standard == requested.get("standard_name"))


def _is_map(variable: xr.DataArray) -> bool:
    return variable.dtype.kind in "fiu" and sum(n > 1 for n in variable.shape) == 2


def _read_on_grid(variable: xr.DataArray, of: xr.Dataset, field: xr.DataArray, dataset: xr.Dataset) -> np.ndarray:
    """Return the values (H, W) of a map on the grid of the field, float32.

    Args:
        variable: Map.
        of: Dataset of the map.
        field: Field.
        dataset: Dataset of the field.

    Raises:
        ValueError: The map is not over (y, x) or has missing values on the grid.
    """
    label = f"static map {variable.name}"
    if not _is_map(variable):
        raise ValueError(f"{label} has dimensions {dict(variable.sizes)}, expected a map over (y, x) alone")
    variable = variable.squeeze(drop=True).load()
    field = field.isel(dict.fromkeys(field.dims[:-2], 0))
    values = _read_on_same_grid(variable, field)
    if values is None:
        values = _regrid(label, variable, of, field, dataset)
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise ValueError(f"{label} has {bad} missing values on the grid of the field; fill them first")
    return values.astype(np.float32)


def _read_on_same_grid(variable: xr.DataArray, field: xr.DataArray) -> np.ndarray | None:
    """Return the values of a map on the grid of the field, or None if the grids differ.

    The grids are equal if dimensions and coordinates are equal, or if neither has coordinates.
    """
    if set(variable.dims) != set(field.dims):
        return None
    variable = variable.transpose(*field.dims)
    for dim in field.dims:
        coordinates = [array[dim].values for array in (variable, field) if dim in array.coords]
        same = variable.sizes[dim] == field.sizes[dim] and len(coordinates) != 1
        if not same or (
            coordinates
            and not np.allclose(coordinates[0], coordinates[1], rtol=0, atol=1e-3 * _compute_step(coordinates[1]))
        ):
            return None
    positions = [find_latitude_longitude(array) for array in (variable, field)]
    if all(lat is not None for lat, _ in positions):
        for one, other in zip(*positions, strict=True):
            if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=1e-3):
                return None
    return variable.values


def _compute_step(values: np.ndarray) -> float:
    return abs(float(values[-1]) - float(values[0])) / max(1, len(values) - 1)


def _regrid(label: str, variable: xr.DataArray, of: xr.Dataset, field: xr.DataArray, dataset: xr.Dataset) -> np.ndarray:
    """Interpolate a map to sampling points in each cell of the field and average over each cell.

    Args:
        label: Description of the map for messages.
        variable: Map.
        of: Dataset of the map.
        field: Field.
        dataset: Dataset of the field.
    """
    axes = _find_axes(label, variable)
    k = _choose_subsampling(variable, field)
    fine = refine_grid(dataset, field, k)
    positions = _find_positions(label, variable, of, axes, field, dataset, fine)
    target = {}
    for dim, position in zip(axes, positions, strict=True):
        variable, target[dim] = _prepare_axis(label, variable, dim, position)
    values = variable.interp(target, method="linear").transpose(*field.dims).values
    height, width = values.shape
    return values.reshape(height // k, k, width // k, k).mean((1, 3))


def _find_axes(label: str, variable: xr.DataArray) -> tuple[Hashable, ...]:
    """Return the dimensions (y, x) of a map; both need coordinates."""
    lat, lon = find_latitude_longitude(variable)
    axes = (lat.dims[0], lon.dims[0]) if lat is not None and lon is not None and lat.ndim == 1 else variable.dims
    for dim in axes:
        if dim not in variable.coords:
            raise ValueError(f"{label} has no coordinate along {dim} and is not on the grid of the field")
        check_order(variable, dim)
    return axes


def _choose_subsampling(variable: xr.DataArray, field: xr.DataArray) -> int:
    """Return the number of sampling points along a side of a cell of the field.

    This is the grid spacing of the field divided by that of the map, rounded and limited to 1 ... 16. The larger ratio
    of the two axes is used. The result is 1 if a spacing is unknown.
    """
    ours, theirs = grid_spacing_m(field), grid_spacing_m(variable)
    if ours is None or theirs is None:
        return 1
    if ours[0] is None or ours[1] is None or theirs[0] is None or theirs[1] is None:
        return 1
    return int(min(_MAX_POINTS, max(1, round(ours[0] / theirs[0]), round(ours[1] / theirs[1]))))


def _find_positions(
    label: str,
    variable: xr.DataArray,
    of: xr.Dataset,
    axes: tuple[Hashable, ...],
    field: xr.DataArray,
    dataset: xr.Dataset,
    fine: xr.Dataset,
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the positions at which the map is sampled: one DataArray over the dimensions of the field for each axis.

    Args:
        label: Description of the map for messages.
        variable: Map.
        of: Dataset of the map.
        axes: Dimensions (y, x) of the map.
        field: Field.
        dataset: Dataset of the field.
        fine: Coordinates of the sampling points, from `refine_grid`.
    """
    y, x = field.dims
    if not is_latitude(variable[axes[0]].attrs) and find_latitude_longitude(variable)[0] is None:
        _check_projection(label, variable, of, axes, field, dataset)
        return fine[y], fine[x]
    lat, lon = find_latitude_longitude(
        xr.DataArray(np.zeros((fine.sizes[y], fine.sizes[x]), np.int8), fine.coords, (y, x))
    )
    if lat is None or lon is None:
        lat, lon = _compute_latitude_longitude(label, field, dataset, fine)
    return lat, lon


def _check_projection(
    label: str,
    variable: xr.DataArray,
    of: xr.Dataset,
    axes: tuple[Hashable, ...],
    field: xr.DataArray,
    dataset: xr.Dataset,
) -> None:
    """Check that map and field have the same projection.

    Args:
        label: Description of the map for messages.
        variable: Map.
        of: Dataset of the map.
        axes: Dimensions (y, x) of the map.
        field: Field.
        dataset: Dataset of the field.

    Raises:
        ValueError: Units of the coordinates or parameters of the grid mappings differ.
    """
    for ours, theirs in zip(field.dims, axes, strict=True):
        if ours not in field.coords or field[ours].attrs.get("units") != variable[theirs].attrs.get("units"):
            raise ValueError(
                f"{label} lies on projected coordinates ({', '.join(map(str, axes))}), which the field "
                f"({', '.join(map(str, field.dims))}) does not have in the same units; give it on latitudes and "
                "longitudes"
            )
    mine, other = (
        [of_[n].attrs for n in find_grid_mappings(of_, v)[:1]] for of_, v in ((dataset, field), (of, variable))
    )
    for a, b in zip(mine, other, strict=False):
        differing = [key for key in a.keys() & b.keys() if key not in _TEXT_ATTRIBUTES and not np.all(a[key] == b[key])]
        if differing:
            raise ValueError(f"{label} is in another projection than the field: they differ in {', '.join(differing)}")


def _compute_latitude_longitude(
    label: str, field: xr.DataArray, dataset: xr.Dataset, fine: xr.Dataset
) -> tuple[xr.DataArray, xr.DataArray]:
    """Compute latitudes and longitudes of a projected grid with pyproj."""
    names = find_grid_mappings(dataset, field)
    if not names or not all(dim in fine.coords for dim in field.dims):
        raise ValueError(f"{label} is on latitudes and longitudes, and the field has neither these nor a projection")
    y, x = field.dims
    try:
        lat, lon = compute_latitude_longitude(dataset[names[0]].attrs, fine[x], fine[y])
    except ImportError:
        raise ImportError(
            f"{label}: latitudes of a projected grid need the package pyproj: {format_install_command('pyproj')}"
        ) from None
    return xr.DataArray(lat, dims=(y, x)), xr.DataArray(lon, dims=(y, x))


def _prepare_axis(
    label: str, variable: xr.DataArray, dim: Hashable, position: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the map and the sampling positions along one axis, ready for linear interpolation.

    Longitudes are converted to the range of the map, and a global map is extended by one cell on each side. Positions
    up to one cell outside the map are clipped to it.

    Args:
        label: Description of the map for messages.
        variable: Map.
        dim: Dimension of the map.
        position: Positions along this dimension.

    Raises:
        ValueError: A position is more than one cell outside the map.
    """
    axis = variable[dim]
    values, at = unwrap_longitudes(axis.values, axis.attrs), position.astype("float64")
    step = _compute_step(values)
    variable = variable.assign_coords({dim: values})
    if is_longitude(axis.attrs) or str(dim) in ("lon", "longitude"):
        middle = (values[0] + values[-1]) / 2
        at = middle + (at - middle + _FULL_CIRCLE / 2) % _FULL_CIRCLE - _FULL_CIRCLE / 2
        if abs(step * len(values) - _FULL_CIRCLE) < 0.5 * step:
            turn = np.sign(values[-1] - values[0]) * _FULL_CIRCLE
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
