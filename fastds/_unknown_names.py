# SPDX-License-Identifier: Apache-2.0
"""Early errors for unknown commands, options and models of a command line, before the slow import of torch."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastds._parsers import COMMANDS, build_command_parser
from fastds._suggestions import suggest

_WEIGHTS = Path(__file__).parent / "models" / "weights"
_MODEL_OPTION_COMMANDS = ("downscale", "nowcast", "query", "demo")  # commands with the option --model
_MODEL_ARGUMENT_COMMANDS = ("finetune", "export")  # commands whose first argument is a weights file
# Weights of error models, which belong to other weights.
_DEPENDENT_WEIGHTS = ("downscaling-errors", "nowcast-errors")
# Command -> methods without weights. The names are copied here, because importing the methods is slow. A test compares
# these lists with the methods.
METHODS = {
    "downscale": ("trilinear", "bicubic", "advection", "bilinear", "lanczos", "conservative"),
    "nowcast": ("persistence", "blurred-persistence", "extrapolation", "pysteps"),
}


def find_unknown_name(argv: Sequence[str]) -> str | None:
    """Find an unknown command, option, model, task or study in a command line.

    Args:
        argv: Command line without the name of the program.

    Returns:
        Error message with the most similar known name, or None if all names are known or cannot be checked without
            torch.
    """
    if not argv or {"-h", "--help"} & set(argv):
        return None
    name, arguments = argv[0], argv[1:]
    if name.startswith("-"):
        return _check_option("fastds", name, ("--help", "--version"))
    if name not in COMMANDS:
        return f"fastds: there is no command {name!r}{suggest(name, COMMANDS)} (see fastds --help)"
    if name in ("train", "study"):
        return _check_subject(name, arguments)
    known = ["--presets", "--leaderboard"]
    if name == "info":
        return None
    if name != "models":
        known = [option for action in build_command_parser(name)._actions for option in action.option_strings]
    unknown = (_check_option(f"fastds {name}", argument, known) for argument in _iterate_arguments(arguments))
    return next(filter(None, unknown), None) or _check_model(name, arguments)


def normalise_option(argument: str) -> str:
    """Return an option with hyphens in place of underscores in its name; other arguments are unchanged."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _iterate_arguments(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments before "--"."""
    for argument in arguments:
        if argument == "--":
            return
        yield argument


def _check_option(command: str, argument: str, known: Sequence[str]) -> str | None:
    """Return the error message for an unknown option, or None. Abbreviations of options are unknown.

    Args:
        command: Name of the command for the message.
        argument: Argument of the command line.
        known: Known options.
    """
    option = normalise_option(argument).partition("=")[0]
    if option in known or not option.startswith("-"):
        return None
    suggestion = suggest(option, known)
    if not option.startswith("--"):  # "-32" is a number, "-scale" is a misspelt option
        suggestion = suggest(f"-{option}", known)
        if not suggestion or not option[1:2].isalpha():
            return None
    return f"{command}: unknown option {option}{suggestion} (see {command} --help)"


def _check_subject(command: str, arguments: Sequence[str]) -> str | None:
    """Return the error message for an unknown task of `fastds train` or an unknown study, or None."""
    if not arguments or arguments[0].startswith("-"):
        return None
    if command == "train":
        from fastds.training.command import format_unknown_task

        return format_unknown_task(arguments[0])
    from fastds.studies.command import explain_unknown_study

    return explain_unknown_study(arguments[0])


def _check_model(command: str, arguments: Sequence[str]) -> str | None:
    """Return the error message for a model that is neither a file nor a known name, or None."""
    options = list(_iterate_arguments(arguments))
    given = [options[k + 1] for k, argument in enumerate(options[:-1]) if argument == "--model"]
    given += [argument.removeprefix("--model=") for argument in options if argument.startswith("--model=")]
    option = "--model"
    if command in _MODEL_ARGUMENT_COMMANDS:
        given, option = [argument for argument in arguments[:1] if not argument.startswith("-")], "MODEL"
    elif command not in _MODEL_OPTION_COMMANDS:
        return None
    weights, methods = [path.stem for path in sorted(_WEIGHTS.glob("*.safetensors"))], METHODS.get(command, ())
    for name in given:
        if name not in (*weights, *methods) and not os.path.exists(name):
            usual = [one for one in weights if one not in _DEPENDENT_WEIGHTS]
            near = suggest(name, (*usual, *methods))
            listing = f"{near} There are: " if near else ": "
            also = f"; methods without weights: {', '.join(methods)}" if methods else ""
            return (
                f"fastds {command}: {option} {name!r} is neither a file nor one of the shipped weights{listing}"
                f"{', '.join(usual)}{also}; other networks of fastds models --presets must be trained first"
            )
    return None
