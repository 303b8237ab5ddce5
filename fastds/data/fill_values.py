# SPDX-License-Identifier: Apache-2.0
"""Detection of fill values that no attribute declares, and of infinite values."""

from __future__ import annotations

import warnings

import numpy as np

# Common fill values: defaults of NetCDF, CMIP, GRIB tools and tables of station data.
_FILL_VALUES = (
    9.969209968386869e36, 1e30, -1e30, 1e20, -1e20, 9.999e20, 3.4028234663852886e38, -3.4028234663852886e38,
    -9999.0, 9999.0, -999.0, -99999.0, -999.9, -9999.9, -32768.0, -32767.0, -2147483648.0, -2147483647.0,
)  # fmt: skip
# A fill value lies outside all other values by more than this multiple of their range.
_DISTANCE_FACTOR = 3.0


def mask_undeclared_fills(values: np.ndarray) -> np.ndarray:
    """Return floating-point values with NaN in place of infinite values and undeclared fill values."""
    finite = _mask_infinite(values)
    return _mask_values(finite, find_fill_values(finite))


def _mask_infinite(values: np.ndarray) -> np.ndarray:
    infinite = np.isinf(values)
    return np.where(infinite, values.dtype.type(np.nan), values) if infinite.any() else values


def _mask_values(values: np.ndarray, fills: list[float]) -> np.ndarray:
    return np.where(np.isin(values, fills), values.dtype.type(np.nan), values) if fills else values


def find_fill_values(values: np.ndarray) -> list[float]:
    """Find undeclared fill values in an array of floating-point numbers without infinite values.

    A value is a fill value if it is in the table of common fill values, is the smallest or largest value of the array,
    and lies outside the range of the other values by more than three times that range. If an array consists of one
    common fill value only, this value counts as missing if it is negative or at least 1e19.

    Args:
        values: Floating-point array of any shape; NaN is ignored.

    Returns:
        list of float, the fill values that were found.
    """
    found: list[float] = []
    dtype = values.dtype.type
    fills = [value for value in _FILL_VALUES if abs(value) <= np.finfo(dtype).max]
    # float64 values may have been converted from float32, so the float32 roundings are included.
    codes = {float(dtype(value)) for value in (*fills, *map(np.float32, fills))}
    present = values
    while present.size:
        ends = float(np.fmin.reduce(present, axis=None)), float(np.fmax.reduce(present, axis=None))
        code = next((end for end in ends if end in codes), None)
        if code is None:
            break
        others = present[~np.isnan(present) & (present != code)]
        low, high = (float(others.min()), float(others.max())) if others.size else (np.nan, np.nan)
        if others.size and max(low - code, code - high) <= _DISTANCE_FACTOR * _compute_range_without(others, codes):
            break
        if not others.size and not found and 0 < code < 1e19:
            break
        found.append(code)
        present = others
    return found


def _compute_range_without(values: np.ndarray, codes: set[float]) -> float:
    """Return the range of the values that are not in `codes`."""
    others = values[~np.isin(values, list(codes))]
    return float(np.ptp(others)) if others.size else 0.0


class UndeclaredFills:
    """Mask and count infinite values and undeclared fill values of a variable, one array after another.

    Attributes:
        count: Number of infinite values so far.
        fills: Number of occurrences of each fill value so far.
    """

    def __init__(self):
        self.count = 0
        self.fills: dict[float, int] = {}

    def mask(self, values: np.ndarray) -> np.ndarray:
        """Return the values with NaN in place of infinite and undeclared fill values, and count these."""
        self.count += int(np.count_nonzero(np.isinf(values)))
        finite = _mask_infinite(values)
        fills = find_fill_values(finite)
        for fill in fills:
            self.fills[fill] = self.fills.get(fill, 0) + int(np.count_nonzero(finite == values.dtype.type(fill)))
        return _mask_values(finite, fills)

    def warn(self, name: object, stacklevel: int = 1) -> None:
        """Warn (UserWarning) about the infinite values of variable `name` and about each of its fill values."""
        counts = [(self.count, "infinite value", "")]
        counts += [(count, f"value {fill:g}", ", far outside all others,") for fill, count in self.fills.items()]
        for count, description, where in counts:
            if count:
                kind, _, rest = description.partition("value")
                subject = f"{count} {kind}value{'' if count == 1 else 's'}{rest} of variable {name}{where}"
                verb = "is" if count == 1 else "are"
                warnings.warn(f"{subject} {verb} taken as missing", UserWarning, stacklevel + 1)
