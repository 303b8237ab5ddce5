# SPDX-License-Identifier: Apache-2.0
"""Inspection of a file or Zarr store for format detection, with transparent decompression."""

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
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class FileProbe:
    """File or Zarr store whose properties for format detection are computed once, on first use.

    Args:
        path: File or folder.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.open_datasets: list[xr.Dataset] = []  # opened lazily by a reader; closed together with the result

    @functools.cached_property
    def is_zarr(self) -> bool:
        """True if the path is a folder that has the suffix .zarr or holds the metadata of a Zarr store."""
        names = (".zgroup", ".zmetadata", "zarr.json")
        return self.path.is_dir() and (
            self.path.suffix.lower() == ".zarr" or any((self.path / name).exists() for name in names)
        )

    @functools.cached_property
    def raw_header(self) -> bytes:
        """The first 8 bytes before decompression; empty for a folder."""
        if self.path.is_dir():
            return b""
        with self.path.open("rb") as stream:
            return stream.read(8)

    @property
    def is_compressed(self) -> bool:
        """True if the file is a gzip or bzip2 stream."""
        return self._opener is not None

    @functools.cached_property
    def header(self) -> bytes:
        """The first 4096 bytes after decompression; empty for a folder or a damaged stream."""
        if self.path.is_dir():
            return b""
        with contextlib.suppress(OSError, EOFError, zlib.error), self.open() as stream:
            return stream.read(4096)
        return b""

    @functools.cached_property
    def groups(self) -> frozenset[str]:
        """Names in the root group of an HDF5 file; empty for other and for damaged files."""
        if self.header.startswith(HDF5_SIGNATURE):
            with contextlib.suppress(OSError, ValueError, KeyError, RuntimeError), self.open_hdf5() as file:
                return frozenset(file)
        return frozenset()

    @functools.cached_property
    def members(self) -> frozenset[str]:
        """Names in a zip archive; empty for other files."""
        if self.header.startswith(b"PK"):
            with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(self.path) as file:
                return frozenset(file.namelist())
        return frozenset()

    def open(self) -> BinaryIO:
        """Open the decompressed file as a binary stream."""
        return (self._opener or open)(self.path, "rb")

    def open_hdf5(self) -> h5py.File:
        """Open the decompressed file with h5py."""
        return h5py.File(io.BytesIO(self.read()) if self.is_compressed else self.path)

    def read(self) -> bytes:
        """Return all bytes of the decompressed file.

        Raises:
            ValueError: The compressed stream is truncated or damaged.
        """
        try:
            with self.open() as stream:
                return stream.read()
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{self.path} is truncated: its compressed data end early") from error

    @contextlib.contextmanager
    def unpack(self) -> Iterator[pathlib.Path]:
        """Context manager: yield the path of the decompressed file, a temporary one if necessary."""
        if not self.is_compressed:
            yield self.path
            return
        with tempfile.TemporaryDirectory() as folder:
            target = pathlib.Path(folder) / self.path.stem
            target.write_bytes(self.read())
            yield target

    @property
    def _opener(self):
        return next((opener for magic, opener in _OPENERS.items() if self.raw_header.startswith(magic)), None)
