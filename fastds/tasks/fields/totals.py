# SPDX-License-Identifier: Apache-2.0
"""Running totals, such as rain since the start of a forecast: told by their growth, and made finer as differences.

Each field of a running total is downscaled by itself with its own error, so that differences between the fine totals of
two times can be negative where the coarse ones grow. Differences are therefore made finer, which are not negative, and
added up.
"""

from __future__ import annotations

import re
from collections.abc import Hashable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data.grid.variables import rain_kind, same_units, time_method

_WORDS = re.compile(r"since|accumulat|cumulat|running")
_LOOKED_AT = 49  # times, from the first: two days of hours and a reset
_NOISE = 1e-3  # of the scale of a field: packing makes totals fall by as much
_FEW, _MOST = 0.01, 0.5  # shares of cells that fall where a total grows, and where it begins anew


def running_axis(field: xr.DataArray, lead: list[Hashable]) -> Hashable | None:
    """The dimension along which a variable is a running total, None where it is none.

    Args:
        field: (..., H, W). lead: its leading dimensions. Totals of forecasts run along the lead time, others along
            time; amounts of rain, energies per area, and what names or cell_methods call accumulated may be totals.

    A total grows from time to time in nearly all cells, or begins anew in most: two steps of growth tell, or one where
    the attributes call it accumulated.
    """
    told = _called_total(field)
    if not (told or rain_kind(field) == "amount" or same_units(field.attrs.get("units"), "J m-2")):
        return None
    along = [d for d in lead if d in field.coords and field[d].ndim == 1 and field[d].dtype.kind in "mMO"]
    along.sort(key=lambda d: field[d].dtype.kind != "m")
    for dim in along:
        labels = field[dim].values
        if len(labels) < 2 or not all(a < b for a, b in zip(labels, labels[1:], strict=False)):
            continue
        sample = field.isel({d: 0 for d in lead if d != dim} | {dim: slice(0, _LOOKED_AT)}).transpose(dim, ...)
        if _grows(np.asarray(sample.values, np.float32), 1 if told else 2):
            return dim
    return None


def _called_total(field: xr.DataArray) -> bool:
    words = f"{field.name} {field.attrs.get('long_name', '')} {field.attrs.get('comment', '')}".lower()
    return time_method(field) == "sum" or bool(_WORDS.search(words))


def _grows(values: np.ndarray, least: int) -> bool:
    """Whether fields (times, ...) are a running total, that grows in at least so many steps."""
    kinds = [_step(before, after) for before, after in zip(values, values[1:], strict=False)]
    twice = any(a == b == "anew" for a, b in zip(kinds, kinds[1:], strict=False))
    return "other" not in kinds and not twice and kinds.count("grows") >= least


def _step(before: np.ndarray, after: np.ndarray) -> str:
    """What a total does between two fields: "grows", "stays", "anew" (begins anew), or "other" where it is none."""
    known = np.isfinite(before) & np.isfinite(after)
    before, after = before[known], after[known]
    if not before.size:
        return "stays"
    slack = _NOISE * max(float(np.quantile(np.abs(z), 0.99, method="lower")) for z in (before, after))
    falls, filled = after < before - slack, np.count_nonzero(before > slack)
    if filled and np.count_nonzero(falls) > _MOST * filled:
        return "anew"
    if np.count_nonzero(falls) > _FEW * before.size:
        return "other"
    return "grows" if (after > before + slack).any() else "stays"


def last_beginning(field: xr.DataArray, dim: Hashable, horizontal: tuple[str, str], stop: int) -> int:
    """The last place up to `stop` along a dimension at which a running total begins anew in all of its fields over the
    horizontal dimensions; 0 where it does not."""
    for place in range(stop, 0, -1):
        pair = field.isel({dim: slice(place - 1, place + 1)}).transpose(dim, ..., *horizontal).values
        fields = pair.reshape(2, -1, *pair.shape[-2:])
        if all(_step(before, after) == "anew" for before, after in zip(*fields, strict=True)):
            return place
    return 0


class RunningTotal:
    """Turns the fields of a running total into increments, one after another, and fine increments into totals."""

    def __init__(self):
        self._coarse: np.ndarray | None = None  # the largest values so far
        self._last: np.ndarray | None = None
        self._fine: np.ndarray | float = 0.0

    def increment(self, field: np.ndarray) -> np.ndarray:
        """What a field (H, W), NaN = missing, adds to the total so far, at least 0; the field itself where the total
        begins anew. A value after missing ones adds all since the last known."""
        if self._coarse is None or _step(self._last, field) == "anew":
            self._coarse, self._fine = np.zeros_like(field), 0.0
        added = np.maximum(field - self._coarse, 0.0)  # against the largest so far, so that noise does not add up
        known = ~np.isnan(field)
        self._coarse = np.where(known, np.maximum(self._coarse, field), self._coarse)
        self._last = field if self._last is None else np.where(known, field, self._last)
        return added

    def add(self, fine: np.ndarray) -> None:
        """Make a fine increment the total, in place."""
        fine += self._fine
        self._fine = np.where(np.isnan(fine), self._fine, fine)


class RunningTotals:
    """The running totals among the fields of a method, each along its own dimension.

    Args: running: channel -> the dimension along which it is a total.
    """

    def __init__(self, running: dict[int, Hashable]):
        self.running = running
        self._held: dict[tuple, RunningTotal] = {}

    def increments(self, at: dict, x: Tensor) -> Tensor:
        """The fields x (1, C, H, W) at an index of the leading dimensions, in their order, with increments in place of
        totals."""
        if self.running:
            x = x.clone()
        for channel in self.running:
            x[0, channel] = torch.from_numpy(self._of(channel, at).increment(x[0, channel].numpy()))
        return x

    def add(self, at: dict, channel: int, fine: np.ndarray) -> None:
        """Make the fine increment of a channel its total, in place; other channels stay."""
        if channel in self.running:
            self._of(channel, at).add(fine)

    def _of(self, channel: int, at: dict) -> RunningTotal:
        others = tuple(place for dim, place in at.items() if dim != self.running[channel])
        return self._held.setdefault((channel, others), RunningTotal())
