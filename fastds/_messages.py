# SPDX-License-Identifier: Apache-2.0
"""Error messages of commands and messages about internal errors."""

import os
import re
import sys
import traceback
from collections.abc import Collection, Iterable

from fastds._options import OptionError, format_option, has_option, spell_name
from fastds._suggestions import suggest

_BUG_REPORT = "this is a bug in fastds: please report it with the command and what `fastds info` prints"
_READER_PATHS = ("/data/formats/", "/data/reading.py", "/data/io/")
_MAX_MESSAGE_LENGTH = 300  # characters of an unexpected error
_MAX_PARSER_MESSAGE = 1000  # characters of an error of the parser
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "NoneType": "null",
}


def format_error(error: BaseException) -> str:
    """Return the message of an error on one line, or its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def convert_parser_error(error: Exception, options: Collection[str] = ()) -> ValueError:
    """Convert an error of jsonargparse into an error without parser keys and class names of Python.

    The error of jsonargparse has a text and no fields, so the text is parsed.

    Args:
        error: error of the parser.
        options: known options, for suggestions.
    """
    message = " ".join(str(error).split())
    key, kinds = re.match(r'Parser key "([\w.]+)": ', message), re.findall(r"Expected an? <class '(\w+)'>", message)
    given = re.search(r"(?:Got|Given) value: (.*?)(?: Given value type.*)?$", message)
    missing = re.fullmatch(r"the following arguments are required: (.*)", message)
    unknown = re.match(r"unrecognized arguments: (--?[A-Za-z]\S*)", message)
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
    if key and given and kinds and set(kinds) <= set(_TYPE_NAMES):
        expected = " or ".join(dict.fromkeys(_TYPE_NAMES[kind] for kind in kinds))
        return OptionError(key[1], f"must be {expected}, got {_truncate(repr(given[1]))}")
    if key:
        return OptionError(key[1], f": {_truncate(message[key.end() :])}")
    if missing:
        # A positional argument of a subcommand is called "nowcast.input".
        names = [name if has_option(name) else name.split(".", 1)[-1] for name in missing[1].split(", ")]
        return ValueError(f"{' and '.join(map(spell_name, names))} {'is' if len(names) == 1 else 'are'} missing")
    if unknown:
        option = format_option(unknown[1].partition("=")[0].removeprefix("--"))
        return ValueError(f"unknown option {option}{suggest(option, options)}")
    if choice:
        message += suggest(choice[1], re.findall(r"'([^']+)'", choice[2]))
    return ValueError(_truncate(message))


def _truncate(message: str) -> str:
    return message if len(message) <= _MAX_PARSER_MESSAGE else message[:_MAX_PARSER_MESSAGE] + " ..."


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
