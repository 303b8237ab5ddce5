# SPDX-License-Identifier: Apache-2.0
"""open_dataset: files of any format in the registry, one or many of one time each."""

import contextlib
import functools
import glob
import importlib.util
import os
import pathlib
import struct
import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
import xarray as xr

from fastds._argument_types import checks_types
from fastds.data.errors import unreadable
from fastds.data.formats import radolan
from fastds.data.formats.contents import Contents
from fastds.data.formats.lazy import guard_values
from fastds.data.formats.registry import Format, format_of, refusal
from fastds.data.grid.axes import time_of
from fastds.data.grid.grids import grid_mappings
from fastds.data.grid.times import utc_text
from fastds.data.grid.variables import same_units

_ASIDE = (".idx", ".txt", ".md", ".json", ".yaml", ".csv", ".log", ".xml", ".part")  # beside fields in a folder
_SAME_GRID = 1e-3  # cells
_UNEXPECTED = (KeyError, TypeError, IndexError, AttributeError, ArithmeticError, RuntimeError, struct.error)
_KEPT_LEADS = ("NetCDF-4", "NetCDF-3", "Zarr", "GRIB")  # whose coordinate `lead` is their own
_STORAGE = ("dtype", "scale_factor", "add_offset", "_FillValue")
Part = tuple[pathlib.Path, xr.Dataset]  # of a file
Source = str | os.PathLike | Iterable[str | os.PathLike]


@checks_types
def open_dataset(path: Source, *, start: str | None = None, stop: str | None = None) -> xr.Dataset:
    """Open fields as an xarray.Dataset (time, y, x) with times, fill values and coordinates decoded.

    A format is told by its content: NetCDF-4 and -3, Zarr, GRIB (MRMS, too), ODIM and KNMI HDF5, RADOLAN and DX,
    Nimrod, Radar-DPC, FMI PGM, MeteoSwiss GIF, MeteoNet npz, GeoTIFF. Missing values are NaN, no echo is the attribute
    no_echo_value. encoding["format"] names the reader, encoding["files"] counts, encoding["path"] tells what was read.

    Args:
        path: a file, a Zarr store (a folder), a folder of files, a pattern such as "RAW/*.h5", or a list of files.
            Several files must be of one format, grid and set of variables; they are joined and sorted by time.
        start, stop: only times from start to stop, both included, such as "2024-06-01T12:00"; None: all.

    Returns: xarray.Dataset, lazy where the format allows; its files are closed by its close(), at the end of a `with`
        block, or when nothing holds them any more. Times outside the standard calendar become cftime objects.

    Warns (UserWarning) about forecasts among observations, which are left out, about nothing but forecasts, and about
    files in a folder that hold no fields.

    Raises: FileNotFoundError where nothing is there; ValueError with one sentence for an unknown, empty, truncated or
        damaged file, for files that do not go together, and for a start or stop that is no date or leaves nothing;
        ImportError where the package for a format is missing.
    """
    files = files_of(path)
    contents = [Contents(file) for file in files]
    forms = [format_of(content) for content in contents]
    if len(files) > 1 and _is_folder(path):
        contents, forms = _without_others(contents, forms)
    unknown = [content for content, form in zip(contents, forms, strict=True) if form is None]
    if unknown:
        raise ValueError(refusal(unknown[0]))
    names = sorted({form.name for form in forms})
    if len(names) > 1:
        raise ValueError(
            f"{path} holds files of the formats {', '.join(names)}; a pattern or a list takes files of one kind"
        )
    dataset = _of_one_graph(between(_read(forms[0], contents), start, stop))
    dataset.encoding.update(format=forms[0].name, files=len(contents), path=_named(path, files))
    dataset.set_close(functools.partial(_close_all, [held for content in contents for held in content.held]))
    return dataset


def _named(path: Source, files: Sequence[pathlib.Path]) -> str:
    """What was read, for sentences about it."""
    if isinstance(path, (str, os.PathLike)):
        return os.fspath(path)
    return f"{files[0]}{f' and {len(files) - 1} more' * (len(files) > 1)}"


def _close_all(datasets: list[xr.Dataset]) -> None:
    for dataset in datasets:
        dataset.close()


def files_of(path: Source) -> list[pathlib.Path]:
    """The files or Zarr stores that a path, folder, pattern or list stands for, sorted by name.

    Raises: FileNotFoundError where there are none."""
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
        files = [p for p in sorted(given.iterdir()) if p.name[0] != "." and (p.is_file() or Contents(p).is_zarr)]
        files = [p for p in files if p.suffix.lower() not in _ASIDE]
        if not files:
            raise FileNotFoundError(f"there is no file of fields in {given}")
        return files
    files = [pathlib.Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not files:
        raise FileNotFoundError(f"no such file: {path}")
    return files


def _is_folder(path: Source) -> bool:
    return isinstance(path, (str, os.PathLike)) and os.path.isdir(path) and not Contents(path).is_zarr


def _without_others(contents: list[Contents], forms: list[Format | None]) -> tuple[list[Contents], list[Format]]:
    """Those of a folder whose format is known; the others are named in a warning."""
    known = [(c, f) for c, f in zip(contents, forms, strict=True) if f is not None]
    others = [c.path.name for c, f in zip(contents, forms, strict=True) if f is None]
    if not known:
        return contents, forms
    if others:
        warnings.warn(f"no fields are in {', '.join(others[:5])}{' ...' * (len(others) > 5)}", UserWarning, 3)
    contents, forms = zip(*known, strict=True)
    return list(contents), list(forms)


def _read(form: Format, contents: Sequence[Contents]) -> xr.Dataset:
    if form.name == "RADOLAN":  # which sorts and joins by its headers, an archive holds many
        with _errors_of(form, *(content.path for content in contents)):
            return radolan.open_radolan([content.path for content in contents])
    if len(contents) == 1:
        return _observations(form, [(contents[0].path, _read_one(form, contents[0]))])[0][1]
    return _joined(form, contents)


def _read_one(form: Format, contents: Contents) -> xr.Dataset:
    with _errors_of(form, contents.path):
        return guard_values(form.read(contents), contents.path)


@contextlib.contextmanager
def _errors_of(form: Format, *paths: pathlib.Path) -> Iterator[None]:
    """A block that reads a file: what a library or a reader raises of other than the expected contents becomes an
    error that names the file, or the folder of several."""
    path = paths[0] if len(paths) == 1 else paths[0].parent
    try:
        yield
    except _UNEXPECTED as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{path} looks like {form.name} but has other contents than that format ({type(error).__name__}: {said})"
        ) from error
    except Exception as error:
        if any(one.name in str(error) for one in paths) and isinstance(error, (ValueError, OSError)):
            raise
        if type(error) is ValueError:  # of a reader, in its own words
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
        found = unreadable(path, error, f"what looks like {form.name}")
        if found is error:
            raise
        raise found from error


def _joined(form: Format, contents: Sequence[Contents]) -> xr.Dataset:
    read = [(content.path, _lazily(form, content)) for content in contents]
    own = "time" if "time" in read[0][1].variables else time_of(read[0][1]) or "time"
    if own != "time":
        read = [(path, part.rename({own: "time"}) if own in part.dims else part) for path, part in read]
    read = [(path, part if "time" in part.dims else _expanded(part, path)) for path, part in read]
    (first, expected), *others = named = _observations(form, read)
    for path, part in others:
        check_alike(first, expected, path, part)
    _check_calendars(named)
    parts = _with_changing_scalars([part for _, part in named])
    parts = [part.assign_coords(_plane(expected, parts[0])) for part in parts]
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
        if "calendar" in variable.encoding:  # days may do for the times of the first file, not for all
            variable.encoding = {}
        elif not _stored_alike(name, parts):  # the packing of the first file does not hold the values of others
            variable.encoding = {key: v for key, v in variable.encoding.items() if key not in _STORAGE}
    times = joined["time"].values
    if not np.all(times[:-1] < times[1:]):
        joined = joined.sortby("time")
        repeated = len(times) - len(np.unique(times))
        if repeated:
            said = f"{repeated} of {len(times)} times are in several files, and so are they in what is read"
            warnings.warn(said, UserWarning, stacklevel=4)
    return joined if own == "time" else joined.rename(time=own)


def _check_calendars(parts: list[Part]) -> None:
    """ValueError where the times of two files are of different calendars, naming both."""
    (first, calendar), *others = ((path, _calendar(part)) for path, part in parts)
    for path, other in others:
        if other != calendar:
            raise ValueError(f"times are in the calendar {calendar} in {first} and {other} in {path}; join them apart")


def _calendar(dataset: xr.Dataset) -> str:
    values = dataset["time"].values
    if values.dtype.kind == "O" and values.size and hasattr(values.flat[0], "calendar"):
        return values.flat[0].calendar
    return "standard" if values.dtype.kind == "M" else "none"


def _with_changing_scalars(parts: list[xr.Dataset]) -> list[xr.Dataset]:
    """The parts of a series with the single coordinates that differ between them, such as a lead time, along time; one
    that not all have is left out."""
    names = {name for part in parts for name, c in part.coords.items() if c.ndim == 0}
    for name in sorted(names, key=str):
        if not all(name in part.coords and part[name].ndim == 0 for part in parts):
            parts = [part.drop_vars(name, errors="ignore") for part in parts]
        elif len({str(part[name].values) for part in parts}) > 1:
            parts = [part.assign_coords({name: part[name].expand_dims(time=part["time"])}) for part in parts]
    return parts


def _stored_alike(name: Hashable, parts: list[xr.Dataset]) -> bool:
    """Return True if all parts store a variable in the same dtype and packing, with the same fill value."""
    first, *others = (part[name].encoding for part in parts)
    return all(_same(first.get(key), other.get(key)) for other in others for key in _STORAGE)


def _same(one: object, other: object) -> bool:
    return one is other or bool(one == other) or (one != one and other != other)  # NaN is the same as NaN


def _lazily(form: Format, contents: Contents) -> xr.Dataset:
    """A file chunked, where dask is installed: joining many keeps none in memory. Fields that a reader loads are read
    again when they are asked for."""
    dataset = _read_one(form, contents)
    if importlib.util.find_spec("dask") is None:
        return dataset
    if any(not variable._in_memory for variable in dataset.variables.values()):
        return dataset.chunk()
    import dask
    import dask.array as da

    later, fields = dask.delayed(_fields, pure=False)(form, contents.path), {}
    for name, variable in dataset.data_vars.items():
        if variable.ndim >= 2:
            values = da.from_delayed(later[name], variable.shape, variable.dtype)
            fields[name] = variable.variable.copy(deep=False, data=values)
    return dataset.assign(fields)


def _of_one_graph(dataset: xr.Dataset) -> xr.Dataset:
    """With the tasks of all files in one layer: of layers, dask looks at every one for each field that is read."""
    if not any(variable.chunks for variable in dataset.variables.values()):
        return dataset
    import dask

    return dask.optimize(dataset)[0]


def _fields(form: Format, path: pathlib.Path) -> dict[str, np.ndarray]:
    """The values of a file's fields by name."""
    with _errors_of(form, path):
        return {name: variable.values for name, variable in form.read(Contents(path)).data_vars.items()}


def _expanded(dataset: xr.Dataset, path: pathlib.Path) -> xr.Dataset:
    if "time" not in dataset.variables:
        raise ValueError(f"{path} has no time, so it cannot be joined with other files")
    fields = [name for name, variable in dataset.data_vars.items() if variable.ndim >= 2]
    return dataset.assign({name: dataset[name].expand_dims("time") for name in fields})


def _observations(form: Format, parts: list[Part]) -> list[Part]:
    """The parts of lead 0, warning about others; all, warning, where they are forecasts of one lead."""
    if form.name in _KEPT_LEADS:
        return parts
    leads = [_minutes(part) for _, part in parts]
    ahead = sorted({lead for lead in leads if lead})
    if not ahead:
        return [(path, part.drop_vars("lead", errors="ignore")) for path, part in parts]
    said = f"forecasts, {ahead[0]:g}{f' to {ahead[-1]:g}' if len(ahead) > 1 else ''} min ahead"
    kept = [part for part, lead in zip(parts, leads, strict=True) if not lead]
    if kept:
        warnings.warn(f"{len(parts) - len(kept)} {said}, are left out", UserWarning, stacklevel=5)
    elif len(ahead) == 1:
        warnings.warn(f"the fields are {said}, and no observations", UserWarning, stacklevel=5)
        kept = parts
    else:
        raise ValueError(f"the files hold nothing but {said}, and no observation; take those of one lead")
    return [(path, part.drop_vars("lead", errors="ignore")) for path, part in kept]


def _minutes(part: xr.Dataset) -> float:
    """Minutes of the coordinate `lead`, by which readers of radar formats tell forecasts from observations."""
    return float(part["lead"].values / np.timedelta64(1, "m")) if "lead" in part.coords else 0.0


def _plane(dataset: xr.Dataset, part: xr.Dataset) -> dict:
    """The coordinates of a dataset that depend on time in no part."""
    return {n: c.variable for n, c in dataset.coords.items() if n in part.coords and "time" not in part[n].dims}


def check_alike(first: pathlib.Path, expected: xr.Dataset, path: pathlib.Path, part: xr.Dataset) -> None:
    """ValueError where two parts differ in variables, in what their numbers mean, or in grid, naming both files."""
    if set(expected.data_vars) != set(part.data_vars):
        sets = (", ".join(map(str, d.data_vars)) for d in (expected, part))
        said = f"{first} has the variables {next(sets)}, {path} has {next(sets)}"
        raise ValueError(f"{said}; a pattern or a list takes files of one kind")
    for name, variable in expected.data_vars.items():
        _check_meaning(first, variable, path, part[name])
        for mapping in grid_mappings(expected, variable):
            _check_projection(first, expected[mapping].attrs, path, part[mapping].attrs)
    for name in _places(expected):
        axis, other = expected.coords[name], part.coords.get(name)
        width = abs(float(axis[1] - axis[0])) if axis.ndim == 1 and axis.size > 1 and axis.dtype.kind == "f" else 0.0
        same = other is not None and other.shape == axis.shape
        if same and axis.dtype.kind == "f":
            same = bool(
                np.allclose(axis.values, other.values, rtol=0, atol=_SAME_GRID * (width or 1.0), equal_nan=True)
            )
        if not same:
            raise ValueError(f"{first} and {path} are on different grids: {name} differs")


def _check_meaning(first: pathlib.Path, expected: xr.DataArray, path: pathlib.Path, field: xr.DataArray) -> None:
    """ValueError where the numbers of a variable are in other units or another one stands for no echo."""
    if expected.ndim < 2:
        return
    for name in ("units", "no_echo_value"):
        own, other = expected.attrs.get(name), field.attrs.get(name)
        same = same_units(own, other) if name == "units" else np.array_equal(own, other)
        if not same:
            said = f"{name} of {expected.name}: {own} in {first}, {other} in {path}"
            raise ValueError(f"{said}; a pattern or a list takes files of one kind")


def _check_projection(first: pathlib.Path, expected: dict, path: pathlib.Path, attrs: dict) -> None:
    """ValueError where the parameters of a grid mapping that both tell differ; texts have many forms."""
    for name in expected.keys() & attrs.keys():
        own, other = expected[name], attrs[name]
        numbers = not isinstance(own, str) and not isinstance(other, str)
        same = np.shape(own) == np.shape(other) and np.allclose(own, other) if numbers else own == other
        if not same and (numbers or name == "grid_mapping_name"):
            raise ValueError(f"{first} and {path} are on different grids: {name} is {own} and {other}")


def _places(dataset: xr.Dataset) -> list[Hashable]:
    """Coordinates that place the fields: those of dimensions, and latitudes and longitudes over two that have none."""
    of_two = [n for n, c in dataset.coords.items() if c.ndim == 2 and not set(c.dims) & {*dataset.coords, "time"}]
    return [n for n, c in dataset.coords.items() if c.ndim == 1 and n != "time" and "time" not in c.dims] + of_two


def between(dataset: xr.Dataset, start: str | None, stop: str | None) -> xr.Dataset:
    """The dataset's times from start to stop, both included; None: without a limit.

    Raises: ValueError for limits that are no dates, that leave no time, and for fields without times."""
    if start is None and stop is None:
        return dataset
    time = time_of(dataset)
    if time is None:
        raise ValueError(
            f"start and stop need a dimension time; the dimensions are {', '.join(map(str, dataset.dims))}"
        )
    dataset = dataset.sortby(time)
    given = {name: date for name, date in (("start", start), ("stop", stop)) if date is not None}
    limits = {name: _limit(dataset[time], name, date) for name, date in given.items()}
    kept = dataset.sel({time: slice(limits.get("start"), limits.get("stop"))})
    if not kept.sizes[time]:
        first, last = (str(dataset[time].values[k])[:19] for k in (0, -1))
        asked = " and ".join(f"{name} {date}" for name, date in given.items())
        raise ValueError(f"no time fits {asked}; the fields reach from {first} to {last}")
    return kept


def _limit(times: xr.DataArray, name: str, date: str) -> str:
    """A date in UTC as times are selected by it. Raises: ValueError unless it is one in the calendar of the times."""
    text = utc_text(date)
    try:
        if text is not None:
            times.sel({times.dims[0]: slice(text, None)})
            return text
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be a date and time such as 2024-06-01T12:00, got {date!r}")
