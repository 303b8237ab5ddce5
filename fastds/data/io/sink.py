# SPDX-License-Identifier: Apache-2.0
"""The file that HDF5 writes to. HDF5 does not survive a full disk: it prints at every close and may end the process."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO


class Sink:
    """A file for h5py that keeps the first error of the system and takes everything after it without writing, so that
    HDF5 closes in peace. Attributes: error, or None."""

    def __init__(self, file: BinaryIO):
        self._file, self.error = file, None

    def write(self, data: bytes) -> int:
        return self._attempt(self._file.write, data, otherwise=len(data))

    def truncate(self, size: int) -> int:
        return self._attempt(self._file.truncate, size, otherwise=size)

    def flush(self) -> None:
        self._attempt(self._file.flush)

    def readinto(self, buffer: memoryview) -> int:
        return self._attempt(self._file.readinto, buffer, otherwise=0)

    def read(self, size: int = -1) -> bytes:  # h5py knows a file by it
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def _attempt(self, function: Callable, *arguments, otherwise: Any = None) -> Any:
        if self.error is None:
            try:
                return function(*arguments)
            except OSError as error:
                self.error = error
        return otherwise


@contextlib.contextmanager
def sink(path: str | os.PathLike) -> Iterator[Sink]:
    """A new file for h5netcdf.File or h5py.File in a block, at whose end the first error of writing is raised, OSError,
    in place of what HDF5 made of it."""
    with open(path, "wb+", buffering=0) as file:
        target = Sink(file)
        try:
            yield target
        finally:
            if target.error is not None:
                raise target.error
