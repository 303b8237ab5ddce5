# SPDX-License-Identifier: Apache-2.0
"""Errors of downscaled fields in physical units: RMSE, PSNR by a fixed range, latitude weights, missing detail."""

import math

import torch
from torch import Tensor

from fastds.metrics.spectra import spectral_ratio


def latitude_weights(latitude: Tensor) -> Tensor:
    """(H, 1) weights proportional to cos(latitude), sum 1; latitude (H,) degrees."""
    weight = torch.cos(torch.deg2rad(torch.as_tensor(latitude, dtype=torch.float64))).clamp(min=0)
    return (weight / weight.sum())[:, None]


def mean_square(prediction: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error over the last two dimensions of (..., H, W), pixels missing in truth left out.

    Args:
        weights: (H, 1), (1, W) or (H, W), relative; None: all pixels alike.
    """
    if prediction.shape != truth.shape or truth.dim() < 2:
        shapes = tuple(prediction.shape), tuple(truth.shape)
        raise ValueError(f"prediction and truth must have the same shape (..., H, W), got {shapes[0]} and {shapes[1]}")
    valid = torch.isfinite(truth)
    weight = valid.double() if weights is None else valid * weights.double()
    error = torch.where(valid, prediction.double() - truth.double(), 0).square()
    return (weight * error).sum((-2, -1)) / weight.sum((-2, -1))


def psnr(prediction: Tensor, truth: Tensor, value_range: float, weights: Tensor | None = None) -> dict[str, float]:
    """Peak signal-to-noise ratio with a peak that does not depend on the field.

    PSNR_f = 10 log10(R^2 / MSE_f) per field f; infinite for equal fields.

    Args:
        prediction, truth: (..., H, W), same units. value_range: R, largest minus smallest value of the training split.
        weights: as mean_square, for example latitude_weights.

    Returns: {"psnr": mean of PSNR_f over the fields, "psnr_pooled": that of the mean MSE, "rmse": root of the mean MSE,
        in the units of the field}. The first two differ; compare like with like.
    """
    if not 0 < value_range < math.inf:
        raise ValueError(f"value_range must be positive and finite, got {value_range!r}")
    mse = mean_square(prediction, truth, weights).reshape(-1)
    decibel = 10 * torch.log10(value_range**2 / mse)
    pooled = mse.mean()
    return {
        "psnr": float(decibel.mean()),
        "psnr_pooled": float(10 * torch.log10(value_range**2 / pooled)),
        "rmse": float(pooled.sqrt()),
    }


def detail_ratio(prediction: Tensor, truth: Tensor, scale: float) -> float:
    """Power of the prediction over that of the truth at wavelengths the coarse grid cannot carry, below 2 s pixels,
    s = scale."""
    band = (2.0, max(2.0 * scale, 2.0 + 1e-6))
    return spectral_ratio(prediction, truth, floor=-math.inf, bands=(band,))[band]
