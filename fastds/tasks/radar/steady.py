# SPDX-License-Identifier: Apache-2.0
"""Adjustment of frames between two input times to intensities and detail of the frames at the input times.

A frame of least squared error between two input times is the mean of all possible frames. It has less heavy rain and
less detail than the frames at the input times, so that detail and intensities of a series would change periodically.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

_WIDTH = 1.5  # standard deviation in fine pixels of the Gaussian window; detail is the difference from its mean
# Exponent of the ratio of variances. The square root would equalise the detail, but matching the intensities afterwards
# reduces the detail again.
_EXPONENT = 0.8
_MAX_RATIO = 4.0  # upper limit of the ratio of variances
# number of iterations; the second is made if the variance is too small by more than this factor
_MAX_ITERATIONS, _MIN_RATIO = 2, 1.05
_BINS = 4096  # number of bins of the distributions of intensities
_MAX_COUNTED = 1 << 19  # approximate number of pixels of a large field that are counted, in equally spaced rows


def match_end_frames(y: Tensor) -> Tensor:
    """Return the middle one of three frames with the detail and the distribution of the other two.

    The result is y_1' = Q(F(y_1 + (a - 1) d_1)). The detail d_k is y_k minus its mean in a window. The gain a is the
    mean d^2 of y_0 and y_2 divided by that of y_1, limited to 1 to 4, to the power 0.8. F is the rank within the frame,
    and Q is the mean of the quantiles of y_0 and y_2 (probability matching). A second iteration is made if y_1' lacks
    detail. Pixels without echo above the floor (y_1 = 0) stay 0. The result is deterministic.

    Args:
        y: (3, H, W) in [0, 1] above the floor, network output at two input times and between them.

    Returns:
        (H, W), the middle frame.

    Source: Ebert 2001, Ability of a Poor Man's Ensemble to Predict the Probability and Distribution of Precipitation.
    """
    middle, ends = y[1].clamp(0.0, 1.0), (y[0].clamp(0.0, 1.0), y[2].clamp(0.0, 1.0))
    if not all(field.any() for field in (middle, *ends)):
        return middle
    wet, counts = middle > 0, [_count_above(end) for end in ends]
    expected, detail = sum(_compute_variance(_extract_detail(end)) for end in ends) / 2, _extract_detail(middle)
    for number in range(_MAX_ITERATIONS):
        ratio = expected / max(_compute_variance(detail), 1e-12)
        if number and ratio < _MIN_RATIO:
            break
        factor = min(max(ratio, 1.0), _MAX_RATIO) ** _EXPONENT
        # Only ranks matter: the strongest echo is not clipped, and weak echo stays above the floor.
        sharp = middle.add_(detail, alpha=factor - 1)
        sharp = sharp.div_(max(float(sharp.max()), 1.0)).clamp_(min=1e-6).mul_(wet)
        middle = _apply_table(sharp, _match_quantiles(_count_above(sharp), counts)).mul_(wet)
        detail = _extract_detail(middle)
    return middle


def _extract_detail(field: Tensor) -> Tensor:
    """Return a field (H, W) minus its mean in a Gaussian window."""
    return field - torch.from_numpy(cv2.GaussianBlur(field.numpy(), (0, 0), _WIDTH, borderType=cv2.BORDER_REPLICATE))


def _compute_variance(detail: Tensor) -> float:
    return float(detail.square().mean(dtype=torch.float64))


def _count_above(field: Tensor) -> np.ndarray:
    """Return the number of pixels that reach each of _BINS + 1 values from 0 to 1; pixels at 0 are not counted."""
    field = field[:: max(1, field.numel() // _MAX_COUNTED)]
    counts = torch.histc(field, _BINS, 0.0, 1.0).double().numpy()
    counts[0] -= field.numel() - int(torch.count_nonzero(field))
    return np.append(counts[::-1].cumsum()[::-1], 0.0)


def _match_quantiles(ranks: np.ndarray, counts: list[np.ndarray]) -> Tensor:
    """Return the matched values (2, _BINS) of the lower and the upper end of each bin.

    A matched value is the mean of the values that the same number of pixels reach in each of the two end frames.

    Args:
        ranks: counts of the field, see _count_above.
        counts: counts of the end frames, see _count_above.
    """
    lowest = np.mean(
        [_interpolate_counts(above[::-1], ranks[:-1], np.linspace(1.0, 0.0, _BINS + 1)) for above in counts], 0
    )
    highest = np.mean([_interpolate_counts(above, ranks[1:], np.linspace(0.0, 1.0, _BINS + 1)) for above in counts], 0)
    # The strongest echo of the field may be in a row that is not counted; it is matched to the highest value.
    lowest = np.minimum(lowest, highest)
    return torch.from_numpy(np.stack([lowest, highest]).astype(np.float32))


def _interpolate_counts(above: np.ndarray, ranks: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values that given numbers of pixels reach.

    Args:
        above: number of pixels that reach each of `values`.
        ranks: numbers of pixels.
        values: values from one end of the range to the other.

    Returns:
        Interpolated values; 0 if fewer pixels have echo. Of equal counts, the first value is used.
    """
    counts, first = np.unique(above, return_index=True)
    return np.interp(ranks, counts, values[first], right=0.0)


def _apply_table(field: Tensor, table: Tensor) -> Tensor:
    """Map a field with values from 0 to 1 by linear interpolation in a table (2, _BINS) of bin ends."""
    place = field * _BINS
    low = place.floor().clamp_(max=_BINS - 1)
    index = low.int()
    return torch.lerp(table[0][index], table[1][index], place.sub_(low))
