# SPDX-License-Identifier: Apache-2.0
"""Identification of the dimensions time, y and x of a variable, and checks of their coordinates."""

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

# Largest relative difference of a step of a coordinate from the median step; coordinates may be rounded.
_SPACING_TOLERANCE, _ANGLE_TOLERANCE = 0.05, 0.5
FULL_CIRCLE = 360.0  # degrees


def find_axes(variable: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """Transpose a variable to (time, y, x) and drop other dimensions of length 1.

    Returns:
        The variable, and a list of notes about dropped dimensions.

    Raises:
        ValueError: There is no dimension of time, y and x cannot be identified, another dimension is longer than 1, or
            a coordinate of y or x is neither ascending nor descending.
    """
    dims = ", ".join(map(str, variable.dims))
    time = find_time_dimension(variable)
    if time is None:
        raise ValueError(
            f"variable {variable.name} ({dims}) has no time dimension; expected (time, y, x), at least 2 times"
        )
    rest = [dim for dim in variable.dims if dim != time]
    y, x = find_rows_and_columns(variable, rest)
    if x is None or y is None:
        large = [dim for dim in rest if variable.sizes[dim] > 1]
        if len(large) != 2:
            raise ValueError(f"variable {variable.name} ({dims}): cannot tell which dimensions are y and x")
        y, x = large
    extra = [dim for dim in rest if dim not in (x, y)]
    long = [dim for dim in extra if variable.sizes[dim] > 1]
    if long:
        raise ValueError(
            f"variable {variable.name} has the dimension {long[0]} of length {variable.sizes[long[0]]} in addition to "
            "(time, y, x); select one element of it first"
        )
    check_rows_and_columns(variable, y, x)
    notes = [f"dimension {dim} of length 1 was dropped" for dim in extra]
    return variable.isel(dict.fromkeys(extra, 0)).transpose(time, y, x), notes


def find_time_dimension(variable: xr.DataArray) -> Hashable | None:
    """Return the dimension of time of a variable, identified by its coordinate or its name, or None."""
    return _find_dimension(variable, variable.dims, _is_time)


def find_dataset_time(dataset: xr.Dataset) -> Hashable | None:
    """Return the time dimension of a dataset: "time" if it exists, else the time dimension of its variables if unique.

    The result is None if the variables have no or different time dimensions.
    """
    if "time" in dataset.dims:
        return "time"
    found = {find_time_dimension(variable) for variable in dataset.data_vars.values()} - {None}
    return found.pop() if len(found) == 1 else None


def expand_scalar_time(dataset: xr.Dataset, name: Hashable) -> xr.Dataset:
    """Expand a variable that has a single scalar time coordinate along a dimension of time.

    Args:
        dataset: Dataset.
        name: Name of the variable.

    Returns:
        The dataset with the expanded variable, or unchanged if the variable has a dimension of time or not exactly one
        scalar time.
    """
    if find_time_dimension(dataset[name]) is not None:
        return dataset
    single = [n for n, c in dataset[name].coords.items() if c.ndim == 0 and _is_time(c, str(n))]
    if len(single) != 1:
        return dataset
    return dataset.drop_vars(single).assign({name: dataset[name].expand_dims(single)})


def find_rows_and_columns(variable: xr.DataArray, dims: Iterable[Hashable]) -> tuple[Hashable | None, Hashable | None]:
    """Find the dimensions y and x among some dimensions by their coordinates or names.

    Args:
        variable: Variable.
        dims: Candidates.

    Returns:
        y and x; None for a dimension that cannot be identified.
    """
    x = _find_dimension(variable, dims, lambda c, dim: _matches(c, dim, "X", _X_STANDARD, _X_NAMES))
    others = [dim for dim in dims if dim != x]
    return _find_dimension(variable, others, lambda c, dim: _matches(c, dim, "Y", _Y_STANDARD, _Y_NAMES)), x


def check_rows_and_columns(variable: xr.DataArray, y: Hashable, x: Hashable) -> None:
    """Check the dimensions y and x of a variable.

    Args:
        variable: Variable.
        y: Name of the dimension of rows.
        x: Name of the dimension of columns.

    Raises:
        ValueError: A dimension has fewer than two points, its coordinate is neither strictly ascending nor descending,
            latitudes or longitudes are in radians, a latitude is outside [-90, 90] degrees, or longitudes span more
            than 360 degrees.
    """
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
                check_longitudes(name, unwrap_longitudes(values, attrs))


def check_degrees(name: str, attrs: Mapping[str, Any]) -> None:
    """Raise ValueError for a latitude or longitude in radians."""
    units = str(attrs.get("units", "")).strip()
    if units.lower() in ("rad", "radian", "radians"):
        raise ValueError(f"{name} has units {units!r}, expected degrees: multiply it by 180 / pi first")


def check_latitudes(name: str, values: np.ndarray) -> None:
    """Raise ValueError for a latitude outside [-90, 90] degrees."""
    highest = np.abs(values).max()
    if highest > 90 + 1e-6:
        raise ValueError(f"{name} reaches {highest:g}, expected degrees within 90; swapped with longitude?")


def check_longitudes(name: str, values: np.ndarray) -> None:
    """Raise ValueError if unwrapped longitudes span more than 360 degrees."""
    span = np.ptp(values)
    if span > FULL_CIRCLE + 1e-3:
        raise ValueError(f"{name} spans {span:g} degrees, expected {FULL_CIRCLE:g} at most")


def check_order(variable: xr.DataArray, dim: Hashable) -> None:
    """Raise ValueError unless the values of a coordinate are finite and strictly ascending or descending.

    Longitudes may wrap around. A dimension without coordinate is accepted.

    Args:
        variable: DataArray with the dimension.
        dim: Name of the dimension.
    """
    if dim not in variable.coords:
        return
    values = variable[dim].values
    if values.dtype.kind not in "fiu" or not np.all(np.isfinite(values)):
        raise ValueError(f"coordinate {dim} must be finite numbers")
    steps = np.diff(unwrap_longitudes(values, variable[dim].attrs))
    if steps.size and not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(f"coordinate {dim} is neither ascending nor descending; sort it first")


def estimate_rounding(values: np.ndarray) -> float:
    """Return the largest error of a difference of two coordinates that were stored in float32."""
    return 4 * 2.0**-24 * float(np.abs(values).max(initial=0.0))


def get_north_up_index(field: xr.DataArray) -> tuple[Any, ...]:
    """Return the index that flips arrays (..., y, x) of a field to rows from north to south, columns from west to east.

    The same index flips the arrays back. Networks are not equivariant to flips. With this index, their results do not
    depend on the order of the axes in a file.
    """
    steps = []
    for dim, wrong in zip(field.dims[-2:], (1, -1), strict=True):
        ends = unwrap_longitudes(field[dim].values, field[dim].attrs)[[0, -1]] if dim in field.coords else np.zeros(2)
        steps.append(slice(None, None, -1 if (ends[1] - ends[0]) * wrong > 0 else 1))
    return (..., *steps)


def check_spacing(variable: xr.DataArray) -> None:
    """Raise ValueError if the coordinates of the last two dimensions are unevenly spaced.

    Steps may differ from their median by 5 %. Steps of latitude and longitude may differ by 50 %, as on Gaussian and
    Mercator grids.
    """
    for dim in variable.dims[-2:]:
        if dim not in variable.coords:
            continue
        attrs = variable[dim].attrs
        steps = np.abs(np.diff(unwrap_longitudes(variable[dim].values, attrs)))
        middle = float(np.median(steps))
        tolerance = _ANGLE_TOLERANCE if is_longitude(attrs) or is_latitude(attrs) else _SPACING_TOLERANCE
        if np.any(np.abs(steps - middle) > max(tolerance * middle, estimate_rounding(variable[dim].values))):
            units = f" {attrs['units']}" if "units" in attrs else ""
            raise ValueError(
                f"coordinate {dim} is unevenly spaced, by {steps.min():g} to {steps.max():g}{units}, {middle:g} in the "
                "median; bring the field onto a regular grid first"
            )


def is_longitude(attrs: Mapping[str, Any]) -> bool:
    """Return True if the attributes of a coordinate declare a longitude."""
    return _is_angle(attrs, "longitude", ("east", "e"))


def is_latitude(attrs: Mapping[str, Any]) -> bool:
    """Return True if the attributes of a coordinate declare a latitude."""
    return _is_angle(attrs, "latitude", ("north", "n"))


def promote_coordinates(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with all 2-D latitude and longitude variables as coordinates."""
    named = [
        name
        for name, variable in dataset.data_vars.items()
        if variable.ndim == 2 and (is_latitude(variable.attrs) or is_longitude(variable.attrs))
    ]
    return dataset.set_coords(named)


def _is_angle(attrs: Mapping[str, Any], standard_name: str, letters: Collection[str]) -> bool:
    """Return True for this standard_name or, if there is none, for units such as degrees_north or degreesE."""
    if "standard_name" in attrs:
        return attrs["standard_name"] == standard_name
    return re.sub(r"^degrees?_?", "", str(attrs.get("units", "")).strip().lower()) in letters


def unwrap_longitudes(values: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """Return coordinate values as float64; jumps of 360 degrees are removed from longitudes."""
    values = np.asarray(values, dtype=np.float64)
    return np.unwrap(values, period=360.0) if is_longitude(attrs) else values


def _find_dimension(
    variable: xr.DataArray, dims: Iterable[Hashable], matches: Callable[[xr.DataArray | None, str], bool]
) -> Hashable | None:
    """Return the first dimension whose coordinate and name satisfy `matches`, or None."""
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
    """Return True if a coordinate declares an axis or a standard name, or if the dimension has one of the usual names.

    Args:
        coordinate: Coordinate of the dimension, or None.
        dim: Name of the dimension.
        axis: CF axis, "X" or "Y".
        standard_names: CF standard names of the axis.
        names: Usual names of the dimension, in lower case.
    """
    if coordinate is not None and (
        coordinate.attrs.get("axis") == axis or coordinate.attrs.get("standard_name") in standard_names
    ):
        return True
    return dim.lower() in names
