# SPDX-License-Identifier: Apache-2.0
"""Errors, resolved detail and power spectra of fields."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import scipy  # its submodules are imported at first use
import torch
from torch import Tensor


def latitude_weights(latitude: Tensor) -> Tensor:
    """Compute weights proportional to cos(latitude) with sum 1.

    Args:
        latitude: (H,), in degrees.

    Returns:
        (H, 1) float64.
    """
    weight = torch.cos(torch.deg2rad(torch.as_tensor(latitude, dtype=torch.float64))).clamp(min=0)
    return (weight / weight.sum())[:, None]


def compute_mean_square(prediction: Tensor, truth: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the mean squared error over the last two dimensions. Pixels that are missing in truth are ignored.

    Args:
        prediction: (..., H, W).
        truth: the same shape; NaN and infinite values are missing.
        weights: (H, 1), (1, W) or (H, W); None weights all pixels equally.

    Returns:
        (...).

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != truth.shape or truth.dim() < 2:
        shapes = tuple(prediction.shape), tuple(truth.shape)
        raise ValueError(f"prediction and truth must have the same shape (..., H, W), got {shapes[0]} and {shapes[1]}")
    valid = torch.isfinite(truth)
    weight = valid.double() if weights is None else valid * weights.double()
    error = torch.where(valid, prediction.double() - truth.double(), 0).square()
    return (weight * error).sum((-2, -1)) / weight.sum((-2, -1))


def psnr(prediction: Tensor, truth: Tensor, value_range: float, weights: Tensor | None = None) -> dict[str, float]:
    """Compute the peak signal-to-noise ratio with a fixed peak value.

        PSNR_f = 10 log10(R^2 / MSE_f) for each field f; infinite for equal fields

    Args:
        prediction: (..., H, W).
        truth: the same shape and unit.
        value_range: R, difference of the largest and smallest value of the training data.
        weights: (H, 1), (1, W) or (H, W), for example latitude_weights; None weights all pixels equally.

    Returns:
        {"psnr": mean of PSNR_f over the fields, "psnr_pooled": PSNR of the mean MSE, "rmse": square root of the mean
        MSE, in the unit of the fields}. "psnr" and "psnr_pooled" differ and must not be compared with each other.

    Raises:
        ValueError: If the shapes differ, or if value_range is not positive and finite.
    """
    if not 0 < value_range < math.inf:
        raise ValueError(f"value_range must be positive and finite, got {value_range!r}")
    mse = compute_mean_square(prediction, truth, weights).reshape(-1)
    decibel = 10 * torch.log10(value_range**2 / mse)
    pooled = mse.mean()
    return {
        "psnr": float(decibel.mean()),
        "psnr_pooled": float(10 * torch.log10(value_range**2 / pooled)),
        "rmse": float(pooled.sqrt()),
    }


def detail_ratio(prediction: Tensor, truth: Tensor, scale: float) -> float:
    """Compute the power of the prediction relative to the truth at wavelengths that the coarse grid cannot resolve.

    Args:
        prediction: (..., H, W), without missing values.
        truth: the same shape, without missing values.
        scale: ratio s of the coarse to the fine grid spacing. The wavelengths are 2 to 2 s fine pixels.
    """
    band = (2.0, max(2.0 * scale, 2.0 + 1e-6))
    return spectral_ratio(prediction, truth, floor=-math.inf, bands=(band,))[band]


BANDS = ((2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0))  # wavelengths, pixels of the field


def spectral_ratio(
    prediction: Tensor, truth: Tensor, floor: float = 15.0, bands: Sequence[tuple[float, float]] = BANDS
) -> dict[tuple[float, float], float]:
    """Compute the power of the prediction relative to the truth, by bands of wavelength.

    The fields are clipped below at the floor, and missing pixels of truth are set to the floor in both. Then they are
    transformed by a DCT-II, which needs no periodic edges. Mode (i, j) has the wavenumber k = sqrt((i / 2H)^2 + (j /
    2W)^2) and the wavelength 1 / k. If the ratio is below 1, the prediction is too smooth; if the
    ratio is above 1, the prediction has too much detail or noise.

    Args:
        prediction: (..., H, W), in dBZ. Powers are summed over the leading dimensions.
        truth: the same shape, in dBZ.
        floor: in dBZ.
        bands: pairs (shortest, longest wavelength) in pixels.

    Returns:
        {band: ratio}; NaN if truth has no power or no mode lies in the band.

    Raises:
        ValueError: If the shapes differ.

    Source: Denis, Cote and Laprise 2002 (DCT spectra of limited-area fields).
    """
    if prediction.shape != truth.shape or truth.ndim < 2:
        raise ValueError(
            "prediction and truth must have the same shape (..., H, W), "
            f"got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
    missing = torch.isnan(truth)
    powers = (compute_band_powers(torch.where(missing, floor, z).clamp(min=floor), bands) for z in (prediction, truth))
    return {band: p / t if t > 0 else math.nan for band, p, t in zip(bands, *powers, strict=True)}


def compute_band_powers(fields: Tensor, bands: Sequence[tuple[float, float]]) -> list[float]:
    """Compute the power of fields in bands of wavelength, see spectral_ratio.

    Args:
        fields: (..., H, W), without missing values. Powers are summed over the leading dimensions.
        bands: pairs (shortest, longest wavelength) in pixels.

    Returns:
        One power per band; 0 if no mode lies in the band.
    """
    power = _compute_power(fields)
    return [float(power[_select_band(tuple(fields.shape[-2:]), band)].sum()) for band in bands]


def power_spectrum(fields: Tensor, floor: float = 15.0) -> tuple[np.ndarray, np.ndarray]:
    """Compute the radially averaged power spectrum by a DCT-II, see spectral_ratio.

    Args:
        fields: (..., H, W), in dBZ, clipped below at the floor; NaN stands for the floor. Powers are averaged over the
            leading dimensions.
        floor: in dBZ.

    Returns:
        Two arrays (n,) for n = min(H, W) // 2 rings of equal width, which divide the wavenumbers from 0 to 1/2: the
        centres of the rings in cycles per pixel, and the mean power of the modes in each ring in dB^2. The mode of
        wavenumber 0 is left out.

    Raises:
        ValueError: If fields have fewer than two dimensions.
    """
    if fields.ndim < 2:
        raise ValueError(f"fields must have shape (..., H, W), got {tuple(fields.shape)}")
    count = max(1, min(fields.shape[-2:]) // 2)
    power = _compute_power(torch.nan_to_num(fields, nan=floor).clamp(min=floor)) / max(1, fields[..., 0, 0].numel())
    ring = np.floor(_compute_wavenumbers(fields.shape) * 2 * count).astype(int)
    inside = (ring < count) & (_compute_wavenumbers(fields.shape) > 0)
    sums, modes = (np.bincount(ring[inside], weights=w, minlength=count) for w in (power[inside], None))
    return (np.arange(count) + 0.5) / (2 * count), sums / np.maximum(modes, 1)


def _compute_power(fields: Tensor) -> np.ndarray:
    """Compute the power (H, W) of the modes of fields (..., H, W), summed over the leading dimensions."""
    flat = fields.reshape(-1, *fields.shape[-2:]).double().numpy()
    return np.square(scipy.fft.dctn(flat, axes=(-2, -1), norm="ortho")).sum(axis=0)


@functools.lru_cache(maxsize=4)
def _select_band(shape: tuple[int, int], band: tuple[float, float]) -> np.ndarray:
    """Select the modes whose wavelength in pixels lies in the band (shortest, longest), (H, W) bool."""
    k = _compute_wavenumbers(shape)
    return (k > 1.0 / band[1]) & (k <= 1.0 / band[0])


def _compute_wavenumbers(shape: Sequence[int]) -> np.ndarray:
    """Compute the radial wavenumber of the modes in cycles per pixel, (H, W)."""
    h, w = shape[-2:]
    return np.hypot(np.arange(h)[:, None] / (2.0 * h), np.arange(w)[None, :] / (2.0 * w))
