# SPDX-License-Identifier: Apache-2.0
"""Nimrod files of the Met Office: radar composites and forecasts on the British National Grid."""

import datetime
import struct
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr

from fastds.data.formats import maps
from fastds.data.formats.contents import Contents
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_HEADER = 512
_MARK = struct.pack(">i", _HEADER)  # Fortran writes the length before and after every record
# Bytes of a header: 31 short whole numbers, 28 real numbers, 45 more of the product, 56 letters.
_INTEGERS, _REALS, _TEXT = slice(0, 62), slice(62, 174), slice(354, 410)
_TYPES = {(0, 4): ">f4", (1, 1): ">i1", (1, 2): ">i2", (1, 4): ">i4", (2, 1): ">u1"}
_NATIONAL_GRID = 0
_DOWN, _UP = 0, 1  # the first cell is the top left or the bottom left one
_BRITISH = "EPSG:27700"


class Record(NamedTuple):
    """A field of a file: valid time, time ahead of the data, minutes of accumulation, units, title, codes, y and x."""

    time: datetime.datetime
    lead: datetime.timedelta
    minutes: int
    units: str
    title: str
    values: np.ndarray
    y: np.ndarray
    x: np.ndarray


def recognises(contents: Contents) -> bool:
    """True for a record of 512 bytes with a plausible date and grid."""
    if not contents.start.startswith(_MARK) or len(contents.start) < _HEADER + 4:
        return False
    year, month, day = struct.unpack(">3h", contents.start[4:10])
    return 1980 < year < 2200 and 1 <= month <= 12 and 1 <= day <= 31


def read(contents: Contents) -> xr.Dataset:
    """Read the first field of rain rate or amount, or reflectivity; where it has no values, as the lowest of several
    levels may, the next of the same quantity that has. Warns (UserWarning) that a file holds more fields than that.

    Values are codes over the scale of the header (mm h-1, mm, dBZ); negative codes are missing. The scalar coordinate
    `lead` is the time ahead of the data; 0 for observations.

    Raises: ValueError for a truncated file, another grid than the British National Grid, and other quantities.
    Source: Met Office, Nimrod file format specification 1.7 (BADC).
    """
    records = list(_records(contents))
    known = [record for record in records if _fields(record)]
    if not known:
        units = ", ".join(sorted({record.units for record in records}))
        raise ValueError(f"{contents.path} holds fields in {units}; expected mm/hr, mm or dBZ")
    alike = [record for record in known if (record.title, record.units) == (known[0].title, known[0].units)]
    taken = next((record for record in alike if np.isfinite(record.values).any()), alike[0])
    if len(records) > 1:
        number = 1 + next(k for k, record in enumerate(records) if record is taken)
        said = f"Nimrod: of {len(records)} fields in a file number {number} is taken, {taken.title} ({taken.units})"
        warnings.warn(said, UserWarning, stacklevel=2)
    named = {"title": f"Met Office Nimrod {taken.title}", "institution": "Met Office"}
    axes = taken.y, taken.x
    found = maps.projected_map(_fields(taken), [taken.time], axes, maps.projection(_BRITISH, axes), **named)
    return found.assign_coords(lead=((), np.timedelta64(int(taken.lead.total_seconds()), "s")))


def _fields(record: Record) -> maps.Fields:
    """The field of a record; {} for quantities that are no radar map."""
    units = record.units.lower()
    if units.startswith("mm/h"):
        return maps.rainfall_rate(_scaled(record))
    if units.startswith("mm") and record.minutes > 0:
        return maps.rainfall_amount(_scaled(record), record.minutes)
    if units.startswith("dbz"):
        return maps.reflectivity(np.maximum(_scaled(record), NO_ECHO_DBZ), NO_ECHO_DBZ)
    return {}


def _scaled(record: Record) -> np.ndarray:
    """Values in the unit before the `*` of the header's units, which says by how much codes are multiplied."""
    _, _, factor = record.units.partition("*")
    return record.values / float(factor or 1.0)


def _records(contents: Contents) -> Iterator[Record]:
    data, at = contents.read(), 0
    while at < len(data):
        header, at = _block(data, at, contents)
        body, at = _block(data, at, contents)
        yield _record(header, body, contents)


def _block(data: bytes, at: int, contents: Contents) -> tuple[bytes, int]:
    """A record between its two lengths, and where the next begins."""
    size = struct.unpack(">i", data[at : at + 4])[0] if len(data) >= at + 4 else -1
    end = at + 4 + size
    if size < 0 or data[end : end + 4] != data[at : at + 4]:
        raise ValueError(f"{contents.path} is truncated or damaged at byte {at}")
    return data[at + 4 : end], end + 4


def _record(header: bytes, body: bytes, contents: Contents) -> Record:
    whole, real = struct.unpack(">31h", header[_INTEGERS]), struct.unpack(">28f", header[_REALS])
    form = _TYPES.get((whole[11], whole[12]))
    rows, columns, size = whole[15], whole[16], max(whole[12], 1)
    if form is None or whole[14] != _NATIONAL_GRID or len(body) != rows * columns * size:
        raise ValueError(f"{contents.path}: expected {rows} x {columns} numbers on the British National Grid")
    if whole[23] not in (_DOWN, _UP):
        raise ValueError(f"{contents.path} has its first cell at the right; expected the top or bottom left")
    stored = np.frombuffer(body, form).reshape(rows, columns)
    codes, missing = stored.astype(np.float64), whole[24]
    if form == ">f4" and real[6]:  # real numbers have a code of their own; 0 is a header that does not tell it
        missing = real[6]
    values = np.where(maps.equals_code(stored, missing) | (codes < 0) & ~_is_dbz(header), np.nan, codes)
    first, dy, left, dx = real[2:6]  # centres of the first cell
    y = first + (dy if whole[23] == _UP else -dy) * np.arange(rows)
    x = left + dx * np.arange(columns)
    valid, data_time = _moment(whole[:6]), _moment((*whole[6:11], 0))
    text = header[_TEXT].decode("latin-1")
    units, title = text[:8].strip(), text[32:].strip()
    if valid is None:
        raise ValueError(f"{contents.path} has no time in its header")
    return Record(valid, valid - (data_time or valid), max(whole[25], 0), units, title, values, y, x)


def _is_dbz(header: bytes) -> bool:
    return header[_TEXT][:3].lower() == b"dbz"


def _moment(parts: tuple[int, ...]) -> datetime.datetime | None:
    year, month, day, hour, minute, second = (max(part, 0) for part in parts)
    return datetime.datetime(year, month, day, hour, minute, second) if year else None
