# SPDX-License-Identifier: Apache-2.0
"""Attributes of HDF5 files, which some writers store as scalars and others as arrays of one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastds.data.io.storage import decode_text


def required(attrs: Mapping[str, Any], name: str, where: str) -> Any:
    """An attribute. Raises: ValueError that names it and the group where it is missing or empty."""
    if name not in attrs or np.size(attrs[name]) == 0:
        raise ValueError(f"the attribute {where}/{name} is missing")
    return attrs[name]


def number_of(value: Any) -> float:
    """A number, or the first of an array."""
    return float(np.ravel(value)[0])


def text_of(value: Any) -> str:
    """A string or bytes, or the first of an array, as a string."""
    value = np.ravel(value)[0] if np.ndim(value) else value
    return decode_text(value) if isinstance(value, str | bytes) else str(value)
