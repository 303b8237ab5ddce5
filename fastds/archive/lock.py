# SPDX-License-Identifier: Apache-2.0
"""Exclusive lock of an archive, since two processes would overwrite each other's chunks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive_lock(target: Path) -> Iterator[None]:
    """Context manager: hold the exclusive lock of a target. The operating system releases the lock of a killed process.

    Warns (UserWarning) if the file system does not support locks; the block then runs without one.

    Args:
        target: Archive; the lock file is next to it.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    lock = target.with_name(f".{target.name}.lock")
    held = _acquire_lock(lock, target)
    try:
        yield
    finally:
        if held is not None:
            lock.unlink(missing_ok=True)
            os.close(held)


def _acquire_lock(lock: Path, target: Path) -> int | None:
    """Open and lock the lock file.

    Returns:
        File descriptor, or None if the file system does not support locks.
    """
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise BlockingIOError(f"another process works on {target}; wait for its end") from None
        except OSError as error:
            os.close(file)
            lock.unlink(missing_ok=True)
            message = f"the file system of {target} has no locks ({error.strerror}): see that one process works on it"
            warnings.warn(message, UserWarning, 4)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                return file
        os.close(file)  # the process that held the lock has removed this file; try again with a new one
