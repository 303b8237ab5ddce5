# SPDX-License-Identifier: Apache-2.0
"""Infinite values of a field, which are taken as missing."""

from __future__ import annotations

import warnings

import numpy as np


def without_infinite(values: np.ndarray) -> np.ndarray:
    """The values of an array of floats, NaN where they are infinite."""
    infinite = np.isinf(values)
    return np.where(infinite, values.dtype.type(np.nan), values) if infinite.any() else values


class Infinite:
    """Counts the infinite values of a variable whose fields are read one after another. Attributes: count."""

    def __init__(self):
        self.count = 0

    def removed(self, values: np.ndarray) -> np.ndarray:
        """The values, NaN where they are infinite, which are counted."""
        self.count += int(np.count_nonzero(np.isinf(values)))
        return without_infinite(values)

    def warn(self, name: object, stacklevel: int = 1) -> None:
        """Warn (UserWarning) once of the infinite values of a variable, where there are any."""
        if self.count:
            one = self.count == 1
            said = f"{self.count} infinite value{'' if one else 's'} of variable {name} {'is' if one else 'are'}"
            warnings.warn(f"{said} taken as missing", UserWarning, stacklevel + 1)
