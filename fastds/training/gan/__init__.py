# SPDX-License-Identifier: Apache-2.0
"""Adversarial training: `fastds train --config wgan-gp-small --data.path=FOLDER`."""

from fastds.training.gan.config import GANConfig, GANDataConfig, LossConfig, OptimiserConfig, parse_arguments
from fastds.training.gan.data import FieldDataModule, FieldSequences
from fastds.training.gan.module import GANModule
from fastds.training.gan.run import train

__all__ = [
    "FieldDataModule",
    "FieldSequences",
    "GANConfig",
    "GANDataConfig",
    "GANModule",
    "LossConfig",
    "OptimiserConfig",
    "parse_arguments",
    "train",
]
