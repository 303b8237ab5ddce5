# SPDX-License-Identifier: Apache-2.0
"""Errors of other libraries in messages of readers and writers, and warnings of readers."""

import errno
import os
import re
import warnings
from collections.abc import Sequence

# What the system refuses whatever a file holds: such an error says nothing about the contents.
_OF_THE_SYSTEM = (
    errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.ENOMEM, errno.EBUSY, errno.ENOENT,
    errno.ENOTDIR, errno.EIO, errno.ESTALE,
)  # fmt: skip


def first_line_of(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def unreadable(path: str | os.PathLike, error: Exception, what: str) -> Exception:
    """The error of a reader in one sentence that names the file.

    Args:
        path: of the file. error: what a library raised. what: what was read and failed, such as "the values of t2m".

    Returns: the error itself where it names the file already or is about packages or memory; OSError where the system
        refuses the file, such as for too many open ones; else ValueError.
    """
    if isinstance(error, (ImportError, MemoryError)):
        return error
    if isinstance(error, (ValueError, OSError)) and os.path.basename(path) in str(error) and "\n" not in str(error):
        return error
    number = system_error(error)
    if number is not None:
        return OSError(number, f"{path} cannot be opened: {os.strerror(number)}")
    return ValueError(f"{path}: {what} cannot be read ({first_line_of(error)}); the file may be truncated or damaged")


def system_error(error: Exception) -> int | None:
    """The number of an error of the system that says nothing about the contents of a file, which HDF5 tells in its
    text; None for other errors."""
    found = re.search(r"errno = (\d+)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    return number if number in _OF_THE_SYSTEM else None


def warn_left_out(what: str, count: int, why: str = "") -> None:
    """Warn that a reader leaves out a part of a file.

    Args:
        what: the part and the file, the subject of the message.
        count: number of fields or groups that are left out.
        why: the reason; "": none is given.
    """
    message = f"{what} {'are' if count > 1 else 'is'} left out"
    warnings.warn(f"{message}: {why}" if why else message, UserWarning, stacklevel=4)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, separated by commas, and an ellipsis where there are more."""
    return ", ".join(names[:most]) + " ..." * (len(names) > most)
