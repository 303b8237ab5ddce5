# SPDX-License-Identifier: Apache-2.0
"""Threshold scores: critical success index and fractions skill score."""

import numpy as np
import torch
from torch import Tensor


def csi(prediction: Tensor, truth: Tensor, threshold: float, valid: Tensor | None = None) -> float:
    """Compute the critical success index of the event "field >= threshold" on valid pixels.

        CSI = hits / (hits + misses + false alarms)

    Args:
        prediction: any shape and unit.
        truth: the same shape and unit.
        threshold: in the unit of the fields.
        valid: bool, broadcastable; None selects the pixels where truth is not NaN.

    Returns:
        A number in [0, 1], computed by torchmetrics; NaN if the event neither occurs nor is predicted.

    Raises:
        ValueError: If the shapes differ.
    """
    from torchmetrics.functional.regression import critical_success_index

    _check_same_shape(prediction, truth)
    valid = _select_valid(truth, valid)
    p, t = prediction[valid], truth[valid]
    if not ((p >= threshold) | (t >= threshold)).any():
        return float("nan")
    return critical_success_index(p, t, float(threshold)).item()


def fss(prediction: Tensor, truth: Tensor, threshold: float, window: int, valid: Tensor | None = None) -> float:
    """Compute the fractions skill score of "field >= threshold" in square windows, over all fields.

        FSS = 1 - sum (f_p - f_t)^2 / sum (f_p^2 + f_t^2), with the fraction f of event pixels in the window

    Args:
        prediction: (..., H, W), any unit.
        truth: the same shape and unit.
        threshold: in the unit of the fields.
        window: side of the window in pixels.
        valid: bool, broadcastable; None selects the pixels where truth is not NaN. Other pixels count as "no event" in
            both fields.

    Returns:
        A number in [0, 1], computed by the package scores; NaN if the event neither occurs nor is predicted.

    Raises:
        ValueError: If the shapes differ, or if the window is larger than the grid.

    Source: Roberts and Lean 2008.
    """
    import xarray as xr
    from scores.spatial import fss_2d

    _check_same_shape(prediction, truth)
    h, w = truth.shape[-2:]
    if not 1 <= window <= min(h, w):
        raise ValueError(f"window must lie in 1..{min(h, w)} pixels for a grid of {h} x {w}, got {window}")
    valid = _select_valid(truth, valid)
    p, t = (torch.where(valid, (z >= threshold), False).reshape(-1, h, w).numpy() for z in (prediction, truth))
    if not (p.any() or t.any()):
        return float("nan")
    fields = [xr.DataArray(z.astype(np.float32), dims=("case", "y", "x")) for z in (p, t)]
    return float(
        fss_2d(*fields, event_threshold=0.5, window_size=(window, window), spatial_dims=("y", "x"), reduce_dims="all")
    )


def _select_valid(truth: Tensor, valid: Tensor | None) -> Tensor:
    present = ~torch.isnan(truth)
    return present if valid is None else present & valid


def _check_same_shape(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth must have the same shape, got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
