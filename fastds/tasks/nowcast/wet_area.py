# SPDX-License-Identifier: Apache-2.0
"""The wet area of a single forecast, kept near that of the last known field."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastds.models.baselines.rims import moved_area

# A forecast may be wet on this multiple of the area of the moved field. Every cell that is dried adds squared error
# where echo does come, so no more are dried than an area within a quarter of the right one needs.
_MORE = 1.24
# The area that moves in and out is known roughly: it counts between these multiples of the area of the last field.
_LEAST, _MOST = 0.9, 1.24


def wet_counts(wet: np.ndarray, paths: Tensor | None, steps: int) -> list[int]:
    """How many cells a forecast may be wet on, by lead.

    Forecasts of least squared error hedge: they spread weak echo over all places that echo may reach, until everything
    is wet. A single field is to be wet on about the area that the last field is wet on once it has moved.

    Args:
        wet: (H, W), the wet share of each cell of the last known field, as wet_shares gives it, NaN where missing.
        paths: (steps, 2, H, W), where the air of each lead was at the start, pixels; None: nothing moves.
        steps: number of leads.

    Returns: numbers of the cells that are not missing.
    """
    now = float(np.nansum(wet, dtype=np.float64))
    if paths is None:
        return [round(_MOST * now)] * steps
    areas = moved_area(torch.from_numpy(np.ascontiguousarray(wet)), paths).tolist() if now else [0.0] * steps
    return [round(min(max(_MORE * area, _LEAST * now), _MOST * now)) for area in areas]


def dry_beyond(fields: np.ndarray, valid: np.ndarray, counts: list[int], floor: float) -> int:
    """Dry the weakest echo of forecasts, in place, until no more than so many cells are wet.

    Args:
        fields: (n, H, W) in dBZ, floor = no echo.
        valid: (H, W) bool, cells that take part.
        counts: (n), as wet_counts gives them.
        floor: dBZ.

    Returns: how many cells were dried.
    """
    dried = 0
    for field, most in zip(fields, counts, strict=True):
        wet = np.flatnonzero((field > floor) & valid)
        beyond = len(wet) - most
        if beyond <= 0:
            continue
        values = field.ravel()[wet]
        strongest = np.partition(values, beyond - 1)[beyond - 1]  # of those that are dried
        cut = values < strongest
        as_strong = np.flatnonzero(values == strongest)  # of equal echo the first in the order of cells
        cut[as_strong[: beyond - np.count_nonzero(cut)]] = True
        field[np.unravel_index(wet[cut], field.shape)] = floor
        dried += beyond
    return dried


def keep_wet_area(forecast: np.ndarray, wet: np.ndarray, paths: Tensor | None, floor: float) -> int:
    """Dry a forecast (n, H, W) in dBZ, in place, to about the wet area of the last known field, see wet_counts, which
    takes the other arguments. Returns: how many cells were dried."""
    return dry_beyond(forecast, ~np.isnan(wet), wet_counts(wet, paths, len(forecast)), floor)
