# SPDX-License-Identifier: Apache-2.0
"""First-order conservative remapping of fields between grids, by the exact overlaps of their cells."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy  # submodules are imported at first use
import xarray as xr
from torch import Tensor

from fastds.data.grid.axes import FULL_CIRCLE
from fastds.data.grid.metadata import find_bounds
from fastds.tasks.fields.geometry import Geometry, Plane, has_even_spacing, interpolate_axis
from fastds.tasks.fields.variables import Fields, select_main_fields

CONSERVATIVE = "conservative"  # name of the method
MINIMUM_VALID_FRACTION = 0.5  # of the area of a target cell that cells with values cover; cells below are missing
_BLOCK_POINTS = 1 << 22  # target points that are computed at a time
_TOLERANCE = 1e-9  # relative excess of covered areas that is due to rounding


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells of a grid: the limits of its rows and columns, in ascending order of each pair.

    Attributes:
        rows: (H, 2), latitudes in degrees, or y.
        columns: (W, 2), longitudes in degrees, or x.
    """

    rows: np.ndarray
    columns: np.ndarray


def find_cells(dataset: xr.Dataset | None, grid: Geometry) -> Cells:
    """Return the cells of a grid: the bounds of its coordinates, else the midpoints between the coordinates.

    The outer cells of a Gaussian grid extend to the poles, and no cell extends beyond a pole.

    Args:
        dataset: dataset with the coordinates of the grid, or None for a grid without bounds.
        grid: the grid.

    Raises:
        ValueError: the grid is curvilinear, or bounds that do not enclose the coordinates.
    """
    if isinstance(grid, Plane) and grid.indexed:
        raise ValueError(f"method {CONSERVATIVE} needs coordinates along rows and columns, not {grid.description}")
    limits = []
    for name, axis in zip(grid.names, (grid.latitude, grid.longitude), strict=True):
        is_latitude, is_longitude = (not isinstance(grid, Plane) and name == grid.names[k] for k in (0, 1))
        bounds = None if dataset is None or name not in dataset.variables else find_bounds(dataset, name)
        if dataset is None or bounds is None:
            pairs = _find_midpoints(axis, is_latitude)
        else:
            pairs = _read_bounds(dataset[bounds], axis.numpy(), is_longitude)
        limits.append(pairs.clip(-90, 90) if is_latitude else pairs)
    return Cells(limits[0], limits[1])


def _find_midpoints(axis: Tensor, is_latitude: bool) -> np.ndarray:
    """Return the limits (n, 2) of cells halfway between the coordinates."""
    n = axis.numel()
    if n < 2:
        raise ValueError(f"method {CONSERVATIVE} needs two rows and columns of a grid without bounds, got one")
    edges = interpolate_axis(axis, axis.new_tensor(np.arange(n + 1) - 0.5)).numpy()
    if is_latitude and not has_even_spacing(axis):
        step = abs(float(axis[-1] - axis[0])) / (n - 1)
        for end, centre in ((0, float(axis[0])), (-1, float(axis[-1]))):
            if abs(centre) + step > 90:
                edges[end] = np.copysign(90.0, centre)
    return np.sort(np.stack([edges[:-1], edges[1:]], 1), 1)


def _read_bounds(bounds: xr.DataArray, centres: np.ndarray, is_longitude: bool) -> np.ndarray:
    """Return the limits (n, 2) of cells from the bounds of a coordinate.

    Longitudes are brought to the convention of the coordinate.
    """
    pairs = np.asarray(bounds.values, np.float64)
    if pairs.shape != (len(centres), 2):
        raise ValueError(f"bounds {bounds.name} have the shape {pairs.shape}, expected ({len(centres)}, 2)")
    if is_longitude:
        pairs = pairs[:, :1] + np.stack([np.zeros(len(pairs)), _wrap(pairs[:, 1] - pairs[:, 0])], 1)
        pairs += (centres - pairs.mean(1) - _wrap(centres - pairs.mean(1)))[:, None]
    pairs = np.sort(pairs, 1)
    slack = 1e-6 * np.abs(np.diff(centres)).max()
    if not ((pairs[:, 0] <= centres + slack) & (centres - slack <= pairs[:, 1]) & (pairs[:, 0] < pairs[:, 1])).all():
        raise ValueError(f"bounds {bounds.name} do not enclose their coordinate")
    return pairs


def _wrap(angle: np.ndarray) -> np.ndarray:
    return (angle + FULL_CIRCLE / 2) % FULL_CIRCLE - FULL_CIRCLE / 2


def compute_overlaps(target: np.ndarray, source: np.ndarray) -> scipy.sparse.csr_array:
    """Compute the lengths of the overlaps of intervals.

    Args:
        target: (M, 2) lower and upper limits.
        source: (N, 2) lower and upper limits of intervals that do not overlap each other, in any order.

    Returns:
        (M, N), sparse.
    """
    order = np.argsort(source[:, 0], kind="stable")
    low, high = source[order].T
    first = np.searchsorted(high, target[:, 0], side="right")
    count = np.maximum(np.searchsorted(low, target[:, 1], side="left") - first, 0)
    rows = np.repeat(np.arange(len(target)), count)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    columns = np.repeat(first, count) + within
    lengths = np.minimum(target[rows, 1], high[columns]) - np.maximum(target[rows, 0], low[columns])
    shape = len(target), len(source)
    return scipy.sparse.csr_array((lengths.clip(0.0), (rows, order[columns])), shape=shape)


class ConservativeRemapping(Fields):
    """Means of all variables of a dataset over the cells of another grid, weighted by the areas of the overlaps.

    A target cell has the mean over the part of it that source cells with values cover, and is missing if this part is
    less than MINIMUM_VALID_FRACTION of its area. Where all of it is covered, areas times values have the same total on
    both grids. Variables are selected as by Interpolation.

    Args:
        dataset: fields.
        grid: grid of the fields.

    Attributes:
        target: cells of the target grid; None: midpoints between the target coordinates.

    Raises:
        ValueError: the dataset has no field, or its cells overlap.

    Source: Jones 1999, first order.
    """

    name = CONSERVATIVE

    def __init__(self, dataset: xr.Dataset, grid: Geometry):
        super().__init__(dataset, grid, *select_main_fields(dataset, grid))
        self._source = find_cells(dataset, grid)
        self.target: Cells | None = None
        for name, pairs in zip(grid.names, (self._source.rows, self._source.columns), strict=True):
            pairs = pairs[np.argsort(pairs[:, 0])]
            excess = pairs[:-1, 1] - pairs[1:, 0]
            if not isinstance(grid, Plane) and name == grid.names[1]:
                excess = np.append(excess, pairs[-1, 1] - pairs[0, 0] - FULL_CIRCLE)
            if (excess > 1e-3 * (pairs[:, 1] - pairs[:, 0]).min()).any():
                raise ValueError(f"method {CONSERVATIVE} needs cells that do not overlap, and those along {name} do")

    def find_target_cells(self, latitude: Tensor, longitude: Tensor) -> Cells:
        """Return the cells of the target grid."""
        if self.target is not None:
            return self.target
        return find_cells(None, dataclasses.replace(self.grid, latitude=latitude, longitude=longitude))

    def check_overlap(self, latitude: Tensor, longitude: Tensor) -> None:
        """Raise ValueError if no cell of the target grid overlaps the fields."""
        target = self.find_target_cells(latitude, longitude)
        if not all(overlaps.sum() > 0 for overlaps in self._compute_weights(target)[:2]):
            raise ValueError(
                f"the new grid, {self._describe(target)}, does not overlap the fields, {self._describe(self._source)}"
            )

    def _describe(self, cells: Cells) -> str:
        names = self.grid.names if isinstance(self.grid, Plane) else ("latitudes", "longitudes")
        pairs = zip(names, (cells.rows, cells.columns), strict=True)
        return " and ".join(f"{name} {limits.min():g} to {limits.max():g}" for name, limits in pairs)

    def _compute_weights(
        self, target: Cells
    ) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, np.ndarray, np.ndarray]:
        """Return the overlaps of rows and of columns, and the extents of target rows and columns."""
        rows, source_rows = target.rows, self._source.rows
        columns, shifts = target.columns, [0.0]
        if not isinstance(self.grid, Plane):
            rows, source_rows = (np.sin(np.deg2rad(pairs)) for pairs in (rows, source_rows))
            shifts = [FULL_CIRCLE * turns for turns in range(-3, 4)]
        overlaps = sum(compute_overlaps(columns + shift, self._source.columns) for shift in shifts)
        return compute_overlaps(rows, source_rows), overlaps, np.diff(rows)[:, 0], np.diff(columns)[:, 0]

    def predict_grid(self, x: Tensor, latitude: Tensor, longitude: Tensor, out: list[np.ndarray]) -> None:
        """Average fields (1, C, H, W) over the cells of a grid, in blocks of rows.

        Args:
            x: fields.
            latitude: latitudes (or y) of the target rows.
            longitude: longitudes (or x) of the target columns.
            out: one array (H', W') per variable, which is overwritten.
        """
        rows, columns, heights, widths = self._compute_weights(self.find_target_cells(latitude, longitude))
        step = max(1, _BLOCK_POINTS // len(widths))
        for channel, values in enumerate(out):
            field = x[0, channel].numpy().astype(np.float64)
            known = np.isfinite(field)
            means = _Sums(columns, np.where(known, field, 0.0)), _Sums(columns, known.astype(np.float64))
            for first in range(0, len(heights), step):
                part = slice(first, first + step)
                total, covered = (sums.add_rows(rows[part]) for sums in means)
                cells = heights[part, None] * widths
                enough = covered >= (MINIMUM_VALID_FRACTION - _TOLERANCE) * cells
                values[part] = np.where(enough, total / np.where(enough, covered, 1.0), np.nan)


class _Sums:
    """Sums of a field over the overlaps with target cells.

    Args:
        columns: overlaps of columns (W', W).
        field: (H, W).
    """

    def __init__(self, columns: scipy.sparse.csr_array, field: np.ndarray):
        self._summed = (columns @ field.T).T

    def add_rows(self, rows: scipy.sparse.csr_array) -> np.ndarray:
        """Return the sums for the overlaps (H', H) of some rows."""
        return rows @ self._summed


def add_cell_method(attrs: dict) -> dict:
    """Return the attributes of a field with the cell method of its area."""
    methods = str(attrs.get("cell_methods", ""))
    return attrs | {"cell_methods": methods if "area: mean" in methods else f"{methods} area: mean".strip()}
