# SPDX-License-Identifier: Apache-2.0
"""How variables are stored: encodings that hold every value, and attributes of kinds that files can hold."""

import math
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.grid.times import time_encoding

_KEPT = ("_FillValue", "dtype", "scale_factor", "add_offset", "units", "calendar")
_PACKING = ("dtype", "scale_factor", "add_offset", "_FillValue")
_CALENDAR_UNITS = ("month", "year", "common_year")
_STANDARD_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
_BLOCK = 1 << 22  # values that are looked at in one go
# Distance from the codes of a packing, as a share of its step, at which values still count as unpacked codes.
_ON_CODES = 0.01


def iterate_blocks(variable: xr.Variable) -> Iterator[np.ndarray]:
    """The values of a variable in parts along its first dimension, so that a map of a file is never copied whole."""
    if variable.ndim == 0:
        yield variable.values
        return
    rows = max(1, _BLOCK // max(1, math.prod(variable.shape[1:])))
    for start in range(0, variable.shape[0], rows):
        yield np.asarray(variable[start : start + rows].values)


class Packing:
    """The packing in an encoding: value = scale_factor * code + add_offset.

    Args:
        encoding: of a variable, with an integer dtype.

    Attributes: tolerance, the largest distance from a code, as a share of a step, at which a value fits: half a step
        where somebody asks for the packing, next to none where it is only that of the file the values were read from.
    """

    def __init__(self, encoding: dict[str, Any]):
        self.dtype = np.dtype(encoding["dtype"])
        self.scale = float(encoding.get("scale_factor", 1.0))
        self.offset = float(encoding.get("add_offset", 0.0))
        self.fill = encoding.get("_FillValue")
        self.tolerance = _ON_CODES if "source" in encoding else 0.5

    def fits(self, values: np.ndarray) -> bool:
        """Return True if every value is the decoded value of a code, and of another code than _FillValue."""
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
        rounding = 2 * np.finfo(values.dtype).eps * np.abs(present).max()  # of the arithmetic that decoded them
        error = np.abs(codes * self.scale + self.offset - present).max()
        return bool(error <= max(self.tolerance * abs(self.scale) * (1 + 1e-6), rounding))


def packing_of(variable: xr.Variable) -> Packing | None:
    """The packing that the encoding of a floating variable asks for; None where it asks for none."""
    dtype = variable.encoding.get("dtype")
    if variable.dtype.kind != "f" or dtype is None or np.dtype(dtype).kind not in "iu":
        return None
    return Packing(variable.encoding)


def choose_encoding(dataset: xr.Dataset, name: Hashable, unpacked: frozenset[Hashable]) -> dict[str, Any]:
    """The encoding of a variable that holds all its values.

    The packing of the variable's own encoding is taken where every value fits it (Packing.fits), else floating numbers
    are stored as they are. Of dask arrays that is found out while they are written. Times get the unit of their
    encoding where whole numbers of it suffice, else a finer one.

    Args:
        dataset: what is written. name: of the variable.
        unpacked: variables that are stored as floating numbers whatever their encoding says.
    """
    variable = dataset[name].variable
    encoding = {key: value for key, value in variable.encoding.items() if key in _KEPT}
    if str(encoding.get("units", "")).strip().lower().startswith(_CALENDAR_UNITS):  # xarray reads but cannot write them
        del encoding["units"]
    kind = variable.dtype.kind
    if kind == "f":
        return _encode_floats(variable, encoding, name in unpacked)
    if kind in "iu":
        return _encode_integers(variable, encoding)
    if kind in "MO" and "units" in encoding:
        encoding |= _encode_times(dataset, name)
    return encoding


def _encode_floats(variable: xr.Variable, encoding: dict[str, Any], unpacked: bool) -> dict[str, Any]:
    packing = packing_of(variable)
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
    """Whole numbers stay as they are: a narrower dtype, a packing or a _FillValue among them would change some."""
    fill = encoding.get("_FillValue")
    encoding = {key: value for key, value in encoding.items() if key not in _PACKING}
    stored = fill is not None and not variable.chunks and np.can_cast(np.min_scalar_type(fill), variable.dtype)
    if stored and not any((block == fill).any() for block in iterate_blocks(variable)):
        encoding["_FillValue"] = variable.dtype.type(fill)
    return encoding


def _encode_times(dataset: xr.Dataset, name: Hashable) -> dict[str, Any]:
    """An encoding that holds times and their bounds exactly; that of the variable where a time is missing."""
    variable = dataset[name].variable
    times = [np.ravel(variable.values)]
    told = variable.encoding | variable.attrs
    bounds = told.get("bounds") or told.get("climatology")
    if bounds in dataset.variables and dataset[bounds].dtype.kind == variable.dtype.kind:
        times.append(np.ravel(dataset[bounds].values))
    values = np.concatenate(times)
    dated = values.dtype.kind == "M"
    if not values.size or (np.isnat(values).any() if dated else not all(hasattr(v, "calendar") for v in values)):
        return {}
    told = dict(variable.encoding)
    calendar = str(told.get("calendar", "")).lower()
    if calendar not in _STANDARD_CALENDARS if dated else calendar != values[0].calendar:
        told.pop("calendar", None)
    return time_encoding(values, told)


def storable_attributes(dataset: xr.Dataset) -> xr.Dataset:
    """A shallow copy whose attributes are of kinds that files hold: None is left out, truth values become 0 or 1, text
    that a reader could not decode is read as Latin-1.

    Raises: ValueError for an attribute of another kind, naming it."""
    dataset = dataset.copy(deep=False)
    for holder, owner in [
        (dataset, "global attribute"),
        *((v, f"attribute of {n},") for n, v in dataset.variables.items()),
    ]:
        holder.attrs = {
            key: _storable(value, f"{owner} {key}") for key, value in holder.attrs.items() if value is not None
        }
    return dataset


def decode_text(text: str | bytes) -> str:
    """The text of an attribute: UTF-8, or Latin-1 where it is no UTF-8."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _storable(value: Any, where: str) -> Any:
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
