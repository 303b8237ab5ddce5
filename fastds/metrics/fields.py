# SPDX-License-Identifier: Apache-2.0
"""Errors, resolved detail and spectra of fields."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import scipy  # its parts are imported at first use
import torch
from torch import Tensor


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


BANDS = ((2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0))  # wavelengths, pixels of the field


def spectral_ratio(
    prediction: Tensor, truth: Tensor, floor: float = 15.0, bands: Sequence[tuple[float, float]] = BANDS
) -> dict[tuple[float, float], float]:
    """Power of the prediction over that of the truth, by bands of wavelength.

    The fields, lifted to the floor (missing pixels of truth set to it in both), are transformed by DCT-II, which
    needs no periodic edges; the power of mode (i, j) has the radial wavenumber k = sqrt((i / 2H)^2 + (j / 2W)^2),
    wavelength 1 / k.
    1 = right amount of detail, below 1 = too smooth, above 1 = noise.

    Args:
        prediction, truth: (..., H, W), dBZ, powers summed over the leading dimensions.
        floor: dBZ.
        bands: pairs (shortest, longest wavelength), pixels.

    Returns: {band: ratio}, NaN where truth has no power or no mode lies in the band.

    Source: Denis, Cote and Laprise 2002 (DCT spectra of limited-area fields).
    """
    if prediction.shape != truth.shape or truth.ndim < 2:
        raise ValueError(
            "prediction and truth must have the same shape (..., H, W), "
            f"got {tuple(prediction.shape)} and {tuple(truth.shape)}"
        )
    missing = torch.isnan(truth)
    powers = (band_powers(torch.where(missing, floor, z).clamp(min=floor), bands) for z in (prediction, truth))
    return {band: p / t if t > 0 else math.nan for band, p, t in zip(bands, *powers, strict=True)}


def band_powers(fields: Tensor, bands: Sequence[tuple[float, float]]) -> list[float]:
    """Power of fields (..., H, W) without missing values at wavelengths of each band, (shortest, longest) in pixels, as
    in spectral_ratio, summed over the leading dimensions; 0 where no mode lies in the band."""
    power = _power(fields)
    return [float(power[_inside(tuple(fields.shape[-2:]), band)].sum()) for band in bands]


def power_spectrum(fields: Tensor, floor: float = 15.0) -> tuple[np.ndarray, np.ndarray]:
    """Radially averaged power by wavenumber: the mean over the modes of a ring, by DCT-II as in spectral_ratio.

    Args:
        fields: (..., H, W), dBZ, lifted to the floor; NaN = the floor. Powers are averaged over the leading dimensions.
        floor: dBZ.

    Returns: wavenumber (n,), cycles a pixel, the middles of rings of width 1 / min(H, W) up to 1/2; power (n,), dB^2,
        without that of the mean.
    """
    if fields.ndim < 2:
        raise ValueError(f"fields must have shape (..., H, W), got {tuple(fields.shape)}")
    count = max(1, min(fields.shape[-2:]) // 2)
    power = _power(torch.nan_to_num(fields, nan=floor).clamp(min=floor)) / max(1, fields[..., 0, 0].numel())
    ring = np.floor(_wavenumbers(fields.shape) * 2 * count).astype(int)
    inside = (ring < count) & (_wavenumbers(fields.shape) > 0)
    sums, modes = (np.bincount(ring[inside], weights=w, minlength=count) for w in (power[inside], None))
    return (np.arange(count) + 0.5) / (2 * count), sums / np.maximum(modes, 1)


def _power(fields: Tensor) -> np.ndarray:
    """Power (H, W) of the modes of fields (..., H, W), summed over the leading dimensions."""
    flat = fields.reshape(-1, *fields.shape[-2:]).double().numpy()
    return np.square(scipy.fft.dctn(flat, axes=(-2, -1), norm="ortho")).sum(axis=0)


@functools.lru_cache(maxsize=4)
def _inside(shape: tuple[int, int], band: tuple[float, float]) -> np.ndarray:
    """(H, W) bool: the modes whose wavelength, pixels, lies in the band (shortest, longest)."""
    k = _wavenumbers(shape)
    return (k > 1.0 / band[1]) & (k <= 1.0 / band[0])


def _wavenumbers(shape: Sequence[int]) -> np.ndarray:
    """Radial wavenumber (H, W) of the modes, cycles a pixel."""
    h, w = shape[-2:]
    return np.hypot(np.arange(h)[:, None] / (2.0 * h), np.arange(w)[None, :] / (2.0 * w))
