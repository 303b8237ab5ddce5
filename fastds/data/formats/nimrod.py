# SPDX-License-Identifier: Apache-2.0
"""Reader of Nimrod files of the Met Office: radar composites and forecasts on the British National Grid."""

import datetime
import struct
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import xarray as xr

from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.radar.reflectivity import NO_ECHO_DBZ

_HEADER = 512
_MARK = struct.pack(">i", _HEADER)  # Fortran writes the length before and after every record
# Bytes of a header: 31 short integers, 28 real numbers, 45 product-specific real numbers, 56 characters.
_INTEGERS, _REALS, _TEXT = slice(0, 62), slice(62, 174), slice(354, 410)
_TYPES = {(0, 4): ">f4", (1, 1): ">i1", (1, 2): ">i2", (1, 4): ">i4", (2, 1): ">u1"}
_NATIONAL_GRID = 0
_DOWN, _UP = 0, 1  # position of the first cell: top left or bottom left
_BRITISH = "EPSG:27700"


class Record(NamedTuple):
    """A field of a Nimrod file.

    Attributes:
        time: Valid time.
        lead: Lead time, valid time minus data time.
        minutes: Length of the accumulation.
        units: Units as in the header.
        title: Title as in the header.
        values: (rows, columns), NaN where missing.
        y: Northings of the rows, metres.
        x: Eastings of the columns, metres.
    """

    time: datetime.datetime
    lead: datetime.timedelta
    minutes: int
    units: str
    title: str
    values: np.ndarray
    y: np.ndarray
    x: np.ndarray


def matches(probe: FileProbe) -> bool:
    """Return True if the file begins with a record of 512 bytes that holds a plausible date."""
    if not probe.header.startswith(_MARK) or len(probe.header) < _HEADER + 4:
        return False
    year, month, day = struct.unpack(">3h", probe.header[4:10])
    return 1980 < year < 2200 and 1 <= month <= 12 and 1 <= day <= 31


def read(probe: FileProbe) -> xr.Dataset:
    """Read the first field of rain rate, rain amount or reflectivity.

    If all values of this field are missing, the next field of the same title and units with values is taken. (The
    lowest of several levels may have no values.) Values are codes divided by the scale of the header, in mm h-1, mm or
    dBZ. Negative codes are missing except for dBZ. The scalar coordinate `lead` is the lead time, 0 for observations.
    Warns (UserWarning) if the file holds more than one field.

    Raises:
        ValueError: The file is truncated, is not on the British National Grid, holds other quantities, or has a header
            that is not supported.

    Source: Met Office, Nimrod file format specification 1.7 (BADC).
    """
    records = list(_iterate_records(probe))
    known = [record for record in records if _make_fields(record)]
    if not known:
        units = ", ".join(sorted({record.units for record in records}))
        raise ValueError(f"{probe.path} holds fields in {units}; expected mm/hr, mm or dBZ")
    alike = [record for record in known if (record.title, record.units) == (known[0].title, known[0].units)]
    taken = next((record for record in alike if np.isfinite(record.values).any()), alike[0])
    if len(records) > 1:
        number = 1 + next(k for k, record in enumerate(records) if record is taken)
        count, title = len(records), f"{taken.title} ({taken.units})"
        warnings.warn(
            f"Nimrod: of {count} fields in a file number {number} is taken, {title}", UserWarning, stacklevel=2
        )
    attributes = {"title": f"Met Office Nimrod {taken.title}", "institution": "Met Office"}
    axes = taken.y, taken.x
    found = cf_builder.make_projected_dataset(
        _make_fields(taken), [taken.time], axes, cf_builder.make_grid_mapping(_BRITISH, axes), **attributes
    )
    return found.assign_coords(lead=((), np.timedelta64(int(taken.lead.total_seconds()), "s")))


def _make_fields(record: Record) -> cf_builder.Fields:
    """Make the field of a record; {} for quantities other than rain and reflectivity."""
    units = record.units.lower()
    if units.startswith("mm/h"):
        return cf_builder.make_rain_rate_field(_scale_values(record))
    if units.startswith("mm") and record.minutes > 0:
        return cf_builder.make_rain_amount_field(_scale_values(record), record.minutes)
    if units.startswith("dbz"):
        return cf_builder.make_reflectivity_field(np.maximum(_scale_values(record), NO_ECHO_DBZ), NO_ECHO_DBZ)
    return {}


def _scale_values(record: Record) -> np.ndarray:
    """Return the values divided by the factor that follows `*` in the units of the header."""
    _, _, factor = record.units.partition("*")
    return record.values / float(factor or 1.0)


def _iterate_records(probe: FileProbe) -> Iterator[Record]:
    data, at = probe.read(), 0
    while at < len(data):
        header, at = _read_block(data, at, probe)
        body, at = _read_block(data, at, probe)
        yield _parse_record(header, body, probe)


def _read_block(data: bytes, at: int, probe: FileProbe) -> tuple[bytes, int]:
    """Return the bytes of the Fortran record at byte `at` and the position of the next record."""
    size = struct.unpack(">i", data[at : at + 4])[0] if len(data) >= at + 4 else -1
    end = at + 4 + size
    if size < 0 or data[end : end + 4] != data[at : at + 4]:
        raise ValueError(f"{probe.path} is truncated or damaged at byte {at}")
    return data[at + 4 : end], end + 4


def _parse_record(header: bytes, body: bytes, probe: FileProbe) -> Record:
    """Parse the header and the body of a field.

    Raises:
        ValueError: The grid is not the British National Grid, the type or number of the values does not match the
            header, the first cell is at the right, or the time is missing.
    """
    whole, real = struct.unpack(">31h", header[_INTEGERS]), struct.unpack(">28f", header[_REALS])
    form = _TYPES.get((whole[11], whole[12]))
    rows, columns, size = whole[15], whole[16], max(whole[12], 1)
    if form is None or whole[14] != _NATIONAL_GRID or len(body) != rows * columns * size:
        raise ValueError(f"{probe.path}: expected {rows} x {columns} numbers on the British National Grid")
    if whole[23] not in (_DOWN, _UP):
        raise ValueError(f"{probe.path} has its first cell at the right; expected the top or bottom left")
    stored = np.frombuffer(body, form).reshape(rows, columns)
    codes, missing = stored.astype(np.float64), whole[24]
    if form == ">f4" and real[6]:  # real values have a separate missing code; 0 means that it is not declared
        missing = real[6]
    values = np.where(cf_builder.match_code(stored, missing) | (codes < 0) & ~_is_dbz(header), np.nan, codes)
    first, dy, left, dx = real[2:6]  # centres of the first cell
    y = first + (dy if whole[23] == _UP else -dy) * np.arange(rows)
    x = left + dx * np.arange(columns)
    valid, data_time = _parse_time(whole[:6]), _parse_time((*whole[6:11], 0))
    text = header[_TEXT].decode("latin-1")
    units, title = text[:8].strip(), text[32:].strip()
    if valid is None:
        raise ValueError(f"{probe.path} has no time in its header")
    return Record(valid, valid - (data_time or valid), max(whole[25], 0), units, title, values, y, x)


def _is_dbz(header: bytes) -> bool:
    return header[_TEXT][:3].lower() == b"dbz"


def _parse_time(parts: tuple[int, ...]) -> datetime.datetime | None:
    year, month, day, hour, minute, second = (max(part, 0) for part in parts)
    return datetime.datetime(year, month, day, hour, minute, second) if year else None


FORMAT = Format(name="Nimrod", files="composites of the Met Office", matches=matches, read=read, order=120)
