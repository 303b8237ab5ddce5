# SPDX-License-Identifier: Apache-2.0
"""Fields between two input times that have the intensities and the detail of those at the input times.

A field of least squared error between two input times is the mean of what may have been there: it has less heavy rain
and less detail than the fields at the input times, so that a series of both pulses.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

_WIDTH = 1.5  # standard deviation of the window whose mean is taken from a field to get its detail, fine pixels
# Of the ratio of variances. The square root would give a field the detail of the others, of which matching the
# intensities takes some away again.
_POWER = 0.8
_MOST = 4.0  # of the ratio of variances
_PASSES, _NEAR = 2, 1.05  # another one where more than this is lacking of the variance
_BINS = 4096  # of intensities, of which the distributions are counted
_COUNTED = 1 << 19  # pixels, about as many as are counted of a large field: those of every so many rows


def steadied_between(y: Tensor) -> Tensor:
    """The middle one of three fields with the detail and the distribution of the other two.

    y_1' = Q(F(y_1 + (a - 1) d_1)), d_k: y_k less its mean in a window, a = (mean d^2 of y_0 and y_2 over that of
    y_1)^0.8; F: the rank in its field; Q: the mean of the quantiles of y_0 and y_2 (probability matching); once more
    where y_1' lacks detail. Where y_1 is 0, and so no echo above the floor, it stays 0.

    Args:
        y: (3, H, W) in [0, 1] above the floor, what a network made at two input times and between them.

    Returns: (H, W), the middle field. Deterministic.

    Source: Ebert 2001, Ability of a Poor Man's Ensemble to Predict the Probability and Distribution of Precipitation.
    """
    own, ends = y[1].clamp(0.0, 1.0), (y[0].clamp(0.0, 1.0), y[2].clamp(0.0, 1.0))
    if not all(field.any() for field in (own, *ends)):
        return own
    wet, counts = own > 0, [_above(end) for end in ends]
    wanted, detail = sum(_variance(_detail(end)) for end in ends) / 2, _detail(own)
    for number in range(_PASSES):
        ratio = wanted / max(_variance(detail), 1e-12)
        if number and ratio < _NEAR:
            break
        factor = min(max(ratio, 1.0), _MOST) ** _POWER
        # Ranks alone count: the strongest echo is not cut, and weak echo stays above the floor, among echo.
        sharp = own.add_(detail, alpha=factor - 1)
        sharp = sharp.div_(max(float(sharp.max()), 1.0)).clamp_(min=1e-6).mul_(wet)
        own = _through(sharp, _matching(_above(sharp), counts)).mul_(wet)
        detail = _detail(own)
    return own


def _detail(field: Tensor) -> Tensor:
    """A field (H, W) less its mean in a Gaussian window."""
    return field - torch.from_numpy(cv2.GaussianBlur(field.numpy(), (0, 0), _WIDTH, borderType=cv2.BORDER_REPLICATE))


def _variance(detail: Tensor) -> float:
    return float(detail.square().mean(dtype=torch.float64))


def _above(field: Tensor) -> np.ndarray:
    """How many pixels have at least each of _BINS + 1 values from 0 to 1, those at 0 not counted."""
    field = field[:: max(1, field.numel() // _COUNTED)]
    counts = torch.histc(field, _BINS, 0.0, 1.0).double().numpy()
    counts[0] -= field.numel() - int(torch.count_nonzero(field))
    return np.append(counts[::-1].cumsum()[::-1], 0.0)


def _matching(ranks: np.ndarray, counts: list[np.ndarray]) -> Tensor:
    """(2, _BINS): what the lowest and the highest value in each bin of a field become, the mean of the values that as
    many pixels of either end reach; ranks and counts: of the field and the ends, as _above gives them."""
    lowest = np.mean([_reached(above[::-1], ranks[:-1], np.linspace(1.0, 0.0, _BINS + 1)) for above in counts], 0)
    highest = np.mean([_reached(above, ranks[1:], np.linspace(0.0, 1.0, _BINS + 1)) for above in counts], 0)
    # The field's strongest echo may lie on a row that is not counted: no count tells of it, and it gets the highest.
    lowest = np.minimum(lowest, highest)
    return torch.from_numpy(np.stack([lowest, highest]).astype(np.float32))


def _reached(above: np.ndarray, ranks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values that so many pixels reach, by counts of those that reach each value, of equal counts by the first; 0
    where fewer have echo."""
    counts, first = np.unique(above, return_index=True)
    return np.interp(ranks, counts, values[first], right=0.0)


def _through(field: Tensor, table: Tensor) -> Tensor:
    """A field whose values, 0 to 1, become what a table says of the ends of their bins, in between linearly."""
    place = field * _BINS
    low = place.floor().clamp_(max=_BINS - 1)
    index = low.int()
    return torch.lerp(table[0][index], table[1][index], place.sub_(low))
