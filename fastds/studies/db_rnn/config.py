# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds study db-rnn`."""

import dataclasses

from fastds.studies.common.config import PaperConfig, RadarFiles
from fastds.studies.db_rnn.methods import CELLS, METHODS
from fastds.tasks.common.command import read_command_line


@dataclasses.dataclass
class DataConfig(RadarFiles):
    """The radar files.

    Args:
        scale: coarsening of their grid, for trainings and test.
        z_r: a and b of Z = a R^b, for the rain rates of the scores.
    """

    window: int = 256
    scale: int = 2
    z_r: list[float] = dataclasses.field(default_factory=lambda: [200.0, 1.6])


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Every method of the paper's tables, trained for the same samples in as many steps, and scored on the same times.

    Args:
        data: the files.
        ablation: cells of the DB networks with other losses and discriminators; PrecipLSTM in the paper.
    """

    data: DataConfig
    ablation: str = "ConvLSTM"
    output: str = dataclasses.field(default="study-db-rnn", kw_only=True)

    def __post_init__(self):
        self.check(METHODS)
        if self.data.scale < 1 or len(self.data.z_r) != 2 or min(self.data.z_r) <= 0:
            raise ValueError(
                f"data.scale must be positive and data.z_r two positive numbers, got {self.data.scale} and "
                f"{self.data.z_r}"
            )
        self.data.check(multiple=8 * self.data.scale)
        if self.ablation not in CELLS:
            raise ValueError(f"ablation must be one of {', '.join(CELLS)}, got {self.ablation!r}")


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Read `arguments`, the command line of `fastds study db-rnn`, into a StudyConfig."""
    about = "The tables and figures of the DB-RNN paper on files of your own."
    return read_command_line(StudyConfig, arguments, "fastds study db-rnn", about, {})
