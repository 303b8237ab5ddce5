# SPDX-License-Identifier: Apache-2.0
"""Rain amounts on finer grids and in shorter intervals, with the amount of every coarse cell and interval kept."""

import numpy as np

from .preparation import coarsen, refine_mask

# Below this share of a cell's amount the model's rain is too little to say how the amount is distributed.
_LEAST_SHARE = 0.01


def split_amounts(amounts, rates, hours, factor=2, time_factor=2):
    """Distribute the amount of each cell and interval over factor x factor finer cells and time_factor shorter
    intervals.

    A model gives rates R at the middles of the T intervals and time_factor - 1 times between them. Each short
    interval first gets the trapezoid of the rates at its ends (the first and last rate are repeated beyond the
    series' ends); then the short amounts a of a cell are scaled so that their sum over the short intervals, averaged
    over the finer cells, is the amount A of the cell: a <- a A / mean(sum a). Where the model's rain is less than 1 %
    of A, A is spread evenly.

    Args:
        amounts: (T, h, w) mm, NaN where missing. hours: length of an interval.
        rates: (time_factor (T - 1) + 1, factor h, factor w) mm/h; NaN: the mean rate of the cell is used.
        time_factor: even, so that intervals end where rates are known.
    Returns: (time_factor T, factor h, factor w) float32 mm. Deterministic.
    Raises: ValueError for an odd time_factor or shapes that do not fit.
    """
    count, height, width = amounts.shape
    if time_factor % 2:
        raise ValueError(f"time_factor must be even for amounts, got {time_factor}")
    expected = (time_factor * (count - 1) + 1, factor * height, factor * width)
    if rates.shape != expected:
        raise ValueError(f"rates must have the shape {expected} for amounts {amounts.shape}, got {rates.shape}")
    out = np.empty((time_factor * count, *expected[1:]), dtype=np.float32)
    step = hours / time_factor
    for n in range(count):
        mean_rate = refine_mask(amounts[n] / hours, factor)
        places = np.clip(np.arange(time_factor + 1) + time_factor * n - time_factor // 2, 0, len(rates) - 1)
        edges = [np.where(np.isnan(rates[place]), mean_rate, rates[place]) for place in places]
        short = np.stack([(a + b) * (0.5 * step) for a, b in zip(edges, edges[1:], strict=False)])
        out[time_factor * n : time_factor * (n + 1)] = _conserve(short, amounts[n], factor)
    return out


def _conserve(short, amount, factor):
    """short (F, factor h, factor w) scaled so that the block mean of its sum is amount (h, w)."""
    total = coarsen(short.sum(axis=0), factor)
    enough = total > _LEAST_SHARE * amount
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(enough, amount / total, 0.0)
    even = np.where(enough, 0.0, amount / len(short))
    scaled = short * refine_mask(scale, factor) + refine_mask(even, factor)
    return np.where(refine_mask(np.isnan(amount), factor), np.nan, scaled)
