# SPDX-License-Identifier: Apache-2.0
"""Humidity WGAN-GP (Li, Wang, Wang and Han 2024): spatial downscaling of days of humidity fields, as an ensemble."""

from fastds.models.wgan_gp.critic import HumidityCritic
from fastds.models.wgan_gp.generator import HumidityGenerator
from fastds.models.wgan_gp.penalty import CriticLoss, gradient_penalty

__all__ = ["CriticLoss", "HumidityCritic", "HumidityGenerator", "gradient_penalty"]
