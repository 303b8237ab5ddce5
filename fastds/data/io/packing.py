# SPDX-License-Identifier: Apache-2.0
"""Packing of output fields as integers like the packed fields of the input."""

import numpy as np
import xarray as xr

from fastds._options import OptionError
from fastds.data.grid.value_checks import get_stored_kind

STORED_DTYPES = ("input", "float32")
# Steps of the output per step of the input, so that the output's rounding error is small compared with the input's.
STEPS_PER_INPUT_STEP = 8


def check_stored_dtype(dtype: str) -> None:
    """Raise ValueError for a value that is not in STORED_DTYPES."""
    if dtype not in STORED_DTYPES:
        raise OptionError("dtype", f"must be {' or '.join(STORED_DTYPES)}, got {dtype!r}")


def pack_like(dataset: xr.Dataset, source: xr.Dataset) -> xr.Dataset:
    """Pack floating-point fields as integers if the source holds the same variable, in the same units, packed.

    A step is an eighth of the source's step. Code 0 stands for the value of no echo (attribute no_echo_value). Without
    this attribute, code 0 stands for the value 0 if the values include or enclose 0, so that dry pixels stay exactly
    dry, and otherwise for the offset of the source. Codes are int16, or int32 if int16 is too small. Fields whose range
    exceeds int32 stay unpacked.

    Args:
        dataset: Dataset in memory.
        source: Dataset as returned by `open_dataset`, with the encoding of its file.

    Returns:
        xarray.Dataset; attributes scale_factor, add_offset and _FillValue describe its integers.
    """
    fields = {
        name: _pack(variable, source[name])
        for name, variable in dataset.data_vars.items()
        if variable.dtype.kind == "f"
        and variable.ndim >= 2
        and name in source
        and _has_same_packing(variable, source[name])
    }
    return dataset.assign(fields)


def _is_packed(variable: xr.DataArray) -> bool:
    return get_stored_kind(variable) in "iu" and variable.encoding.get("scale_factor") is not None


def make_packing_encoding(variable: xr.DataArray, source: xr.DataArray) -> dict | None:
    """Return the int32 encoding of a field whose values are not yet known, like that of the source.

    Args:
        variable: Field of the output; only its attributes are used.
        source: Variable of the input.

    Returns:
        dict, or None if the source is not packed or has other units.
    """
    if not _has_same_packing(variable, source):
        return None
    step, origin = _compute_step(source), _round_to_float32(variable.attrs.get("no_echo_value") or 0.0)
    return _make_encoding(step, origin, np.int32) | {"dtype": "int32"}


def _has_same_packing(variable: xr.DataArray, source: xr.DataArray) -> bool:
    """Return True if the source holds packed numbers in the units of the variable."""
    return _is_packed(source) and variable.attrs.get("units") == source.attrs.get("units")


def _compute_step(source: xr.DataArray) -> float:
    return _round_to_float32(abs(float(source.encoding["scale_factor"])) / STEPS_PER_INPUT_STEP)


def _round_to_float32(value: float) -> float:
    """Round a step or an origin to float32, since files store them so and readers decode with the rounded value."""
    return float(np.float32(value))


def _make_encoding(step: float, origin: float, dtype: type) -> dict:
    """Return the attributes that describe codes."""
    missing = dtype(np.iinfo(dtype).min)
    return {"scale_factor": np.float32(step), "add_offset": np.float32(origin), "_FillValue": missing}


def _pack(variable: xr.DataArray, source: xr.DataArray) -> xr.Variable:
    values, step = variable.values, _compute_step(source)
    low, high = np.fmin.reduce(values, None, initial=np.inf), np.fmax.reduce(values, None, initial=-np.inf)
    origin = variable.attrs.get("no_echo_value")
    if origin is None:
        origin = 0.0 if low <= 0.0 <= high else source.encoding.get("add_offset", 0.0)
    origin = _round_to_float32(origin)
    largest = max((abs(float(v) - origin) for v in (low, high) if np.isfinite(v)), default=0.0) / step + 1
    dtype = next((t for t in (np.int16, np.int32) if largest < np.iinfo(t).max), None)
    if dtype is None:
        return variable.variable
    codes = np.empty(values.shape, dtype)
    for index in np.ndindex(values.shape[:-2]):
        field = np.rint((values[index].astype(np.float64) - origin) / step)
        codes[index] = np.where(np.isfinite(field), field, np.iinfo(dtype).min)
    attrs = {name: value for name, value in variable.attrs.items() if name not in ("missing_value", "valid_range")}
    return xr.Variable(variable.dims, codes, attrs | _make_encoding(step, origin, dtype))
