# SPDX-License-Identifier: Apache-2.0
"""Decoding of NetCDF and Zarr variables: packing, missing values and valid ranges as the attributes declare them."""

import functools
import json
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.formats.lazy import map_values, wrap_in_cache
from fastds.data.grid.axes import is_latitude, is_longitude
from fastds.data.grid.grids import find_invalid_positions
from fastds.data.grid.value_checks import mask_outside
from fastds.data.io.storage import decode_text

VALID_ATTRIBUTES = ("valid_range", "valid_min", "valid_max")
_PACKING = ("scale_factor", "add_offset")
_MISSING = ("_FillValue", "missing_value")
# Default fill values of the NetCDF library for elements that were never written.
_DEFAULT_FILL = {"f4": 9.969209968386869e36, "f8": 9.969209968386869e36, "i2": -32767, "i4": -2147483647}


def decode_dataset(raw: xr.Dataset, default_fill: bool) -> xr.Dataset:
    """Decode times, packing and missing values of a dataset by the CF conventions.

    Values equal to _FillValue or to a missing_value are missing. Values of fields outside valid_min, valid_max or
    valid_range are missing. With `default_fill`, the default fill value of the NetCDF library is missing if the
    variable declares no other and the default cannot be an ordinary value.

    Args:
        raw: Lazy dataset opened with decode_cf=False.
        default_fill: Whether the file was written by the NetCDF library.

    Returns:
        Lazy dataset whose attributes are text, numbers and lists of these.
    """
    raw = raw.copy(deep=False)
    raw.attrs = convert_attributes(raw.attrs)
    limits = {}
    for name, variable in raw.variables.items():
        variable.attrs = convert_attributes(variable.attrs)
        _declare_missing(variable, default_fill and name not in raw.dims)
        if name in raw.data_vars and variable.ndim >= 2 and variable.dtype.kind in "fiu":
            limits[name] = _pop_valid_limits(name, variable)
    dataset = xr.decode_cf(raw)
    for variable in dataset.variables.values():
        if not variable._in_memory:
            variable._data = wrap_in_cache(variable._data)
    for name, ends in limits.items():
        if ends is not None and name in dataset.variables:
            dataset[name] = _mask_invalid(dataset[name].variable, *ends)
    return _mask_invalid_positions(dataset)


def convert_attributes(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Convert attributes to text, numbers and lists of these.

    Bytes that are not valid UTF-8 are decoded as Latin-1. Other JSON values, which Zarr allows, become JSON text.
    """
    return {key: _convert_attribute(value) for key, value in attrs.items() if value is not None}


def _convert_attribute(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return decode_text(value)
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list | tuple) and any(isinstance(item, (dict, list, tuple, type(None))) for item in value):
        return json.dumps(value)
    if isinstance(value, list | tuple) and any(isinstance(item, (str, bytes)) for item in value):
        return [decode_text(item) if isinstance(item, (str, bytes)) else str(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "SO":
        return [decode_text(item) if isinstance(item, (str, bytes)) else str(item) for item in value.flat]
    return value


def _declare_missing(variable: xr.Variable, default_fill: bool) -> None:
    """Convert the fill values in the attributes of a variable to numbers, and declare the default fill value.

    The default is declared only if `default_fill` is True, the variable declares no fill value, and the default cannot
    be an ordinary value.
    """
    if variable.dtype.kind not in "fiu":
        return
    for key in _MISSING:
        if key not in variable.attrs:
            continue
        numbers = _parse_numbers(variable.attrs[key])
        if numbers is None or not numbers.size:
            del variable.attrs[key]
        elif isinstance(variable.attrs[key], str | list):
            variable.attrs[key] = numbers if numbers.size > 1 else numbers[0]
    _convert_unsigned_fills(variable)
    packed = any(key in variable.attrs for key in _PACKING)
    fill = _DEFAULT_FILL.get(variable.dtype.str[1:])
    undeclared = default_fill and fill is not None and not set(_MISSING) & set(variable.attrs)
    if variable.dtype.kind != "f":  # the default is an ordinary code if codes are unsigned or have a valid range
        unsigned = variable.attrs.get("_Unsigned") == "true"
        undeclared &= not unsigned and not (variable.ndim >= 2 and set(VALID_ATTRIBUTES) & set(variable.attrs))
    if undeclared and "units" in variable.attrs and (variable.dtype.kind == "f" or packed):
        variable.attrs["_FillValue"] = variable.dtype.type(fill)


def _convert_unsigned_fills(variable: xr.Variable) -> None:
    """Convert fill values of an integer variable with the attribute _Unsigned to the form that xarray expects.

    xarray compares _FillValue with the signed codes and missing_value with the reinterpreted ones. Writers store either
    form in either attribute.
    """
    unsigned = str(variable.attrs.get("_Unsigned", "")).strip().lower()
    if unsigned not in ("true", "false") or variable.dtype.kind not in "iu":
        return
    variable.attrs["_Unsigned"] = unsigned
    whole = 1 << 8 * variable.dtype.itemsize
    declared = [np.ravel(variable.attrs.pop(key, ())) for key in _MISSING]
    fills, others = ([int(code) for code in codes if np.isfinite(code)] for codes in declared)
    if fills and -whole // 2 <= fills[0] < whole:  # no code can equal a value outside this range
        code = fills[0] - whole * (fills[0] >= whole // 2)
        variable.attrs["_FillValue"] = np.dtype(f"i{variable.dtype.itemsize}").type(code)
    low, high, step = (-whole // 2, 0, whole) if unsigned == "true" else (whole // 2, whole, -whole)
    reinterpreted = [code + step * (low <= code < high) for code in (*fills[1:], *others)]
    if reinterpreted:
        variable.attrs["missing_value"] = np.array(reinterpreted) if len(reinterpreted) > 1 else reinterpreted[0]


def _parse_numbers(value: Any) -> np.ndarray | None:
    """Return the numbers of an attribute, which may be stored as text, or None if it holds something else."""
    try:
        array = np.ravel(np.asarray(value))
        return array if array.dtype.kind in "fiu" else array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def _pop_valid_limits(name: Any, variable: xr.Variable) -> tuple[float, float] | None:
    """Return the smallest and largest valid value after unpacking, and remove the attributes that declare them.

    For packed variables, integer limits are codes and floating-point limits are unpacked values (NetCDF User's Guide,
    attribute conventions).

    Returns:
        (low, high), or None if the variable has no valid range. Invalid ranges are ignored with a warning
            (UserWarning).
    """
    declared = {key: _parse_numbers(variable.attrs.pop(key)) for key in VALID_ATTRIBUTES if key in variable.attrs}
    narrow = [k for k, ends in declared.items() if ends is not None and ends.dtype.kind in "iu" and ends.itemsize <= 2]
    if narrow and variable.dtype.kind == "f":
        limits = " and ".join(narrow)
        message = f"{limits} of variable {name} are of packed values, which it does not hold any more: ignored"
        warnings.warn(message, UserWarning, stacklevel=2)
        return None
    low: Any
    high: Any
    low, high = (declared.get(key) for key in ("valid_min", "valid_max"))
    both = declared.get("valid_range")
    if both is not None and both.size == 2:
        low, high = both[:1], both[1:]
    ends = [_unpack_limit(end, variable) if end is not None and end.size else None for end in (low, high)]
    if ends == [None, None]:
        return None
    low, high = (limit if end is None else end for end, limit in zip(ends, (-np.inf, np.inf), strict=True))
    if float(variable.attrs.get("scale_factor", 1.0)) < 0 and both is not None and low > high:
        low, high = high, low
    if not low <= high:
        message = f"the valid range of variable {name} is empty, {low:g} to {high:g}, and is ignored"
        warnings.warn(message, UserWarning, stacklevel=2)
        return None
    packed = variable.dtype.kind != "f" and any(key in variable.attrs for key in _PACKING)
    step = abs(float(np.ravel(variable.attrs.get("scale_factor", 1.0))[0]))
    rounding = 0.25 * step if packed else 1e-6 * max(abs(end) for end in (low, high) if np.isfinite(end))
    return low - rounding, high + rounding


def _unpack_limit(end: np.ndarray, variable: xr.Variable) -> float:
    code = end[0]
    packed = any(key in variable.attrs for key in _PACKING)
    unsigned = str(variable.attrs.get("_Unsigned", "")).lower() == "true" and variable.dtype.kind == "i"
    if unsigned and end.dtype.kind != "f" and code < 0:  # floating-point limits are unpacked values
        code = int(code) + (1 << 8 * variable.dtype.itemsize)
    if not packed or (end.dtype.kind == "f" and variable.dtype.kind != "f"):
        return float(code)
    scale, offset = (
        float(np.ravel(variable.attrs.get(key, one))[0]) for key, one in zip(_PACKING, (1, 0), strict=True)
    )
    return float(code) * scale + offset


def _mask_invalid(variable: xr.Variable, low: float, high: float) -> xr.Variable:
    """Return a variable with NaN outside [low, high]; integers become floating-point numbers."""
    if variable.dtype.kind != "f":  # integers cannot hold NaN
        variable = variable.astype(np.float64 if variable.dtype.itemsize > 2 else np.float32)
    return map_values(variable, functools.partial(mask_outside, limits=(low, high)))


def _mask_invalid_positions(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with 2-D latitudes and longitudes missing where one of them is impossible, such as -9999."""
    chosen: dict[str, Hashable] = {}
    for kind, test, names in (("lat", is_latitude, ("lat", "latitude")), ("lon", is_longitude, ("lon", "longitude"))):
        for name, variable in dataset.variables.items():
            named = "standard_name" not in variable.attrs and str(name).lower() in names
            if variable.ndim == 2 and variable.dtype.kind == "f" and (test(variable.attrs) or named):
                chosen.setdefault(kind, name)
    if len(chosen) < 2 or dataset[chosen["lat"]].dims != dataset[chosen["lon"]].dims:
        return dataset
    lat, lon = (dataset[chosen[kind]].variable for kind in ("lat", "lon"))
    wrong = find_invalid_positions(lat.values, lon.values)
    if not wrong.any():
        return dataset
    both = f"{chosen['lat']} and {chosen['lon']}"
    message = f"{int(wrong.sum())} points of {both} are impossible positions and are taken as missing"
    warnings.warn(message, UserWarning, stacklevel=2)
    masked = {
        chosen[k]: v.copy(deep=False, data=np.where(wrong, np.nan, v.values)) for k, v in (("lat", lat), ("lon", lon))
    }
    at_coords = {name: variable for name, variable in masked.items() if name in dataset.coords}
    return dataset.assign_coords(at_coords).assign({n: v for n, v in masked.items() if n not in at_coords})
