# SPDX-License-Identifier: Apache-2.0
"""Comparison of a written file with the dataset: smallest and largest values and numbers of missing values."""

import dataclasses
import pathlib
import threading
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from fastds.data.io.storage import Packing, iterate_blocks

_TIME_TOLERANCE = np.timedelta64(1, "us")


@dataclasses.dataclass
class Statistics:
    """Statistics of values that are added array by array; a copy in another process is independent of the original.

    Attributes:
        packing: Packing that the values should fit; None: any values fit.
        count: Number of values.
        missing: Number of missing values.
        low: Smallest value; None without values.
        high: Largest value; None without values.
        fits: Whether all values fit the packing.
    """

    packing: Packing | None = None
    count: int = 0
    missing: int = 0
    low: Any = None
    high: Any = None
    fits: bool = True

    def __post_init__(self):
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return dataclasses.asdict(self) | {"packing": self.packing}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]  # no class derives from this one

    def add(self, values: np.ndarray) -> np.ndarray:
        """Add the values and return them unchanged, as dask's map_blocks requires."""
        values = np.asarray(values)
        missing, low, high = _summarize(values)
        fits = self.packing is None or self.packing.fits(values)
        with self._lock:
            self.count += values.size
            self.missing += missing
            self.fits &= fits
            if low is not None:
                self.low = low if self.low is None else min(self.low, low)
                self.high = high if self.high is None else max(self.high, high)
        return values


def _summarize(values: np.ndarray) -> tuple[int, Any, Any]:
    """Return the number of missing values, and the smallest and largest value.

    The latter are None if all values are missing or if the dtype has no order.
    """
    kind = values.dtype.kind
    if kind == "f":
        missing = int(np.isnan(values).sum())
        if missing == values.size:
            return missing, None, None
        return missing, float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if kind in "Mm":
        present = values[~np.isnat(values)]
    elif kind == "O" and values.size and all(hasattr(value, "calendar") for value in values.flat):
        present = values.ravel()
    elif kind in "iub":
        present = values
    else:
        return 0, None, None
    ends = (present.min(), present.max()) if present.size else (None, None)
    return values.size - present.size, *ends


def compute_statistics(variable: xr.Variable) -> Statistics:
    """Compute the statistics of a variable in memory, after decoding by its attributes."""
    found = Statistics()
    for block in iterate_blocks(_unpack(variable)):
        found.add(block)
    return found


def _unpack(variable: xr.Variable) -> xr.Variable:
    if variable.dtype.kind in "MmO":
        return variable
    return xr.conventions.decode_cf_variable("v", variable, decode_times=False, decode_timedelta=False)


def check_written(path: pathlib.Path, engine: str, statistics: dict[Hashable, Statistics], encodings: dict) -> None:
    """Read a file back and compare every variable with the expected statistics.

    Args:
        path: File or store.
        engine: Engine of xarray that reads it.
        statistics: Variable -> expected statistics. Statistics without values, of arrays that were computed in other
            processes, are skipped.
        encodings: Variable -> encoding. Packed variables may differ by half a step.

    Raises:
        ValueError: A variable differs.
    """
    with xr.open_dataset(path, engine=engine, decode_cf=False, cache=False) as stored:
        timed = [name for name, expected in statistics.items() if _is_time(expected.low)]
        times = (
            xr.decode_cf(stored[timed], decode_timedelta=True).variables if timed else {}
        )  # decoded together, since bounds use the units of their times
        for name, expected in statistics.items():
            if not expected.count:
                continue
            found = compute_statistics(times[name] if name in times else stored[name].variable)
            if not _is_match(expected, found, encodings.get(name, {})):
                raise ValueError(
                    f"variable {name} would be stored as {_describe(found)} in place of {_describe(expected)}; "
                    "give it another encoding"
                )


def _is_time(value: Any) -> bool:
    return isinstance(value, np.datetime64 | np.timedelta64) or hasattr(value, "calendar")


def _is_match(expected: Statistics, found: Statistics, encoding: dict) -> bool:
    """Return True if two statistics agree, up to half a step of the packing and rounding."""
    if (expected.count, expected.missing) != (found.count, found.missing):
        return False
    if expected.low is None or found.low is None:
        return expected.low is None and found.low is None
    pairs = ((expected.low, found.low), (expected.high, found.high))
    if isinstance(expected.low, np.datetime64 | np.timedelta64):
        return all(abs(one - other) <= _TIME_TOLERANCE for one, other in pairs)
    if hasattr(expected.low, "calendar"):
        return all(abs((one - other).total_seconds()) <= 1e-6 for one, other in pairs)
    step = abs(float(encoding.get("scale_factor", 0.0))) if "dtype" in encoding else 0.0
    dtype = np.dtype(encoding.get("dtype", np.float32))
    eps = np.finfo(dtype if dtype.kind == "f" else np.float32).eps
    for one, other in pairs:
        if one != other and not abs(float(one) - float(other)) <= 0.501 * step + 4 * eps * abs(float(one)):
            return False
    return True


def _describe(found: Statistics) -> str:
    ends = "nothing" if found.low is None else f"{found.low} to {found.high}"
    return f"{ends} with {found.missing} of {found.count} values missing"
