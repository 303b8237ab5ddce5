# SPDX-License-Identifier: Apache-2.0
"""Output of fields to NetCDF-4 and Zarr."""

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

from fastds._argument_types import validate_arguments
from fastds._outputs import atomic_write, resolve_target
from fastds.data.errors import summarize_error
from fastds.data.io.hdf5_writer import open_hdf5_writer
from fastds.data.io.storage import choose_encoding, find_packing, make_attributes_storable
from fastds.data.io.write_check import Statistics, check_written, compute_statistics
from fastds.data.packages import require

_SETTLE_TIMEOUT_S = 60  # longest wait for pending writes of chunks after an error
_OTHER_FORMATS = (
    ".grib", ".grib2", ".grb", ".grb2", ".tif", ".tiff", ".csv", ".png", ".gif", ".pgm", ".npy", ".npz", ".zip", ".gz",
    ".bz2", ".tar", ".json", ".txt", ".html", ".parquet", ".safetensors", ".onnx",
)  # fmt: skip
_DECODING_ATTRIBUTES = {"_FillValue", "missing_value", "scale_factor", "add_offset"}
Encodings = dict[Hashable, dict[str, Any]]


def check_output_format(path: str | os.PathLike) -> None:
    """Raise ValueError if the suffix of an output file belongs to a format that save_dataset does not write."""
    suffix = pathlib.Path(path).suffix.lower()
    if suffix in _OTHER_FORMATS:
        raise ValueError(f"{path}: fields are written as NetCDF (.nc) or Zarr (.zarr), not as {suffix}")


def is_zarr_path(path: str | os.PathLike) -> bool:
    """Return True if the name of an output ends in .zarr."""
    return pathlib.Path(path).suffix.lower() == ".zarr"


@validate_arguments
def save_dataset(dataset: xr.Dataset, path: str | os.PathLike) -> pathlib.Path:
    """Write a Dataset to compressed NetCDF-4, or to Zarr if the name ends in .zarr.

    The file appears under `path` only when it is complete, and replaces an existing file atomically. After writing, the
    file is read back, and the smallest and largest value and the number of missing values of its variables are compared
    with those of the dataset.

    Variables use their own `encoding` (units, calendar, _FillValue, packing) if it can store every value. Otherwise,
    for example with the packing of another file, floating-point values are stored unpacked and times in a finer unit.
    Floating-point fields without an encoding have _FillValue NaN, zlib level 4 and one chunk a field.

    Args:
        dataset: xarray.Dataset.
        path: File to write.

    Returns:
        pathlib.Path of the file.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The file cannot be written, for example because the disk is full. After any error, an existing file is
            unchanged.
        ValueError: A variable cannot be stored or would change its values, the suffix belongs to another format (.grib,
            .tif, ...), or the path is a device, pipe or socket.
    """
    path = pathlib.Path(path)
    check_output_format(path)
    folder = resolve_target(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    if is_zarr_path(path):
        require("zarr", "Zarr stores")
    try:
        dataset = make_attributes_storable(dataset)
    except ValueError as error:
        raise ValueError(f"{path} cannot be written: {error}") from error
    with atomic_write(path) as temporary:
        try:
            _write(dataset, temporary, _write_zarr if is_zarr_path(path) else _write_netcdf)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be written ({summarize_error(error)})") from error
    return path


def _write(dataset: xr.Dataset, path: pathlib.Path, write: Callable) -> None:
    """Write the dataset and compare the file with it.

    The values of a dask array are known only after the file was written. If they do not fit the packing of the
    variable, the file is written again without this packing.

    Args:
        dataset: Dataset with storable attributes.
        path: Temporary file.
        write: `_write_zarr` or `_write_netcdf`.
    """
    engine = "zarr" if write is _write_zarr else "h5netcdf"
    unpacked: frozenset[Hashable] = frozenset()
    while True:
        encodings = {name: choose_encoding(dataset, name, unpacked) for name in dataset.variables}
        tracked, expected = _track_statistics(dataset, encodings)
        write(tracked, path, encodings)
        unfit = {name for name, found in expected.items() if found.packing and not (found.fits and found.count)}
        if not unfit - unpacked:
            break
        unpacked |= unfit
    check_written(path, engine, expected, encodings)


def _track_statistics(dataset: xr.Dataset, encodings: Encodings) -> tuple[xr.Dataset, dict[Hashable, Statistics]]:
    """Return the dataset and the statistics of its variables.

    The statistics of dask arrays are complete only after the returned dataset was written.
    """
    statistics: dict[Hashable, Statistics] = {}
    for name, variable in dataset.variables.items():
        if not variable.chunks:
            statistics[name] = compute_statistics(variable)
            continue
        packed = "scale_factor" in encodings[name] or encodings[name].get("dtype") is not None
        statistics[name] = found = Statistics(find_packing(variable) if packed else None)
        # Decoding attributes change the values on reading, so that these cannot be compared.
        if variable.dtype.kind in "fMm" and not _DECODING_ATTRIBUTES & set(variable.attrs):
            tracked = variable.copy(deep=False, data=variable.data.map_blocks(found.add, dtype=variable.dtype))
            dataset = (
                dataset.assign_coords({name: tracked}) if name in dataset.coords else dataset.assign({name: tracked})
            )
    return dataset, statistics


def _write_zarr(dataset: xr.Dataset, path: pathlib.Path, encodings: Encodings) -> None:
    for name, variable in dataset.variables.items():
        uneven = [dim for dim, sizes in variable.chunksizes.items() if len(set(sizes[:-1])) > 1 or sizes[-1] > sizes[0]]
        if uneven:  # Zarr needs equal chunks, but files of a series may differ in length
            even = variable.chunk({dim: max(variable.chunksizes[dim]) for dim in uneven})
            dataset = dataset.assign({name: even})
    with warnings.catch_warnings():  # consolidated metadata are not yet part of the specification of Zarr 3
        warnings.filterwarnings("ignore", "Consolidated metadata")
        with wait_for_zarr_writes():
            dataset.to_zarr(path, mode="w", encoding=encodings)


@contextlib.contextmanager
def wait_for_zarr_writes() -> Iterator[None]:
    """Context manager for writing Zarr: after an exception, wait until no write is pending.

    Zarr writes several chunks concurrently. A write that is pending after an error would create a removed folder again.
    """
    from zarr.core.sync import sync

    async def wait_for_pending() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_TIMEOUT_S)

    try:
        yield
    except BaseException:
        # On a full disk, asyncio would log one error for each pending write.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        sync(wait_for_pending())
        raise


def _write_netcdf(dataset: xr.Dataset, path: pathlib.Path, encodings: Encodings) -> None:
    encoding = {name: encodings[name] | _choose_compression(dataset[name].variable) for name in dataset.variables}
    with open_hdf5_writer(path) as target, h5netcdf.File(target, "w") as file:
        writer = ArrayWriter(lock=threading.Lock())  # dask arrays are written by writer.sync()
        dataset.dump_to_store(xr.backends.H5NetCDFStore(file), encoding=encoding, writer=writer)
        writer.sync()


def _choose_compression(variable: xr.Variable) -> dict[str, Any]:
    if variable.dtype.kind not in "fiu" or variable.ndim < 2:
        return {}
    options: dict[str, Any] = {"zlib": True, "complevel": 4, "shuffle": True}
    if variable.ndim >= 3 and all(variable.shape):
        options["chunksizes"] = (1,) * (variable.ndim - 2) + variable.shape[-2:]
    return options
