# SPDX-License-Identifier: Apache-2.0
"""Unknown commands, options and models of a command line, reported before torch, which takes seconds, is imported."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastds._nearest import did_you_mean
from fastds._parsers import COMMANDS, build_command_parser

_WEIGHTS = Path(__file__).parent / "models" / "weights"
_PLACES = ("downscale", "nowcast", "query", "demo")  # commands whose option --model is weights or a method
_FIRST = ("finetune", "export")  # commands whose first argument is weights
_NO_MODELS = ("downscaling-errors", "nowcast-errors")  # weights that belong to other weights
# Methods without weights, by command; not imported, which takes seconds. A test compares them.
METHODS = {
    "downscale": ("trilinear", "bicubic", "advection", "bilinear", "lanczos"),
    "nowcast": ("persistence", "blurred-persistence", "extrapolation", "pysteps"),
}


def end_misspelt() -> None:
    """End the command `fastds` with status 2 and one sentence where its command line has an unknown name.

    Does nothing in a program that is not the command itself, whatever its arguments are."""
    words = getattr(sys, "orig_argv", [])
    program = words[-len(sys.argv)] if len(words) >= len(sys.argv) else ""
    if os.path.basename(program) in ("fastds", "fastds.exe"):
        said = misspelt(sys.argv[1:])
        if said:
            print(said, file=sys.stderr)
            sys.exit(2)


def misspelt(argv: Sequence[str]) -> str | None:
    """One sentence about an unknown command, option, model, task or study, with the nearest known one.

    Args:
        argv: the command line without the program's name.

    Returns: the message, or None where every name is known or cannot be checked without torch.
    """
    if not argv or {"-h", "--help"} & set(argv):
        return None
    name, words = argv[0], argv[1:]
    if name.startswith("-"):
        return _unknown_option("fastds", name, ("--help", "--version"))
    if name not in COMMANDS:
        return f"fastds: there is no command {name!r}{did_you_mean(name, COMMANDS)} (see fastds --help)"
    if name in ("train", "study"):
        return _unknown_subject(name, words)
    known = ["--presets", "--leaderboard"]
    if name == "info":
        return None
    if name != "models":
        known = [option for action in build_command_parser(name)._actions for option in action.option_strings]
    unknown = (_unknown_option(f"fastds {name}", word, known) for word in _options(words))
    return next(filter(None, unknown), None) or _unknown_model(name, words)


def spelled(word: str) -> str:
    """An option with hyphens between its words, as those here have, where it is given with underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _options(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            return
        yield word


def _unknown_option(command: str, word: str, known: Sequence[str]) -> str | None:
    """The sentence about a word that is an option and not known; abbreviations are not."""
    option = spelled(word).partition("=")[0]
    if option in known or not option.startswith("-"):
        return None
    said = did_you_mean(option, known)
    if not option.startswith("--"):  # -32 is a number; -scale is none
        said = did_you_mean(f"-{option}", known)
        if not said or not option[1:2].isalpha():
            return None
    return f"{command}: unknown option {option}{said} (see {command} --help)"


def _unknown_subject(command: str, words: Sequence[str]) -> str | None:
    """The sentence about an unknown task of `fastds train` or an unknown study."""
    if not words or words[0].startswith("-"):
        return None
    if command == "train":
        from fastds.training.command import format_unknown_task

        return format_unknown_task(words[0])
    from fastds.studies.command import explain_unknown_study

    return explain_unknown_study(words[0])


def _unknown_model(command: str, words: Sequence[str]) -> str | None:
    """The sentence about a model that is neither a file nor a name."""
    options = list(_options(words))
    given = [options[k + 1] for k, word in enumerate(options[:-1]) if word == "--model"]
    given += [word.removeprefix("--model=") for word in options if word.startswith("--model=")]
    option = "--model"
    if command in _FIRST:
        given, option = [word for word in words[:1] if not word.startswith("-")], "MODEL"
    elif command not in _PLACES:
        return None
    weights, methods = [path.stem for path in sorted(_WEIGHTS.glob("*.safetensors"))], METHODS.get(command, ())
    for name in given:
        if name not in (*weights, *methods) and not os.path.exists(name):
            usual = [one for one in weights if one not in _NO_MODELS]
            near = did_you_mean(name, (*usual, *methods))
            said = f"{near} There are: " if near else ": "
            also = f"; methods without weights: {', '.join(methods)}" if methods else ""
            return (
                f"fastds {command}: {option} {name!r} is neither a file nor one of the shipped weights{said}"
                f"{', '.join(usual)}{also}; other networks of fastds models --presets must be trained first"
            )
    return None
