# SPDX-License-Identifier: Apache-2.0
"""Training with Lightning, configured by jsonargparse: `fastds train --config fczsm-small --data.path=FOLDER`."""

import importlib.util

if importlib.util.find_spec("lightning") is None:
    raise ImportError(
        "training needs Lightning: python -m pip install 'fastds-weather[train]' (from a checkout: '.[train]')"
    )

from fastds.training.command import TASKS, configurations, main
from fastds.training.config import DataConfig, ModelConfig, TrainingConfig, parse_arguments
from fastds.training.data import RadarDataModule
from fastds.training.module import DownscalingModule
from fastds.training.run import train

__all__ = [
    "TASKS",
    "DataConfig",
    "DownscalingModule",
    "ModelConfig",
    "RadarDataModule",
    "TrainingConfig",
    "configurations",
    "main",
    "parse_arguments",
    "train",
]
