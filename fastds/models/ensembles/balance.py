# SPDX-License-Identifier: Apache-2.0
"""Adjust an error model to the mean rain of the advected last frame."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastds.models.ensembles.downscaling_features import compute_mean
from fastds.models.ensembles.error_model import quadrature, sample_reflectivity

_NODES, _WEIGHTS = quadrature(13)
_LEAST = 1e-3  # mm/h, added to both means before the logarithm of their ratio
_ROUNDS, _MOST = 3, 6.0  # number of iterations; limit of the shift in dB


def convert_to_rain_rate(z: Tensor, z_r: tuple[float, float]) -> Tensor:
    """Convert reflectivity to rain rate: R = (10^(z / 10) / a)^(1 / b).

    Args:
        z: reflectivity in dBZ.
        z_r: (a, b) of the Z-R relation Z = a R^b.

    Returns:
        Rain rate in mm/h.
    """
    a, b = z_r
    return torch.exp((z * (math.log(10) / 10) - math.log(a)) / b)


def compute_expected_rain(parameters: tuple[Tensor, ...], rain: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute the mean rain of an error model at each pixel by quadrature.

    Args:
        parameters: m, s, g and e of the error model, each (H, W).
        rain: converts dB above the floor to mm/h.

    Returns:
        (H, W), in mm/h.
    """
    return sum(
        weight * rain(sample_reflectivity(parameters, node)) for node, weight in zip(_NODES, _WEIGHTS, strict=True)
    )


def match_mean_rain(
    parameters: tuple[Tensor, ...],
    target: Tensor,
    known: Tensor,
    valid: Tensor,
    rain: Callable[[Tensor], Tensor],
    slope: float,
) -> tuple[Tensor, ...]:
    """Shift m of an error model toward the mean rain of a target field.

    The shift d is one number for the field, limited to -6 ... 6 dB. It solves mean(expected_rain(m + d)) = mean(target)
    over the valid pixels approximately, by three iterations of

        d <- d + slope log10((mean(target) + 0.001) / (mean(expected_rain(m + d)) + 0.001))

    The result is m + k d, where k is the mean of `known`.

    Rain rate is a power of Z, so the mean rain depends strongly on the spread in dB. An error model that was fitted to
    some events has too much or too little rain in others. A shift that varies over the field would raise the CRPS.

    Args:
        parameters: m, s, g and e of the error model, each (H, W).
        target: (H, W), in mm/h.
        known: (H, W), weight of the target from 0 to 1, see ForecastFeatures.compute_observed_weight.
        valid: (H, W) bool, the pixels whose rain counts, at least one.
        rain: converts dB above the floor to mm/h.
        slope: dB for a tenfold rain rate: 10 b of Z = a R^b.

    Returns:
        The shifted m, and s, g and e unchanged.
    """
    (m, *shape), expected, shift = parameters, compute_mean(target[valid]) + _LEAST, 0.0
    for _ in range(_ROUNDS):
        actual = compute_mean(compute_expected_rain((m + shift, *shape), rain)[valid]) + _LEAST
        shift = min(max(shift + slope * math.log10(expected / actual), -_MOST), _MOST)
    return m + compute_mean(known[valid]) * shift, *shape
