# SPDX-License-Identifier: Apache-2.0
"""Pixel codes of published radar sets (HKO-7, DWD-12) to reflectivity and rain rates and back."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

# dBZ of codes 0 and 255. "0-60": the DB-RNN paper's; "-10-60": that of HKO-7's own PNG files and of the public code.
PIXEL_SCALES = {"0-60": (0.0, 60.0), "-10-60": (-10.0, 60.0)}
# (a, b) of Z = a R^b, mm6 m-3 and mm/h.
HKO_Z_R = (58.53, 1.56)
DWD_Z_R = (256.0, 1.42)
# Rain rates of the published tables, mm/h.
RAIN_THRESHOLDS = (0.5, 2.0, 5.0, 10.0, 30.0)
# Codes this near below a whole number are that number: they went through float32.
_ROUNDING = 1e-4


def to_pixels(z: ArrayLike, scale: str = "0-60") -> np.ndarray:
    """Pixel codes P = floor(255 (clip(z) - low) / (high - low)) of reflectivity.

    Args:
        z: dBZ, numpy, any shape; NaN -> 0.
        scale: name of PIXEL_SCALES, (low, high) in dBZ.
    Returns: uint8, same shape; to_pixels(from_pixels(P)) is P.
    Raises: ValueError for an unknown scale.
    Source: Ma, Zhang and Liu 2024, DB-RNN, equation 9.
    """
    low, high = _range(scale)
    share = (np.clip(np.asarray(z, dtype=np.float64), low, high) - low) / (high - low)
    return np.floor(np.nan_to_num(255.0 * share, nan=0.0) + _ROUNDING).astype(np.uint8)


def from_pixels(pixels: ArrayLike, scale: str = "0-60") -> np.ndarray:
    """Reflectivity z = low + (high - low) P / 255 in dBZ, float32, of the codes P in `pixels`; scale as in to_pixels.

    Code 0 becomes `low`, which stands for no echo. A network's input is P / 255, which is prepare(z, low, high).
    """
    low, high = _range(scale)
    return (low + (high - low) * np.asarray(pixels, dtype=np.float64) / 255.0).astype(np.float32)


def recode_pixels(pixels: ArrayLike, source: str = "-10-60", target: str = "0-60") -> np.ndarray:
    """Codes `pixels` of the scale `source` as codes of the scale `target`, uint8: HKO-7's PNG codes as the paper's,
    say."""
    return to_pixels(from_pixels(pixels, source), target)


def normalised_rates(
    rates: Iterable[float], z_r: tuple[float, float], floor: float = 0.0, ceiling: float = 60.0
) -> list[float]:
    """Where rain rates lie on a network's scale, ((10 log10(a R^b)) - floor) / (ceiling - floor), not clipped.

    Args: rates: mm/h, > 0; z_r: (a, b); floor, ceiling: dBZ of 0 and 1.
    Returns: list of float.
    """
    a, b = z_r
    return [(10.0 * math.log10(a) + 10.0 * b * math.log10(rate) - floor) / (ceiling - floor) for rate in rates]


def _range(scale: str) -> tuple[float, float]:
    if scale not in PIXEL_SCALES:
        raise ValueError(f"scale must be one of {', '.join(PIXEL_SCALES)}, got {scale!r}")
    return PIXEL_SCALES[scale]
