# SPDX-License-Identifier: Apache-2.0
"""Skill at thresholds: critical success index and fractions skill score."""

import numpy as np
import torch
from torch import Tensor


def csi(prediction: Tensor, truth: Tensor, threshold: float, valid: Tensor | None = None) -> float:
    """Critical success index: hits / (hits + misses + false alarms) of "field >= threshold", over valid pixels.

    Args:
        prediction, truth: same shape, any unit (dBZ here).
        threshold: in that unit.
        valid: same shape or broadcastable, bool; None: where truth is not NaN.

    Returns: a number in [0, 1]; NaN where the event neither happens nor is predicted. By torchmetrics.
    """
    from torchmetrics.functional.regression import critical_success_index

    _same_shape(prediction, truth)
    valid = _valid(truth, valid)
    p, t = prediction[valid], truth[valid]
    if not ((p >= threshold) | (t >= threshold)).any():
        return float("nan")
    return critical_success_index(p, t, float(threshold)).item()


def fss(prediction: Tensor, truth: Tensor, threshold: float, window: int, valid: Tensor | None = None) -> float:
    """Fractions skill score of "field >= threshold" in square windows, summed over all fields.

    FSS = 1 - sum (f_p - f_t)^2 / sum (f_p^2 + f_t^2), f the fraction of event pixels in the window.

    Args:
        prediction, truth: (..., H, W), any unit (dBZ here).
        threshold: in that unit.
        window: side of the window, pixels.
        valid: same shape or broadcastable, bool; missing pixels count as "no event" in both; None: where truth is not
            NaN.

    Returns: a number in [0, 1], NaN where the event neither happens nor is predicted. By the package scores.

    Source: Roberts and Lean 2008.
    """
    import xarray as xr
    from scores.spatial import fss_2d

    _same_shape(prediction, truth)
    h, w = truth.shape[-2:]
    if not 1 <= window <= min(h, w):
        raise ValueError(f"window must lie in 1..{min(h, w)} pixels for a grid of {h} x {w}, got {window}")
    valid = _valid(truth, valid)
    p, t = (torch.where(valid, (z >= threshold), False).reshape(-1, h, w).numpy() for z in (prediction, truth))
    if not (p.any() or t.any()):
        return float("nan")
    fields = [xr.DataArray(z.astype(np.float32), dims=("case", "y", "x")) for z in (p, t)]
    return float(
        fss_2d(*fields, event_threshold=0.5, window_size=(window, window), spatial_dims=("y", "x"), reduce_dims="all")
    )


def _valid(truth: Tensor, valid: Tensor | None) -> Tensor:
    present = ~torch.isnan(truth)
    return present if valid is None else present & valid


def _same_shape(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must have the same shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
