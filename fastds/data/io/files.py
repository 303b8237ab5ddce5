# SPDX-License-Identifier: Apache-2.0
"""Write fields to NetCDF-4 and Zarr."""

import asyncio
import contextlib
import logging
import os
import pathlib
import threading
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

import h5netcdf
import xarray as xr
from xarray.backends.common import ArrayWriter

from fastds._argument_types import checks_types
from fastds._outputs import place_of, replacing
from fastds.data.io.sink import sink
from fastds.data.packages import require

_SETTLED_S = 60  # that chunks under way are waited for
_CALENDAR_UNITS = ("month", "year", "common_year")
_OTHER_FORMATS = (".grib", ".grib2", ".grb", ".grb2", ".tif", ".tiff", ".csv", ".png", ".npy", ".npz")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def check_format(path: str | os.PathLike) -> None:
    """Raise ValueError for a name that promises another format than save_dataset writes."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise ValueError(f"{path}: fields are written as NetCDF (.nc) or Zarr (.zarr), not as {suffix}")


@checks_types
def save_dataset(dataset: xr.Dataset, path: str | os.PathLike) -> pathlib.Path:
    """Write a Dataset compressed to NetCDF-4, or to Zarr if the name ends in .zarr; nothing appears under `path`
    until it is complete.

    Variables keep their own `encoding` (units, calendar, _FillValue, packing); floating fields without one are stored
    as they are with _FillValue NaN, zlib level 4 and one chunk a field. An existing file is replaced in one step.

    Args: dataset: xarray.Dataset; path: file to write.
    Returns: the path. Raises: FileNotFoundError for a folder that is not there; ValueError for variables that cannot
        be stored, for the name of another format (.grib, .tif, ...) and for a device, pipe or socket; OSError in one
        sentence where the disk is full, the old file untouched.
    """
    path = pathlib.Path(path)
    check_format(path)
    folder = place_of(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    as_zarr = path.suffix == ".zarr"
    if as_zarr:
        require("zarr", "Zarr stores")
    dataset = _storable(dataset)
    with replacing(path) as temporary:
        try:
            (_write_zarr if as_zarr else _write_netcdf)(dataset, temporary)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be written ({_first_line(error)})") from error
    return path


def _write_zarr(dataset: xr.Dataset, path: pathlib.Path) -> None:
    encoding = {name: _plain_encoding(v) for name, v in dataset.variables.items()}
    with warnings.catch_warnings():  # consolidated metadata are read by all, but no part of the format 3 yet
        warnings.filterwarnings("ignore", "Consolidated metadata")
        with settled_writes():
            dataset.to_zarr(path, mode="w", encoding=encoding)


@contextlib.contextmanager
def settled_writes() -> Iterator[None]:
    """A block that writes Zarr, at whose end, after an error too, nothing is being written any more.

    Zarr writes several chunks at once; those that are under way after an error would bring back a folder that was
    removed."""
    from zarr.core.sync import sync

    async def others() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLED_S)

    try:
        yield
    except BaseException:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # each of the others would be told of, on a full disk
        sync(others())
        raise


def _write_netcdf(dataset: xr.Dataset, path: pathlib.Path) -> None:
    encoding = {name: _netcdf_encoding(dataset, name) for name in dataset.variables}
    with sink(path) as target, h5netcdf.File(target, "w") as file:
        writer = ArrayWriter(lock=threading.Lock())  # for what is dask's, which is written at sync
        dataset.dump_to_store(xr.backends.H5NetCDFStore(file), encoding=encoding, writer=writer)
        writer.sync()


def _plain_encoding(variable: xr.Variable) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in variable.encoding.items()
        if key in ("_FillValue", "dtype", "scale_factor", "add_offset", "units", "calendar")
    }
    if str(kept.get("units", "")).strip().lower().startswith(_CALENDAR_UNITS):  # xarray reads them and writes them not
        del kept["units"]
    if variable.dtype.kind == "f":
        kept.setdefault("_FillValue", None if variable.ndim <= 1 else variable.dtype.type("nan"))
    return kept


def _netcdf_encoding(dataset: xr.Dataset, name: Hashable) -> dict[str, Any]:
    variable = dataset[name].variable
    encoding = _plain_encoding(variable)
    if variable.dtype.kind in "fiu" and variable.ndim >= 2:
        encoding.update(zlib=True, complevel=4, shuffle=True)
        if variable.ndim >= 3 and all(variable.shape):
            encoding["chunksizes"] = (1,) * (variable.ndim - 2) + variable.shape[-2:]
    return encoding


def _storable(dataset: xr.Dataset) -> xr.Dataset:
    """A shallow copy whose attributes are of kinds that files hold: None is left out, truth values become 0 or 1."""
    dataset = dataset.copy(deep=False)
    for holder in (dataset, *dataset.variables.values()):
        holder.attrs = {
            key: int(value) if isinstance(value, bool) else value
            for key, value in holder.attrs.items()
            if value is not None
        }
    return dataset
