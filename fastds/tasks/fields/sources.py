# SPDX-License-Identifier: Apache-2.0
"""A variable of a dataset, read field by field, and made coarser."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from fastds.data.grid.kept import kept_attributes
from fastds.data.grid.plausible import check_packing, check_plausible, stored_as_codes, within, without_missing
from fastds.data.samples.degradation import area_mean
from fastds.data.undeclared import UndeclaredMissing, without_undeclared
from fastds.tasks.fields.geometry import Geometry, values_at
from fastds.tasks.fields.variables import kind_of, limits_of


class Source:
    """A variable of one of the datasets. field: with the horizontal dimensions names; what: it is in errors."""

    def __init__(self, field: xr.DataArray, what: str, names: tuple[str, str]):
        check_packing(field)
        self.field, self.what, self.names, self.limits = field, what, names, limits_of(*kind_of(field))
        self._block: dict = {}
        self._held = field

    def values(self, at: dict[str, int]) -> np.ndarray:
        """([M,] H, W) float32 at indices of the leading dimensions; what is implausible or infinite is NaN."""
        part = self._read(at).transpose(..., *self.names)
        return within(without_undeclared(without_missing(part.values, part.attrs)), self.limits)

    def _read(self, at: dict[str, int]) -> xr.DataArray:
        """The field at indices; where dask has it, all fields of a block are computed at once and kept for the next."""
        if self.field.chunks is None:
            return self.field.isel(at)
        block = {dim: _chunk(self.field.chunksizes[dim], k) for dim, k in at.items()}
        if block != self._block:
            self._block, self._held = (
                block,
                self.field.isel({dim: slice(*ends) for dim, ends in block.items()}).compute(),
            )
        return self._held.isel({dim: k - block[dim][0] for dim, k in at.items()})

    def check(self) -> None:
        """See Pairs.check."""
        lead = [dim for dim in self.field.dims if dim not in self.names]
        places = np.ndindex(*(self.field.sizes[dim] for dim in lead))
        parts = (self._read(dict(zip(lead, place, strict=True))) for place in places)
        infinite = UndeclaredMissing()
        values = (infinite.removed(without_missing(part.values, part.attrs)) for part in parts)
        name = f"{self.field.name} of {self.what}"
        form = {"codes": stored_as_codes(self.field), "all_missing": f"every value of variable {name} is missing"}
        check_plausible(name, values, self.limits, self.field.attrs.get("units", ""), **form, stacklevel=5)
        infinite.warn(name, stacklevel=5)

    def coarsened(self, grid: Geometry, how: str, what: str) -> Source:
        """The same variable on a coarser grid that `coarser` made, called `what` in errors."""
        lead = [dim for dim in self.field.dims if dim not in self.names]
        size = grid.latitude.numel(), grid.longitude.numel()
        coarse = np.empty((*(self.field.sizes[dim] for dim in lead), *size), np.float32)
        for place in np.ndindex(*coarse.shape[:-2]):
            fine = torch.from_numpy(self.values(dict(zip(lead, place, strict=True))))
            rows, columns = (n // m for n, m in zip(fine.shape, size, strict=True))
            coarse[place] = fine[::rows, ::columns] if how == "decimate" else _means(fine, size)
        axes = {name: values.numpy() for name, values in zip(self.names, (grid.latitude, grid.longitude), strict=True)}
        return Source(
            xr.DataArray(coarse, axes, (*lead, *self.names), self.field.name, kept_attributes(self.field)),
            what,
            self.names,
        )


def _chunk(sizes: Sequence[int], place: int) -> tuple[int, int]:
    """First and behind the last place of the one of chunks of these sizes in which a place lies."""
    ends = np.cumsum([0, *sizes])
    number = int(np.searchsorted(ends, place, "right"))
    return int(ends[number - 1]), int(ends[number])


def _means(fine: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """area_mean of (H, W); cells with a missing part are missing."""
    missing = torch.isnan(fine)
    lost = area_mean(missing.double(), size) > 1e-9
    return torch.where(lost, torch.nan, area_mean(torch.where(missing, 0.0, fine), size))


def coarser(grid: Geometry, scale: Sequence[float], how: str) -> tuple[Geometry, tuple[int, int]]:
    """A grid of cells `scale` times as long along rows and columns, its points in their middle, or with `how`
    "decimate" at the first points of blocks; and the numbers of fine rows and columns that whole cells are of."""
    axes, size = [], []
    for values, factor in zip((grid.latitude, grid.longitude), scale, strict=True):
        n = int(values.numel() / factor + 1e-6)
        if n < 2:
            raise ValueError(
                f"TRUTH has {values.numel()} points along an axis, too few for cells {factor:g} times as long"
            )
        first = 0.0 if how == "decimate" else (factor - 1) / 2
        axes.append(values_at(values, first + factor * torch.arange(n, dtype=torch.float64)))
        size.append(round(n * factor))
    return dataclasses.replace(grid, latitude=axes[0], longitude=axes[1]), tuple(size)
