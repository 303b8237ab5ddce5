# SPDX-License-Identifier: Apache-2.0
"""What a path holds, as far as telling its format needs; files unpacked."""

import bz2
import contextlib
import functools
import gzip
import io
import os
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import h5py
import xarray as xr

_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
HDF5 = b"\x89HDF\r\n\x1a\n"


class Contents:
    """A file or Zarr store by its first bytes and names inside, each looked up when first asked for."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.held: list[xr.Dataset] = []  # datasets that a reader opened lazily, to be closed with the result

    @functools.cached_property
    def is_zarr(self) -> bool:
        """Whether it is a folder that is a Zarr store."""
        names = (".zgroup", ".zmetadata", "zarr.json")
        return self.path.is_dir() and (
            self.path.suffix.lower() == ".zarr" or any((self.path / name).exists() for name in names)
        )

    @functools.cached_property
    def raw_start(self) -> bytes:
        """The first 8 bytes as they are; of a folder none."""
        if self.path.is_dir():
            return b""
        with self.path.open("rb") as stream:
            return stream.read(8)

    @property
    def compressed(self) -> bool:
        """Whether the file is a gzip or bzip2 stream."""
        return self._opener is not None

    @functools.cached_property
    def start(self) -> bytes:
        """The first 4096 bytes after unpacking; none of a damaged stream."""
        if self.path.is_dir():
            return b""
        with contextlib.suppress(OSError, EOFError, zlib.error), self.open() as stream:
            return stream.read(4096)
        return b""

    @functools.cached_property
    def groups(self) -> frozenset[str]:
        """Names at the top level of an HDF5 file; of other files and of what is damaged none."""
        if self.start.startswith(HDF5):
            with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError), self.hdf5() as file:
                return frozenset(file)
        return frozenset()

    @functools.cached_property
    def members(self) -> frozenset[str]:
        """Names in a zip archive; of other files none."""
        if self.start.startswith(b"PK"):
            with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(self.path) as file:
                return frozenset(file.namelist())
        return frozenset()

    def open(self) -> BinaryIO:
        """The unpacked file as a stream."""
        return (self._opener or open)(self.path, "rb")

    def hdf5(self) -> h5py.File:
        """The unpacked file, opened by h5py."""
        return h5py.File(io.BytesIO(self.read()) if self.compressed else self.path)

    def read(self) -> bytes:
        """All of the unpacked file. Raises: ValueError for a truncated or damaged stream."""
        try:
            with self.open() as stream:
                return stream.read()
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{self.path} is truncated: its compressed data end early") from error

    @contextlib.contextmanager
    def unpacked(self) -> Iterator[pathlib.Path]:
        """The path of the unpacked file: itself, or a temporary one that goes with the block."""
        if not self.compressed:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            target = pathlib.Path(folder) / self.path.stem
            target.write_bytes(self.read())
            yield target

    @property
    def _opener(self):
        return next((opener for magic, opener in _OPENERS.items() if self.raw_start.startswith(magic)), None)
