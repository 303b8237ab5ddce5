# SPDX-License-Identifier: Apache-2.0
"""Which dimension of a variable is time, y and x, and whether their coordinates are in order."""

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

_TIME_NAMES = ("time", "valid_time", "t")
_Y_NAMES = ("y", "lat", "latitude", "yc", "rlat", "south_north", "ny", "northing", "j", "row", "rows")
_X_NAMES = ("x", "lon", "longitude", "xc", "rlon", "west_east", "nx", "easting", "i", "column", "columns")
_Y_STANDARD = ("projection_y_coordinate", "latitude", "grid_latitude")
_X_STANDARD = ("projection_x_coordinate", "longitude", "grid_longitude")

# Steps of a coordinate may differ from their median by these shares: coordinates may be rounded.
_SPACING_TOLERANCE, _ANGLE_TOLERANCE = 0.05, 0.5
FULL_CIRCLE = 360.0  # degrees


def find_axes(variable: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """The variable as (time, y, x) without its dimensions of length 1, and notes about dropped ones.

    Raises: ValueError if a dimension is missing, too many remain, or x or y are neither ascending nor descending.
    """
    dims = ", ".join(map(str, variable.dims))
    time = time_dimension(variable)
    if time is None:
        raise ValueError(
            f"variable {variable.name} ({dims}) has no time dimension; expected (time, y, x), at least 2 times"
        )
    rest = [dim for dim in variable.dims if dim != time]
    y, x = rows_and_columns(variable, rest)
    if x is None or y is None:
        large = [dim for dim in rest if variable.sizes[dim] > 1]
        if len(large) != 2:
            raise ValueError(f"variable {variable.name} ({dims}): cannot tell which dimensions are y and x")
        y, x = large
    extra = [dim for dim in rest if dim not in (x, y)]
    long = [dim for dim in extra if variable.sizes[dim] > 1]
    if long:
        raise ValueError(
            f"variable {variable.name} has the dimension {long[0]} of length {variable.sizes[long[0]]} beside "
            "(time, y, x); select one element of it first"
        )
    check_rows_and_columns(variable, y, x)
    notes = [f"dimension {dim} of length 1 was dropped" for dim in extra]
    return variable.isel(dict.fromkeys(extra, 0)).transpose(time, y, x), notes


def time_dimension(variable: xr.DataArray) -> Hashable | None:
    """The dimension of time, by its coordinate or its name; None where there is none."""
    return _pick(variable, variable.dims, _is_time)


def time_of(dataset: xr.Dataset) -> Hashable | None:
    """The dimension of time of a dataset's variables, "time" where there is one of that name; None where there is none,
    or there are several."""
    if "time" in dataset.dims:
        return "time"
    found = {time_dimension(variable) for variable in dataset.data_vars.values()} - {None}
    return found.pop() if len(found) == 1 else None


def with_time(dataset: xr.Dataset, name: Hashable) -> xr.Dataset:
    """The dataset with a dimension of time for a variable that has a single time beside its dimensions."""
    if time_dimension(dataset[name]) is not None:
        return dataset
    single = [n for n, c in dataset[name].coords.items() if c.ndim == 0 and _is_time(c, str(n))]
    if len(single) != 1:
        return dataset
    return dataset.drop_vars(single).assign({name: dataset[name].expand_dims(single)})


def rows_and_columns(variable: xr.DataArray, dims: Iterable[Hashable]) -> tuple[Hashable | None, Hashable | None]:
    """Which of some dimensions are y and x, by their coordinates or names; None where nothing tells."""
    x = _pick(variable, dims, lambda c, dim: _matches(c, dim, "X", _X_STANDARD, _X_NAMES))
    others = [dim for dim in dims if dim != x]
    return _pick(variable, others, lambda c, dim: _matches(c, dim, "Y", _Y_STANDARD, _Y_NAMES)), x


def check_rows_and_columns(variable: xr.DataArray, y: Hashable, x: Hashable) -> None:
    """ValueError unless there are two rows and columns, whose coordinates are in order, latitudes within the poles and
    longitudes once around at most."""
    for dim in (y, x):
        if variable.sizes[dim] < 2:
            raise ValueError(
                f"variable {variable.name} has the length {variable.sizes[dim]} along {dim}; expected 2 or more"
            )
        check_order(variable, dim)
        if dim in variable.coords:
            name, values, attrs = f"coordinate {dim}", variable[dim].values, variable[dim].attrs
            if is_latitude(attrs):
                check_degrees(name, attrs)
                check_latitudes(name, values)
            if is_longitude(attrs):
                check_degrees(name, attrs)
                check_longitudes(name, unwrap(values, attrs))


def check_degrees(name: str, attrs: Mapping[str, Any]) -> None:
    """ValueError for a latitude or longitude in radians, which would lie near 0 N, 0 E on cells of a few metres."""
    units = str(attrs.get("units", "")).strip()
    if units.lower() in ("rad", "radian", "radians"):
        raise ValueError(f"{name} has units {units!r}, expected degrees: multiply it by 180 / pi first")


def check_latitudes(name: str, values: np.ndarray) -> None:
    """ValueError unless they lie between the poles."""
    highest = np.abs(values).max()
    if highest > 90 + 1e-6:
        raise ValueError(f"{name} reaches {highest:g}, expected degrees within 90; swapped with longitude?")


def check_longitudes(name: str, values: np.ndarray) -> None:
    """ValueError unless they, without jumps of 360 degrees, go round the globe once at most."""
    span = np.ptp(values)
    if span > FULL_CIRCLE + 1e-3:
        raise ValueError(f"{name} spans {span:g} degrees, expected {FULL_CIRCLE:g} at most")


def check_order(variable: xr.DataArray, dim: Hashable) -> None:
    """ValueError unless the coordinate of a dimension (if it has one) is numeric, finite and ascending or descending;
    longitudes may wrap."""
    if dim not in variable.coords:
        return
    values = variable[dim].values
    if values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
        raise ValueError(f"coordinate {dim} must be finite numbers")
    steps = np.diff(unwrap(values, variable[dim].attrs))
    if steps.size and not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(f"coordinate {dim} is neither ascending nor descending; sort it first")


def rounding_of(values: np.ndarray) -> float:
    """How far steps of coordinates may be off where these were stored in float32."""
    return 4 * 2.0**-24 * float(np.abs(values).max(initial=0.0))


def upright(field: xr.DataArray) -> tuple[Any, ...]:
    """The index that brings arrays (..., y, x) of a field into rows from north to south and columns from west to east,
    and back: a network gives a mirrored field another answer, and the order of a file's axes must not matter."""
    steps = []
    for dim, wrong in zip(field.dims[-2:], (1, -1), strict=True):
        ends = unwrap(field[dim].values, field[dim].attrs)[[0, -1]] if dim in field.coords else np.zeros(2)
        steps.append(slice(None, None, -1 if (ends[1] - ends[0]) * wrong > 0 else 1))
    return (..., *steps)


def check_spacing(variable: xr.DataArray) -> None:
    """ValueError unless the coordinates of (..., y, x), where there are any, are evenly spaced: steps within 5 % of
    their median, of latitudes and longitudes within half, which Gaussian and Mercator grids keep."""
    for dim in variable.dims[-2:]:
        if dim not in variable.coords:
            continue
        attrs = variable[dim].attrs
        steps = np.abs(np.diff(unwrap(variable[dim].values, attrs)))
        middle = float(np.median(steps))
        tolerance = _ANGLE_TOLERANCE if is_longitude(attrs) or is_latitude(attrs) else _SPACING_TOLERANCE
        if np.any(np.abs(steps - middle) > max(tolerance * middle, rounding_of(variable[dim].values))):
            units = f" {attrs['units']}" if "units" in attrs else ""
            raise ValueError(
                f"coordinate {dim} is unevenly spaced, by {steps.min():g} to {steps.max():g}{units}, {middle:g} in the "
                "median; bring the field onto a regular grid first"
            )


def is_longitude(attrs: Mapping[str, Any]) -> bool:
    """True if the attributes of a coordinate say longitude."""
    return _is_angle(attrs, "longitude", ("east", "e"))


def is_latitude(attrs: Mapping[str, Any]) -> bool:
    """True if the attributes of a coordinate say latitude."""
    return _is_angle(attrs, "latitude", ("north", "n"))


def promote_coordinates(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with 2-D latitudes and longitudes as coordinates, named by a `coordinates` attribute or not."""
    named = [
        name
        for name, variable in dataset.data_vars.items()
        if variable.ndim == 2 and (is_latitude(variable.attrs) or is_longitude(variable.attrs))
    ]
    return dataset.set_coords(named)


def _is_angle(attrs: Mapping[str, Any], standard_name: str, letters: Collection[str]) -> bool:
    """By the standard_name, or where there is none by units such as degrees_north, degree_N, degreesE."""
    if "standard_name" in attrs:
        return attrs["standard_name"] == standard_name
    return re.sub(r"^degrees?_?", "", str(attrs.get("units", "")).strip().lower()) in letters


def unwrap(values: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """Float64 coordinate values; longitudes without jumps of 360 degrees."""
    values = np.asarray(values, dtype=np.float64)
    return np.unwrap(values, period=360.0) if is_longitude(attrs) else values


def _pick(
    variable: xr.DataArray, dims: Iterable[Hashable], matches: Callable[[xr.DataArray | None, str], bool]
) -> Hashable | None:
    for dim in dims:
        if matches(variable.coords.get(dim), str(dim)):
            return dim
    return None


def _is_time(coordinate: xr.DataArray | None, dim: str) -> bool:
    if coordinate is not None and (
        coordinate.dtype.kind == "M"
        or coordinate.attrs.get("axis") == "T"
        or coordinate.attrs.get("standard_name") == "time"
    ):
        return True
    return dim.lower() in _TIME_NAMES


def _matches(
    coordinate: xr.DataArray | None, dim: str, axis: str, standard_names: Collection[str], names: Collection[str]
) -> bool:
    if coordinate is not None and (
        coordinate.attrs.get("axis") == axis or coordinate.attrs.get("standard_name") in standard_names
    ):
        return True
    return dim.lower() in names
