# SPDX-License-Identifier: Apache-2.0
"""Running totals, such as precipitation since the start of a forecast: detection, and downscaling of increments.

If each field of a running total were downscaled by itself, errors could make the fine totals decrease between two
times. Instead, the increments, which are not negative, are downscaled and accumulated.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data.grid.variables import classify_rain, get_time_method, is_same_unit

_TOTAL_PATTERN = re.compile(r"since|accumulat|cumulat|running")
_MAX_TIMES = 49  # number of times that are examined: two days of hours and a reset
_NOISE = 1e-3  # fraction of the scale of a field; packing makes totals decrease by up to this much
# fractions of decreasing cells: at most _MAX_DECREASING while a total grows, more than _MIN_RESET where it is reset
_MAX_DECREASING, _MIN_RESET = 0.01, 0.5


def find_running_axis(field: xr.DataArray, lead: list[Hashable]) -> Hashable | None:
    """Return the dimension along which a variable is a running total, or None.

    Candidates are amounts of precipitation, energies per area, and variables whose name or cell_methods indicate
    accumulation. A running total grows in nearly all cells or is reset in most of them. Two steps with growth are
    required, or one if the attributes indicate accumulation.

    Args:
        field: variable (..., H, W).
        lead: leading dimensions. Totals of forecasts run along the lead time, others along the time.
    """
    is_named = _is_named_total(field)
    if not (is_named or classify_rain(field) == "amount" or is_same_unit(field.attrs.get("units"), "J m-2")):
        return None
    along = [d for d in lead if d in field.coords and field[d].ndim == 1 and field[d].dtype.kind in "mMO"]
    along.sort(key=lambda d: field[d].dtype.kind != "m")
    for dim in along:
        labels = field[dim].values
        if len(labels) < 2 or not all(a < b for a, b in itertools.pairwise(labels)):
            continue
        sample = field.isel({d: 0 for d in lead if d != dim} | {dim: slice(0, _MAX_TIMES)}).transpose(dim, ...)
        if _is_running_total(np.asarray(sample.values, np.float32), 1 if is_named else 2):
            return dim
    return None


def _is_named_total(field: xr.DataArray) -> bool:
    words = f"{field.name} {field.attrs.get('long_name', '')} {field.attrs.get('comment', '')}".lower()
    return get_time_method(field) == "sum" or bool(_TOTAL_PATTERN.search(words))


def _is_running_total(values: np.ndarray, min_growing: int) -> bool:
    """Return whether fields (times, ...) are a running total that grows in at least `min_growing` steps."""
    kinds = [_classify_step(before, after) for before, after in itertools.pairwise(values)]
    twice = any(a == b == "reset" for a, b in itertools.pairwise(kinds))
    return "other" not in kinds and not twice and kinds.count("grows") >= min_growing


def _classify_step(before: np.ndarray, after: np.ndarray) -> str:
    """Classify a step of a total: "grows", "stays", "reset" (it is reset) or "other" (it is not a running total)."""
    known = np.isfinite(before) & np.isfinite(after)
    before, after = before[known], after[known]
    if not before.size:
        return "stays"
    slack = _NOISE * max(float(np.quantile(np.abs(z), 0.99, method="lower")) for z in (before, after))
    falls, filled = after < before - slack, np.count_nonzero(before > slack)
    if filled and np.count_nonzero(falls) > _MIN_RESET * filled:
        return "reset"
    if np.count_nonzero(falls) > _MAX_DECREASING * before.size:
        return "other"
    return "grows" if (after > before + slack).any() else "stays"


def find_last_reset(field: xr.DataArray, dim: Hashable, horizontal: tuple[str, str], stop: int) -> int:
    """Return the last index at which a running total is reset in all its fields.

    Args:
        field: variable.
        dim: dimension along which it is a running total.
        horizontal: names of the horizontal dimensions.
        stop: largest index that is considered.

    Returns:
        The index, or 0 if the total is not reset.
    """
    for place in range(stop, 0, -1):
        pair = field.isel({dim: slice(place - 1, place + 1)}).transpose(dim, ..., *horizontal).values
        fields = pair.reshape(2, -1, *pair.shape[-2:])
        if all(_classify_step(before, after) == "reset" for before, after in zip(*fields, strict=True)):
            return place
    return 0


class RunningTotal:
    """Converts the fields of a running total to increments, one after another, and fine increments to totals."""

    def __init__(self):
        self._coarse: np.ndarray | None = None  # largest values so far
        self._last: np.ndarray | None = None
        self._fine: np.ndarray | float = 0.0

    def to_increment(self, field: np.ndarray) -> np.ndarray:
        """Return the increment of a field (H, W), NaN = missing, at least 0.

        After a reset, the increment is the field itself. After missing values, it includes all growth since the last
        known value.
        """
        if self._coarse is None or self._last is None or _classify_step(self._last, field) == "reset":
            self._coarse, self._fine = np.zeros_like(field), 0.0
        # relative to the largest value so far, so that noise does not accumulate
        added = np.maximum(field - self._coarse, 0.0)
        known = ~np.isnan(field)
        self._coarse = np.where(known, np.maximum(self._coarse, field), self._coarse)
        self._last = field if self._last is None else np.where(known, field, self._last)
        return added

    def add(self, fine: np.ndarray) -> None:
        """Replace a fine increment by the fine total, in place."""
        fine += self._fine
        self._fine = np.where(np.isnan(fine), self._fine, fine)


class RunningTotals:
    """The running totals among the fields of a method.

    Args:
        running: channel -> dimension along which it is a running total.
    """

    def __init__(self, running: dict[int, Hashable]):
        self.running = running
        self._totals: dict[tuple, RunningTotal] = {}

    def to_increments(self, at: dict, x: Tensor) -> Tensor:
        """Return fields with increments in place of running totals.

        Args:
            at: indices of the leading dimensions. Successive calls must go through them in order.
            x: fields (1, C, H, W).
        """
        if self.running:
            x = x.clone()
        for channel in self.running:
            x[0, channel] = torch.from_numpy(self._get_total(channel, at).to_increment(x[0, channel].numpy()))
        return x

    def add(self, at: dict, channel: int, fine: np.ndarray) -> None:
        """Replace the fine increment of a channel by its total, in place.

        Args:
            at: indices of the leading dimensions. Successive calls must go through them in order.
            channel: index of the channel. A channel without a running total is not changed.
            fine: fine increment (H', W'), changed in place.
        """
        if channel in self.running:
            self._get_total(channel, at).add(fine)

    def _get_total(self, channel: int, at: dict) -> RunningTotal:
        others = tuple(place for dim, place in at.items() if dim != self.running[channel])
        return self._totals.setdefault((channel, others), RunningTotal())
