# SPDX-License-Identifier: Apache-2.0
"""Training of nowcasting networks: `fastds train --config nowcast-small --data.path=FOLDER`."""

from fastds.training.nowcast.config import NowcastConfig, NowcastDataConfig, NowcastLossConfig, parse_arguments
from fastds.training.nowcast.data import NowcastCrops, NowcastDataModule
from fastds.training.nowcast.module import NowcastModule
from fastds.training.nowcast.run import train

__all__ = [
    "NowcastConfig",
    "NowcastCrops",
    "NowcastDataConfig",
    "NowcastDataModule",
    "NowcastLossConfig",
    "NowcastModule",
    "parse_arguments",
    "train",
]
