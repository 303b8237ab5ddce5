# SPDX-License-Identifier: Apache-2.0
"""Variables of datasets that are read field by field, and their coarsening."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from fastds.data.fill_values import UndeclaredFills, mask_undeclared_fills
from fastds.data.grid.metadata import get_preserved_attributes
from fastds.data.grid.value_checks import (
    check_packing,
    check_plausible,
    is_stored_as_codes,
    mask_fill_values,
    mask_outside,
)
from fastds.data.samples.degradation import compute_area_mean
from fastds.tasks.fields.geometry import Geometry, interpolate_axis
from fastds.tasks.fields.variables import get_kind, get_limits


class Source:
    """A variable of one of the datasets of an evaluation.

    Args:
        field: the variable.
        what: label of the dataset in error messages.
        names: names of the horizontal dimensions.
    """

    def __init__(self, field: xr.DataArray, what: str, names: tuple[str, str]):
        check_packing(field)
        self.field, self.what, self.names, self.limits = field, what, names, get_limits(*get_kind(field))
        self._block: dict = {}
        self._cached = field

    def values(self, at: dict[str, int]) -> np.ndarray:
        """Return values ([M,] H, W) float32 at indices of the leading dimensions.

        Implausible and infinite values are NaN.
        """
        part = self._read(at).transpose(..., *self.names)
        return mask_outside(mask_undeclared_fills(mask_fill_values(part.values, part.attrs)), self.limits)

    def _read(self, at: dict[str, int]) -> xr.DataArray:
        """Return the field at indices. For dask arrays, a whole block is computed and cached for the next fields."""
        if self.field.chunks is None:
            return self.field.isel(at)
        block = {dim: _find_chunk(self.field.chunksizes[dim], k) for dim, k in at.items()}
        if block != self._block:
            self._block, self._cached = (
                block,
                self.field.isel({dim: slice(*ends) for dim, ends in block.items()}).compute(),
            )
        return self._cached.isel({dim: k - block[dim][0] for dim, k in at.items()})

    def check(self) -> None:
        """Read all values of the field and check that they are plausible, see check_plausible."""
        lead: list[Any] = [dim for dim in self.field.dims if dim not in self.names]
        places = np.ndindex(*(self.field.sizes[dim] for dim in lead))
        parts = (self._read(dict(zip(lead, place, strict=True))) for place in places)
        infinite = UndeclaredFills()
        values = (infinite.mask(mask_fill_values(part.values, part.attrs)) for part in parts)
        name = f"{self.field.name} of {self.what}"
        form: dict[str, Any] = {
            "codes": is_stored_as_codes(self.field),
            "all_missing": f"every value of variable {name} is missing",
        }
        check_plausible(name, values, self.limits, self.field.attrs.get("units", ""), **form, stacklevel=5)
        infinite.warn(name, stacklevel=5)

    def coarsen(self, grid: Geometry, how: str, what: str) -> Source:
        """Return the variable on a coarser grid.

        Args:
            grid: grid made by make_coarser_grid.
            how: "mean" or "decimate", see make_coarser_grid.
            what: label of the result in error messages.
        """
        lead: list[Any] = [dim for dim in self.field.dims if dim not in self.names]
        size = grid.latitude.numel(), grid.longitude.numel()
        coarse = np.empty((*(self.field.sizes[dim] for dim in lead), *size), np.float32)
        for place in np.ndindex(*coarse.shape[:-2]):
            fine = torch.from_numpy(self.values(dict(zip(lead, place, strict=True))))
            rows, columns = (n // m for n, m in zip(fine.shape, size, strict=True))
            coarse[place] = fine[::rows, ::columns] if how == "decimate" else _average_cells(fine, size)
        axes = {name: values.numpy() for name, values in zip(self.names, (grid.latitude, grid.longitude), strict=True)}
        return Source(
            xr.DataArray(coarse, axes, (*lead, *self.names), self.field.name, get_preserved_attributes(self.field)),
            what,
            self.names,
        )


def _find_chunk(sizes: Sequence[int], place: int) -> tuple[int, int]:
    """Return the half-open range of the chunk that contains an index."""
    ends = np.cumsum([0, *sizes])
    number = int(np.searchsorted(ends, place, "right"))
    return int(ends[number - 1]), int(ends[number])


def _average_cells(fine: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Average a field (H, W) to `size` cells; cells with missing parts are missing."""
    missing = torch.isnan(fine)
    lost = compute_area_mean(missing.double(), size) > 1e-9
    return torch.where(lost, torch.nan, compute_area_mean(torch.where(missing, 0.0, fine), size))


def make_coarser_grid(grid: Geometry, scale: Sequence[float], how: str) -> tuple[Geometry, tuple[int, int]]:
    """Return a grid with cells `scale` times as long.

    Args:
        grid: fine grid.
        scale: factors along rows and columns.
        how: "mean": the points are the centres of the coarse cells; "decimate": the points are the first fine points of
            the coarse cells.

    Returns:
        The coarse grid, and the numbers of fine rows and columns in whole coarse cells.

    Raises:
        ValueError: fewer than two coarse cells along an axis.
    """
    axes, size = [], []
    for values, factor in zip((grid.latitude, grid.longitude), scale, strict=True):
        n = int(values.numel() / factor + 1e-6)
        if n < 2:
            raise ValueError(
                f"TRUTH has {values.numel()} points along an axis, too few for cells {factor:g} times as long"
            )
        first = 0.0 if how == "decimate" else (factor - 1) / 2
        axes.append(interpolate_axis(values, first + factor * torch.arange(n, dtype=torch.float64)))
        size.append(round(n * factor))
    return dataclasses.replace(grid, latitude=axes[0], longitude=axes[1]), (size[0], size[1])
