# SPDX-License-Identifier: Apache-2.0
"""Ensembles: parametric error models of reflectivity fields, their input features, and spatially correlated noise."""

from fastds.models.ensembles.balance import compute_expected_rain, convert_to_rain_rate, match_mean_rain
from fastds.models.ensembles.error_model import ErrorModel, quadrature, sample_reflectivity
from fastds.models.ensembles.forecast_features import ForecastFeatures
from fastds.models.ensembles.noise import LagrangianNoise
from fastds.models.ensembles.strong_echo import EchoShift, match_echo_areas

__all__ = [
    "EchoShift",
    "ErrorModel",
    "LagrangianNoise",
    "ForecastFeatures",
    "match_echo_areas",
    "match_mean_rain",
    "sample_reflectivity",
    "compute_expected_rain",
    "quadrature",
    "convert_to_rain_rate",
]
