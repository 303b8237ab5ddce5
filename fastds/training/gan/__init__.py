# SPDX-License-Identifier: Apache-2.0
"""Adversarial training: `fastds train --config wgan-gp-small --data.path=FOLDER`."""

from fastds.training.gan.config import GANConfig, GANDataConfig, LossConfig, OptimiserConfig, parse_arguments
from fastds.training.gan.data import FieldSequences, SequenceDataModule
from fastds.training.gan.module import GANModule
from fastds.training.gan.run import train

FieldDataModule = SequenceDataModule  # its earlier name, which fastds.training.fields has, too

__all__ = [
    "FieldDataModule",
    "FieldSequences",
    "GANConfig",
    "GANDataConfig",
    "GANModule",
    "LossConfig",
    "OptimiserConfig",
    "SequenceDataModule",
    "parse_arguments",
    "train",
]
