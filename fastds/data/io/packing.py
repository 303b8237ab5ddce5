# SPDX-License-Identifier: Apache-2.0
"""Fields stored as integers, as those were that they are made from."""

import numpy as np
import xarray as xr

from fastds.data.grid.plausible import stored_kind

STORED = ("input", "float32")
# Steps of the result in one step of the input: what rounding adds is small beside what it has lost before.
FINER = 8


def check_stored(dtype: str) -> None:
    """ValueError for what is none of STORED."""
    if dtype not in STORED:
        raise ValueError(f"dtype must be {' or '.join(STORED)}, got {dtype!r}")


def packed_like(dataset: xr.Dataset, source: xr.Dataset) -> xr.Dataset:
    """The dataset with its floating fields as integers where the source holds the same variable, in the same units, so.

    A step is an eighth of that of the source. Code 0 is the value of no echo (the attribute no_echo_value); else zero
    where zero lies among the values, so that dry stays exactly dry; else the offset of the source. Codes are int16, or
    int32 where those do not reach; fields that these do not hold either stay as they are.

    Args: dataset: fields in memory. source: as open_dataset gives it, with the encoding of its file.
    Returns: Dataset; attributes scale_factor, add_offset and _FillValue say how to read its integers.
    """
    fields = {
        name: _packed(variable, source[name])
        for name, variable in dataset.data_vars.items()
        if variable.dtype.kind == "f" and variable.ndim >= 2 and name in source and _alike(variable, source[name])
    }
    return dataset.assign(fields)


def _is_packed(variable: xr.DataArray) -> bool:
    return stored_kind(variable) in "iu" and variable.encoding.get("scale_factor") is not None


def packing(variable: xr.DataArray, source: xr.DataArray) -> dict | None:
    """The encoding with which a field of unknown values is stored as those of the source are, as int32; None where the
    source has floating numbers or other units."""
    if not _alike(variable, source):
        return None
    step, origin = _step(source), _stored(variable.attrs.get("no_echo_value") or 0.0)
    return _how(step, origin, np.int32) | {"dtype": "int32"}


def _alike(variable: xr.DataArray, source: xr.DataArray) -> bool:
    """Whether the source holds packed numbers of the same units."""
    return _is_packed(source) and variable.attrs.get("units") == source.attrs.get("units")


def _step(source: xr.DataArray) -> float:
    return _stored(abs(float(source.encoding["scale_factor"])) / FINER)


def _stored(value: float) -> float:
    """As a file holds a step or an origin, in float32: codes are counted in what they are read with."""
    return float(np.float32(value))


def _how(step: float, origin: float, dtype: type) -> dict:
    """What a file says about its codes."""
    missing = dtype(np.iinfo(dtype).min)
    return {"scale_factor": np.float32(step), "add_offset": np.float32(origin), "_FillValue": missing}


def _packed(variable: xr.DataArray, source: xr.DataArray) -> xr.Variable:
    values, step = variable.values, _step(source)
    low, high = np.fmin.reduce(values, None, initial=np.inf), np.fmax.reduce(values, None, initial=-np.inf)
    origin = variable.attrs.get("no_echo_value")
    if origin is None:
        origin = 0.0 if low <= 0.0 <= high else source.encoding.get("add_offset", 0.0)
    origin = _stored(origin)
    reach = max((abs(float(v) - origin) for v in (low, high) if np.isfinite(v)), default=0.0) / step + 1
    dtype = next((t for t in (np.int16, np.int32) if reach < np.iinfo(t).max), None)
    if dtype is None:
        return variable.variable
    codes = np.empty(values.shape, dtype)
    for index in np.ndindex(values.shape[:-2]):
        field = np.rint((values[index].astype(np.float64) - origin) / step)
        codes[index] = np.where(np.isfinite(field), field, np.iinfo(dtype).min)
    kept = {name: value for name, value in variable.attrs.items() if name not in ("missing_value", "valid_range")}
    return xr.Variable(variable.dims, codes, kept | _how(step, origin, dtype))
