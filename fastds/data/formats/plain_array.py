# SPDX-License-Identifier: Apache-2.0
"""Raw binary files of numbers without metadata, whose layout the user describes."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import xarray as xr

from fastds._options import OptionError
from fastds.data.formats import cf_builder
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.grid.axes import find_rows_and_columns
from fastds.data.grid.grids import find_grid_mappings, find_latitude_longitude
from fastds.data.grid.times import parse_utc_text
from fastds.data.grid.variables import list_fields, parse_duration

SUFFIXES = (".bin", ".dat", ".raw")  # also followed by .gz or .bz2
OpenGrid = Callable[[str], xr.Dataset]
ORDERS = ("north_first", "south_first")
_COMPRESSED = (".gz", ".bz2")


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """Layout and meaning of the numbers of a raw binary file.

    Args:
        shape: (H, W), or (T, H, W) for several times; rows and columns are the last two.
        dtype: NumPy type of the numbers with its byte order, such as "<f4", ">i2" or "u1".
        offset: number of bytes before the numbers.
        grid: file with a field on the grid of the numbers, whose coordinates are used; None: none.
        bounds: outer limits of the cells in degrees: south, north, west, east; None: none.
        missing: number in the file that stands for missing data; None: NaN only.
        scale_factor: factor of the numbers in the file.
        add_offset: summand after the factor.
        units: units of the values.
        name: name of the variable.
        standard_name: CF standard name.
        no_echo: value that means no echo, in `units`.
        time: first time, such as "2024-01-01T00:00", or a pattern of the file name with the directives of strptime,
            such as "rain_%Y%m%d%H%M.bin".
        step: time step, such as "5min".
        order: "north_first" or "south_first": the first row. None: north_first, or that of `grid`.

    Raises:
        OptionError: an invalid value.
    """

    shape: Sequence[int]
    dtype: str
    offset: int = 0
    grid: str | os.PathLike | None = None
    bounds: Sequence[float] | None = None
    missing: float | None = None
    scale_factor: float = 1.0
    add_offset: float = 0.0
    units: str | None = None
    name: str = "field"
    standard_name: str | None = None
    no_echo: float | None = None
    time: str | None = None
    step: str | None = None
    order: str | None = None

    def __post_init__(self):
        is_sequence = isinstance(self.shape, list | tuple | np.ndarray) and 2 <= len(self.shape) <= 3
        if not is_sequence or not all(isinstance(n, Integral) and n > 0 for n in self.shape):
            found = _join(self.shape) if isinstance(self.shape, list | tuple) else repr(self.shape)
            raise OptionError("shape", f"must be H,W or T,H,W, got {found}")
        try:
            is_number = np.dtype(self.dtype).kind in "fiu"
        except TypeError:
            is_number = False
        if not is_number:
            raise OptionError("dtype", f"must be a type of numbers such as <f4, >i2 or u1, got {self.dtype!r}")
        if self.offset < 0:
            raise OptionError("offset", f"must be a number of bytes, got {self.offset}")
        if self.bounds is not None:
            self._check_bounds(tuple(self.bounds))
        if not self.name:
            raise OptionError("name", "must be a name of the variable, got an empty one")
        if self.order not in (None, *ORDERS):
            raise OptionError("order", f"must be {' or '.join(ORDERS)}, got {self.order!r}")
        for name in ("scale_factor", "add_offset", "missing", "no_echo"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or (name == "scale_factor" and value == 0)):
                raise OptionError(name, f"must be a finite number{' but 0' * (value == 0)}, got {value:g}")
        self._check_times()

    def _check_bounds(self, bounds: tuple[float, ...]) -> None:
        if self.grid is not None:
            raise OptionError("bounds", "must not be given together with grid")
        if len(bounds) != 4 or not all(map(math.isfinite, bounds)):
            raise OptionError("bounds", f"must be south,north,west,east in degrees, got {_join(bounds)}")
        south, north, west, east = bounds
        if not (-90 <= south < north <= 90 and west < east <= west + 360 and west >= -360):
            raise OptionError("bounds", f"must be south < north and west < east in degrees, got {_join(bounds)}")

    def _check_times(self) -> None:
        if self.step is not None:
            if self.time is None or len(self.shape) < 3:
                raise OptionError("step", "needs the time of the first field, and a shape T,H,W")
            parse_duration(self.step, "step")
        elif self.time is not None and len(self.shape) == 3 and self.shape[0] > 1:
            raise OptionError("step", f"must be given for {self.shape[0]} times, such as step=5min")
        if self.time is not None and "%" not in self.time:
            self.find_time(None)

    def find_time(self, path: pathlib.Path | None) -> np.datetime64:
        """Return the first time of a file.

        Args:
            path: the file; None for a time that does not depend on it.

        Raises:
            OptionError: the time is no date, or the name of the file does not match the pattern.
        """
        text = str(self.time)
        try:
            if path is not None and "%" in text:
                return np.datetime64(datetime.datetime.strptime(path.name, text), "ns")
            return np.datetime64(parse_utc_text(text) or "no date", "ns")
        except ValueError:
            if "%" in text and path is not None:
                raise OptionError("time", f"must match the name of the file, got {text!r} for {path.name}") from None
            message = f"must be a date such as 2024-01-01T00:00 or a pattern of file names, got {text!r}"
            raise OptionError("time", message) from None

    @property
    def size(self) -> int:
        """Size of a file in bytes."""
        return self.offset + math.prod(self.shape) * np.dtype(self.dtype).itemsize


def _join(values: Sequence) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


_KEYS = {field.name: field for field in dataclasses.fields(ArrayLayout)}


def _parse_whole(text: str) -> int:
    return int(text, 10)


_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "shape": (lambda text: tuple(map(_parse_whole, text.split(","))), "whole numbers H,W or T,H,W"),
    "offset": (_parse_whole, "a whole number of bytes"),
    "bounds": (lambda text: tuple(map(float, text.split(","))), "south,north,west,east in degrees"),
    **dict.fromkeys(("missing", "scale_factor", "add_offset", "no_echo"), (float, "a number")),
}


def parse_layout(text: str) -> ArrayLayout:
    """Parse a layout as text: KEY=VALUE with the arguments of ArrayLayout, separated by spaces.

    Args:
        text: such as "shape=500,500 dtype=<f4 missing=-99 units='mm h-1'"; quotes protect spaces.

    Raises:
        OptionError: an unknown, repeated or missing key, or an invalid value. The message names the key.
    """
    given: dict[str, Any] = {}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise OptionError("array", f"must be KEY=VALUE separated by spaces, got {text!r} ({error})") from None
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise OptionError("array", f"must be KEY=VALUE separated by spaces, got {word!r}")
        if key not in _KEYS:
            raise OptionError("array", f"has no key {key}, which takes {', '.join(_KEYS)}")
        if key in given:
            raise OptionError("array", f"has the key {key} twice")
        parse, expected = _PARSERS.get(key, (str, ""))
        try:
            given[key] = parse(value)
        except ValueError:
            raise OptionError("array", f": {key} must be {expected}, got {value!r}") from None
    lacking = [key for key in ("shape", "dtype") if key not in given]
    if lacking:
        raise OptionError("array", f"needs the key {lacking[0]}, such as shape=500,500 dtype=<f4")
    try:
        return ArrayLayout(**given)
    except OptionError as error:
        raise _name_array(error) from None


def is_plain_array(path: str | os.PathLike) -> bool:
    """Return whether the suffix of a file is one of raw binary files."""
    path = pathlib.Path(path)
    suffix = path.with_suffix("").suffix if path.suffix.lower() in _COMPRESSED else path.suffix
    return suffix.lower() in SUFFIXES


def make_format(array: ArrayLayout | str, count: int, open_grid: OpenGrid) -> Format:
    """Return the format of the files of an input with a layout.

    Args:
        array: layout of each file, or its text, see parse_layout.
        count: number of files.
        open_grid: function that opens the file of the grid.

    Raises:
        OptionError: an invalid text, or several files with one time.
    """
    layout = parse_layout(array) if isinstance(array, str) else array

    def read(probe: FileProbe) -> xr.Dataset:
        try:
            return read_array(probe, layout, open_grid)
        except OptionError as error:
            raise _name_array(error) if isinstance(array, str) else error from None

    if count > 1 and "%" not in str(layout.time):
        message = f"must be a pattern of file names such as rain_%Y%m%d%H%M.bin for {count} files"
        error = OptionError("time", message)
        raise _name_array(error) if isinstance(array, str) else error
    return Format("plain array", "raw binary files", is_matching, read, -1)


def _name_array(error: OptionError) -> OptionError:
    """Return an error of a key as one of the argument `array`."""
    return OptionError("array", f": {error.name}{'' if error.message[:1] in (':', ',') else ' '}{error.message}")


def is_matching(probe: FileProbe) -> bool:
    """Return whether a file is read as a plain array, which only its suffix tells."""
    return is_plain_array(probe.path)


def read_array(probe: FileProbe, layout: ArrayLayout, open_grid: OpenGrid) -> xr.Dataset:
    """Read a file of raw numbers.

    Args:
        probe: the file, which may be compressed.
        layout: its layout.
        open_grid: function that opens the file of the grid.

    Raises:
        OptionError: the size of the file or its name does not fit the layout, or the grid has another size.
    """
    data = probe.read()
    if len(data) != layout.size:
        needed = f"{layout.size} bytes, {_join(layout.shape)} numbers of {np.dtype(layout.dtype).itemsize} bytes"
        needed += f" after {layout.offset}" * (layout.offset > 0)
        raise OptionError("shape", f"must fit {probe.path}, which has {len(data)} bytes, got {needed}")
    numbers = np.frombuffer(data, layout.dtype, offset=layout.offset).reshape(layout.shape)
    if (layout.scale_factor, layout.add_offset) == (1.0, 0.0):
        values = numbers.astype(np.float32)
    else:
        values = (numbers.astype(np.float64) * layout.scale_factor + layout.add_offset).astype(np.float32)
    if layout.missing is not None:
        values[cf_builder.match_code(numbers, layout.missing)] = np.nan
    attrs = {"units": layout.units, "standard_name": layout.standard_name, "no_echo_value": layout.no_echo}
    attrs = {key: value for key, value in attrs.items() if value is not None}
    template, rows, columns = _find_coordinates(layout, open_grid)
    times = _make_times(layout, probe.path)
    lead: list[Any] = ["time"] if len(layout.shape) == 3 or times is not None else []
    if len(lead) > values.ndim - 2:
        values = values[None]
    made = template.assign({layout.name: ((*lead, rows, columns), values, attrs)})
    mappings = [name for name in template.data_vars if template[name].ndim == 0]
    if mappings:
        made[layout.name].attrs["grid_mapping"] = mappings[0]
    if times is not None:
        made = made.assign_coords(time=("time", times, {"standard_name": "time", "axis": "T"}))
    return made.assign_attrs(Conventions="CF-1.8")


def _make_times(layout: ArrayLayout, path: pathlib.Path) -> np.ndarray | None:
    if layout.time is None:
        return None
    count = layout.shape[0] if len(layout.shape) == 3 else 1
    seconds = parse_duration(layout.step, "step") if layout.step is not None else 0.0
    return layout.find_time(path) + (np.arange(count) * seconds * 1e9).astype("timedelta64[ns]")


def _find_coordinates(layout: ArrayLayout, open_grid: OpenGrid) -> tuple[xr.Dataset, str, str]:
    """Return a dataset with the coordinates and the grid mapping of the numbers, and the names of its dimensions."""
    height, width = layout.shape[-2:]
    if layout.grid is not None:
        return _read_grid(layout, open_grid)
    if layout.bounds is None:
        return xr.Dataset(), "y", "x"
    south, north, west, east = layout.bounds
    step = (north - south) / height
    latitude = cf_builder.compute_cell_centres(north, -step, height)
    axes = {
        "latitude": latitude if layout.order != "south_first" else latitude[::-1],
        "longitude": cf_builder.compute_cell_centres(west, (east - west) / width, width),
    }
    units = {"latitude": "degrees_north", "longitude": "degrees_east"}
    coordinates = {name: (name, values, {"standard_name": name, "units": units[name]}) for name, values in axes.items()}
    return xr.Dataset(coords=coordinates), "latitude", "longitude"


def _read_grid(layout: ArrayLayout, open_grid: OpenGrid) -> tuple[xr.Dataset, str, str]:
    """Read the coordinates of the first field of a file with the size of the numbers."""
    height, width = layout.shape[-2:]
    with open_grid(os.fspath(layout.grid or "")) as dataset:
        sizes = []
        for name in list_fields(dataset):
            field = dataset[name]
            rows, columns = find_rows_and_columns(field, field.dims)
            if rows is None or columns is None:
                rows, columns = field.dims[-2:]
            sizes.append(f"{field.sizes[rows]},{field.sizes[columns]}")
            if sizes[-1] == f"{height},{width}":
                break
        else:
            raise OptionError("grid", f"must have a field of {height},{width} points, got {', '.join(sizes) or 'none'}")
        coordinates = {n: c.load() for n, c in field.coords.items() if c.dims and set(c.dims) <= {rows, columns}}
        mappings = {n: dataset[n].load() for n in find_grid_mappings(dataset, field)}
    template = xr.Dataset(mappings, coordinates)
    if layout.order is not None and _is_north_first(field, rows) != (layout.order == "north_first"):
        template = template.isel({rows: slice(None, None, -1)})
    return template, str(rows), str(columns)


def _is_north_first(field: xr.DataArray, rows: Any) -> bool:
    """Return whether the first row of a field is its northernmost."""
    latitude = find_latitude_longitude(field)[0]
    axis = field[rows] if latitude is None or rows not in latitude.dims else latitude
    first, last = (float(axis.isel({rows: end}).mean()) for end in (0, -1))
    return first > last
