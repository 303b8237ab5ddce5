# SPDX-License-Identifier: Apache-2.0
"""Back-projection: adjust fine fields so that their means over coarse cells nearly equal the coarse values."""

import math
from collections.abc import Sequence

import numpy as np
import scipy  # submodules are imported at first use
import torch
from torch import Tensor

from fastds._options import OptionError
from fastds.models.baselines.interpolation import compute_interpolation_weights
from fastds.tasks.fields.geometry import Geometry

COARSENING_OPERATORS = ("mean",)
ITERATIONS = 8  # more than four iterations change PSNR by less than 0.02 dB
CLIP_ITERATIONS = 4  # iterations for fields with bounds, because clipping removes a part of each correction
_BAND = 256  # number of fine rows that are processed at a time


class BackProjection:
    """Corrects fine fields so that their means over the cells of a coarse grid nearly equal the coarse values.

                    y + B c with A (y + B c) = x;  A: means over coarse cells, B: bicubic interpolation.

    c is computed on the coarse grid by ITERATIONS steps c += x - A y - A B c. Fine cells are weighted by their share of
    a coarse cell. Coarse cells that are missing, or that the fine grid covers in part only, are not corrected. For
    variables with bounds (precipitation, fractions), the corrected values are clipped and the rest is corrected again,
    CLIP_ITERATIONS times in all.

    Args:
        size: (h, w) of the coarse grid.
        at: positions of the H' rows and of the W' columns of the fine grid, in rows and columns of the coarse grid
            counted from 0.
        periodic: whether the columns cover the full circle of longitude.

    Raises:
        ValueError: the fine grid is not finer than the coarse grid.

    Source: Irani and Peleg 1991, Improving Resolution by Image Registration (iterative back-projection).
    """

    def __init__(self, size: Sequence[int], at: Sequence[np.ndarray], periodic: bool = False):
        rows, columns = at
        if periodic:  # Geometry.positions may put the first and the last column on different sides of the seam
            columns = np.unwrap(columns, period=size[1])
        axes = list(zip((rows, columns), size, (False, periodic), strict=True))
        self.means, self.covered = zip(*(make_averaging_matrix(*axis) for axis in axes), strict=True)
        self.interpolation = [
            compute_interpolation_weights(positions, n, "bicubic", around) for positions, n, around in axes
        ]
        self.operators = [a @ b for a, b in zip(self.means, self.interpolation, strict=True)]
        self.cells = [find_cells(*axis) for axis in axes]

    def correct(
        self, x: np.ndarray, y: np.ndarray, bounds: tuple[float, float] = (-math.inf, math.inf), slack: float = 0.0
    ) -> int:
        """Correct a fine field in place.

        Args:
            x: coarse field (h, w); NaN = missing.
            y: fine field (H', W'), changed in place; NaN values stay NaN.
            bounds: smallest and largest value of the variable. Where a coarse value equals a bound, the fine values are
                set to the bound, so that dry cells stay dry.
            slack: a value counts as clipped only if it exceeds a bound by more than this amount.

        Returns:
            Number of values that the last iteration clipped; they are not corrected again.
        """
        cut = 0
        covered = np.isfinite(x) & self.covered[0][:, None] & self.covered[1]
        bounded = [bound for bound in bounds if math.isfinite(bound)]
        for _ in range(CLIP_ITERATIONS if bounded else 1):
            wrong = x - _apply_axes(self.means, y)
            self._add(self._solve(wrong, covered & np.isfinite(wrong)), y)
            if bounded:
                cut = int(np.count_nonzero((y < bounds[0] - slack) | (y > bounds[1] + slack)))
                y.clip(*bounds, out=y)
                for bound in bounded:
                    y[self._select_fine_cells(x == bound) & ~np.isnan(y)] = bound
        return int(cut)

    def _solve(self, wrong: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Solve A B c = wrong where `known`."""
        wrong, c = np.where(known, wrong, 0), np.zeros(wrong.shape)
        for _ in range(ITERATIONS):
            c += np.where(known, wrong - _apply_axes(self.operators, c), 0)
        return c

    def _add(self, c: np.ndarray, y: np.ndarray) -> None:
        rows, columns = self.interpolation
        columns_done = (columns @ c.T).T
        for first in range(0, len(y), _BAND):
            y[first : first + _BAND] += rows[first : first + _BAND] @ columns_done

    def _select_fine_cells(self, cells: np.ndarray) -> np.ndarray:
        """Return a mask (H', W') of the fine cells whose centres lie in the selected coarse cells."""
        rows, columns = self.cells
        return cells[rows][:, columns]


def make_back_projection(coarse: Geometry, latitude: Tensor, longitude: Tensor) -> BackProjection:
    """Make the back-projection from a coarse grid to a finer grid.

    Args:
        coarse: coarse grid.
        latitude: (H',), latitudes (or y) of the rows of the fine grid.
        longitude: (W',), longitudes (or x) of the columns of the fine grid.

    Returns:
        The back-projection.
    """
    at = [positions.numpy() for positions in coarse.positions(latitude, longitude)]
    return BackProjection((coarse.latitude.numel(), coarse.longitude.numel()), at, coarse.periodic)


def back_project(y: Tensor, x: Tensor) -> Tensor:
    """Correct fine fields so that their means over the coarse cells nearly equal the coarse fields.

    Args:
        y: fine fields (..., H', W').
        x: coarse fields (..., h, w) of the same area.

    Returns:
        Corrected copies of y.
    """
    at = [((2 * np.arange(m) + 1) * n - m) / (2 * m) for n, m in zip(x.shape[-2:], y.shape[-2:], strict=True)]
    projection, fine = BackProjection(x.shape[-2:], at), y.clone(memory_format=torch.contiguous_format)
    for one, coarse in zip(fine.flatten(0, -3), x.flatten(0, -3), strict=True):
        projection.correct(coarse.numpy(), one.numpy())
    return fine


def _apply_axes(axes: "Sequence[scipy.sparse.csr_array]", field: np.ndarray) -> np.ndarray:
    rows, columns = axes
    return rows @ (columns @ field.T).T


def find_cells(at: np.ndarray, n: int, periodic: bool) -> np.ndarray:
    """Return the indices of the coarse cells that contain positions along an axis.

    Args:
        at: (m,), positions in coarse cells, counted from 0 at the centre of the first cell.
        n: number of coarse cells.
        periodic: whether the axis is periodic; otherwise positions outside the grid take the nearest cell.

    Returns:
        (m,) int64.
    """
    cells = np.floor(at + 0.5).astype(np.int64)
    return cells % n if periodic else cells.clip(0, n - 1)


def make_averaging_matrix(at: np.ndarray, n: int, periodic: bool) -> "tuple[scipy.sparse.csr_array, np.ndarray]":
    """Return the matrix that averages fine cells over coarse cells along an axis.

    Coarse cell j extends from j - 1/2 to j + 1/2; the fine cells are centred at the positions `at`.

    Args:
        at: (m,) positions of the fine cells in coarse cells.
        n: number of coarse cells.
        periodic: whether the axis is periodic.

    Returns:
        The sparse matrix (n, m), and for each coarse cell whether the fine cells cover all of it.

    Raises:
        ValueError: the fine cells are not shorter than the coarse cells.
    """
    steps = np.diff(at)
    if not len(steps) or np.abs(steps).mean() > 1 + 1e-6:
        raise OptionError("coarsened", "needs a grid that is finer than that of the fields along rows and columns")
    edges = np.concatenate([[at[0] - steps[0] / 2], at[1:] - steps / 2, [at[-1] + steps[-1] / 2]])
    low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
    first = np.floor(low + 0.5)
    cells = first[:, None] + np.arange(int((np.floor(high + 0.5) - first).max()) + 1)
    shared = (np.minimum(high[:, None], cells + 0.5) - np.maximum(low[:, None], cells - 0.5)).clip(0)
    cells = cells % n if periodic else cells
    used = (shared > 0) & (cells >= 0) & (cells < n)
    fine = np.broadcast_to(np.arange(len(at))[:, None], cells.shape)
    shares = scipy.sparse.csr_array((shared[used], (cells[used].astype(np.int64), fine[used])), shape=(n, len(at)))
    length = shares.sum(1)
    return shares.multiply(1 / np.where(length > 0, length, 1)[:, None]).tocsr(), length > 1 - 1e-6
