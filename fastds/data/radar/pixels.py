# SPDX-License-Identifier: Apache-2.0
"""Conversion of pixel codes of published radar data sets (HKO-7, DWD-12) to reflectivity and back."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from fastds._options import OptionError

# Name -> dBZ of codes 0 and 255. "0-60" is the scale of the DB-RNN paper; "-10-60" is the scale of the PNG files of
# HKO-7 and of its public code.
PIXEL_SCALES = {"0-60": (0.0, 60.0), "-10-60": (-10.0, 60.0)}
# (a, b) of Z = a R^b; Z in mm6 m-3, R in mm/h.
HKO_Z_R = (58.53, 1.56)
DWD_Z_R = (256.0, 1.42)
# Rain-rate thresholds of the published tables, mm/h.
RAIN_THRESHOLDS = (0.5, 2.0, 5.0, 10.0, 30.0)
# A value this close below an integer is rounded up, since it went through float32.
_ROUNDING = 1e-4


def to_pixels(z: ArrayLike, scale: str = "0-60") -> np.ndarray:
    """Convert reflectivity to pixel codes P = floor(255 (clip(z) - low) / (high - low)).

    Args:
        z: Reflectivity in dBZ, any shape; NaN becomes 0.
        scale: Key of PIXEL_SCALES, which gives (low, high) in dBZ.

    Returns:
        uint8 array of the same shape. to_pixels(from_pixels(P)) equals P.

    Raises:
        ValueError: The scale is unknown.

    Source: Ma, Zhang and Liu 2024, DB-RNN, equation 9.
    """
    low, high = _get_range(scale)
    share = (np.clip(np.asarray(z, dtype=np.float64), low, high) - low) / (high - low)
    return np.floor(np.nan_to_num(255.0 * share, nan=0.0) + _ROUNDING).astype(np.uint8)


def from_pixels(pixels: ArrayLike, scale: str = "0-60") -> np.ndarray:
    """Convert pixel codes P to reflectivity z = low + (high - low) P / 255.

    Code 0 becomes `low`, which means no echo. The input of a network is P / 255, which equals prepare(z, low, high).

    Args:
        pixels: Codes, any shape.
        scale: Key of PIXEL_SCALES.

    Returns:
        float32 array of the same shape, dBZ.

    Raises:
        ValueError: The scale is unknown.
    """
    low, high = _get_range(scale)
    return (low + (high - low) * np.asarray(pixels, dtype=np.float64) / 255.0).astype(np.float32)


def recode_pixels(pixels: ArrayLike, source: str = "-10-60", target: str = "0-60") -> np.ndarray:
    """Convert codes of one scale to codes of another, such as those of HKO-7's PNG files to those of the paper.

    Args:
        pixels: Codes of the scale `source`, any shape.
        source: Key of PIXEL_SCALES.
        target: Key of PIXEL_SCALES.

    Returns:
        uint8 array of the same shape.
    """
    return to_pixels(from_pixels(pixels, source), target)


def normalised_rates(
    rates: Iterable[float], z_r: tuple[float, float], floor: float = 0.0, ceiling: float = 60.0
) -> list[float]:
    """Convert rain rates to a network's scale, (10 log10(a R^b) - floor) / (ceiling - floor), without clipping.

    Args:
        rates: Rain rates in mm/h, > 0.
        z_r: (a, b) of Z = a R^b.
        floor: dBZ that corresponds to 0.
        ceiling: dBZ that corresponds to 1.

    Returns:
        list of float.
    """
    a, b = z_r
    return [(10.0 * math.log10(a) + 10.0 * b * math.log10(rate) - floor) / (ceiling - floor) for rate in rates]


def _get_range(scale: str) -> tuple[float, float]:
    if scale not in PIXEL_SCALES:
        raise OptionError("scale", f"must be one of {', '.join(PIXEL_SCALES)}, got {scale!r}")
    return PIXEL_SCALES[scale]
