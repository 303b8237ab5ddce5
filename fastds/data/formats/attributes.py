# SPDX-License-Identifier: Apache-2.0
"""Attributes of HDF5 files, which some writers store as scalars and others as arrays of one."""

from typing import Any

import numpy as np


def number_of(value: Any) -> float:
    """A number, or the first of an array."""
    return float(np.ravel(value)[0])


def text_of(value: Any) -> str:
    """A string or bytes, or the first of an array, as a string."""
    value = np.ravel(value)[0] if np.ndim(value) else value
    return value.decode() if isinstance(value, bytes) else str(value)
