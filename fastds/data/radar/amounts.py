# SPDX-License-Identifier: Apache-2.0
"""Rain amounts on finer grids and in shorter intervals, with the amount of every coarse cell and interval kept."""

import numpy as np

from fastds.data.radar.preparation import coarsen, refine_mask

# Below this share of a cell's amount the model's rain is too little to say how the amount is distributed.
_LEAST_SHARE = 0.01


def split_amount(amount, rates, hours, factor=2):
    """Distribute the amounts of one interval over finer cells and the F shorter intervals that a model's rates cut it
    into.

    Each short interval first gets the trapezoid of the rates at its ends, a_k = (R_k + R_(k+1)) / 2 * hours / F; then
    the short amounts of a cell are scaled so that their sum, averaged over its finer cells, is the amount A of the
    cell: a <- a A / mean(sum_k a_k). Where the model's rain is less than 1 % of A, A is spread evenly.

    Args:
        amount: (h, w) mm, NaN where missing. hours: length of the whole interval.
        rates: F + 1 arrays (factor h, factor w) in mm/h at the ends of the short intervals; NaN: the cell's mean rate
            is used.
        factor: finer cells along each side of a cell.
    Returns: (F, factor h, factor w) float32 mm; NaN where amount is. Deterministic.
    """
    mean_rate = refine_mask(amount / hours, factor)
    edges = [np.where(np.isnan(rate), mean_rate, rate) for rate in rates]
    step = hours / (len(edges) - 1)
    short = np.stack([(first + second) * (0.5 * step) for first, second in zip(edges, edges[1:], strict=False)])
    total = coarsen(short.sum(axis=0), factor)
    enough = total > _LEAST_SHARE * amount
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(enough, amount / total, 0.0)
    even = np.where(enough, 0.0, amount / len(short))
    return (short * refine_mask(scale, factor) + refine_mask(even, factor)).astype(np.float32)


def interval_ends(number, frames, time_factor):
    """Which of a segment's fine frames lie at the ends of the short intervals of coarse interval `number`.

    A model gives frames at the middles of the coarse intervals and time_factor - 1 between them, so the ends of
    interval n are frames time_factor n - time_factor / 2, ..., time_factor n + time_factor / 2; beyond the ends of
    the segment the first and last frame stand in.
    """
    places = np.arange(time_factor + 1) + time_factor * number - time_factor // 2
    return np.clip(places, 0, frames - 1)
