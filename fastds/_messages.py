# SPDX-License-Identifier: Apache-2.0
"""Error messages of commands in terms of the command line, and messages about internal errors."""

import os
import re
import sys
import traceback
from collections.abc import Iterable, Set

_BUG_REPORT = "this is a bug in fastds: please report it with the command and what `fastds info` prints"
_READER_PATHS = ("/data/formats/", "/data/reading.py", "/data/io/")
_MAX_MESSAGE_LENGTH = 300  # characters of an unexpected error


def format_error(error: BaseException) -> str:
    """Return the message of an error on one line, or its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def replace_arguments_by_options(message: str, names: Set[str]) -> str:
    """Replace names of Python arguments in a message by options of the command line.

    "time_factor must be ..." becomes "--time-factor must be ...", "leave out the argument static" becomes "leave out
    --static", and "outside='nan' or 'clamp'" becomes "--outside nan or clamp".

    Args:
        message: Message of an error or a warning.
        names: Names of the options, spelt as Python arguments; other names are not replaced.
    """

    def format_option(name: re.Match) -> str:
        return f"--{name[0].replace('_', '-')}" if name[0] in names else name[0]

    def replace_list(found: re.Match) -> str:
        options = re.sub(r"[a-z_]+", format_option, found[1])
        return options if "--" in options else found[0]

    def replace_assignment(found: re.Match) -> str:
        if found[1] not in names:
            return found[0]
        return f"--{found[1].replace('_', '-')} {found[2]}".replace("'", "").removesuffix(" True")

    message = re.sub(r"^[a-z_]+(?= must | is | needs |: | do not work )", format_option, message)
    message = re.sub(r"\b(?:the )?arguments? ((?:[a-z_]+)(?:(?:, | and | or )[a-z_]+)*)", replace_list, message)
    value = r"(?:'[^']*'(?: or '[^']*')*|True|-?\d+(?:\.\d+)?)(?![\w./])"
    message = re.sub(rf"(?<![\w./'\"-])([a-z_]+)=({value})", replace_assignment, message)
    message = re.sub(r"\bnp\.\w+\(([^()]*)\)", r"\1", message)  # repr of numpy scalars
    message = message.replace("name_or_path '", "model '" if "model" not in names else "--model '")
    return message.replace(" is no argument for ", " is no option for ")


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
