# SPDX-License-Identifier: Apache-2.0
"""The mean rain of members: that of the last known field where it has moved to."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastds.models.ensembles.detail import mean
from fastds.models.ensembles.law import echo, quadrature

_NODES, _WEIGHTS = quadrature(13)
_LEAST = 1e-3  # mm/h that both means are raised by
_ROUNDS, _MOST = 3, 6.0  # dB that echo is raised or lowered by, at most


def rain_rate(z: Tensor, z_r: tuple[float, float]) -> Tensor:
    """R = (10^(z / 10) / a)^(1 / b) in mm/h of z in dBZ, z_r = (a, b)."""
    a, b = z_r
    return torch.exp((z * (math.log(10) / 10) - math.log(a)) / b)


def expected_rain(law: tuple[Tensor, ...], rain: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean (H, W) in mm/h of rain(z) over the z of a law m, s, g, e (H, W). rain: dB above the floor -> mm/h."""
    return sum(weight * rain(echo(law, node)) for node, weight in zip(_NODES, _WEIGHTS, strict=True))


def balanced(
    law: tuple[Tensor, ...],
    target: Tensor,
    known: Tensor,
    valid: Tensor,
    rain: Callable[[Tensor], Tensor],
    slope: float,
) -> tuple[Tensor, ...]:
    """The law with m + k d in place of m: with k = 1 its rain has the mean of a field.

        mean expected_rain = mean target over valid pixels,  -6 dB <= d <= 6 dB, one number;
        d <- d + slope log10((mean target + .001) / (mean expected_rain + .001)), three times;  k = mean known

    A law of dB that was fitted to some events has too much or too little rain in others: R is a power of Z, so that its
    mean depends on every dB of spread. d is one number for the field, as numbers that vary over it raise the CRPS.

    Args: law: m, s, g and e (H, W). target: (H, W) mm/h. known: (H, W), how sure it is, 0 to 1. valid: (H, W) bool, the
    pixels whose rain counts, some. rain: as in expected_rain. slope: dB for ten times the rain, 10 b of Z = a R^b.
    """
    (m, *shape), wanted, raised = law, mean(target[valid]) + _LEAST, 0.0
    for _ in range(_ROUNDS):
        given = mean(expected_rain((m + raised, *shape), rain)[valid]) + _LEAST
        raised = min(max(raised + slope * math.log10(wanted / given), -_MOST), _MOST)
    return m + mean(known[valid]) * raised, *shape
