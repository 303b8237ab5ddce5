# SPDX-License-Identifier: Apache-2.0
"""Names of arguments in messages: time_factor in Python, --time-factor on the command line.

Messages that name an argument are composed with the functions below. A command selects its option names with the
context manager use_option_names; outside of it, messages have the names of the Python arguments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

# Argument -> option of the command that runs; None in Python.
_option_names: Mapping[str, str] | None = None
# Arguments of internal functions that have another name as an option.
_ALIASES = {"name_or_path": ("model", "model.start")}


class OptionError(ValueError):
    """An argument or option has an invalid value.

    Args:
        name: name of the argument, such as "tile", or of the field of a configuration, such as "data.crop".
        message: text after the name, such as "must be positive, got 0", or ": no such file".
    """

    def __init__(self, name: str, message: str):
        super().__init__(name, message)
        self.name, self.message = name, message

    def __str__(self) -> str:
        return f"{spell_name(self.name)}{'' if self.message[:1] in (':', '[') else ' '}{self.message}"


@contextlib.contextmanager
def use_option_names(names: Mapping[str, str] | None) -> Iterator[None]:
    """Context manager in which messages name the options of a command.

    Args:
        names: argument -> option, such as {"time_factor": "--time-factor"}; None to name arguments as in Python.
    """
    global _option_names
    before, _option_names = _option_names, names
    try:
        yield
    finally:
        _option_names = before


def get_option_names() -> Mapping[str, str] | None:
    """Return the option names that messages use now, or None if messages name arguments as in Python.

    A worker process uses the same names if it passes the result to use_option_names.
    """
    return _option_names


def format_option(name: str) -> str:
    """Return the option of the command line for an argument: "--time-factor" for "time_factor"."""
    return f"--{name.replace('_', '-')}"


def _find_option(name: str) -> str | None:
    """Return the option for an argument, or None if the command has no such option or no command runs."""
    if _option_names is None:
        return None
    candidates = (name, f"data.{name}", *_ALIASES.get(name, ()))
    return next((_option_names[one] for one in candidates if one in _option_names), None)


def get_argument_word() -> str:
    """Return "argument", or "option" in a command."""
    return "argument" if _option_names is None else "option"


def has_option(name: str) -> bool:
    """Return True if an argument can be given: always in Python, and in a command if it has the option."""
    return _option_names is None or _find_option(name) is not None


def spell_name(name: str) -> str:
    """Return an argument as the subject of a message: "time_factor" or "--time-factor"."""
    return _find_option(name) or name


def spell_argument(*names: str, conjunction: str = "and") -> str:
    """Return arguments as the object of a phrase in a message.

    For the argument members, this is "the argument members" in Python, and "--members" in a command.

    Args:
        names: one name or several.
        conjunction: word before the last of several names.
    """
    *first, last = map(spell_name, names)
    joined = f"{', '.join(first)} {conjunction} {last}" if first else last
    if any(_find_option(name) for name in names):
        return joined
    return f"the argument{'s' * bool(first)} {joined}"


def spell_value(name: str, *values: Any) -> str:
    """Return an argument with its value for a message: "outside='nan'" or "--outside nan".

    Args:
        name: name of the argument.
        values: value, or alternatives, which are joined by "or". The option of the value True has no value.
    """
    option = _find_option(name)
    if option is None:
        return f"{name}={' or '.join(map(repr, values))}"
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    return option if values == (True,) else f"{option} {' or '.join(texts)}"
