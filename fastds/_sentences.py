# SPDX-License-Identifier: Apache-2.0
"""Errors of a command as one sentence in the words of a command line, and what is no user's error."""

import os
import re
import sys
import traceback
from collections.abc import Iterable, Set

_REPORT = "this is a bug in fastds: please report it with the command and what `fastds info` prints"
_OF_FILES = ("/data/formats/", "/data/reading.py", "/data/io/")
_LONGEST = 300  # letters of an unexpected error


def sentence_of(error: BaseException) -> str:
    """The error's words on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def with_options(sentence: str, names: Set[str]) -> str:
    """A sentence that names arguments of Python with the options of the command line.

    "time_factor must be ..." becomes "--time-factor must be ...", "leave out the argument static" "leave out --static",
    and "outside='nan' or 'clamp'" "--outside nan or clamp".

    Args:
        sentence: of an error or a warning.
        names: of the options, as Python spells them; others stay as they are.
    """

    def option(name: re.Match) -> str:
        return f"--{name[0].replace('_', '-')}" if name[0] in names else name[0]

    def several(found: re.Match) -> str:
        listed = re.sub(r"[a-z_]+", option, found[1])
        return listed if "--" in listed else found[0]

    def given(found: re.Match) -> str:
        if found[1] not in names:
            return found[0]
        return f"--{found[1].replace('_', '-')} {found[2]}".replace("'", "").removesuffix(" True")

    sentence = re.sub(r"^[a-z_]+(?= must | is | needs |: | do not work )", option, sentence)
    sentence = re.sub(r"\b(?:the )?arguments? ((?:[a-z_]+)(?:(?:, | and | or )[a-z_]+)*)", several, sentence)
    value = r"(?:'[^']*'(?: or '[^']*')*|True|-?\d+(?:\.\d+)?)(?![\w./])"
    sentence = re.sub(rf"(?<![\w./'\"-])([a-z_]+)=({value})", given, sentence)
    sentence = re.sub(r"\bnp\.\w+\(([^()]*)\)", r"\1", sentence)  # how numpy writes its numbers
    sentence = sentence.replace("name_or_path '", "model '" if "model" not in names else "--model '")
    return sentence.replace(" is no argument for ", " is no option for ")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch says by an error that memory does not suffice, for which it has several."""
    return "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)


def internal_error(error: BaseException, files: Iterable[str] = ()) -> str:
    """The sentence about an error that is none of the user's.

    Args:
        error: the exception, with its traceback.
        files: what the command reads.
    """
    if out_of_memory(error):
        return f"there is not enough memory: {sentence_of(error)[:_LONGEST]}"
    frames = [frame.filename.replace(os.sep, "/") for frame in traceback.extract_tb(error.__traceback__)]
    reading = any(part in frame for frame in frames for part in _OF_FILES)
    named = ", ".join(map(str, files))
    doing = f" while {'reading' if reading else 'working on'} {named}" if named else ""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST]}"
    return f"internal error{doing} ({said}); {_REPORT}; FASTDS_DEBUG=1 shows the traceback"


def show_traceback() -> None:
    """Print the traceback of the exception that is being handled, where FASTDS_DEBUG=1 asks for it."""
    if os.environ.get("FASTDS_DEBUG") == "1":
        traceback.print_exc(file=sys.stderr)
