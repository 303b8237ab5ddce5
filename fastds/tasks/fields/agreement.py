# SPDX-License-Identifier: Apache-2.0
"""Fine fields whose means over the coarse cells are the coarse values, where these are known to be such means."""

import math
from collections.abc import Sequence

import numpy as np
import scipy  # its parts are imported at first use
import torch
from torch import Tensor

from fastds.models.baselines.interpolation import weights_at
from fastds.tasks.fields.geometry import Geometry

WAYS = ("mean",)
PASSES = 8  # more than four change PSNR by less than 0.02 dB
ROUNDS = 4  # of fields with bounds, which take away a part of a correction
_BAND = 256  # fine rows at once


class Agreement:
    """Corrects fields of a fine grid so that their means over the cells of a coarse one are its values:

        y + B c with A (y + B c) = x;  A: means over coarse cells, B: bicubic interpolation.

    c is found on the coarse grid by PASSES of c += x - A y - A B c. Every fine cell counts by its share of the coarse
    one. Coarse cells that are missing, or of which the fine grid covers a part alone, correct nothing. Of values with
    bounds (rain, fractions) a correction is cut at them and the rest corrected again, ROUNDS times.

    Args:
        size: (h, w) of the coarse grid.
        at: where the H' rows and the W' columns of the fine grid lie among those of the coarse one, counted from 0.
        periodic: columns go round the globe.

    Raises: ValueError: a grid that is not finer.

    Source: Irani and Peleg 1991, Improving Resolution by Image Registration (iterative back-projection).
    """

    def __init__(self, size: Sequence[int], at: Sequence[np.ndarray], periodic: bool = False):
        rows, columns = at
        if periodic:  # as Geometry.positions gives them, the first and the last may lie on either side of the seam
            columns = np.unwrap(columns, period=size[1])
        axes = list(zip((rows, columns), size, (False, periodic), strict=True))
        self.means, self.covered = zip(*(cell_means(*axis) for axis in axes), strict=True)
        self.finer = [weights_at(positions, n, "bicubic", around) for positions, n, around in axes]
        self.both = [a @ b for a, b in zip(self.means, self.finer, strict=True)]
        self.holding = [cells_of(*axis) for axis in axes]

    def correct(
        self, x: np.ndarray, y: np.ndarray, bounds: tuple[float, float] = (-math.inf, math.inf), slack: float = 0.0
    ) -> int:
        """Correct a fine field y (H', W') of a coarse one x (h, w), in place; NaN is missing in both and stays.

        Args:
            bounds: of all values. What lies in a coarse cell at a bound is there, too: dry cells are dry.
            slack: how far beyond a bound a value does not count as cut.

        Returns: how many values the last round cut at the bounds, which nothing corrects again.
        """
        cut = 0
        covered = np.isfinite(x) & self.covered[0][:, None] & self.covered[1]
        bounded = [bound for bound in bounds if math.isfinite(bound)]
        for _ in range(ROUNDS if bounded else 1):
            wrong = x - _along(self.means, y)
            self._add(self._sources(wrong, covered & np.isfinite(wrong)), y)
            if bounded:
                cut = np.count_nonzero((y < bounds[0] - slack) | (y > bounds[1] + slack))
                y.clip(*bounds, out=y)
                for bound in bounded:
                    y[self._within(x == bound) & ~np.isnan(y)] = bound
        return int(cut)

    def _sources(self, wrong: np.ndarray, known: np.ndarray) -> np.ndarray:
        """c with A B c = wrong where that is known."""
        wrong, c = np.where(known, wrong, 0), np.zeros(wrong.shape)
        for _ in range(PASSES):
            c += np.where(known, wrong - _along(self.both, c), 0)
        return c

    def _add(self, c: np.ndarray, y: np.ndarray) -> None:
        rows, columns = self.finer
        wide = (columns @ c.T).T
        for first in range(0, len(y), _BAND):
            y[first : first + _BAND] += rows[first : first + _BAND] @ wide

    def _within(self, cells: np.ndarray) -> np.ndarray:
        """(H', W') bool: the fine cells in these coarse cells, by their middle."""
        rows, columns = self.holding
        return cells[rows][:, columns]


def agreement_onto(coarse: Geometry, latitude: Tensor, longitude: Tensor) -> Agreement:
    """Of fields on a coarse grid with those on a finer one of these coordinates."""
    at = [positions.numpy() for positions in coarse.positions(latitude, longitude)]
    return Agreement((coarse.latitude.numel(), coarse.longitude.numel()), at, coarse.periodic)


def agreeing(y: Tensor, x: Tensor) -> Tensor:
    """Fine fields y (..., H', W') of the same area as coarse ones x (..., h, w), corrected to agree with them."""
    at = [((2 * np.arange(m) + 1) * n - m) / (2 * m) for n, m in zip(x.shape[-2:], y.shape[-2:], strict=True)]
    agreement, fine = Agreement(x.shape[-2:], at), y.clone(memory_format=torch.contiguous_format)
    for one, coarse in zip(fine.flatten(0, -3), x.flatten(0, -3), strict=True):
        agreement.correct(coarse.numpy(), one.numpy())
    return fine


def _along(axes: "Sequence[scipy.sparse.csr_array]", field: np.ndarray) -> np.ndarray:
    rows, columns = axes
    return rows @ (columns @ field.T).T


def cells_of(at: np.ndarray, n: int, periodic: bool) -> np.ndarray:
    """The coarse cells that positions along an axis lie in."""
    cells = np.floor(at + 0.5).astype(np.int64)
    return cells % n if periodic else cells.clip(0, n - 1)


def cell_means(at: np.ndarray, n: int, periodic: bool) -> "tuple[scipy.sparse.csr_array, np.ndarray]":
    """Means along an axis over n coarse cells, cell j from j - 1/2 to j + 1/2, of the fine cells around positions `at`:
    (n, m), sparse; and (n,) which coarse cells these cover.

    Raises: ValueError where the fine cells are not shorter than the coarse ones."""
    steps = np.diff(at)
    if not len(steps) or np.abs(steps).mean() > 1 + 1e-6:
        raise ValueError("coarsened needs a grid that is finer than that of the fields along rows and columns")
    edges = np.concatenate([[at[0] - steps[0] / 2], at[1:] - steps / 2, [at[-1] + steps[-1] / 2]])
    low, high = np.minimum(edges[:-1], edges[1:]), np.maximum(edges[:-1], edges[1:])
    first = np.floor(low + 0.5)
    cells = first[:, None] + np.arange(int((np.floor(high + 0.5) - first).max()) + 1)
    shared = (np.minimum(high[:, None], cells + 0.5) - np.maximum(low[:, None], cells - 0.5)).clip(0)
    cells = cells % n if periodic else cells
    kept = (shared > 0) & (cells >= 0) & (cells < n)
    fine = np.broadcast_to(np.arange(len(at))[:, None], cells.shape)
    shares = scipy.sparse.csr_array((shared[kept], (cells[kept].astype(np.int64), fine[kept])), shape=(n, len(at)))
    length = shares.sum(1)
    return shares.multiply(1 / np.where(length > 0, length, 1)[:, None]).tocsr(), length > 1 - 1e-6
