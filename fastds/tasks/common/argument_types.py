# SPDX-License-Identifier: Apache-2.0
"""Arguments of the public verbs against the annotations of the functions that carry them out."""

import inspect
import os
import reprlib
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from fastds.data.reading import are_paths


class ArgumentTypeError(TypeError, ValueError):
    """An argument of another type than its annotation."""


def is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    return is_number(value) and float(value).is_integer()


def _each(check: Callable[[object], bool], count: int | None = None) -> Callable[[object], bool]:
    """Whether a value is a sequence, of so many, whose entries pass the check."""

    def passes(value: object) -> bool:
        several = isinstance(value, list | tuple | np.ndarray) and np.ndim(value) == 1
        return several and (count is None or len(value) == count) and all(map(check, value))

    return passes


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_data(value: object) -> bool:
    return are_paths(value) or isinstance(value, xr.Dataset | xr.DataArray)


# By the words of an annotation: what is expected, and whether a value is that. Others are left to the functions.
KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "None": ("None", lambda value: value is None),
    "bool": ("True or False", lambda value: isinstance(value, bool | np.bool_)),
    "int": ("a whole number", is_whole),
    "float": ("a number", is_number),
    "str": ("a string", _is_text),
    "xr.Dataset": ("an xarray Dataset or DataArray or files", _is_data),
    "nn.Module": ("a model", lambda value: isinstance(value, nn.Module)),
    "os.PathLike": ("a path", lambda value: isinstance(value, os.PathLike)),
    "list[str]": ("a list of strings", _each(_is_text)),
    "Sequence[str]": ("a list of strings", _each(_is_text)),
    "Sequence[float]": ("a list of numbers", _each(is_number)),
    "tuple[float, float]": ("two numbers", _each(is_number, 2)),
}


def check_types(annotations: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """ArgumentTypeError for an argument that is not of a type in its annotation."""
    for name, value in arguments.items():
        kinds = _words(annotations[name]) if name in annotations else []
        if not kinds or any(kind not in KINDS or KINDS[kind][1](value) for kind in kinds):
            continue
        expected = " or ".join(KINDS[kind][0] for kind in kinds if kind != "None")
        raise ArgumentTypeError(f"{name} must be {expected}, got {reprlib.repr(value)}")


def annotations_of(function: Callable) -> dict[str, Any]:
    """Annotations of the parameters of a function, or of the fields of a dataclass."""
    return {name: p.annotation for name, p in inspect.signature(function).parameters.items()}


def _words(annotation: Any) -> list[str]:
    words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return words.split(" | ")
