# SPDX-License-Identifier: Apache-2.0
"""Values that no file declares as missing, and that are: infinite ones, and fill values of common software."""

from __future__ import annotations

import warnings

import numpy as np

# What software writes where nothing is known: NetCDF's defaults, those of CMIP, GRIB tools and tables of stations.
_FILL_VALUES = (
    9.969209968386869e36, 1e30, -1e30, 1e20, -1e20, 9.999e20, 3.4028234663852886e38, -3.4028234663852886e38,
    -9999.0, 9999.0, -999.0, -99999.0, -999.9, -9999.9, -32768.0, -32767.0, -2147483648.0, -2147483647.0,
)  # fmt: skip
_FAR = 3.0  # ranges of all other values


def without_undeclared(values: np.ndarray) -> np.ndarray:
    """The values of an array of floats, NaN where they are infinite or an undeclared fill value."""
    finite = _without_infinite(values)
    return _without(finite, find_fill_values(finite))


def _without_infinite(values: np.ndarray) -> np.ndarray:
    infinite = np.isinf(values)
    return np.where(infinite, values.dtype.type(np.nan), values) if infinite.any() else values


def _without(values: np.ndarray, fills: list[float]) -> np.ndarray:
    return np.where(np.isin(values, fills), values.dtype.type(np.nan), values) if fills else values


def find_fill_values(values: np.ndarray) -> list[float]:
    """Known fill values in an array of floats without infinite values that lie far outside everything else: three times
    its range beyond it. An array of nothing but one is missing where the value is negative or huge."""
    found: list[float] = []
    own = values.dtype.type
    fills = [value for value in _FILL_VALUES if abs(value) <= np.finfo(own).max]
    codes = {float(own(value)) for value in (*fills, *map(np.float32, fills))}  # float64 may be decoded float32
    present = values
    while present.size:
        ends = float(np.fmin.reduce(present, axis=None)), float(np.fmax.reduce(present, axis=None))
        code = next((end for end in ends if end in codes), None)
        if code is None:
            break
        others = present[~np.isnan(present) & (present != code)]
        low, high = (float(others.min()), float(others.max())) if others.size else (np.nan, np.nan)
        if others.size and max(low - code, code - high) <= _FAR * _range_without(others, codes):
            break
        if not others.size and not found and 0 < code < 1e19:
            break
        found.append(code)
        present = others
    return found


def _range_without(values: np.ndarray, codes: set[float]) -> float:
    """The range of values, those left out that may be fill values, too."""
    kept = values[~np.isin(values, list(codes))]
    return float(np.ptp(kept)) if kept.size else 0.0


class UndeclaredMissing:
    """Counts the infinite values and undeclared fill values of a variable whose fields are read one after another.

    Attributes: count, of infinite values; fills, counts by fill value."""

    def __init__(self):
        self.count = 0
        self.fills: dict[float, int] = {}

    def removed(self, values: np.ndarray) -> np.ndarray:
        """The values, NaN where they are infinite or an undeclared fill value, which are counted."""
        self.count += int(np.count_nonzero(np.isinf(values)))
        finite = _without_infinite(values)
        fills = find_fill_values(finite)
        for fill in fills:
            self.fills[fill] = self.fills.get(fill, 0) + int(np.count_nonzero(finite == values.dtype.type(fill)))
        return _without(finite, fills)

    def warn(self, name: object, stacklevel: int = 1) -> None:
        """Warn (UserWarning) once of the infinite values of a variable, and once of each fill value."""
        counts = [(self.count, "infinite value", "")]
        counts += [(count, f"value {fill:g}", ", far outside all others,") for fill, count in self.fills.items()]
        for count, what, where in counts:
            if count:
                kind, _, rest = what.partition("value")
                said = f"{count} {kind}value{'' if count == 1 else 's'}{rest} of variable {name}{where}"
                warnings.warn(f"{said} {'is' if count == 1 else 'are'} taken as missing", UserWarning, stacklevel + 1)
