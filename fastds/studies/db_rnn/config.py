# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds study db-rnn`."""

import dataclasses

from fastds._options import OptionError, spell_name
from fastds.studies.common.config import PaperConfig, RadarFiles
from fastds.studies.db_rnn.methods import CELLS, METHODS, PUBLISHED
from fastds.training.command import read_command_line


@dataclasses.dataclass
class DataConfig(RadarFiles):
    """Radar files of the study.

    Args:
        scale: coarsening factor of the grid, for trainings and test.
        interval: frames of a file from one frame of a sample to the next; in the paper 2 for HKO-7 and 5 for DWD-12.
        z_r: a and b of Z = a R^b, for the rain rates of the scores.
    """

    window: int = 256
    scale: int = 2
    interval: int = 1
    z_r: list[float] = dataclasses.field(default_factory=lambda: [200.0, 1.6])


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Options of the DB-RNN study.

    All methods of the tables in the paper are trained on the same samples for the same number of steps and scored at
    the same times.

    Args:
        data: the files.
        ablation: cell of the DB networks with other losses and discriminators; PrecipLSTM in the paper.
        published: data set of the paper whose scores are printed for comparison: hko-7 or dwd-12.
        long_leads: length of additional long forecasts in units of five frames; 7 in the paper (figure 8), 0: none.
        restart: long forecasts restart from their last five frames after every five frames; otherwise the states of the
            network are retained.
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
            raise OptionError("data.interval", f"must be at least 1, got {self.data.interval}")
        if self.published not in PUBLISHED:
            raise OptionError("published", f"must be one of {', '.join(PUBLISHED)}, got {self.published!r}")
        if self.long_leads < 0:
            raise OptionError("long_leads", f"must be at least 0, got {self.long_leads}")
        if self.data.scale < 1 or len(self.data.z_r) != 2 or min(self.data.z_r) <= 0:
            raise OptionError(
                "data.scale",
                f"must be positive and {spell_name('data.z_r')} two positive numbers, got {self.data.scale} and "
                f"{self.data.z_r}",
            )
        self.data.check(multiple=8 * self.data.scale)
        if self.ablation not in CELLS:
            raise OptionError("ablation", f"must be one of {', '.join(CELLS)}, got {self.ablation!r}")


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study db-rnn` into a StudyConfig."""
    about = "The tables and figures of the DB-RNN paper on files of your own."
    return read_command_line(StudyConfig, arguments, "fastds study db-rnn", about, {})
