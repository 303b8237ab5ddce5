# SPDX-License-Identifier: Apache-2.0
"""Error messages and warnings of readers and writers."""

import errno
import os
import re
import warnings
from collections.abc import Sequence

# Error numbers of the operating system that do not depend on the contents of a file.
_SYSTEM_ERRNOS = (
    errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.ENOMEM, errno.EBUSY, errno.ENOENT,
    errno.ENOTDIR, errno.EIO, errno.ESTALE,
)  # fmt: skip


def summarize_error(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def make_read_error(path: str | os.PathLike, error: Exception, what: str) -> Exception:
    """Make the exception that a reader raises when a library fails to read a file.

    Args:
        path: File name.
        error: Exception that the library raised.
        what: Description of the data that could not be read, such as "the values of t2m".

    Returns:
        `error` itself if it is an ImportError, a MemoryError, or a ValueError or OSError with a one-line message that
        names the file. Otherwise OSError if the operating system could not open or read the file, else ValueError.
    """
    if isinstance(error, (ImportError, MemoryError)):
        return error
    if isinstance(error, (ValueError, OSError)) and os.path.basename(path) in str(error) and "\n" not in str(error):
        return error
    number = find_system_errno(error)
    if number is not None:
        return OSError(number, f"{path} cannot be opened: {os.strerror(number)}")
    return ValueError(f"{path}: {what} cannot be read ({summarize_error(error)}); the file may be truncated or damaged")


def find_system_errno(error: Exception) -> int | None:
    """Return the errno of an error that does not depend on the contents of a file, or None.

    HDF5 writes the number into the text of its message.
    """
    found = re.search(r"errno = (\d+)", str(error))
    number = int(found[1]) if found else getattr(error, "errno", None)
    return number if number in _SYSTEM_ERRNOS else None


def warn_left_out(what: str, count: int, why: str = "") -> None:
    """Warn that a reader leaves out a part of a file.

    Args:
        what: Description of the part and the file; the subject of the message.
        count: Number of fields or groups that are left out.
        why: Reason; "" for none.
    """
    message = f"{what} {'are' if count > 1 else 'is'} left out"
    warnings.warn(f"{message}: {why}" if why else message, UserWarning, stacklevel=4)


def format_names(names: Sequence[str], most: int = 5) -> str:
    """Join the first `most` names by commas, followed by an ellipsis if there are more."""
    return ", ".join(names[:most]) + " ..." * (len(names) > most)
