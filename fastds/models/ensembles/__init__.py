# SPDX-License-Identifier: Apache-2.0
"""Ensembles of nowcasts: the law of a forecast's errors, and noise of the observed texture that moves with the air."""

from fastds.models.ensembles.balance import balanced, expected_rain, rain_rate
from fastds.models.ensembles.law import ErrorLaw, echo, quadrature
from fastds.models.ensembles.noise import MovingNoise
from fastds.models.ensembles.surroundings import Surroundings

__all__ = ["ErrorLaw", "MovingNoise", "Surroundings", "balanced", "echo", "expected_rain", "quadrature", "rain_rate"]
