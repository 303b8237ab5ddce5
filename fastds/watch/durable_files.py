# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash of the machine, identity of files, and temporary files of `fastds watch`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".fastds-watch-"  # of temporary names, so that those of other programs are never removed
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
Stamp = list[int]  # size in bytes, modification time in ns


def make_temporary_path(target: Path) -> Path:
    """Return a hidden path in the same folder, with the extension of the target."""
    return target.with_name(f"{_PREFIX}{target.name}")


def commit_durably(temporary: Path, target: Path) -> None:
    """Write a complete temporary file to the disk, and rename it to `target`.

    Raises:
        OSError: The disk is full or fails.
    """
    _sync(temporary)
    os.replace(temporary, target)
    _sync(target.parent)


def write_durably(target: Path, text: str) -> None:
    """Replace a text file atomically.

    Raises:
        OSError: The file cannot be written; an existing file is unchanged.
    """
    temporary = make_temporary_path(target)
    try:
        temporary.write_text(text, encoding="utf-8")
        commit_durably(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove the temporary files that a killed `fastds watch` has left in a folder, and return their names.

    The names begin with ".fastds-watch-", or "..fastds-watch-" for files that were being written.
    """
    found = [path for path in folder.iterdir() if path.name.lstrip(".").startswith(_PREFIX[1:]) and path.name[0] == "."]
    leftovers = [path for path in found if not path.name.endswith(".lock")]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return sorted(path.name for path in leftovers)


def get_stamp(path: Path) -> Stamp:
    """Return size and modification time of a file, or total size and last modification of a Zarr store.

    Raises:
        OSError: The file does not exist or cannot be accessed.
    """
    status = path.stat()
    if not path.is_dir():
        return [status.st_size, status.st_mtime_ns]
    inside = [file.stat() for file in _list_store(path)]
    return [sum(s.st_size for s in inside), max(s.st_mtime_ns for s in (status, *inside))]


def get_identity(path: Path) -> list[int] | None:
    """Return what changes when a file is replaced by another, or None if there is no file."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return [status.st_ino, status.st_size, status.st_mtime_ns]
    return None


def get_arrival_time(path: Path) -> float:
    """Return the time in seconds since 1970 at which a file got its name or its present contents."""
    return path.stat().st_ctime


def compute_digest(path: Path) -> str:
    """Return the SHA-256 of the contents of a file, or of all files of a Zarr store with their names.

    Raises:
        OSError: The file cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in _list_store(path):
        with part.open("rb") as file:
            digest.update(os.fsencode(part.relative_to(path)) + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _list_store(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.rglob("*")) if file.is_file())


def is_disk_full(error: BaseException | None) -> bool:
    """Return True if an error, or an error that caused it, reports a full disk or an exceeded quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
