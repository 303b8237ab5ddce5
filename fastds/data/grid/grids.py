# SPDX-License-Identifier: Apache-2.0
"""Horizontal grids: refined and coarsened coordinates, cell bounds, and grid spacing in metres."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.axes import check_degrees, estimate_rounding, is_latitude, is_longitude, unwrap_longitudes
from fastds.data.grid.units import get_metres_per_unit

EARTH_RADIUS_M = 6_371_000.0
_HIGHEST_LATITUDE, _HIGHEST_LONGITUDE = 90.0 + 1e-3, 540.0
_RANGE_ATTRIBUTES = ("valid_min", "valid_max", "valid_range", "actual_range", "_ChunkSizes")


def check_factor(factor: int) -> None:
    """Raise ValueError unless `factor` is an integer >= 1."""
    if int(factor) != factor or factor < 1:
        raise ValueError(f"factor must be a whole number >= 1, got {factor!r}")


def refine_grid(dataset: xr.Dataset, field: xr.DataArray, factor: int = 2) -> xr.Dataset:
    """Refine the grid of a field: divide each cell into factor x factor cells.

    A cell with centre c and width d gets the centres c + d ((k + 1/2) / factor - 1/2), k = 0, ..., factor - 1; for
    factor 2 these are c - d/4 and c + d/4. The width of a cell on an uneven grid is the mean distance to its
    neighbours. Coordinates may be ascending or descending; longitudes may wrap. Coordinates over (y, x) are
    interpolated linearly, latitude and longitude on the sphere. Bounds of cells are divided accordingly.

    Args:
        dataset: xarray.Dataset of the field, with its bounds and grid mapping.
        field: DataArray (..., y, x).
        factor: Integer >= 1.

    Returns:
        xarray.Dataset of coordinates (float64), and of bounds and grid mappings as data variables. Coordinates that are
        not numeric or that also have other dimensions than y and x are left out.

    Raises:
        ValueError: `factor` is not an integer >= 1, or a coordinate has a single value.
    """
    check_factor(factor)
    return _regrid(dataset, field, _compute_offsets(factor), factor)


def coarsen_grid(dataset: xr.Dataset, field: xr.DataArray, factor: int = 2) -> xr.Dataset:
    """Coarsen the grid of a field, the inverse of `refine_grid`: combine blocks of factor x factor cells into one.

    Rows and columns at the end that fill no block are left out. The centre of a new cell is the mean of the block's
    centres.

    Args:
        dataset: xarray.Dataset of the field.
        field: DataArray (..., y, x) on the fine grid.
        factor: Integer >= 1.

    Returns:
        xarray.Dataset as that of `refine_grid`.

    Raises:
        ValueError: `factor` is not an integer >= 1.
    """
    check_factor(factor)
    y, x = field.dims[-2:]
    cut = {dim: slice(0, field.sizes[dim] - field.sizes[dim] % factor) for dim in (y, x)}
    dataset, field = dataset.isel({k: v for k, v in cut.items() if k in dataset.dims}), field.isel(cut)
    return _regrid(dataset, field, None, factor)


def grid_spacing_m(field: xr.DataArray) -> tuple[float | None, float | None] | None:
    """Return the median grid spacing (y, x) of a field in metres, or None if the coordinates do not determine it.

    Supported are projected coordinates in a unit of length, 1-D latitude and longitude in degrees, and 2-D latitude and
    longitude (great circle, radius 6371 km).

    Args:
        field: DataArray (..., y, x).

    Returns:
        (dy, dx); with 2-D coordinates, None for a dimension of length 1.
    """
    y, x = field.dims[-2:]
    lat, lon = find_latitude_longitude(field)
    if lat is not None and lon is not None and lat.ndim == 2:
        points = _compute_unit_vectors(lat.values, lon.values)
        dy, dx = (
            float(np.nanmedian(_compute_distances(points, axis))) if points.shape[axis + 1] > 1 else None
            for axis in (0, 1)
        )
        return dy, dx
    spacing = []
    for dim in (y, x):
        if dim not in field.coords or field.sizes[dim] < 2:
            return None
        step = float(np.median(np.abs(np.diff(unwrap_longitudes(field[dim].values, field[dim].attrs)))))
        metres = get_metres_per_unit(field[dim].attrs.get("units", ""))
        if metres is not None:
            spacing.append(step * metres)
        elif lat is not None and lon is not None and dim in (lat.dims[0], lon.dims[0]):
            across = np.cos(np.deg2rad(float(np.mean(lat.values)))) if dim == lon.dims[0] else 1.0
            spacing.append(np.deg2rad(step) * EARTH_RADIUS_M * across)
        else:
            return None
    return spacing[0], spacing[1]


def find_grid_mappings(dataset: xr.Dataset, field: xr.DataArray) -> list[str]:
    """Return the names of the grid mapping variables of a field that exist in the dataset.

    If the field names none of them, a scalar variable `spatial_ref` counts as its grid mapping.
    """
    text = str(field.attrs.get("grid_mapping") or field.encoding.get("grid_mapping") or "")
    names = [word.rstrip(":") for word in text.split()]
    found = [name for name in names if name in dataset.variables and dataset[name].ndim == 0]
    if not found and "spatial_ref" in dataset.variables and dataset["spatial_ref"].ndim == 0:
        found = ["spatial_ref"]
    return found


def get_scalar_coordinates(field: xr.DataArray) -> dict[Hashable, xr.Variable]:
    """Return the scalar coordinates of a field, such as its pressure, without grid mappings."""
    return {
        name: coordinate.variable
        for name, coordinate in field.coords.items()
        if coordinate.ndim == 0 and name not in ("spatial_ref", "crs")
    }


def drop_geotransform(mapping: xr.Variable) -> xr.Variable:
    """Return a copy of a grid mapping variable without GDAL's attribute GeoTransform, which describes one grid only."""
    mapping = mapping.copy()
    mapping.attrs.pop("GeoTransform", None)
    return mapping


def _regrid(dataset: xr.Dataset, field: xr.DataArray, offsets: np.ndarray | None, factor: int) -> xr.Dataset:
    """Compute coordinates, bounds and grid mappings of the refined or coarsened grid of a field.

    Args:
        dataset: Dataset of the field.
        field: DataArray (..., y, x).
        offsets: Offsets of the new centres in cells; None: coarsen.
        factor: Refinement or coarsening factor.
    """
    y, x = field.dims[-2:]
    coords, bounds = {}, {}
    for name, coordinate in field.coords.items():
        if not set(coordinate.dims) & {y, x} or coordinate.dtype.kind not in "fiu":
            continue
        if not set(coordinate.dims) <= {y, x}:
            continue
        values = _compute_coordinate(field, coordinate, offsets, factor)
        if values is None:
            continue
        attrs = {key: value for key, value in coordinate.attrs.items() if key not in _RANGE_ATTRIBUTES}
        bounds_name = attrs.pop("bounds", None) or coordinate.encoding.get("bounds")
        new_bounds = _compute_bounds(dataset, field, coordinate, bounds_name, offsets, factor)
        if new_bounds is not None:
            attrs["bounds"] = bounds_name
            bounds[bounds_name] = new_bounds
        dims = coordinate.dims if coordinate.ndim == 1 else (y, x)
        coords[name] = xr.Variable(dims, values, attrs)
    mappings = {
        name: _scale_geotransform(dataset[name].variable, factor if offsets is not None else 1.0 / factor)
        for name in find_grid_mappings(dataset, field)
    }
    return xr.Dataset({**bounds, **mappings}, coords)


def _compute_coordinate(
    field: xr.DataArray, coordinate: xr.DataArray, offsets: np.ndarray | None, factor: int
) -> np.ndarray | None:
    """Return the new values of a coordinate over y and x, or None if it has more than two dimensions.

    Args:
        field: DataArray (..., y, x).
        coordinate: Coordinate.
        offsets: Offsets of the new centres in cells; None: coarsen.
        factor: Refinement or coarsening factor.
    """
    if coordinate.ndim == 1:
        return _compute_centres(coordinate, offsets, factor)
    if coordinate.ndim != 2:
        return None
    coordinate = coordinate.transpose(*field.dims[-2:])
    lat, lon = find_latitude_longitude(field)
    if lat is None or lon is None or lat.ndim != 2 or coordinate.name not in (lat.name, lon.name):
        return _resample(coordinate.values.astype(np.float64), offsets, offsets, factor)
    points = _resample(_compute_unit_vectors(lat.values, lon.values), offsets, offsets, factor)
    new_lat, new_lon = _compute_angles(points, lon.values)
    return new_lat if coordinate.name == lat.name else new_lon


def _compute_centres(coordinate: xr.DataArray, offsets: np.ndarray | None, factor: int) -> np.ndarray:
    values = unwrap_longitudes(coordinate.values, coordinate.attrs)
    if offsets is None:
        fine = values.reshape(-1, factor).mean(axis=1)
    else:
        if len(values) < 2:
            if factor == 1:
                return values
            raise ValueError(
                f"coordinate {coordinate.name} has a single value, so its cell width is unknown; at least 2 are needed"
            )
        fine = (values[:, None] + _compute_cell_widths(values)[:, None] * offsets).reshape(-1)
    if is_latitude(coordinate.attrs) and np.abs(values).max() <= 90.0:
        fine = np.clip(fine, -90.0, 90.0)
    if is_longitude(coordinate.attrs) and np.any(np.abs(np.diff(coordinate.values)) > 180.0):
        start = -180.0 if np.min(coordinate.values) < 0.0 else 0.0
        fine = (fine - start) % 360.0 + start
    return fine


def _compute_cell_widths(values: np.ndarray) -> np.ndarray:
    """Return the signed widths of cells.

    If all steps agree to 0.1 % or to float32 rounding, the width is the mean step, else the local step.
    """
    steps = np.diff(values)
    mean = (values[-1] - values[0]) / (len(values) - 1)
    if np.all(np.abs(steps - mean) <= max(1e-3 * abs(mean), estimate_rounding(values))):
        return np.full(len(values), mean)
    return np.gradient(values)


def _compute_bounds(
    dataset: xr.Dataset,
    field: xr.DataArray,
    coordinate: xr.DataArray,
    name: str | None,
    offsets: np.ndarray | None,
    factor: int,
) -> xr.Variable | None:
    """Return the bounds of the new cells, or None if the file has no usable ones.

    Args:
        dataset: Dataset of the field.
        field: DataArray (..., y, x).
        coordinate: Coordinate whose bounds are computed.
        name: Name of the bounds in the dataset.
        offsets: Offsets of the new centres in cells; None for coarsening.
        factor: Refinement or coarsening factor.
    """
    if name is None or name not in dataset.variables:
        return None
    old = dataset[name]
    if coordinate.ndim == 1 and old.shape == (coordinate.size, 2):
        pairs = old.values.astype(np.float64)
        if is_longitude(coordinate.attrs):
            pairs = np.unwrap(pairs, axis=1, period=360.0)
        if offsets is None:
            new = np.stack([pairs[::factor, 0], pairs[factor - 1 :: factor, 1]], axis=1)
        else:
            parts = np.arange(factor + 1) / factor
            edges = pairs[:, :1] + (pairs[:, 1:] - pairs[:, :1]) * parts
            new = np.stack([edges[:, :-1], edges[:, 1:]], axis=-1).reshape(-1, 2)
        return xr.Variable((coordinate.dims[0], old.dims[-1]), new, old.attrs)
    lat, lon = find_latitude_longitude(field)
    if (
        coordinate.ndim == 2
        and lat is not None
        and lon is not None
        and lat.ndim == 2
        and old.ndim == 3
        and old.shape[-1] == 4
    ):
        corners = _compute_corners(lat, lon, offsets, factor)
        return xr.Variable(
            (*field.dims[-2:], old.dims[-1]), corners[0 if coordinate.name == lat.name else 1], old.attrs
        )
    return None


def _compute_corners(
    lat: xr.DataArray, lon: xr.DataArray, offsets: np.ndarray | None, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return latitudes and longitudes (H, W, 4) of the corners of the new cells, anticlockwise as seen from above."""
    points = _compute_unit_vectors(lat.values, lon.values)
    if offsets is None:
        points, factor, offsets = _resample(points, None, None, factor), 1, _compute_offsets(1)
    half = 0.5 / factor
    around = [(-half, -half), (-half, half), (half, half), (half, -half)]
    corners = [_resample(points, offsets + row, offsets + column, factor) for row, column in around]
    down, right = corners[3] - corners[0], corners[1] - corners[0]
    middle = tuple(size // 2 for size in down.shape[1:])
    outward = np.dot(np.cross(right[:, *middle], down[:, *middle]), corners[0][:, *middle])
    if outward < 0:
        corners = corners[::-1]
    angles = [_compute_angles(corner, lon.values) for corner in corners]
    lat_corners, lon_corners = (np.stack([angle[part] for angle in angles], axis=-1) for part in (0, 1))
    return lat_corners, lon_corners


def _resample(
    values: np.ndarray, row_offsets: np.ndarray | None, column_offsets: np.ndarray | None, factor: int
) -> np.ndarray:
    """Interpolate linearly at index + offset along both axes, with linear extrapolation at the edges.

    Args:
        values: (..., H, W).
        row_offsets: Offsets along rows in cells; None: return means of blocks instead.
        column_offsets: Offsets along columns in cells.
        factor: Side of the blocks.
    """
    if row_offsets is None:
        *lead, height, width = values.shape
        return values.reshape(*lead, height // factor, factor, width // factor, factor).mean(axis=(-3, -1))
    for axis, offsets in ((-2, row_offsets), (-1, column_offsets)):
        moved = np.moveaxis(values, axis, -1)
        steps = np.diff(moved, axis=-1) if moved.shape[-1] > 1 else np.zeros_like(moved)
        before, after = np.concatenate([steps[..., :1], steps], -1), np.concatenate([steps, steps[..., -1:]], -1)
        before, after = before[..., : moved.shape[-1]], after[..., : moved.shape[-1]]
        assert offsets is not None
        parts = [moved + offset * (after if offset >= 0 else before) for offset in offsets]
        values = np.moveaxis(np.stack(parts, axis=-1).reshape(*moved.shape[:-1], -1), -1, axis)
    return values


def find_latitude_longitude(field: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray] | tuple[None, None]:
    """Return the latitude and longitude coordinates of a field, both 1-D or both 2-D, or (None, None).

    Impossible values of 2-D coordinates become missing.

    Raises:
        ValueError: A coordinate is in radians.
    """
    found: dict[Any, Any] = {}
    for name, coordinate in field.coords.items():
        named = "standard_name" not in coordinate.attrs
        if is_latitude(coordinate.attrs) or (named and str(name).lower() in ("lat", "latitude")):
            found.setdefault("lat", coordinate)
        elif is_longitude(coordinate.attrs) or (named and str(name).lower() in ("lon", "longitude")):
            found.setdefault("lon", coordinate)
    for coordinate in found.values():
        check_degrees(f"coordinate {coordinate.name}", coordinate.attrs)
    lat, lon = found.get("lat"), found.get("lon")
    if lat is None or lon is None or lat.ndim != lon.ndim or lat.ndim not in (1, 2):
        return None, None
    if lat.ndim == 2:
        lat, lon = lat.transpose(*field.dims[-2:]), lon.transpose(*field.dims[-2:])
        wrong = find_invalid_positions(lat.values, lon.values)
        return (lat.where(~wrong), lon.where(~wrong)) if wrong.any() else (lat, lon)
    return lat, lon


def find_invalid_positions(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return True where a latitude or longitude in degrees is outside its range or infinite; NaN counts as valid."""
    return (np.abs(latitude) > _HIGHEST_LATITUDE) | (np.abs(longitude) > _HIGHEST_LONGITUDE)


def interpolate_latitude_longitude(
    field: xr.DataArray, rows: np.ndarray, columns: np.ndarray
) -> dict[Hashable, xr.Variable]:
    """Interpolate the 2-D latitude and longitude of a field at fractional rows and columns.

    The interpolation is linear on the sphere, with extrapolation beyond the edges.

    Args:
        field: DataArray (..., y, x).
        rows: (H,) fractional indices.
        columns: (W,) fractional indices.

    Returns:
        Name -> Variable (H, W) of latitude and longitude; {} if the field has no 2-D latitude and longitude.
    """
    lat, lon = find_latitude_longitude(field)
    if lat is None or lon is None or lat.ndim != 2:
        return {}
    from scipy.interpolate import RegularGridInterpolator  # slow import that only curvilinear grids need

    axes = tuple(np.arange(size, dtype=float) for size in lat.shape)
    vectors = np.moveaxis(_compute_unit_vectors(lat.values, lon.values), 0, -1)
    between = RegularGridInterpolator(axes, vectors, bounds_error=False, fill_value=None)
    points = between(np.stack(np.meshgrid(rows, columns, indexing="ij"), -1))
    new = _compute_angles(np.moveaxis(points, -1, 0), lon.values)
    dims, ends = lat.dims, ("bounds", *_RANGE_ATTRIBUTES)
    attrs = [{key: value for key, value in c.attrs.items() if key not in ends} for c in (lat, lon)]
    return {c.name: xr.Variable(dims, values, a) for c, values, a in zip((lat, lon), new, attrs, strict=True)}


def _compute_unit_vectors(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    lat, lon = np.deg2rad(np.asarray(lat, dtype=np.float64)), np.deg2rad(np.asarray(lon, dtype=np.float64))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def _compute_angles(points: np.ndarray, like_longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return latitude and longitude in degrees of vectors (3, ...).

    Longitudes are in [0, 360) if `like_longitude` has a value above 180.
    """
    lat = np.rad2deg(np.arctan2(points[2], np.hypot(points[0], points[1])))
    lon = np.rad2deg(np.arctan2(points[1], points[0]))
    return lat, lon % 360.0 if np.nanmax(like_longitude) > 180.0 else lon


def _compute_distances(points: np.ndarray, axis: int) -> np.ndarray:
    """Return great-circle distances in metres between neighbours of unit vectors (3, H, W) along axis 0 (rows) or 1."""
    chord = np.linalg.norm(np.diff(points, axis=axis + 1), axis=0)
    return 2.0 * EARTH_RADIUS_M * np.arcsin(np.clip(chord / 2.0, 0.0, 1.0))


def _scale_geotransform(mapping: xr.Variable, factor: float) -> xr.Variable:
    """Return a copy of a grid mapping variable with the pixel sizes in GDAL's GeoTransform divided by `factor`."""
    mapping = mapping.copy()
    parts = str(mapping.attrs.get("GeoTransform", "")).split()
    if len(parts) == 6:
        numbers = [float(part) / (factor if index in (1, 2, 4, 5) else 1.0) for index, part in enumerate(parts)]
        mapping.attrs["GeoTransform"] = " ".join(repr(number) for number in numbers)
    return mapping


def _compute_offsets(factor: int) -> np.ndarray:
    return (np.arange(factor) + 0.5) / factor - 0.5
