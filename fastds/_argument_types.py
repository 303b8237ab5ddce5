# SPDX-License-Identifier: Apache-2.0
"""Arguments of public functions against their annotations."""

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

Function = TypeVar("Function", bound=Callable)


class ArgumentTypeError(TypeError, ValueError):
    """An argument of another type than its annotation."""


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    return is_number(value) and float(value).is_integer()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def _is_of(module: str, name: str) -> Callable[[object], bool]:
    """Whether a value is of a class of a module, which is not imported for that: who has such a value has done it."""
    return lambda value: module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def _is_paths(value: object) -> bool:
    """Of one path or many, which a generator may give."""
    if isinstance(value, list | tuple):
        return all(map(_is_path, value))
    return _is_path(value) or (hasattr(value, "__iter__") and not isinstance(value, Mapping | bytes | np.ndarray))


def _each(check: Callable[[object], bool], count: int | None = None) -> Callable[[object], bool]:
    """Whether a value is a sequence, of so many, whose entries pass the check."""

    def passes(value: object) -> bool:
        several = isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1
        return several and (count is None or len(value) == count) and all(map(check, value))

    return passes


# By the words of an annotation: what is expected, and whether a value is that. Others are left to the functions.
KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "None": ("None", lambda value: value is None),
    "bool": ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    "int": ("a whole number", is_whole),
    "float": ("a number", is_number),
    "str": ("a string", _is_text),
    "PathLike": ("a path", lambda value: isinstance(value, os.PathLike)),
    "Dataset": ("an xarray Dataset", _is_of("xarray", "Dataset")),
    "DataArray": ("a DataArray", _is_of("xarray", "DataArray")),
    "Module": ("a model", _is_of("torch.nn", "Module")),
    "list[str]": ("a list of strings", _each(_is_text)),
    "list[str | PathLike]": ("a list of paths", _each(_is_path)),
    "Iterable[str | PathLike]": ("several paths", _is_paths),
    "Sequence[str]": ("a list of strings", _each(_is_text)),
    "Sequence[float]": ("a list of numbers", _each(is_number)),
    "tuple[float, float]": ("two numbers", _each(is_number, 2)),
    "tuple[int, int]": ("two whole numbers", _each(is_whole, 2)),
}


def check_types(annotations: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """ArgumentTypeError for an argument that is not of a type in its annotation."""
    for name, value in arguments.items():
        kinds = _words(annotations[name]) if name in annotations else []
        if not kinds or any(kind not in KINDS or KINDS[kind][1](value) for kind in kinds):
            continue
        left_out = {"None", "str"} if "PathLike" in kinds else {"None"}  # a string is a path there
        *others, last = (KINDS[kind][0] for kind in kinds if kind not in left_out)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ArgumentTypeError(f"{name} must be {expected}, got {_said(value)}")


def _said(value: object) -> str:
    """A value in a few words: of what takes lines, such as arrays and datasets, the type."""
    lines = repr(value).splitlines()
    return reprlib.repr(value) if len(lines) == 1 else f"a {type(value).__name__}"


def checks_types(function: Function) -> Function:
    """The function, its arguments checked against its annotations before it runs."""
    signature, annotations = inspect.signature(function), annotations_of(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check_types(annotations, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def annotations_of(function: Callable) -> dict[str, Any]:
    """Annotations of the parameters of a function, or of the fields of a dataclass."""
    return {name: p.annotation for name, p in inspect.signature(function).parameters.items()}


def _words(annotation: Any) -> list[str]:
    """ "xr.Dataset | list[str] | None" -> Dataset, list[str], None."""
    words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.split(r" \| (?![^\[]*\])", re.sub(r"\b(\w+\.)+", "", words))
