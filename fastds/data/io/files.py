# SPDX-License-Identifier: Apache-2.0
"""Write fields to NetCDF-4 and Zarr."""

import asyncio
import contextlib
import logging
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import h5netcdf
import xarray as xr
from xarray.backends.common import ArrayWriter

from fastds._argument_types import checks_types
from fastds._outputs import place_of, replacing
from fastds.data.errors import first_line_of
from fastds.data.io.sink import sink
from fastds.data.io.storage import choose_encoding, packing_of, storable_attributes
from fastds.data.io.verification import Statistics, check_written, meant_statistics
from fastds.data.packages import require

_SETTLED_S = 60  # that chunks under way are waited for
_OTHER_FORMATS = (
    ".grib", ".grib2", ".grb", ".grb2", ".tif", ".tiff", ".csv", ".png", ".gif", ".pgm", ".npy", ".npz", ".zip", ".gz",
    ".bz2", ".tar", ".json", ".txt", ".html", ".parquet", ".safetensors", ".onnx",
)  # fmt: skip
_UNPACKING = {"_FillValue", "missing_value", "scale_factor", "add_offset"}
Encodings = dict[Hashable, dict[str, Any]]


def check_format(path: str | os.PathLike) -> None:
    """Raise ValueError for a name that promises another format than save_dataset writes."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise ValueError(f"{path}: fields are written as NetCDF (.nc) or Zarr (.zarr), not as {suffix}")


def names_zarr(path: str | os.PathLike) -> bool:
    """Return True if the name of an output asks for a Zarr store."""
    return pathlib.Path(path).suffix.lower() == ".zarr"


@checks_types
def save_dataset(dataset: xr.Dataset, path: str | os.PathLike) -> pathlib.Path:
    """Write a Dataset compressed to NetCDF-4, or to Zarr if the name ends in .zarr; nothing appears under `path`
    until it is complete.

    Variables keep their own `encoding` (units, calendar, _FillValue, packing) where it holds every value: a packing
    that the values do not fit, as those of other files or after arithmetic, gives way to floating numbers, and a unit
    of time to a finer one. Floating fields without an encoding are stored as they are with _FillValue NaN, zlib level
    4 and one chunk a field. Smallest and largest value and the number of missing values of every variable are compared
    with those that were to be written. An existing file is replaced in one step.

    Args: dataset: xarray.Dataset; path: file to write.
    Returns: the path. Raises: FileNotFoundError for a folder that is not there; ValueError for variables that cannot
        be stored or come out otherwise, for the name of another format (.grib, .tif, ...) and for a device, pipe or
        socket; OSError in one sentence where the disk is full. After an error the old file is untouched.
    """
    path = pathlib.Path(path)
    check_format(path)
    folder = place_of(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if names_zarr(path):
        require("zarr", "Zarr stores")
    try:
        dataset = storable_attributes(dataset)
    except ValueError as error:
        raise ValueError(f"{path} cannot be written: {error}") from error
    with replacing(path) as temporary:
        try:
            _write(dataset, temporary, _write_zarr if names_zarr(path) else _write_netcdf)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be written ({first_line_of(error)})") from error
    return path


def _write(dataset: xr.Dataset, path: pathlib.Path, write: Callable) -> None:
    """Write the dataset and compare the file with it; again where values of dask turned out not to fit a packing."""
    engine = "zarr" if write is _write_zarr else "h5netcdf"
    unpacked: frozenset[Hashable] = frozenset()
    while True:
        encodings = {name: choose_encoding(dataset, name, unpacked) for name in dataset.variables}
        watched, meant = _watch(dataset, encodings)
        write(watched, path, encodings)
        unfit = {name for name, found in meant.items() if found.packing and not (found.fits and found.count)}
        if not unfit - unpacked:
            break
        unpacked |= unfit
    check_written(path, engine, meant, encodings)


def _watch(dataset: xr.Dataset, encodings: Encodings) -> tuple[xr.Dataset, dict[Hashable, Statistics]]:
    """The dataset and the statistics of its variables; those of dask arrays are complete when they were computed."""
    meant: dict[Hashable, Statistics] = {}
    for name, variable in dataset.variables.items():
        if not variable.chunks:
            meant[name] = meant_statistics(variable)
            continue
        packed = "scale_factor" in encodings[name] or encodings[name].get("dtype") is not None
        meant[name] = found = Statistics(packing_of(variable) if packed else None)
        if variable.dtype.kind in "fMm" and not _UNPACKING & set(variable.attrs):  # which change what is read back
            watched = variable.copy(deep=False, data=variable.data.map_blocks(found.add, dtype=variable.dtype))
            dataset = (
                dataset.assign_coords({name: watched}) if name in dataset.coords else dataset.assign({name: watched})
            )
    return dataset, meant


def _write_zarr(dataset: xr.Dataset, path: pathlib.Path, encodings: Encodings) -> None:
    for name, variable in dataset.variables.items():
        uneven = [dim for dim, sizes in variable.chunksizes.items() if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]]
        if uneven:  # as of files of several lengths, which Zarr's chunks are not
            even = variable.chunk({dim: max(variable.chunksizes[dim]) for dim in uneven})
            dataset = dataset.assign({name: even})
    with warnings.catch_warnings():  # consolidated metadata are read by all, but no part of the format 3 yet
        warnings.filterwarnings("ignore", "Consolidated metadata")
        with settled_writes():
            dataset.to_zarr(path, mode="w", encoding=encodings)


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


def _write_netcdf(dataset: xr.Dataset, path: pathlib.Path, encodings: Encodings) -> None:
    encoding = {name: encodings[name] | _compression(dataset[name].variable) for name in dataset.variables}
    with sink(path) as target, h5netcdf.File(target, "w") as file:
        writer = ArrayWriter(lock=threading.Lock())  # for what is dask's, which is written at sync
        dataset.dump_to_store(xr.backends.H5NetCDFStore(file), encoding=encoding, writer=writer)
        writer.sync()


def _compression(variable: xr.Variable) -> dict[str, Any]:
    if variable.dtype.kind not in "fiu" or variable.ndim < 2:
        return {}
    how: dict[str, Any] = {"zlib": True, "complevel": 4, "shuffle": True}
    if variable.ndim >= 3 and all(variable.shape):
        how["chunksizes"] = (1,) * (variable.ndim - 2) + variable.shape[-2:]
    return how
