# SPDX-License-Identifier: Apache-2.0
"""The Zarr store of an archive: made empty, filled region by region, made longer."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fastds.data.grid.times import text_of
from fastds.data.io.packing import packing
from fastds.inference.chunking import Chunk, Pipeline, make_template

if TYPE_CHECKING:
    import zarr

_SIDE = 2048  # of the largest chunk
_FINEST = {"units": "microseconds since 1970-01-01", "dtype": "int64"}


class Store:
    """A Zarr store of a job's result, a chunk for every step along job.dim, missing (NaN) where nothing was computed.

    Args: path: the folder. job: whose result it holds."""

    def __init__(self, path: Path, job: Pipeline):
        self.path, self.job = path, job

    def create(self, source: xr.Dataset, dtype: str) -> None:
        """Write coordinates and attributes, and fields without values, which are stored as integers where source has
        packed ones and dtype is "input"."""
        outline = self._outline()
        encoding = {}
        for name, (dims, shape) in self.job.variables.items():
            chunks = [1] * (len(dims) - 2) + [min(size, _SIDE) for size in shape[-2:]]
            encoding[name] = {"chunks": chunks, "dtype": "float32", "_FillValue": np.float32("nan")}
            how = packing(outline[name], source[name]) if dtype == "input" and name in source else None
            encoding[name] |= how or {}
            encoding[name]["fill_value"] = encoding[name]["_FillValue"]
        for name, variable in outline.variables.items():
            if _are_dates(variable):
                encoding[name] = _FINEST | {"calendar": _calendar(variable)}  # later times may be finer than these
        with _quietly():
            outline.drop_encoding().to_zarr(self.path, mode="w", compute=False, encoding=encoding)

    @property
    def length(self) -> int:
        """Of the job's result along job.dim."""
        dims, shape = next(iter(self.job.variables.values()))
        return shape[dims.index(self.job.dim)]

    def times(self, piece: Chunk) -> str:
        """The first and the last time of a piece, in words."""
        with self._open() as dataset:
            first, last = (dataset[self.job.dim].values[at] for at in (piece.outputs[0], piece.outputs[1] - 1))
        return f"{text_of(first)} to {text_of(last)}"

    def begins_as(self, length: int) -> bool:
        """Whether its first coordinates, so many, are the first of those of the job's result."""
        first = {self.job.dim: slice(0, length)}
        expected = self._outline().isel(first)
        with self._open() as dataset:
            found = dataset.isel(first)
            same = expected.sizes[self.job.dim] == length and set(expected.coords) == set(found.coords)
            return same and all(expected[name].equals(found[name]) for name in expected.coords)

    def grow(self, before: int) -> None:
        """Make it, of which so many steps are there, as long as the job's result, with its coordinates and what that
        tells of all inputs; new fields are missing until they are written."""
        import zarr

        outline, dim = self._outline(), self.job.dim
        group = zarr.open_group(self.path, mode="r+")
        for name, variable in outline.variables.items():
            if dim not in variable.dims:
                continue
            array, axis = group[name], variable.dims.index(dim)
            array.resize((*array.shape[:axis], self.length, *array.shape[axis + 1 :]))
            if name not in self.job.variables:
                new = (slice(None),) * axis + (slice(before, None),)
                array[new] = _coded(variable[new], array)
        kept = {name: value for name, value in group.attrs.items() if not name.startswith("fastds_")}
        told = {name: value for name, value in outline.attrs.items() if name.startswith("fastds_")}
        group.attrs.put(kept | told)
        with _quietly():
            zarr.consolidate_metadata(self.path)

    def write(self, first: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the values of a piece that begins at `first` along job.dim."""
        import zarr

        group = zarr.open_group(self.path, mode="r")
        packed = {name for name in values if group[name].dtype.kind == "i"}
        # Integers are rounded in the precision of what is given: float64, as those of a file are.
        fields = {name: array.astype(np.float64) if name in packed else array for name, array in values.items()}
        for name in packed:
            _check_fits(name, fields[name], group[name].attrs)
        part = xr.Dataset({name: (self.job.variables[name][0], array) for name, array in fields.items()})
        with _quietly():
            part.to_zarr(self.path, region={self.job.dim: slice(first, first + part.sizes[self.job.dim])})

    def _open(self) -> xr.Dataset:
        with _quietly():
            return xr.open_zarr(self.path, chunks=None)

    def _outline(self) -> xr.Dataset:
        """The job's result without values: to_zarr leaves unwritten what dask holds, as it may all else that a job
        takes from files."""
        import dask.array as da

        result = make_template(self.job, functools.partial(da.zeros, dtype=np.float32, chunks=-1))
        return result.assign({n: v.compute() for n, v in result.variables.items() if n not in self.job.variables})


def _check_fits(name: str, values: np.ndarray, attrs: Mapping[str, Any]) -> None:
    """ValueError where values do not fit the int32 codes of an array, which would wrap around."""
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    reach = (np.iinfo(np.int32).max - 1) * abs(float(attrs["scale_factor"]))
    offset = float(attrs.get("add_offset", 0.0))
    if low < offset - reach or high > offset + reach:
        said = f"values of variable {name} from {low:g} to {high:g} do not fit the packing of the input"
        raise ValueError(f"{said}, which ends {reach:g} from {offset:g}; dtype float32 stores them as they are")


def _coded(variable: xr.Variable, array: zarr.Array) -> np.ndarray:
    """The values of a coordinate as an array of the store holds them, dates as numbers."""
    told = {name: array.attrs[name] for name in ("units", "calendar") if name in array.attrs and _are_dates(variable)}
    return xr.conventions.encode_cf_variable(xr.Variable(variable.dims, variable.values, {}, told)).values


def _are_dates(variable: xr.Variable) -> bool:
    return variable.dtype.kind in "MO"


def _calendar(dates: xr.Variable) -> str:
    """Of datetime64, or of cftime."""
    return dates.values.flat[0].calendar if dates.dtype.kind == "O" and dates.size else "proleptic_gregorian"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Consolidated metadata are read by all, but no part of the format 3 yet."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        yield
