# SPDX-License-Identifier: Apache-2.0
"""Error messages of commands and messages about internal errors."""

import os
import sys
import traceback
from collections.abc import Iterable

_BUG_REPORT = "this is a bug in fastds: please report it with the command and what `fastds info` prints"
_READER_PATHS = ("/data/formats/", "/data/reading.py", "/data/io/")
_MAX_MESSAGE_LENGTH = 300  # characters of an unexpected error


def format_error(error: BaseException) -> str:
    """Return the message of an error on one line, or its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for torch's errors that report exhausted memory."""
    return "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)


def format_internal_error(error: BaseException, files: Iterable[str] = ()) -> str:
    """Return the message about an unexpected error, which is a bug in fastds.

    Args:
        error: Exception with its traceback.
        files: Input files of the command.
    """
    if is_out_of_memory(error):
        return f"there is not enough memory: {format_error(error)[:_MAX_MESSAGE_LENGTH]}"
    frames = [frame.filename.replace(os.sep, "/") for frame in traceback.extract_tb(error.__traceback__)]
    reading = any(part in frame for frame in frames for part in _READER_PATHS)
    names = ", ".join(map(str, files))
    activity = f" while {'reading' if reading else 'working on'} {names}" if names else ""
    cause = f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_MESSAGE_LENGTH]}"
    return f"internal error{activity} ({cause}); {_BUG_REPORT}; FASTDS_DEBUG=1 shows the traceback"


def show_traceback() -> None:
    """Print the traceback of the current exception if the environment variable FASTDS_DEBUG is 1."""
    if os.environ.get("FASTDS_DEBUG") == "1":
        traceback.print_exc(file=sys.stderr)
