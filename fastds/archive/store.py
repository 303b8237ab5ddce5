# SPDX-License-Identifier: Apache-2.0
"""Zarr store of an archive: created empty, filled region by region, and extended."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fastds.data.grid.times import format_time
from fastds.data.io.packing import make_packing_encoding
from fastds.inference.chunking import Chunk, Pipeline, make_template

if TYPE_CHECKING:
    import zarr

    from fastds.archive.layout import Layout

_TIME_ENCODING = {"units": "microseconds since 1970-01-01", "dtype": "int64"}


class Store:
    """Zarr store of a pipeline's result.

    Fields are NaN until they are computed.

    Args:
        path: Folder.
        pipeline: Pipeline whose result the store holds.
    """

    def __init__(self, path: Path, pipeline: Pipeline):
        self.path, self.pipeline = path, pipeline

    def create(self, source: xr.Dataset, dtype: str, layout: Layout) -> None:
        """Write coordinates, attributes and fields without values.

        Args:
            source: Input; packed fields of it are stored as integers.
            dtype: "input", or "float32" to store no integers.
            layout: Zarr chunks and shards of the fields.
        """
        outline = self._make_template()
        encoding: dict[Any, dict[str, Any]] = {}
        for name in self.pipeline.variables:
            encoding[name] = {"chunks": layout.chunks[name], "dtype": "float32", "_FillValue": np.float32("nan")}
            encoding[name] |= {"shards": layout.shards[name]} if name in layout.shards else {}
            how = make_packing_encoding(outline[name], source[name]) if dtype == "input" and name in source else None
            encoding[name] |= how or {}
            encoding[name]["fill_value"] = encoding[name]["_FillValue"]
        for key, variable in outline.variables.items():
            if _is_dates(variable):
                # Times that are appended later may need a finer unit than these.
                encoding[key] = _TIME_ENCODING | {"calendar": _get_calendar(variable)}
        with _suppress_warnings():
            outline.drop_encoding().to_zarr(
                self.path, mode="w", compute=False, encoding=encoding, zarr_format=3 if layout.shards else None
            )

    def get_lengths(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        """Return the lengths of Zarr chunks and shards of a variable by dimension; {} without shards."""
        import zarr

        array, (dims, _) = zarr.open_group(self.path, mode="r")[name], self.pipeline.variables[name]
        chunks = dict(zip(dims, array.chunks, strict=True))
        return chunks, {} if array.shards is None else dict(zip(dims, array.shards, strict=True))

    @property
    def written_length(self) -> int:
        """Length along pipeline.dim of the parts of the store that only one process may write to at a time."""
        lengths = (self.get_lengths(name) for name in self.pipeline.variables)
        return math.lcm(*((shards or chunks)[self.pipeline.dim] for chunks, shards in lengths))

    def find_other_layout(self, chunks: Mapping[str, int], shards: Mapping[str, int]) -> str:
        """Return a description of the Zarr chunks or shards that are not as requested, or ""."""
        for name in self.pipeline.variables:
            for what, requested, found in zip(
                ("chunks", "shards"), (chunks, shards), self.get_lengths(name), strict=True
            ):
                sizes = dict(zip(*self.pipeline.variables[name], strict=True))
                for dim, length in requested.items():
                    expected = (
                        length if dim == self.pipeline.dim or what == "shards" else min(length, sizes.get(dim, 1))
                    )
                    if dim in sizes and found.get(dim) != expected:
                        return f"{what} of {found.get(dim, 'no')} along {dim}, and {length} are requested"
        return ""

    @property
    def length(self) -> int:
        """Length of the pipeline's result along pipeline.dim."""
        dims, shape = next(iter(self.pipeline.variables.values()))
        return shape[dims.index(self.pipeline.dim)]

    def format_times(self, chunk: Chunk) -> str:
        """Format the first and the last time of a chunk for messages."""
        with self._open() as dataset:
            first, last = (dataset[self.pipeline.dim].values[at] for at in (chunk.outputs[0], chunk.outputs[1] - 1))
        return f"{format_time(first)} to {format_time(last)}"

    def has_same_start(self, length: int) -> bool:
        """Return True if the first `length` coordinates of the store equal those of the pipeline's result."""
        first = {self.pipeline.dim: slice(0, length)}
        expected = self._make_template().isel(first)
        with self._open() as dataset:
            found = dataset.isel(first)
            same = expected.sizes[self.pipeline.dim] == length and set(expected.coords) == set(found.coords)
            return same and all(expected[name].equals(found[name]) for name in expected.coords)

    def grow(self, before: int) -> None:
        """Extend the store to the length of the pipeline's result, with its coordinates and `fastds_*` attributes.

        New fields are NaN until they are written.

        Args:
            before: Length of the store.
        """
        import zarr

        outline, dim = self._make_template(), self.pipeline.dim
        group = zarr.open_group(self.path, mode="r+")
        for name, variable in outline.variables.items():
            if dim not in variable.dims:
                continue
            array, axis = group[name], variable.dims.index(dim)
            array.resize((*array.shape[:axis], self.length, *array.shape[axis + 1 :]))
            if name not in self.pipeline.variables:
                new = (slice(None),) * axis + (slice(before, None),)
                array[new] = _encode_coordinate(variable[new], array)
        others = {name: value for name, value in group.attrs.items() if not name.startswith("fastds_")}
        updated = {name: value for name, value in outline.attrs.items() if name.startswith("fastds_")}
        group.attrs.put(others | updated)
        with _suppress_warnings():
            zarr.consolidate_metadata(self.path)

    def write(self, first: int, values: Mapping[str, np.ndarray]) -> None:
        """Write the values of a chunk.

        Args:
            first: Index of its first step along pipeline.dim.
            values: Name -> values.

        Raises:
            ValueError: Values do not fit the packing.
        """
        import zarr

        group = zarr.open_group(self.path, mode="r")
        packed = {name for name in values if group[name].dtype.kind == "i"}
        # Packing rounds in the dtype of its input. float64 gives the same integers as writing a file does.
        fields = {name: array.astype(np.float64) if name in packed else array for name, array in values.items()}
        for name in packed:
            _check_fits(name, fields[name], group[name].attrs)
        part = xr.Dataset({name: (self.pipeline.variables[name][0], array) for name, array in fields.items()})
        with _suppress_warnings():
            part.to_zarr(self.path, region={self.pipeline.dim: slice(first, first + part.sizes[self.pipeline.dim])})

    def has_values(self, first: int, values: Mapping[str, np.ndarray]) -> bool:
        """Return whether a chunk of the store has these values, up to packing and rounding.

        Args:
            first: Index of its first step along pipeline.dim.
            values: Name -> values.
        """
        with self._open() as dataset:
            for name, expected in values.items():
                axis = self.pipeline.variables[name][0].index(self.pipeline.dim)
                found = dataset[name].isel({self.pipeline.dim: slice(first, first + expected.shape[axis])})
                present = np.abs(expected[np.isfinite(expected)])
                slack = 1e-4 * float(present.max(initial=0.0)) + float(found.encoding.get("scale_factor", 0.0))
                if not np.allclose(found.values, expected, rtol=0, atol=slack, equal_nan=True):
                    return False
        return True

    def _open(self) -> xr.Dataset:
        with _suppress_warnings():
            return xr.open_zarr(self.path, chunks=None)

    def _make_template(self) -> xr.Dataset:
        """Return the pipeline's result without values, with all other variables in memory.

        to_zarr does not write dask arrays with compute=False, so only the fields are dask arrays.
        """
        import dask.array as da

        result = make_template(self.pipeline, functools.partial(da.zeros, dtype=np.float32, chunks=-1))
        return result.assign({n: v.compute() for n, v in result.variables.items() if n not in self.pipeline.variables})


def _check_fits(name: str, values: np.ndarray, attrs: Mapping[str, Any]) -> None:
    """Raise ValueError if values exceed the range of the int32 codes of an array, where they would overflow."""
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    limit = (np.iinfo(np.int32).max - 1) * abs(float(attrs["scale_factor"]))
    offset = float(attrs.get("add_offset", 0.0))
    if low < offset - limit or high > offset + limit:
        finding = f"values of variable {name} from {low:g} to {high:g} do not fit the packing of the input"
        raise ValueError(f"{finding}, which ends {limit:g} from {offset:g}; dtype float32 stores them as they are")


def _encode_coordinate(variable: xr.Variable, array: zarr.Array) -> np.ndarray:
    """Encode the values of a coordinate as an array of the store holds them; dates become numbers."""
    names = ("units", "calendar") if _is_dates(variable) else ()
    encoding = {name: array.attrs[name] for name in names if name in array.attrs}
    return xr.conventions.encode_cf_variable(xr.Variable(variable.dims, variable.values, {}, encoding)).values


def _is_dates(variable: xr.Variable) -> bool:
    return variable.dtype.kind in "MO"


def _get_calendar(dates: xr.Variable) -> str:
    """Return the calendar of datetime64 or cftime values."""
    return dates.values.flat[0].calendar if dates.dtype.kind == "O" and dates.size else "proleptic_gregorian"


@contextlib.contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Suppress the warning that consolidated metadata are not part of the specification of Zarr 3."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        yield
