# SPDX-License-Identifier: Apache-2.0
"""Limitation of the wet area of a single forecast to about that of the last frame."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastds.models.baselines.boundary import estimate_advected_area

# Largest ratio of the wet area of a forecast to that of the advected last frame. A lower limit would increase the
# squared error, because some of the dried cells do become wet.
_MAX_MOVED_RATIO = 1.24
# The advected area is uncertain. The limit is therefore within this range of ratios to the area of the last frame.
_MIN_RATIO, _MAX_RATIO = 0.9, 1.24


def count_wet_cells(wet: np.ndarray, paths: Tensor | None, steps: int) -> list[int]:
    """Return the largest number of wet cells of a forecast by lead time.

    A forecast of least squared error is slightly wet wherever rain is possible, and finally everywhere. A single
    forecast should have about the wet area of the advected last frame.

    Args:
        wet: (H, W), wet fraction of each cell of the last frame, see compute_wet_shares, NaN = missing.
        paths: (steps, 2, H, W), back-trajectories in pixels; None: no motion.
        steps: number of lead times.
    """
    now = float(np.nansum(wet, dtype=np.float64))
    if paths is None:
        return [round(_MAX_RATIO * now)] * steps
    areas = (
        estimate_advected_area(torch.from_numpy(np.ascontiguousarray(wet)), paths).tolist() if now else [0.0] * steps
    )
    return [round(min(max(_MAX_MOVED_RATIO * area, _MIN_RATIO * now), _MAX_RATIO * now)) for area in areas]


def dry_weakest(fields: np.ndarray, valid: np.ndarray, counts: list[int], floor: float) -> int:
    """Set the weakest echo of forecasts to no echo, in place, until the number of wet cells is at most `counts`.

    Args:
        fields: (n, H, W) in dBZ, floor = no echo.
        valid: (H, W) bool; other cells are ignored.
        counts: number of cells for each frame, see count_wet_cells.
        floor: floor in dBZ.

    Returns:
        Number of cells that were set to no echo.
    """
    dried = 0
    for field, most in zip(fields, counts, strict=True):
        wet = np.flatnonzero((field > floor) & valid)
        beyond = len(wet) - most
        if beyond <= 0:
            continue
        values = field.ravel()[wet]
        strongest = np.partition(values, beyond - 1)[beyond - 1]  # largest value that is set to no echo
        cut = values < strongest
        as_strong = np.flatnonzero(values == strongest)  # of equal values, the first cells are set to no echo
        cut[as_strong[: beyond - np.count_nonzero(cut)]] = True
        field[np.unravel_index(wet[cut], field.shape)] = floor
        dried += beyond
    return dried


def limit_wet_area(forecast: np.ndarray, wet: np.ndarray, paths: Tensor | None, floor: float) -> int:
    """Limit the wet area of a forecast, in place, to about that of the last frame.

    Args:
        forecast: (n, H, W) in dBZ, floor = no echo.
        wet: see count_wet_cells.
        paths: see count_wet_cells.
        floor: floor in dBZ.

    Returns:
        Number of cells that were set to no echo.
    """
    return dry_weakest(forecast, ~np.isnan(wet), count_wet_cells(wet, paths, len(forecast)), floor)
