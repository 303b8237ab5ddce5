# SPDX-License-Identifier: Apache-2.0
"""One process at a time works on an archive: two would write over each other's pieces."""

from __future__ import annotations

import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """A block that one process at a time is in for a target; the system ends the lock of one that is killed.

    Warns (UserWarning) where the file system knows no locks. Raises: BlockingIOError where another process is in it."""
    lock = target.with_name(f".{target.name}.lock")
    held = _held(lock, target)
    try:
        yield
    finally:
        if held is not None:
            lock.unlink(missing_ok=True)
            os.close(held)


def _held(lock: Path, target: Path) -> int | None:
    """The open file whose lock this process has; None without locks."""
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
            said = f"the file system of {target} has no locks ({error.strerror}): see that one process works on it"
            warnings.warn(said, UserWarning, 4)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(lock)):
                return file
        os.close(file)  # of a process that has removed it since
