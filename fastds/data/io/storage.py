# SPDX-License-Identifier: Apache-2.0
"""Encodings that store every value of a variable, and attributes of storable types."""

import math
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.times import time_encoding

_ENCODING_KEYS = ("_FillValue", "dtype", "scale_factor", "add_offset", "units", "calendar")
_PACKING = ("dtype", "scale_factor", "add_offset", "_FillValue")
_CALENDAR_UNITS = ("month", "year", "common_year")
_STANDARD_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_BLOCK_SIZE = 1 << 22  # number of values in memory while a variable is checked
# Largest distance of a value from a code, in steps, at which the value counts as decoded from this code.
_CODE_TOLERANCE = 0.01


def iterate_blocks(variable: xr.Variable) -> Iterator[np.ndarray]:
    """Yield the values of a variable in blocks along its first dimension, so that a memory map is not copied whole."""
    if variable.ndim == 0:
        yield variable.values
        return
    rows = max(1, _BLOCK_SIZE // max(1, math.prod(variable.shape[1:])))
    for start in range(0, variable.shape[0], rows):
        yield np.asarray(variable[start : start + rows].values)


class Packing:
    """Packing value = scale_factor * code + add_offset of an encoding.

    Args:
        encoding: Encoding of a variable, with an integer dtype.

    Attributes:
        tolerance: Largest distance in steps between a value and its code. It is half a step for a packing that a user
            requests, and nearly zero for the packing of the file from which the values were read.
    """

    def __init__(self, encoding: dict[str, Any]):
        self.dtype = np.dtype(encoding["dtype"])
        self.scale = float(encoding.get("scale_factor", 1.0))
        self.offset = float(encoding.get("add_offset", 0.0))
        self.fill = encoding.get("_FillValue")
        self.tolerance = _CODE_TOLERANCE if "source" in encoding else 0.5

    def fits(self, values: np.ndarray) -> bool:
        """Return True if the packing can store every value.

        Every value must be near a code other than _FillValue, and missing values need a _FillValue.
        """
        present = values[~np.isnan(values)].astype(np.float64)
        if self.fill is None and present.size < values.size:
            return False
        if not present.size:
            return True
        if not self.scale or not np.isfinite(present).all():
            return False
        codes = np.rint((present - self.offset) / self.scale)
        limits = np.iinfo(self.dtype)
        if codes.min() < limits.min or codes.max() > limits.max:
            return False
        if self.fill is not None and (codes == float(self.fill)).any():
            return False
        rounding = 2 * np.finfo(values.dtype).eps * np.abs(present).max()  # rounding error of decoding
        error = np.abs(codes * self.scale + self.offset - present).max()
        return bool(error <= max(self.tolerance * abs(self.scale) * (1 + 1e-6), rounding))


def find_packing(variable: xr.Variable) -> Packing | None:
    """Return the packing in the encoding of a floating-point variable, or None."""
    dtype = variable.encoding.get("dtype")
    if variable.dtype.kind != "f" or dtype is None or np.dtype(dtype).kind not in "iu":
        return None
    return Packing(variable.encoding)


def choose_encoding(dataset: xr.Dataset, name: Hashable, unpacked: frozenset[Hashable]) -> dict[str, Any]:
    """Choose an encoding that stores all values of a variable.

    The packing of the variable's encoding is used if every value fits it, else values are stored as floating-point
    numbers. For dask arrays the packing is returned unchecked, since values are known only after writing. Times get the
    unit of their encoding if whole numbers of it suffice, else a finer one.

    Args:
        dataset: Dataset that is written.
        name: Name of the variable.
        unpacked: Names of variables that are stored as floating-point numbers whatever their encoding.
    """
    variable = dataset[name].variable
    encoding = {key: value for key, value in variable.encoding.items() if key in _ENCODING_KEYS}
    if str(encoding.get("units", "")).strip().lower().startswith(_CALENDAR_UNITS):  # xarray cannot write these
        del encoding["units"]
    kind = variable.dtype.kind
    if kind == "f":
        return _encode_floats(variable, encoding, name in unpacked)
    if kind in "iu":
        return _encode_integers(variable, encoding)
    if kind in "MO" and "units" in encoding and (times := _encode_times(dataset, name)):
        encoding.pop("_FillValue", None)  # that of times stored as floating-point numbers would not fit
        encoding |= times
    return encoding


def _encode_floats(variable: xr.Variable, encoding: dict[str, Any], unpacked: bool) -> dict[str, Any]:
    """Return an encoding of a floating-point variable that stores all its values.

    Args:
        variable: Variable.
        encoding: Its encoding.
        unpacked: Whether to store the values without packing.
    """
    packing = find_packing(variable)
    if packing is not None and not unpacked and (variable.chunks or all(map(packing.fits, iterate_blocks(variable)))):
        return encoding
    stored = np.dtype(encoding.get("dtype", variable.dtype))
    fill = encoding.get("_FillValue")
    if packing is not None or "scale_factor" in encoding or "add_offset" in encoding:
        encoding = {key: value for key, value in encoding.items() if key not in _PACKING}
        fill = None
    elif stored.kind != "f" or stored.itemsize < 4 or (stored.itemsize < variable.dtype.itemsize and unpacked):
        encoding.pop("dtype", None)
    if variable.ndim <= 1:
        encoding.setdefault("_FillValue", None if fill is None else variable.dtype.type(fill))
        return encoding
    taken = fill is None or (not variable.chunks and any((block == fill).any() for block in iterate_blocks(variable)))
    if taken or unpacked or variable.chunks:
        encoding["_FillValue"] = variable.dtype.type("nan")
    return encoding


def _encode_integers(variable: xr.Variable, encoding: dict[str, Any]) -> dict[str, Any]:
    """Return an encoding that stores integers unchanged.

    Narrower dtypes, packing and a _FillValue that occurs among the values are dropped.
    """
    fill = encoding.get("_FillValue")
    encoding = {key: value for key, value in encoding.items() if key not in _PACKING}
    stored = fill is not None and not variable.chunks and np.can_cast(np.min_scalar_type(fill), variable.dtype)
    if stored and not any((block == fill).any() for block in iterate_blocks(variable)):
        encoding["_FillValue"] = variable.dtype.type(fill)
    return encoding


def _encode_times(dataset: xr.Dataset, name: Hashable) -> dict[str, Any]:
    """Return an encoding that stores times and their bounds exactly; {} if a time is missing."""
    variable = dataset[name].variable
    times = [np.ravel(variable.values)]
    metadata = variable.encoding | variable.attrs
    bounds = metadata.get("bounds") or metadata.get("climatology")
    if bounds in dataset.variables and dataset[bounds].dtype.kind == variable.dtype.kind:
        times.append(np.ravel(dataset[bounds].values))
    values = np.concatenate(times)
    dated = values.dtype.kind == "M"
    if not values.size or (np.isnat(values).any() if dated else not all(hasattr(v, "calendar") for v in values)):
        return {}
    encoding = dict(variable.encoding)
    calendar = str(encoding.get("calendar", "")).lower()
    if calendar not in _STANDARD_CALENDARS if dated else calendar != values[0].calendar:
        encoding.pop("calendar", None)
    return time_encoding(values, encoding)


def make_attributes_storable(dataset: xr.Dataset) -> xr.Dataset:
    """Return a shallow copy of a dataset whose attributes can be stored in files.

    None is left out, booleans become 0 or 1, and text that is not valid UTF-8 is decoded as Latin-1.

    Raises:
        ValueError: An attribute has another type. The message names it.
    """
    dataset = dataset.copy(deep=False)
    holder: Any
    for holder, owner in [
        (dataset, "global attribute"),
        *((v, f"attribute of {n},") for n, v in dataset.variables.items()),
    ]:
        holder.attrs = {
            key: _make_storable(value, f"{owner} {key}") for key, value in holder.attrs.items() if value is not None
        }
    return dataset


def decode_text(text: str | bytes) -> str:
    """Decode the text of an attribute as UTF-8, or as Latin-1 if it is not valid UTF-8."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _make_storable(value: Any, where: str) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (str, bytes)):
        return decode_text(value)
    if isinstance(value, (int, float, np.number)):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind == "b":
        return array.astype(np.int8)
    if array.dtype.kind in "iuf":
        return value
    if array.dtype.kind in "USO" and array.ndim <= 1 and all(isinstance(text, (str, bytes)) for text in array.flat):
        return [decode_text(text) for text in array.flat] if array.ndim else decode_text(array.item())
    raise ValueError(f"{where} is a {type(value).__name__}; files hold text, numbers and lists of these")
