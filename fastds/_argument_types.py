# SPDX-License-Identifier: Apache-2.0
"""Validation of the arguments of public functions against their annotations."""

import functools
import inspect
import os
import re
import reprlib
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from fastds._options import OptionError

Function = TypeVar("Function", bound=Callable)


class ArgumentTypeError(OptionError, TypeError):
    """Raised for an argument whose type does not match its annotation."""


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole_number(value: object) -> bool:
    return isinstance(value, Real) and is_number(value) and float(value).is_integer()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def _make_class_check(module: str, name: str) -> Callable[[object], bool]:
    """Return an isinstance check that does not import the module; if it is not imported, no instance can exist."""
    return lambda value: module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _is_paths(value: object) -> bool:
    """Return True for a path, a list of paths, or another iterable whose items are not checked."""
    if isinstance(value, list | tuple):
        return all(map(_is_path, value))
    return _is_path(value) or (hasattr(value, "__iter__") and not isinstance(value, Mapping | bytes | np.ndarray))


def _make_sequence_check(check: Callable[[object], bool], count: int | None = None) -> Callable[[object], bool]:
    """Return a check for a sequence whose items pass `check`.

    Args:
        check: Check of an item.
        count: Required length; None: any.
    """

    def passes(value: object) -> bool:
        if not isinstance(value, list | tuple | np.ndarray) or np.ndim(value) != 1:
            return False
        return (count is None or len(value) == count) and all(map(check, value))

    return passes


# Type in an annotation -> its description in messages, and its check. Other types are not checked.
KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "None": ("None", lambda value: value is None),
    "bool": ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    "int": ("a whole number", is_whole_number),
    "float": ("a number", is_number),
    "str": ("a string", _is_text),
    "PathLike": ("a path", lambda value: isinstance(value, os.PathLike)),
    "Dataset": ("an xarray Dataset", _make_class_check("xarray", "Dataset")),
    "DataArray": ("a DataArray", _make_class_check("xarray", "DataArray")),
    "Module": ("a model", _make_class_check("torch.nn", "Module")),
    "list[str]": ("a list of strings", _make_sequence_check(_is_text)),
    "Sequence[str | PathLike]": ("a list of paths", _make_sequence_check(_is_path)),
    "Iterable[str | PathLike]": ("several paths", _is_paths),
    "Sequence[str]": ("a list of strings", _make_sequence_check(_is_text)),
    "Sequence[float]": ("a list of numbers", _make_sequence_check(is_number)),
    "tuple[float, float]": ("two numbers", _make_sequence_check(is_number, 2)),
    "tuple[int, int]": ("two whole numbers", _make_sequence_check(is_whole_number, 2)),
}


def check_types(annotations: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Check arguments against annotations.

    Args:
        annotations: Name -> annotation.
        arguments: Name -> value.

    Raises:
        ArgumentTypeError: An argument matches none of the types in its annotation.
    """
    for name, value in arguments.items():
        kinds = _split_annotation(annotations[name]) if name in annotations else []
        if not kinds or any(kind not in KINDS or KINDS[kind][1](value) for kind in kinds):
            continue
        left_out = {"None", "str"} if "PathLike" in kinds else {"None"}  # "a path" includes strings
        *others, last = (KINDS[kind][0] for kind in kinds if kind not in left_out)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ArgumentTypeError(name, f"must be {expected}, got {_format_value(value)}")


def _format_value(value: object) -> str:
    """Format a value for messages; a value whose repr has several lines, such as an array, is described by its type."""
    lines = repr(value).splitlines()
    return reprlib.repr(value) if len(lines) == 1 else f"a {type(value).__name__}"


def validate_arguments(function: Function) -> Function:
    """Decorate a function so that its arguments are checked against its annotations before it runs."""
    signature, annotations = inspect.signature(function), get_annotations(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        check_types(annotations, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def get_annotations(function: Callable) -> dict[str, Any]:
    """Return the annotations of the parameters of a function, or of the fields of a dataclass."""
    return {name: p.annotation for name, p in inspect.signature(function).parameters.items()}


def _split_annotation(annotation: Any) -> list[str]:
    """Split an annotation into types: "xr.Dataset | list[str] | None" into Dataset, list[str] and None."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.split(r" \| (?![^\[]*\])", re.sub(r"\b(\w+\.)+", "", text))
