# SPDX-License-Identifier: Apache-2.0
"""How much variance a field keeps at each scale."""

import numpy as np
import torch
from scipy.fft import dctn
from torch import Tensor

BANDS = ((2.0, 4.0), (4.0, 8.0), (8.0, 16.0), (16.0, 32.0), (32.0, 64.0))  # wavelengths, pixels of the field


def spectral_ratio(
    prediction: Tensor, truth: Tensor, floor: float = 15.0, bands=BANDS
) -> dict[tuple[float, float], float]:
    """Power of the prediction over that of the truth, by bands of wavelength.

    The fields, lifted to the floor (missing pixels of truth set to it in both), are transformed by DCT-II, which
    needs no periodic
    edges; the power of mode (i, j) has the radial wavenumber k = sqrt((i / 2H)^2 + (j / 2W)^2), wavelength 1 / k.
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
    h, w = truth.shape[-2:]
    missing = torch.isnan(truth)
    fields = [
        torch.where(missing, floor, z).clamp(min=floor).reshape(-1, h, w).double().numpy() for z in (prediction, truth)
    ]
    power = [np.square(dctn(z, axes=(-2, -1), norm="ortho")).sum(axis=0) for z in fields]
    k = np.hypot(np.arange(h)[:, None] / (2.0 * h), np.arange(w)[None, :] / (2.0 * w))
    ratios = {}
    for shortest, longest in bands:
        inside = (k > 1.0 / longest) & (k <= 1.0 / shortest)
        below = power[1][inside].sum()
        ratios[(shortest, longest)] = float(power[0][inside].sum() / below) if below > 0 else float("nan")
    return ratios
