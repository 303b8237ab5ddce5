# SPDX-License-Identifier: Apache-2.0
"""`open_dataset`: files of any registered format, one file or many files of a time series."""

import contextlib
import functools
import glob
import importlib.util
import os
import pathlib
import struct
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr

from fastds._argument_types import validate_arguments
from fastds._options import OptionError
from fastds.data.errors import make_read_error
from fastds.data.formats.file_format import Format
from fastds.data.formats.file_probe import FileProbe
from fastds.data.formats.lazy import guard_values
from fastds.data.formats.plain_array import SUFFIXES, ArrayLayout, is_plain_array, make_format
from fastds.data.formats.registry import describe_unsupported, detect_format
from fastds.data.grid.axes import find_dataset_time
from fastds.data.grid.grids import find_grid_mappings
from fastds.data.grid.times import parse_utc_text
from fastds.data.grid.variables import is_same_unit

IGNORED_SUFFIXES = (".idx", ".txt", ".md", ".json", ".yaml", ".csv", ".log", ".xml", ".part")  # no fields
_SAME_GRID = 1e-3  # tolerance of coordinates of different files, in cells
_UNEXPECTED_ERRORS = (KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RuntimeError, struct.error)
_STORAGE_KEYS = ("dtype", "scale_factor", "add_offset", "_FillValue")
Part = tuple[pathlib.Path, xr.Dataset]  # a file and its dataset
InputPaths = str | os.PathLike | Iterable[str | os.PathLike]


@validate_arguments
def open_dataset(
    path: InputPaths, *, start: str | None = None, stop: str | None = None, array: str | None = None
) -> xr.Dataset:
    """Open fields as an xarray.Dataset (time, y, x) with times, fill values and coordinates decoded.

    The format is detected by contents. The page "Formats" of the manual lists the formats, which are, among others,
    NetCDF, Zarr, GRIB and the formats of radar composites of several weather services. Missing values are NaN; the
    attribute no_echo_value is the value of no echo. encoding["format"] is the name of the format, encoding["files"] the
    number of files and encoding["path"] a description of the input.

    Warnings (UserWarning) report, among others, fields and files that are left out, fields that are forecasts, and
    invalid metadata.

    Args:
        path: A file, a Zarr store, a folder of files, a pattern such as "RAW/*.h5", or a list of files. Several files
            need the same format, grid and variables; they are joined and sorted by time.
        start: First time, such as "2024-06-01T12:00"; None: no limit.
        stop: Last time (included); None: no limit.
        array: Layout of raw binary files (.bin, .dat, .raw): the arguments of `open_array` as text, such as
            "shape=500,500 dtype=<f4"; None: there are none.

    Returns:
        xarray.Dataset, lazy where the format allows it. The method `close` of the dataset closes the files, as does the
        end of a `with` block or the deletion of the dataset. Times outside the standard calendar are cftime objects.

    Raises:
        FileNotFoundError: The file or folder does not exist, or the folder has no files of fields.
        ImportError: The package for a format is not installed.
        ValueError: A file has an unknown format, is empty, truncated or damaged; files do not go together; `start` or
            `stop` is not a date or leaves no time.
        OSError: The operating system cannot open or read a file.
    """
    return open_files(path, start, stop, array)


def open_files(
    path: InputPaths, start: str | None = None, stop: str | None = None, array: ArrayLayout | str | None = None
) -> xr.Dataset:
    """Open files as `open_dataset` does, without checks of the types of arguments.

    Args:
        path: See `open_dataset`.
        start: See `open_dataset`.
        stop: See `open_dataset`.
        array: See `open_dataset`, or a layout.
    """
    files = list_files(path)
    probes = [FileProbe(file) for file in files]
    plain = None if array is None else _make_plain_format(array, files)
    forms = [plain if plain is not None and is_plain_array(probe.path) else detect_format(probe) for probe in probes]
    if len(files) > 1 and _is_folder(path):
        probes, forms = _drop_unknown_formats(probes, forms)
    unknown = [probe for probe, form in zip(probes, forms, strict=True) if form is None]
    if unknown:
        raise ValueError(describe_unsupported(unknown[0]))
    known = [form for form in forms if form is not None]
    names = sorted({form.name for form in known})
    if len(names) > 1:
        raise ValueError(
            f"{path} holds files of the formats {', '.join(names)}; a pattern or a list takes files of one kind"
        )
    dataset = _merge_dask_graphs(select_time_range(_read(known[0], probes), start, stop))
    dataset.encoding.update(format=known[0].name, files=len(probes), path=_describe_path(path, files))
    dataset.set_close(functools.partial(_close_all, [held for probe in probes for held in probe.open_datasets]))
    return dataset


def _make_plain_format(array: ArrayLayout | str, files: Sequence[pathlib.Path]) -> Format:
    """Return the format of raw binary files. Raises OptionError if none of the files has their suffix."""
    count = sum(map(is_plain_array, files))
    form = make_format(array, count, open_dataset)
    if not count:
        raise OptionError("array", f"is for files *{', *'.join(SUFFIXES)}, got {files[0]}")
    return form


def has_plain_arrays(path: InputPaths) -> bool:
    """Return whether an input has raw binary files, by their suffix."""
    try:
        return any(map(is_plain_array, list_files(path)))
    except FileNotFoundError:
        return False


def _describe_path(path: InputPaths, files: Sequence[pathlib.Path]) -> str:
    """Describe the input for messages."""
    if isinstance(path, (str, os.PathLike)):
        return os.fspath(path)
    return f"{files[0]}{f' and {len(files) - 1} more' * (len(files) > 1)}"


def _close_all(datasets: list[xr.Dataset]) -> None:
    for dataset in datasets:
        dataset.close()


def list_files(path: InputPaths) -> list[pathlib.Path]:
    """List the files or Zarr stores of a path, folder, pattern or list, sorted by name (a list keeps its order).

    Raises:
        FileNotFoundError: There are no files.
    """
    if not isinstance(path, (str, os.PathLike)):
        files = [pathlib.Path(item) for item in path]
        if not files:
            raise FileNotFoundError("the list of files is empty")
        missing = [file for file in files if not file.exists()]
        if missing:
            raise FileNotFoundError(f"no such file: {missing[0]}")
        return files
    if not os.fspath(path):
        raise FileNotFoundError("the name of the input is empty")
    given = pathlib.Path(path)
    if given.exists():
        if not _is_folder(given):
            return [given]
        files = [p for p in sorted(given.iterdir()) if p.name[0] != "." and (p.is_file() or FileProbe(p).is_zarr)]
        files = [p for p in files if p.suffix.lower() not in IGNORED_SUFFIXES]
        if not files:
            raise FileNotFoundError(f"there is no file of fields in {given}")
        return files
    files = [pathlib.Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not files:
        raise FileNotFoundError(f"no such file: {path}")
    return files


def _is_folder(path: InputPaths) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.path.isdir(path) and not FileProbe(path).is_zarr


def _drop_unknown_formats(
    probes: list[FileProbe], forms: list[Format | None]
) -> tuple[list[FileProbe], list[Format | None]]:
    """Drop the files of a folder whose format is unknown, with a warning that names them.

    If no file has a known format, all files are returned, so that the caller raises an error.
    """
    known = [(c, f) for c, f in zip(probes, forms, strict=True) if f is not None]
    others = [c.path.name for c, f in zip(probes, forms, strict=True) if f is None]
    if not known:
        return probes, forms
    if others:
        warnings.warn(f"no fields are in {', '.join(others[:5])}{' ...' * (len(others) > 5)}", UserWarning, 3)
    return [probe for probe, _ in known], [form for _, form in known]


def _read(form: Format, probes: Sequence[FileProbe]) -> xr.Dataset:
    if form.read_files is not None:
        with _translate_errors(form, *(probe.path for probe in probes)):
            return form.read_files([probe.path for probe in probes])
    if len(probes) == 1:
        return _select_observations(form, [(probes[0].path, _read_one(form, probes[0]))])[0][1]
    return _join_files(form, probes)


def _read_one(form: Format, probe: FileProbe) -> xr.Dataset:
    with _translate_errors(form, probe.path):
        return guard_values(form.read(probe), probe.path)


@contextlib.contextmanager
def _translate_errors(form: Format, *paths: pathlib.Path) -> Iterator[None]:
    """Context manager: make exceptions of readers and libraries name the file, or the folder of several files."""
    path = paths[0] if len(paths) == 1 else paths[0].parent
    try:
        yield
    except OptionError:
        raise
    except _UNEXPECTED_ERRORS as error:
        message = " ".join(str(error).split())
        raise ValueError(
            f"{path} looks like {form.name} but has other contents than that format ({type(error).__name__}: {message})"
        ) from error
    except Exception as error:
        if any(one.name in str(error) for one in paths) and isinstance(error, (ValueError, OSError)):
            raise
        if type(error) is ValueError:  # raised by a reader with a complete message
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
        found = make_read_error(path, error, f"what looks like {form.name}")
        if found is error:
            raise
        raise found from error


def _join_files(form: Format, probes: Sequence[FileProbe]) -> xr.Dataset:
    read = [(probe.path, _read_lazily(form, probe)) for probe in probes]
    time = "time" if "time" in read[0][1].variables else find_dataset_time(read[0][1]) or "time"
    if time != "time":
        read = [(path, part.rename({time: "time"}) if time in part.dims else part) for path, part in read]
    read = [(path, part if "time" in part.dims else _expand_time(part, path)) for path, part in read]
    (first, expected), *others = named = _select_observations(form, read)
    for path, part in others:
        check_compatible(first, expected, path, part)
    _check_calendars(named)
    parts = _expand_varying_scalars([part for _, part in named])
    parts = [part.assign_coords(_get_time_independent_coordinates(expected, parts[0])) for part in parts]
    joined = xr.concat(
        parts,
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )
    for name, variable in joined.variables.items():
        if "calendar" in variable.encoding:  # the time unit of the first file may be too coarse for the others
            variable.encoding = {}
        elif not _is_stored_alike(name, parts):  # the packing of the first file may not hold the values of the others
            variable.encoding = {key: v for key, v in variable.encoding.items() if key not in _STORAGE_KEYS}
    times = joined["time"].values
    if not np.all(times[:-1] < times[1:]):
        joined = joined.sortby("time")
        repeated = len(times) - len(np.unique(times))
        if repeated:
            message = f"{repeated} of {len(times)} times are in several files, and all of them are read"
            warnings.warn(message, UserWarning, stacklevel=4)
    return joined if time == "time" else joined.rename(time=time)


def _check_calendars(parts: list[Part]) -> None:
    """Raise ValueError, naming both files, if the times of two files have different calendars."""
    (first, calendar), *others = ((path, _get_calendar(part)) for path, part in parts)
    for path, other in others:
        if other != calendar:
            raise ValueError(
                f"times are in the calendar {calendar} in {first} and {other} in {path}; join them separately"
            )


def _get_calendar(dataset: xr.Dataset) -> str:
    values = dataset["time"].values
    if values.dtype.kind == "O" and values.size and hasattr(values.flat[0], "calendar"):
        return values.flat[0].calendar
    return "standard" if values.dtype.kind == "M" else "none"


def _expand_varying_scalars(parts: list[xr.Dataset]) -> list[xr.Dataset]:
    """Expand scalar coordinates that differ between the files, such as a lead time, along time.

    A coordinate that is not a scalar in every file is dropped.
    """
    names = {name for part in parts for name, c in part.coords.items() if c.ndim == 0}
    for name in sorted(names, key=str):
        if not all(name in part.coords and part[name].ndim == 0 for part in parts):
            parts = [part.drop_vars([name], errors="ignore") for part in parts]
        elif len({str(part[name].values) for part in parts}) > 1:
            parts = [part.assign_coords({name: part[name].expand_dims(time=part["time"])}) for part in parts]
    return parts


def _is_stored_alike(name: Hashable, parts: list[xr.Dataset]) -> bool:
    """Return True if all parts store a variable in the same dtype and packing, with the same fill value."""
    first, *others = (part[name].encoding for part in parts)
    return all(_is_equal_or_nan(first.get(key), other.get(key)) for other in others for key in _STORAGE_KEYS)


def _is_equal_or_nan(one: object, other: object) -> bool:
    return one is other or bool(one == other) or (one != one and other != other)


def _read_lazily(form: Format, probe: FileProbe) -> xr.Dataset:
    """Open a file with dask arrays, if dask is installed, so that joining many files loads none.

    Fields that a reader loads into memory are dropped and read again on access.
    """
    dataset = _read_one(form, probe)
    if importlib.util.find_spec("dask") is None:
        return dataset
    if any(not variable._in_memory for variable in dataset.variables.values()):
        return dataset.chunk()
    import dask
    import dask.array as da

    later, fields = dask.delayed(_read_fields, pure=False)(form, probe.path), {}
    for name, variable in dataset.data_vars.items():
        if variable.ndim >= 2:
            values = da.from_delayed(later[name], variable.shape, variable.dtype)
            fields[name] = variable.variable.copy(deep=False, data=values)
    return dataset.assign(fields)


def _merge_dask_graphs(dataset: xr.Dataset) -> xr.Dataset:
    """Merge the dask graphs of all files into one layer, since dask visits every layer for each field that is read."""
    if not any(variable.chunks for variable in dataset.variables.values()):
        return dataset
    import dask

    return dask.optimize(dataset)[0]


def _read_fields(form: Format, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the values of a file's fields by name."""
    with _translate_errors(form, path):
        return {str(name): variable.values for name, variable in form.read(FileProbe(path)).data_vars.items()}


def _expand_time(dataset: xr.Dataset, path: pathlib.Path) -> xr.Dataset:
    if "time" not in dataset.variables:
        raise ValueError(f"{path} has no time, so it cannot be joined with other files")
    fields = [name for name, variable in dataset.data_vars.items() if variable.ndim >= 2]
    return dataset.assign({name: dataset[name].expand_dims("time") for name in fields})


def _select_observations(form: Format, parts: list[Part]) -> list[Part]:
    """Return the files of lead time 0, with a warning about the others.

    If all files are forecasts of one lead time, all are returned with a warning. Files of a format whose
    `lead_is_data` is True are returned unchanged.

    Raises:
        ValueError: All files are forecasts, and their lead times differ.
    """
    if form.lead_is_data:
        return parts
    leads = [_get_lead_minutes(part) for _, part in parts]
    ahead = sorted({lead for lead in leads if lead})
    if not ahead:
        return [(path, part.drop_vars("lead", errors="ignore")) for path, part in parts]
    forecasts = f"forecasts, {ahead[0]:g}{f' to {ahead[-1]:g}' if len(ahead) > 1 else ''} min ahead"
    selected = [part for part, lead in zip(parts, leads, strict=True) if not lead]
    if selected:
        warnings.warn(f"{len(parts) - len(selected)} {forecasts}, are left out", UserWarning, stacklevel=5)
    elif len(ahead) == 1:
        warnings.warn(f"the fields are {forecasts}, and no observations", UserWarning, stacklevel=5)
        selected = parts
    else:
        raise ValueError(f"the files hold nothing but {forecasts}, and no observation; take those of one lead")
    return [(path, part.drop_vars("lead", errors="ignore")) for path, part in selected]


def _get_lead_minutes(part: xr.Dataset) -> float:
    """Return the lead time in minutes that a reader of a radar format stored in the coordinate `lead`, else 0."""
    return float(part["lead"].values / np.timedelta64(1, "m")) if "lead" in part.coords else 0.0


def _get_time_independent_coordinates(dataset: xr.Dataset, part: xr.Dataset) -> dict:
    """Return the coordinates of a dataset that also exist in `part` and do not depend on time there."""
    return {n: c.variable for n, c in dataset.coords.items() if n in part.coords and "time" not in part[n].dims}


def check_compatible(first: pathlib.Path, expected: xr.Dataset, path: pathlib.Path, part: xr.Dataset) -> None:
    """Check that two files can be joined along time.

    Args:
        first: Name of the first file.
        expected: Dataset of the first file.
        path: Name of the other file.
        part: Dataset of the other file.

    Raises:
        ValueError: The files differ in variables, units, no-echo value or grid. The message names both files.
    """
    if set(expected.data_vars) != set(part.data_vars):
        sets = (", ".join(map(str, d.data_vars)) for d in (expected, part))
        difference = f"{first} has the variables {next(sets)}, {path} has {next(sets)}"
        raise ValueError(f"{difference}; a pattern or a list takes files of one kind")
    for name, variable in expected.data_vars.items():
        _check_meaning(first, variable, path, part[name])
        for mapping in find_grid_mappings(expected, variable):
            check_projection(first, expected[mapping].attrs, path, part[mapping].attrs)
    for name in _list_spatial_coordinates(expected):
        axis, other = expected.coords[name], part.coords.get(name)
        width = abs(float(axis[1] - axis[0])) if axis.ndim == 1 and axis.size > 1 and axis.dtype.kind == "f" else 0.0
        same = other is not None and other.shape == axis.shape
        if same and other is not None and axis.dtype.kind == "f":
            same = bool(
                np.allclose(axis.values, other.values, rtol=0, atol=_SAME_GRID * (width or 1.0), equal_nan=True)
            )
        if not same:
            raise ValueError(f"{first} and {path} are on different grids: {name} differs")


def _check_meaning(first: pathlib.Path, expected: xr.DataArray, path: pathlib.Path, field: xr.DataArray) -> None:
    """Raise ValueError, naming both files, if units or no-echo value of a variable differ."""
    if expected.ndim < 2:
        return
    for name in ("units", "no_echo_value"):
        one: Any = expected.attrs.get(name)
        other: Any = field.attrs.get(name)
        same = is_same_unit(one, other) if name == "units" else np.array_equal(one, other)
        if not same:
            difference = f"{name} of {expected.name}: {one} in {first}, {other} in {path}"
            raise ValueError(f"{difference}; a pattern or a list takes files of one kind")


def check_projection(first: object, expected: dict, path: object, attrs: dict) -> None:
    """Raise ValueError, naming both files or datasets, if a parameter of the grid mapping that both declare differs.

    Text is compared for grid_mapping_name only, since WKT of one projection has many forms.
    """
    for name in expected.keys() & attrs.keys():
        one, other = expected[name], attrs[name]
        numbers = not isinstance(one, str) and not isinstance(other, str)
        same = np.shape(one) == np.shape(other) and np.allclose(one, other) if numbers else one == other
        if not same and (numbers or name == "grid_mapping_name"):
            raise ValueError(f"{first} and {path} are on different grids: {name} is {one} and {other}")


def _list_spatial_coordinates(dataset: xr.Dataset) -> list[Hashable]:
    """List the coordinates that define the grid.

    These are 1-D coordinates other than time, and 2-D coordinates whose dimensions have no coordinates.
    """
    curvilinear = [n for n, c in dataset.coords.items() if c.ndim == 2 and not set(c.dims) & {*dataset.coords, "time"}]
    return [n for n, c in dataset.coords.items() if c.ndim == 1 and n != "time" and "time" not in c.dims] + curvilinear


def select_time_range(dataset: xr.Dataset, start: str | None, stop: str | None) -> xr.Dataset:
    """Select the times from `start` to `stop`.

    Args:
        dataset: Dataset.
        start: First time; None: no limit.
        stop: Last time (included); None: no limit.

    Returns:
        Dataset sorted by time, or the unchanged dataset without limits.

    Raises:
        ValueError: A limit is not a date, no time is left, or the dataset has no dimension of time.
    """
    if start is None and stop is None:
        return dataset
    time = find_dataset_time(dataset)
    if time is None:
        raise ValueError(
            f"start and stop need a dimension time; the dimensions are {', '.join(map(str, dataset.dims))}"
        )
    dataset = dataset.sortby(time)
    given = {name: date for name, date in (("start", start), ("stop", stop)) if date is not None}
    limits = {name: _parse_limit(dataset[time], name, date) for name, date in given.items()}
    selected = dataset.sel({time: slice(limits.get("start"), limits.get("stop"))})
    if not selected.sizes[time]:
        first, last = (str(dataset[time].values[k])[:19] for k in (0, -1))
        requested = " and ".join(f"{name} {date}" for name, date in given.items())
        raise ValueError(f"no time fits {requested}; the fields reach from {first} to {last}")
    return selected


def _parse_limit(times: xr.DataArray, name: str, date: str) -> str:
    """Convert a date to text in UTC that selects times.

    Args:
        times: Coordinate of times.
        name: Name of the argument, for the message.
        date: Date as given by the user.

    Raises:
        ValueError: `date` is not a date in the calendar of the times.
    """
    text = parse_utc_text(date)
    try:
        if text is not None:
            times.sel({times.dims[0]: slice(text, None)})
            return text
    except (TypeError, ValueError):
        pass
    raise OptionError(name, f"must be a date and time such as 2024-06-01T12:00, got {date!r}")
