# SPDX-License-Identifier: Apache-2.0
"""Networks for downscaling and nowcasting: build presets by name, load and save weights."""

from fastds.models.card import ModelCard
from fastds.models.checkpoint import available, load, load_card, save
from fastds.models.fczsm import FCZSM
from fastds.models.inr import INRDownscaler
from fastds.models.registry import create
from fastds.models.wgan_gp import HumidityCritic, HumidityGenerator

__all__ = [
    "FCZSM", "HumidityCritic", "HumidityGenerator", "INRDownscaler", "ModelCard", "available", "create", "load",
    "load_card", "save",
]  # fmt: skip
