# SPDX-License-Identifier: Apache-2.0
"""Variables of a dataset on a latitude-longitude grid, read one field after another."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from fastds.data.grid.plausible import (
    NOT_NEGATIVE,
    check_packing,
    check_plausible,
    plausible_range,
    stored_as_codes,
    within,
    without_missing,
)
from fastds.data.grid.times import check_dates
from fastds.data.grid.variables import same_units
from fastds.data.undeclared import UndeclaredMissing, without_undeclared
from fastds.tasks.common.changes import Changes
from fastds.tasks.domain.score import Domain
from fastds.tasks.fields.geometry import Geometry
from fastds.tasks.fields.totals import running_axis

Kind = tuple[str | None, str | None]  # standard name and units of a variable
Bounds = tuple[float, float]
_NEAR = 1e-4  # of the scale of a field: closer to a limit is at it, which packing leaves
_CHANGED = {
    "clipped": "were cut at the limits of their variable",
    "cut_correction": "were cut at the limits of their variable after the correction to the means of the coarse cells",
}


class Fields:
    """Variables of a dataset on a grid, read one field after another.

    Args:
        dataset: fields (..., latitude, longitude). grid: its geometry.
        names: of the variables, of the same dimensions. kinds: their standard names and units, None where not told.

    Attributes: lead, their leading dimensions; name, what the user calls the method; predicted, which of names the
    method makes; origin of static maps; most, how many times finer it makes fields; model, a network or None; changes,
    counts of what was cut; running, which of names are running totals, and along which dimension: their fields come as
    increments.

    Raises: ValueError: leading dimensions without a field or with missing dates.
    """

    model: nn.Module | None = None
    name, origin, most = "", "", 1.0

    def __init__(self, dataset: xr.Dataset, grid: Geometry, names: list[str], kinds: list[Kind]):
        self.dataset, self.grid, self.names, self.kinds = dataset, grid, names, kinds
        self.limits = [limits_of(*kind) for kind in kinds]
        self.begin()
        self.predicted: list[int] = list(range(len(names)))
        self.running: dict[int, Hashable] = {}
        self.lead = [d for d in dataset[names[0]].dims if d not in grid.names]
        empty = [d for d in self.lead if dataset.sizes[d] == 0]
        if empty:
            raise ValueError(f"there is no field: dimension {empty[0]} of variable {names[0]} has length 0")
        for d in self.lead:
            if d in dataset.coords and dataset[d].dtype.kind == "M":
                check_dates(dataset[d])

    def begin(self) -> None:
        """Count what is cut from here on."""
        self.changes = Changes(_CHANGED)

    def fields(self) -> Iterator[tuple[dict, Tensor]]:
        """({leading dimension: index}, (1, C, H, W) float32), read one after another; NaN is what is implausible or
        infinite."""
        return ((at, self._field(at)) for at in self._places())

    def check(self, stacklevel: int) -> None:
        """Warn (UserWarning) where values of a variable are implausible, infinite or all missing. Raises: ValueError
        where more than half are implausible."""
        for n, limits in zip(self.names, self.limits, strict=True):
            infinite = UndeclaredMissing()
            variable, values = self.dataset[n], (infinite.removed(self._read(n, at)) for at in self._places())
            said = f"every value of variable {n} is missing, and so is the output"
            form = {"codes": stored_as_codes(variable), "all_missing": said, "stacklevel": stacklevel + 1}
            check_plausible(n, values, limits, variable.attrs.get("units", ""), **form)
            infinite.warn(n, stacklevel + 1)

    @functools.cached_property
    def domain(self) -> Domain:
        """How far the fields lie from what a network was trained on; warns (UserWarning) where they lie outside."""
        return Domain(self.name)

    def factor(self, latitude: Tensor, longitude: Tensor) -> tuple[float, float]:
        """How many times finer a grid of coordinates is, along rows and columns; of a single one `most`."""
        return tuple(finer or self.most for finer in self.grid.finer(latitude, longitude))

    def bounds(self, channel: int, field: Tensor) -> Bounds:
        """What the finer values of a field (H, W) cannot be beyond, by what the variable is.

        Relative humidity ends at 0, and upwards where the field does, or at saturation where it stays below: over ice
        it reaches far beyond 100 %. Other quantities end at 0 where the field has no negative value and the quantity
        never has, or one value in a hundred is zero (rain, radiation, cover); at 1, or 100 %, likewise (cover, masks).
        """
        if channel in self.running:
            return 0.0, math.inf
        standard_name, units = self.kinds[channel]
        whole = next((number for unit, number in (("%", 100.0), ("1", 1.0)) if same_units(units, unit)), None)
        if standard_name == "relative_humidity" and whole is not None:
            present = field[torch.isfinite(field)]
            return 0.0, max(whole, float(present.max()) if present.numel() else whole)
        low = 0.0 if _ends_at_zero(field, 0.0 if standard_name in NOT_NEGATIVE else 0.01) else -math.inf
        return low, whole if whole is not None and _ends_at_zero(whole - field, 0.01) else math.inf

    def limit(self, channel: int, field: Tensor, values: np.ndarray) -> None:
        """Cut finer values of a field (H, W) at its bounds, in place, and count those that this changes by more than
        packing does."""
        low, high = self.bounds(channel, field)
        if not math.isfinite(low) and not math.isfinite(high):
            self.changes.add("clipped", 0, values.size)
            return
        slack = self.slack(field)
        self.changes.add("clipped", np.count_nonzero((values < low - slack) | (values > high + slack)), values.size)
        values.clip(low, high, out=values)

    @staticmethod
    def slack(field: Tensor) -> float:
        """How far beyond a limit a value made of a field (H, W) may lie without counting as cut."""
        return _NEAR * _scale(field)

    def find_totals(self) -> None:
        """Find out which variables are running totals; a sample of each that may be one is read."""
        found = {c: running_axis(self.dataset[self.names[c]], self.lead) for c in self.predicted}
        self.running = {channel: dim for channel, dim in found.items() if dim is not None}

    def lose_missing(self, field: Tensor, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Make the finer values of a field (H, W), at places of rows and columns that broadcast to their shape, missing
        where the field is at the nearest point, of two the southern and eastern: coasts stay where they are."""
        missing = torch.isnan(field).numpy()
        if missing.any():
            height, width = missing.shape
            i, j = (
                (np.ceil(at - 0.5) if turned else np.floor(at + 0.5)).astype(np.int64)
                for at, turned in zip((rows, columns), self.grid.turned, strict=True)
            )
            j = j % width if self.grid.periodic else j.clip(0, width - 1)
            values[missing[i.clip(0, height - 1), j]] = np.nan

    def _places(self) -> Iterator[dict]:
        for index in np.ndindex(*(self.dataset.sizes[d] for d in self.lead)):
            yield dict(zip(self.lead, index, strict=True))

    def _field(self, at: dict) -> Tensor:
        """(1, C, H, W) float32 at an index of the leading dimensions; what is implausible or infinite is NaN."""
        fields = [within(self._values(n, at), limits) for n, limits in zip(self.names, self.limits, strict=True)]
        return torch.from_numpy(np.stack(fields))[None]

    def _values(self, name: str, at: dict) -> np.ndarray:
        """(H, W) float32 of a variable at an index of its leading dimensions; what is infinite is NaN."""
        return without_undeclared(self._read(name, at))

    def _read(self, name: str, at: dict) -> np.ndarray:
        """As _values, infinite values as they are."""
        field = self.dataset[name].isel(at).transpose(*self.grid.names)
        return without_missing(field.values, field.attrs)


def alike(dataset: xr.Dataset, grid: Geometry) -> tuple[list[str], list[Kind]]:
    """Names and kinds of the fields that have the dimensions of the first of those of the most, so that orography
    before rain in a file does not stand in its place.

    Raises: ValueError where there is none, or one is packed by a scale_factor that loses it."""
    names = names_of_fields(dataset, grid)
    if not names:
        raise ValueError(f"there is no field over {' and '.join(grid.names)}")
    most = max(names, key=lambda n: sum(size > 1 for size in dataset[n].shape))
    names = [n for n in names if set(dataset[n].dims) == set(dataset[most].dims)]
    for n in names:
        check_packing(dataset[n])
    return names, [kind_of(dataset[n]) for n in names]


def with_fields(dataset: xr.Dataset, grid: Geometry, var: str | None) -> xr.Dataset:
    """The dataset with var as its only field; None: with all. Raises: ValueError where there is no such field."""
    if var is None:
        return dataset
    names = names_of_fields(dataset, grid)
    if var not in names:
        there = ", ".join(names) or "none"
        raise ValueError(f"there is no field {var!r} over {' and '.join(grid.names)}; there are: {there}")
    return dataset.drop_vars([n for n in names if n != var])


def find(dataset: xr.Dataset, wanted: dict) -> str:
    """The variable of a dataset that a card wants."""
    for name, variable in dataset.data_vars.items():
        if name == wanted["name"] or variable.attrs.get("standard_name") == wanted.get("standard_name", "-"):
            units = variable.attrs.get("units", "")
            check_packing(variable)
            if not same_units(units, wanted["units"]):
                raise ValueError(f"variable {name} is in {str(units)!r}, the model was trained on {wanted['units']!r}")
            return str(name)
    raise ValueError(
        f"the model needs the variable {wanted['name']} ({wanted.get('standard_name', '')}), "
        f"the file has {', '.join(map(str, dataset.data_vars)) or 'none'}"
    )


def on_grid(dataset: xr.Dataset, grid: Geometry) -> list[str]:
    """Its variables of numbers on the grid."""
    return [n for n, v in dataset.data_vars.items() if set(grid.names) <= set(v.dims) and v.dtype.kind in "fiu"]


def names_of_fields(dataset: xr.Dataset, grid: Geometry) -> list[str]:
    """Its variables of numbers on the grid but flags, between whose values there is nothing."""
    return [n for n in on_grid(dataset, grid) if not _is_flag(dataset[n].attrs)]


def _ends_at_zero(field: Tensor, share: float) -> bool:
    """Whether no value of a field is negative and at least a share of them is zero. What packing leaves beside zero is
    zero; missing and infinite values count as neither."""
    present = field[torch.isfinite(field)]
    if not present.numel():
        return False
    near = _NEAR * _scale(present)
    return bool(present.min() >= -near) and float((present <= near).sum()) >= share * field.numel()


def _scale(field: Tensor) -> float:
    """How large the values of a field are: the 99th percentile of those that are not zero, without signs, and of few
    the second largest, so that no single extreme value sets it; 0 where there are none."""
    sizes = field[torch.isfinite(field) & (field != 0)].abs().numpy()
    if sizes.size < 2:
        return float(sizes.sum())
    place = int(0.99 * (sizes.size - 1))
    return float(np.partition(sizes, place)[place])


def _is_flag(attrs: dict) -> bool:
    """Whether attributes are of a flag; a quantity, with flags of some values, has units."""
    return attrs.get("units", "1") in ("1", "") and not {"flag_values", "flag_masks", "flag_meanings"}.isdisjoint(attrs)


def kind_of(field: xr.DataArray) -> Kind:
    """What the attributes of a variable tell."""
    return field.attrs.get("standard_name"), field.attrs.get("units")


def limits_of(standard_name: str | None, units: str | None) -> tuple[float, float] | None:
    """The plausible range of a kind of variable, None where nothing tells."""
    return None if units is None else plausible_range(standard_name, units)
