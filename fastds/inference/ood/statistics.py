# SPDX-License-Identifier: Apache-2.0
"""Statistics of inputs for the detection of out-of-distribution inputs.

Missing pixels are ignored, and the statistics do not depend on the size of a field.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastds.models.baselines import optical_flow, warp
from fastds.models.card import ANY

LAG = 4  # distance in pixels of the longer differences
_WINDOW = 512  # side in pixels of the part of a radar field that is examined
_ECHO_THRESHOLD = 0.02  # fraction of the range [0, 1] above which warped pixels count as echo


def compute_texture(fields: Tensor) -> dict[str, float]:
    """Return mean, gradient and slope of fields; values that are not defined are left out.

    D(k) is the mean absolute difference of pixels at distance k along rows and columns. The gradient is D(1), per
    pixel. The slope is log2(D(4) / D(1)) / 2, which is 1 for a plane, 0 for noise, and (b - 2) / 2 for a 2-D power
    spectrum k^-b.

    Args:
        fields: (..., H, W), NaN = missing.
    """
    near, far = _compute_difference(fields, 1), _compute_difference(fields, LAG)
    found = {"mean": float(fields.nanmean()), "gradient": near}
    found["slope"] = math.log2(far / near) / math.log2(LAG) if near > 0 and far > 0 else math.nan
    return {name: value for name, value in found.items() if math.isfinite(value)}


def compute_field_statistics(fields: Tensor, names: list[str]) -> dict[str, float]:
    """Return the texture of variables (..., C, H, W): "t mean", "t gradient", "t slope".

    For a network that takes any variable (names == [ANY]), only "slope" is returned, which has no units.
    """
    found = {name: compute_texture(fields[..., c, :, :]) for c, name in enumerate(names)}
    if names == [ANY]:
        return {key: value for key, value in found[ANY].items() if key == "slope"}
    return {f"{name} {key}": value for name, one in found.items() for key, value in one.items()}


def compute_motion_statistics(x: Tensor) -> dict[str, float]:
    """Return motion statistics of two reflectivity fields; empty if one of them has no echo.

    motion: 95th percentile of the displacement by optical flow over echo, in pixels. flow residual: mean |x1 - warped
    x0| over echo, divided by the mean difference of neighbouring pixels with echo; 1 if the residual is as large as
    that of a displacement by one pixel. flow disagreement: mean of |f(p) + b(p + f(p))| over echo, in pixels, with the
    forward flow f and the backward flow b; 0 for consistent flows.

    The statistics were selected by rank correlation of a network's error relative to advection; statistics of
    intensity, area and texture correlate less.

    Args:
        x: (2, H, W) in [0, 1], 0 = no echo.
    """
    x = x[:, *_find_window(x)]
    echo = x > 0
    if not echo.flatten(1).any(1).all():
        return {}
    ahead, back = optical_flow(x[None])[0, 0].float()
    speed = torch.hypot(*ahead)[echo[0]]
    moved = warp(x[:1, None], back[None])[0, 0]
    either = echo[1] | (moved > _ECHO_THRESHOLD)
    residual = (moved - x[1]).abs()[either].mean()
    disagreement = torch.hypot(*(ahead + warp(back[None], ahead[None])[0]))
    near = _compute_difference(x, 1, echo)
    found = {
        "motion": float(torch.quantile(_subsample(speed), 0.95)),
        "flow disagreement": float(disagreement[echo[0]].mean()),
    }
    return found | ({"flow residual": float(residual) / near} if near > 0 else {})


def _compute_difference(fields: Tensor, lag: int, of: Tensor | None = None) -> float:
    """Return the mean absolute difference of known pixels at distance `lag` along rows and columns.

    Args:
        fields: (..., H, W), NaN = missing.
        lag: distance in pixels.
        of: mask of echo; pairs without echo are ignored. None: all pairs.
    """
    total, count = 0.0, 0
    for axis in (-2, -1):
        length = fields.shape[axis] - lag
        if length < 1:
            return math.nan
        difference = (fields.narrow(axis, lag, length) - fields.narrow(axis, 0, length)).abs()
        counts = ~difference.isnan()
        if of is not None:
            counts &= of.narrow(axis, lag, length) | of.narrow(axis, 0, length)
        total += float(difference[counts].sum(dtype=torch.float64))
        count += int(counts.sum())
    return total / count if count else math.nan


def _find_window(x: Tensor) -> tuple[slice, slice]:
    """Return rows and columns of a window around the median position of echo in x (2, H, W).

    A side of the window has at most _WINDOW pixels.
    """
    slices = []
    for axis in (1, 2):
        echo = (x > 0).any(0).sum(2 - axis).cumsum(0)  # cumulative count along the axis
        middle = int(torch.searchsorted(echo, (echo[-1] + 1) // 2))
        first = min(max(middle - _WINDOW // 2, 0), max(len(echo) - _WINDOW, 0))
        slices.append(slice(first, first + _WINDOW))
    return slices[0], slices[1]


def _subsample(values: Tensor, limit: int = 1_000_000) -> Tensor:
    """Return at most `limit` of the values, evenly selected, because torch.quantile rejects large inputs."""
    return values[:: max(1, -(-values.numel() // limit))]
