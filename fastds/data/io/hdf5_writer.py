# SPDX-License-Identifier: Apache-2.0
"""File object for HDF5 that tolerates write errors.

On a full disk HDF5 prints an error at every close and may end the process.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast


class DeferredErrorFile:
    """File object that stores the first OSError and ignores all later writes, so that HDF5 can close it normally.

    Attributes:
        error: The first OSError, or None.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        return self._attempt(self._file.write, data, otherwise=len(data))

    def truncate(self, size: int) -> int:
        return self._attempt(self._file.truncate, size, otherwise=size)

    def flush(self) -> None:
        self._attempt(self._file.flush)

    def readinto(self, buffer: memoryview) -> int:
        return self._attempt(cast(Any, self._file).readinto, buffer, otherwise=0)

    def read(self, size: int = -1) -> bytes:  # h5py requires this method of a file object
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
def open_hdf5_writer(path: str | os.PathLike) -> Iterator[DeferredErrorFile]:
    """Context manager: yield a new file for h5netcdf.File or h5py.File.

    Args:
        path: File to create.

    Raises:
        OSError: The first error of writing, at the end of the block, in place of the exception that HDF5 raised.
    """
    with open(path, "wb+", buffering=0) as file:
        target = DeferredErrorFile(file)
        try:
            yield target
        finally:
            if target.error is not None:
                raise target.error
