# SPDX-License-Identifier: Apache-2.0
"""Variables of a dataset on a horizontal grid, read field by field."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fastds.data.fill_values import UndeclaredFills, mask_undeclared_fills
from fastds.data.grid.times import check_dates
from fastds.data.grid.value_checks import (
    NON_NEGATIVE,
    check_packing,
    check_plausible,
    find_plausible_range,
    is_stored_as_codes,
    mask_fill_values,
    mask_outside,
)
from fastds.data.grid.variables import is_same_unit, split_names
from fastds.inference.change_counts import ChangeCounts
from fastds.inference.ood.score import OODReport
from fastds.tasks.fields.blocks import BlockReader
from fastds.tasks.fields.geometry import Geometry
from fastds.tasks.fields.totals import find_running_axis

Kind = tuple[str | None, str | None]  # standard name and units of a variable
Bounds = tuple[float, float]
_PACKING_TOLERANCE = 1e-4  # fraction of the scale of a field; packing moves values at a limit by up to this much
_CHANGE_KINDS = {
    "clipped": "were cut at the limits of their variable",
    "cut_correction": "were cut at the limits of their variable after the correction to the means of the coarse cells",
}


class Fields:
    """Variables of a dataset on a grid, read field by field; base class of the methods.

    Args:
        dataset: fields (..., latitude, longitude).
        grid: grid of the fields.
        names: names of the variables, which have the same dimensions.
        kinds: standard name and units of each variable, None if not declared.

    Attributes:
        lead: leading dimensions.
        name: name of the method.
        predicted: channels that the method computes.
        origin: origin of the static maps.
        max_factor: scale factor along an axis with a single point.
        model: network, or None.
        changes: counts of clipped values.
        running: channel -> dimension along which the variable is a running total; its fields are given as increments.

    Raises:
        ValueError: a leading dimension of length 0, or missing dates.
    """

    model: Any = None  # Network or None
    name, origin, max_factor = "", "", 1.0
    if TYPE_CHECKING:

        def predict_grid(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None: ...

    def __init__(self, dataset: xr.Dataset, grid: Geometry, names: list[str], kinds: list[Kind]):
        self.dataset, self.grid, self.names, self.kinds = dataset, grid, names, kinds
        self.limits = [get_limits(*kind) for kind in kinds]
        self.reset_changes()
        self._reader: BlockReader | None = None
        self.predicted: list[int] = list(range(len(names)))
        self.running: dict[int, Hashable] = {}
        self.lead = [d for d in dataset[names[0]].dims if d not in grid.names]
        empty = [d for d in self.lead if dataset.sizes[d] == 0]
        if empty:
            raise ValueError(f"there is no field: dimension {empty[0]} of variable {names[0]} has length 0")
        for d in self.lead:
            if d in dataset.coords and dataset[d].dtype.kind == "M":
                check_dates(dataset[d])

    def get_batch_size(self, latitude: Tensor, longitude: Tensor) -> int:
        """Return how many fields `predict_grids` should compute together for a grid of coordinates."""
        return 1

    def predict_grids(self, x: Tensor, latitude: Tensor, longitude: Tensor, outs: Sequence[list[np.ndarray]]) -> None:
        """Compute several fields (B, C, H, W) with `predict_grid`.

        Args:
            x: fields.
            latitude: latitudes (or y) of the target rows.
            longitude: longitudes (or x) of the target columns.
            outs: for each field, one array (H', W') per predicted variable, which is overwritten.
        """
        for field, out in zip(x.split(1), outs, strict=True):
            self.predict_grid(field, latitude, longitude, out)

    def reset_changes(self) -> None:
        """Reset the counts of clipped values."""
        self.changes = ChangeCounts(_CHANGE_KINDS)

    def iterate_fields(self) -> Iterator[tuple[dict, Tensor]]:
        """Yield ({leading dimension: index}, (1, C, H, W) float32); implausible and infinite values are NaN."""
        return ((at, self._field(at)) for at in self._iterate_indices())

    def check(self, stacklevel: int) -> None:
        """Check the values of all variables, which reads them all.

        Implausible, infinite or only missing values cause a UserWarning.

        Args:
            stacklevel: see warnings.warn.

        Raises:
            ValueError: more than half of the values of a variable are implausible.
        """
        for n, limits in zip(self.names, self.limits, strict=True):
            infinite = UndeclaredFills()
            variable, values = self.dataset[n], (infinite.mask(self._read(n, at)) for at in self._iterate_indices())
            message = f"every value of variable {n} is missing, and so is the output"
            form: dict[str, Any] = {
                "codes": is_stored_as_codes(variable),
                "all_missing": message,
                "stacklevel": stacklevel + 1,
            }
            check_plausible(n, values, limits, variable.attrs.get("units", ""), **form)
            infinite.warn(n, stacklevel + 1)

    @functools.cached_property
    def ood(self) -> OODReport:
        """Out-of-distribution report of the fields for a network. Methods without a network have an empty report."""
        return OODReport(self.name)

    def factor(self, latitude: Tensor, longitude: Tensor) -> tuple[float, float]:
        """Return the scale factors of target coordinates along rows and columns; `max_factor` for a single point."""
        rows, columns = (finer or self.max_factor for finer in self.grid.compute_factors(latitude, longitude))
        return rows, columns

    def bounds(self, channel: int, field: Tensor) -> Bounds:
        """Return the bounds of the fine values of a field (H, W), derived from the kind of variable.

        Relative humidity is bounded by 0 and by the maximum of the field, but at least by saturation; with respect to
        ice it can far exceed 100 %. Other variables are bounded by 0 if the field has no negative value and either the
        quantity cannot be negative or at least 1 % of the values are zero (precipitation, radiation, cover). Fractions
        and percentages are also bounded by 1 or 100 % if no value is larger and at least 1 % of the values are equal to
        this limit (cover, masks).
        """
        if channel in self.running:
            return 0.0, math.inf
        standard_name, units = self.kinds[channel]
        whole = next((number for unit, number in (("%", 100.0), ("1", 1.0)) if is_same_unit(units, unit)), None)
        if standard_name == "relative_humidity" and whole is not None:
            present = field[torch.isfinite(field)]
            return 0.0, max(whole, float(present.max()) if present.numel() else whole)
        low = 0.0 if _is_bounded_by_zero(field, 0.0 if standard_name in NON_NEGATIVE else 0.01) else -math.inf
        return low, whole if whole is not None and _is_bounded_by_zero(whole - field, 0.01) else math.inf

    def clip(self, channel: int, field: Tensor, values: np.ndarray) -> None:
        """Clip fine values of a field (H, W) to its bounds, in place.

        Clipped values are counted if the change exceeds rounding by packing.

        Args:
            channel: channel of the variable.
            field: coarse field.
            values: fine values.
        """
        low, high = self.bounds(channel, field)
        if not math.isfinite(low) and not math.isfinite(high):
            self.changes.add("clipped", 0, values.size)
            return
        slack = self.slack(field)
        self.changes.add(
            "clipped", int(np.count_nonzero((values < low - slack) | (values > high + slack))), values.size
        )
        values.clip(low, high, out=values)

    @staticmethod
    def slack(field: Tensor) -> float:
        """Return how far a fine value of a field (H, W) may exceed a bound without counting as clipped."""
        return _PACKING_TOLERANCE * _compute_scale(field)

    def find_totals(self) -> None:
        """Detect the running totals among the variables; a sample of each candidate is read."""
        found = {c: find_running_axis(self.dataset[self.names[c]], self.lead) for c in self.predicted}
        self.running = {channel: dim for channel, dim in found.items() if dim is not None}

    def propagate_missing(self, field: Tensor, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        """Set fine values to NaN, in place, where the nearest value of the coarse field is missing.

        If two points are equally near, the southern or eastern one is used.

        Args:
            field: coarse field (H, W).
            rows: fractional row indices of the fine values; broadcast with columns to their shape.
            columns: fractional column indices.
            values: fine values.
        """
        missing = torch.isnan(field).numpy()
        if missing.any():
            height, width = missing.shape
            i, j = (
                (np.ceil(at - 0.5) if flipped else np.floor(at + 0.5)).astype(np.int64)
                for at, flipped in zip((rows, columns), self.grid.flipped, strict=True)
            )
            j = j % width if self.grid.periodic else j.clip(0, width - 1)
            values[missing[i.clip(0, height - 1), j]] = np.nan

    def _iterate_indices(self) -> Iterator[dict]:
        for index in np.ndindex(*(self.dataset.sizes[d] for d in self.lead)):
            yield dict(zip(self.lead, index, strict=True))

    def _field(self, at: dict) -> Tensor:
        """Return (1, C, H, W) float32 at indices of the leading dimensions; implausible and infinite values are NaN."""
        fields = [mask_outside(self._values(n, at), limits) for n, limits in zip(self.names, self.limits, strict=True)]
        return torch.from_numpy(np.stack(fields))[None]

    def _values(self, name: str, at: dict) -> np.ndarray:
        """Return (H, W) float32 of a variable at indices of its leading dimensions; infinite values are NaN."""
        return mask_undeclared_fills(self._read(name, at))

    def _read(self, name: str, at: dict) -> np.ndarray:
        """Return (H, W) float32 of a variable at indices of its leading dimensions, infinite values unchanged."""
        if self._reader is None or self._reader.dataset is not self.dataset:
            self._reader = BlockReader(self.dataset, self.lead, self.grid.names)
        return mask_fill_values(self._reader.read(name, at), self.dataset[name].attrs)


def select_main_fields(dataset: xr.Dataset, grid: Geometry) -> tuple[list[str], list[Kind]]:
    """Select the fields with the dimensions of the field that has the most dimensions.

    If several fields have the most dimensions, the first of them counts. Static fields such as orography have fewer
    dimensions and are not selected.

    Returns:
        Names and kinds of the fields.

    Raises:
        ValueError: there is no field, or a scale_factor is too coarse for the values.
    """
    names = list_fields(dataset, grid)
    if not names:
        raise ValueError(f"there is no field over {' and '.join(grid.names)}")
    most = max(names, key=lambda n: sum(size > 1 for size in dataset[n].shape))
    names = [n for n in names if set(dataset[n].dims) == set(dataset[most].dims)]
    for n in names:
        check_packing(dataset[n])
    return names, [get_kind(dataset[n]) for n in names]


def select_field(dataset: xr.Dataset, grid: Geometry, var: str | None) -> xr.Dataset:
    """Select one field of a dataset, or several with the same dimensions.

    Args:
        dataset: dataset with fields on `grid`.
        grid: grid of the fields.
        var: names of fields, see split_names; None for all fields.

    Returns:
        The dataset without other fields than those in `var`, or with all fields if `var` is None.

    Raises:
        ValueError: there is no such field, or the fields have different dimensions.
    """
    if var is None:
        return dataset
    groups = group_fields(dataset, grid, var)
    if len(groups) > 1:
        first, other = groups[0][0], groups[1][0]
        raise ValueError(
            f"fields with different dimensions cannot be computed together here: {first} is over "
            f"{', '.join(map(str, dataset[first].dims))}, {other} over {', '.join(map(str, dataset[other].dims))}"
        )
    return drop_other_fields(dataset, grid, groups[0])


def drop_other_fields(dataset: xr.Dataset, grid: Geometry, names: list[str]) -> xr.Dataset:
    """Return a dataset without the fields that are not among `names`."""
    return dataset.drop_vars([n for n in list_fields(dataset, grid) if n not in names])


def group_fields(dataset: xr.Dataset, grid: Geometry, var: str) -> list[list[str]]:
    """Return the names of requested fields in groups with the same dimensions.

    Args:
        dataset: dataset with fields on `grid`.
        grid: grid of the fields.
        var: names of fields, see split_names.

    Raises:
        ValueError: there is no such field.
    """
    known = list_fields(dataset, grid)
    names = split_names(var, dataset.data_vars)
    unknown = [name for name in names or () if name not in known]
    if unknown or not known:
        there = ", ".join(known) or "none"
        what = f"no field {unknown[0]!r}" if unknown else "no field"
        raise ValueError(f"there is {what} over {' and '.join(grid.names)}; there are: {there}")
    groups: dict[frozenset, list[str]] = {}
    for name in known if names is None else names:
        groups.setdefault(frozenset(dataset[name].dims), []).append(name)
    return list(groups.values())


def find_variable(dataset: xr.Dataset, entry: dict) -> str:
    """Return the name of the variable that matches an entry of a model card.

    Args:
        dataset: fields.
        entry: entry of input_variables: name, standard_name, units.

    Raises:
        ValueError: the variable does not exist or has other units.
    """
    for name, variable in dataset.data_vars.items():
        if name == entry["name"] or variable.attrs.get("standard_name") == entry.get("standard_name", "-"):
            units = variable.attrs.get("units", "")
            check_packing(variable)
            if not is_same_unit(units, entry["units"]):
                raise ValueError(f"variable {name} is in {str(units)!r}, the model was trained on {entry['units']!r}")
            return str(name)
    raise ValueError(
        f"the model needs the variable {entry['name']} ({entry.get('standard_name', '')}), "
        f"the file has {', '.join(map(str, dataset.data_vars)) or 'none'}"
    )


def list_grid_variables(dataset: xr.Dataset, grid: Geometry) -> list[str]:
    """Return the names of the numeric variables on the grid."""
    return [
        cast(str, n) for n, v in dataset.data_vars.items() if set(grid.names) <= set(v.dims) and v.dtype.kind in "fiu"
    ]


def list_fields(dataset: xr.Dataset, grid: Geometry) -> list[str]:
    """Return the names of the numeric variables on the grid without flags, which cannot be interpolated."""
    return [n for n in list_grid_variables(dataset, grid) if not _is_flag(dataset[n].attrs)]


def _is_bounded_by_zero(field: Tensor, share: float) -> bool:
    """Return whether no value is negative and at least a fraction `share` of the values is zero.

    Values that packing moved slightly off zero count as zero. Missing and infinite values count as neither.
    """
    present = field[torch.isfinite(field)]
    if not present.numel():
        return False
    near = _PACKING_TOLERANCE * _compute_scale(present)
    return bool(present.min() >= -near) and float((present <= near).sum()) >= share * field.numel()


def _compute_scale(field: Tensor) -> float:
    """Return the scale of a field: the 99th percentile of the absolute values that are not zero.

    For few values, the second largest is returned, so that a single extreme value has no effect; 0 if there are none.
    """
    sizes = field[torch.isfinite(field) & (field != 0)].abs().numpy()
    if sizes.size < 2:
        return float(sizes.sum())
    place = int(0.99 * (sizes.size - 1))
    return float(np.partition(sizes, place)[place])


def _is_flag(attrs: dict) -> bool:
    """Return True if the attributes are those of a flag variable, which has no units."""
    return attrs.get("units", "1") in ("1", "") and not {"flag_values", "flag_masks", "flag_meanings"}.isdisjoint(attrs)


def get_kind(field: xr.DataArray) -> Kind:
    """Return standard name and units of a variable."""
    return field.attrs.get("standard_name"), field.attrs.get("units")


def get_limits(standard_name: str | None, units: str | None) -> tuple[float, float] | None:
    """Return the plausible range of a kind of variable, or None if it is unknown."""
    return None if units is None else find_plausible_range(standard_name, units)
