# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds study db-rnn`."""

import dataclasses

from fastds.studies.common.config import PaperConfig, RadarFiles
from fastds.studies.db_rnn.methods import CELLS, METHODS
from fastds.studies.db_rnn.published import PUBLISHED
from fastds.training.command import read_command_line


@dataclasses.dataclass
class DataConfig(RadarFiles):
    """The radar files.

    Args:
        scale: coarsening of their grid, for trainings and test.
        interval: fields of a file from one field of a sample to the next; 2 for HKO-7 and 5 for DWD-12 in the paper.
        z_r: a and b of Z = a R^b, for the rain rates of the scores.
    """

    window: int = 256
    scale: int = 2
    interval: int = 1
    z_r: list[float] = dataclasses.field(default_factory=lambda: [200.0, 1.6])


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Every method of the paper's tables, trained for the same samples in as many steps, and scored on the same times.

    Args:
        data: the files.
        ablation: cells of the DB networks with other losses and discriminators; PrecipLSTM in the paper.
        published: the paper's data whose scores are printed beside: hko-7 or dwd-12.
        long_leads: forecasts of so many times five fields are scored, too; 7 in the paper (figure 8), 0: none.
        restart: a long forecast starts anew from its last five fields after every five; else its states are kept.
    """

    data: DataConfig
    ablation: str = "ConvLSTM"
    published: str = "hko-7"
    long_leads: int = 0
    restart: bool = False
    output: str = dataclasses.field(default="study-db-rnn", kw_only=True)

    def __post_init__(self):
        self.check(METHODS)
        if self.data.interval < 1:
            raise ValueError(f"data.interval must be at least 1, got {self.data.interval}")
        if self.published not in PUBLISHED:
            raise ValueError(f"published must be one of {', '.join(PUBLISHED)}, got {self.published!r}")
        if self.long_leads < 0:
            raise ValueError(f"long_leads must be at least 0, got {self.long_leads}")
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
