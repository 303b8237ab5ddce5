# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds study inr`."""

import dataclasses

from fastds._options import OptionError, spell_name
from fastds.studies.command import Files
from fastds.studies.common.config import PaperConfig
from fastds.studies.inr.methods import NETWORKS
from fastds.training.command import read_command_line


@dataclasses.dataclass
class DataConfig(Files):
    """Fields of the study. Ranges of columns from west to east are used for training, validation and test.

    Args:
        path: NetCDF or GRIB file with variables over (time, [level,] latitude, longitude).
        variables: variables, in the order of the channels.
        level: value of the vertical coordinate, if there are several.
        vectors: channels of (u, v), whose sign changes when fields are flipped; -1: absent; empty: no vectors.
        crop: side of the test crops in fine pixels.
        per_cell: number of test crops of each time and latitude band.
        together: number of successive times that the bootstrap draws as one block.
    """

    variables: list[str] = dataclasses.field(default_factory=lambda: ["r", "t", "u", "z"])
    level: float | None = None
    vectors: list[int] = dataclasses.field(default_factory=list)
    crop: int = 64
    per_cell: int = 2
    together: int = 1


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Options of the INR study.

    All methods of the paper are trained on the same samples for the same number of steps and scored on the same crops.

    Args:
        data: the fields.
    """

    data: DataConfig
    output: str = dataclasses.field(default="study-inr", kw_only=True)

    def __post_init__(self):
        self.check(NETWORKS)
        if self.data.crop < 32 or self.data.per_cell < 1 or self.data.together < 1:
            raise OptionError(
                "data.crop",
                f"must be at least 32, {spell_name('data.per_cell')} and {spell_name('data.together')} positive, got "
                f"{self.data.crop}, {self.data.per_cell} and {self.data.together}",
            )


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study inr` into a StudyConfig."""
    about = "Arbitrary-scale downscaling with DPFA and what it is compared with, on fields of your own."
    return read_command_line(StudyConfig, arguments, "fastds study inr", about, {})
