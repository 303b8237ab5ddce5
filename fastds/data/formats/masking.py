# SPDX-License-Identifier: Apache-2.0
"""Missing values of NetCDF and Zarr as their attributes declare them, the valid range among them."""

import functools
import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.formats.lazy import cached, map_values
from fastds.data.grid.axes import is_latitude, is_longitude
from fastds.data.grid.grids import impossible_places
from fastds.data.grid.plausible import within
from fastds.data.io.storage import decode_text

VALID_ATTRIBUTES = ("valid_range", "valid_min", "valid_max")
_PACKING = ("scale_factor", "add_offset")
_MISSING = ("_FillValue", "missing_value")
# Default fill values of the NetCDF library, which mark what was never written.
_DEFAULT_FILL = {"f4": 9.969209968386869e36, "f8": 9.969209968386869e36, "i2": -32767, "i4": -2147483647}


def decode(raw: xr.Dataset, default_fill: bool) -> xr.Dataset:
    """Decode a dataset opened without decoding: times, packing and missing values by the CF conventions.

    Missing are _FillValue, every missing_value, what lies outside valid_min, valid_max and valid_range, and, of NetCDF,
    the library's default fill value where none is declared.

    Args: raw: lazy, decode_cf=False. default_fill: whether the NetCDF library wrote it.
    Returns: Dataset, lazy, whose attributes are text, numbers and lists of these.
    """
    raw = raw.copy(deep=False)
    raw.attrs = readable_attributes(raw.attrs)
    limits = {}
    for name, variable in raw.variables.items():
        variable.attrs = readable_attributes(variable.attrs)
        _declare_missing(variable, default_fill and name not in raw.dims)
        if name in raw.data_vars and variable.ndim >= 2 and variable.dtype.kind in "fiu":
            limits[name] = _valid_limits(name, variable)
    dataset = xr.decode_cf(raw)
    for variable in dataset.variables.values():
        if not variable._in_memory:
            variable._data = cached(variable._data)
    for name, ends in limits.items():
        if ends is not None and name in dataset.variables:
            dataset[name] = _within(dataset[name].variable, *ends)
    return _mask_impossible_places(dataset)


def readable_attributes(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes as text, numbers and lists of these: bytes and undecodable text are read as Latin-1 where they are no
    UTF-8, what JSON holds beside (in Zarr) becomes its text."""
    return {key: _readable(value) for key, value in attrs.items() if value is not None}


def _readable(value: Any) -> Any:
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
    """Give a variable fill values that can be compared with its numbers, in its attributes."""
    if variable.dtype.kind not in "fiu":
        return
    for key in _MISSING:
        if key not in variable.attrs:
            continue
        numbers = _numbers(variable.attrs[key])
        if numbers is None or not numbers.size:
            del variable.attrs[key]
        elif isinstance(variable.attrs[key], str | list):
            variable.attrs[key] = numbers if numbers.size > 1 else numbers[0]
    _declare_as_signed(variable)
    packed = any(key in variable.attrs for key in _PACKING)
    fill = _DEFAULT_FILL.get(variable.dtype.str[1:])
    undeclared = default_fill and fill is not None and not set(_MISSING) & set(variable.attrs)
    if variable.dtype.kind != "f":  # of unsigned codes, and of those declared valid, it is one like any other
        unsigned = variable.attrs.get("_Unsigned") == "true"
        undeclared &= not unsigned and not (variable.ndim >= 2 and set(VALID_ATTRIBUTES) & set(variable.attrs))
    if undeclared and "units" in variable.attrs and (variable.dtype.kind == "f" or packed):
        variable.attrs["_FillValue"] = variable.dtype.type(fill)


def _declare_as_signed(variable: xr.Variable) -> None:
    """Give whole numbers that _Unsigned declares unsigned, or signed, fill values as xarray compares them: _FillValue
    as signed, missing_value as the numbers are meant. Writers declare either as stored or as meant."""
    unsigned = str(variable.attrs.get("_Unsigned", "")).strip().lower()
    if unsigned not in ("true", "false") or variable.dtype.kind not in "iu":
        return
    variable.attrs["_Unsigned"] = unsigned
    whole = 1 << 8 * variable.dtype.itemsize
    told = [np.ravel(variable.attrs.pop(key, ())) for key in _MISSING]
    fills, others = ([int(code) for code in codes if np.isfinite(code)] for codes in told)
    if fills and -whole // 2 <= fills[0] < whole:  # others than these no number of the dtype equals
        code = fills[0] - whole * (fills[0] >= whole // 2)
        variable.attrs["_FillValue"] = np.dtype(f"i{variable.dtype.itemsize}").type(code)
    low, high, step = (-whole // 2, 0, whole) if unsigned == "true" else (whole // 2, whole, -whole)
    meant = [code + step * (low <= code < high) for code in (*fills[1:], *others)]
    if meant:
        variable.attrs["missing_value"] = np.array(meant) if len(meant) > 1 else meant[0]


def _numbers(value: Any) -> np.ndarray | None:
    """The numbers of an attribute, which some writers store as text; None where it holds others."""
    try:
        array = np.ravel(np.asarray(value))
        return array if array.dtype.kind in "fiu" else array.astype(np.float64)
    except (TypeError, ValueError):
        return None


def _valid_limits(name: Any, variable: xr.Variable) -> tuple[float, float] | None:
    """The smallest and the largest valid value, unpacked; the attributes that say so are taken away.

    Of packed variables whole numbers are codes and floating ones unpacked values (NetCDF User's Guide, attribute
    conventions)."""
    told = {key: _numbers(variable.attrs.pop(key)) for key in VALID_ATTRIBUTES if key in variable.attrs}
    narrow = [key for key, ends in told.items() if ends is not None and ends.dtype.kind in "iu" and ends.itemsize <= 2]
    if narrow and variable.dtype.kind == "f":
        said = f"{' and '.join(narrow)} of variable {name} are of packed values, which it does not hold any more"
        warnings.warn(f"{said}: ignored", UserWarning, stacklevel=2)
        return None
    low, high = (told.get(key) for key in ("valid_min", "valid_max"))
    both = told.get("valid_range")
    if both is not None and both.size == 2:
        low, high = both[:1], both[1:]
    ends = [_unpacked(end, variable) if end is not None and end.size else None for end in (low, high)]
    if ends == [None, None]:
        return None
    low, high = (limit if end is None else end for end, limit in zip(ends, (-np.inf, np.inf), strict=True))
    if float(variable.attrs.get("scale_factor", 1.0)) < 0 and both is not None and low > high:
        low, high = high, low
    if not low <= high:
        said = f"the valid range of variable {name} is empty, {low:g} to {high:g}, and is ignored"
        warnings.warn(said, UserWarning, stacklevel=2)
        return None
    packed = variable.dtype.kind != "f" and any(key in variable.attrs for key in _PACKING)
    step = abs(float(np.ravel(variable.attrs.get("scale_factor", 1.0))[0]))
    rounding = 0.25 * step if packed else 1e-6 * max(abs(end) for end in (low, high) if np.isfinite(end))
    return low - rounding, high + rounding


def _unpacked(end: np.ndarray, variable: xr.Variable) -> float:
    code = end[0]
    packed = any(key in variable.attrs for key in _PACKING)
    unsigned = str(variable.attrs.get("_Unsigned", "")).lower() == "true" and variable.dtype.kind == "i"
    if unsigned and end.dtype.kind != "f" and code < 0:  # floating ends are unpacked values
        code = int(code) + (1 << 8 * variable.dtype.itemsize)
    if not packed or (end.dtype.kind == "f" and variable.dtype.kind != "f"):
        return float(code)
    scale, offset = (
        float(np.ravel(variable.attrs.get(key, one))[0]) for key, one in zip(_PACKING, (1, 0), strict=True)
    )
    return float(code) * scale + offset


def _within(variable: xr.Variable, low: float, high: float) -> xr.Variable:
    if variable.dtype.kind != "f":  # whole numbers of the file cannot be missing
        variable = variable.astype(np.float64 if variable.dtype.itemsize > 2 else np.float32)
    return map_values(variable, functools.partial(within, limits=(low, high)))


def _mask_impossible_places(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with 2-D latitudes and longitudes missing where one of them cannot be, such as -9999."""
    chosen = {}
    for kind, test, names in (("lat", is_latitude, ("lat", "latitude")), ("lon", is_longitude, ("lon", "longitude"))):
        for name, variable in dataset.variables.items():
            named = "standard_name" not in variable.attrs and str(name).lower() in names
            if variable.ndim == 2 and variable.dtype.kind == "f" and (test(variable.attrs) or named):
                chosen.setdefault(kind, name)
    if len(chosen) < 2 or dataset[chosen["lat"]].dims != dataset[chosen["lon"]].dims:
        return dataset
    lat, lon = (dataset[chosen[kind]].variable for kind in ("lat", "lon"))
    wrong = impossible_places(lat.values, lon.values)
    if not wrong.any():
        return dataset
    said = f"{int(wrong.sum())} points of {chosen['lat']} and {chosen['lon']} are no places and are taken as missing"
    warnings.warn(said, UserWarning, stacklevel=2)
    masked = {
        chosen[k]: v.copy(deep=False, data=np.where(wrong, np.nan, v.values)) for k, v in (("lat", lat), ("lon", lon))
    }
    at_coords = {name: variable for name, variable in masked.items() if name in dataset.coords}
    return dataset.assign_coords(at_coords).assign({n: v for n, v in masked.items() if n not in at_coords})
