# SPDX-License-Identifier: Apache-2.0
"""Conversion of user input (datasets, arrays, file names) to datasets with declared metadata."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TypedDict, overload

import xarray as xr

from fastds.data.formats.opening import has_plain_arrays, open_dataset, select_time_range
from fastds.data.grid.value_checks import apply_metadata

InputFiles = str | os.PathLike | Sequence[str | os.PathLike]
InputData = xr.Dataset | xr.DataArray | InputFiles


class ReadOptions(TypedDict, total=False):
    """Options of reading an input.

    Attributes:
        missing: Value that stands for missing data, see `apply_metadata`.
        units: Units of the variable, see `apply_metadata`.
        start: First time, see `open_dataset`.
        stop: Last time, see `open_dataset`.
        array: Layout of raw binary files, see `open_dataset`; not used for other files.
    """

    missing: float | None
    units: str | None
    start: str | None
    stop: str | None
    array: str | None


def is_path_like(data: object) -> bool:
    """Return True if `data` is a path or a list of paths."""
    paths = data if isinstance(data, list | tuple) else [data]
    return all(isinstance(path, str | os.PathLike) for path in paths)


@overload
def open_input(
    data: InputData,
    var: str | None = None,
    *,
    missing: float | None = None,
    units: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    array: str | None = None,
) -> contextlib.AbstractContextManager[xr.Dataset]: ...


@overload
def open_input(
    data: InputData | None,
    var: str | None = None,
    *,
    missing: float | None = None,
    units: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    array: str | None = None,
) -> contextlib.AbstractContextManager[xr.Dataset | None]: ...


@contextlib.contextmanager  # type: ignore[misc]  # None only for None, as the overloads state
def open_input(
    data: InputData | None,
    var: str | None = None,
    *,
    missing: float | None = None,
    units: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    array: str | None = None,
) -> Iterator[xr.Dataset | None]:
    """Context manager: yield the Dataset of a user's input, with declared metadata applied.

    A Dataset is used as it is, a DataArray becomes a Dataset with one variable, and files are opened until the end of
    the block. None yields None.

    Args:
        data: Dataset, DataArray, path, list of paths, or None.
        var: Name of the variable that `missing` and `units` describe.
        missing: Value that stands for missing data, see `apply_metadata`.
        units: Units of the variable, see `apply_metadata`.
        start: First time, see `open_dataset`.
        stop: Last time, see `open_dataset`.
        array: Layout of raw binary files, see `open_dataset`; not used for other files.

    Raises:
        TypeError: `data` has another type.
        ValueError: An input or an option is invalid, see `open_dataset` and `apply_metadata`.
        OSError: A file does not exist or cannot be opened.
        ImportError: The package for a format is not installed.
    """
    declared, times = (missing, units, var), (start, stop)
    if data is None:
        yield None
    elif isinstance(data, xr.DataArray):
        yield apply_metadata(select_time_range(data.to_dataset(name=data.name or "field"), *times), *declared)
    elif isinstance(data, xr.Dataset):
        yield apply_metadata(select_time_range(data, *times), *declared)
    elif is_path_like(data):
        layout = array if array is not None and has_plain_arrays(data) else None
        with open_dataset(data, start=times[0], stop=times[1], array=layout) as dataset:
            yield apply_metadata(dataset, *declared)
    else:
        raise TypeError(f"data must be an xarray Dataset or DataArray or files, got a {type(data).__name__}")
