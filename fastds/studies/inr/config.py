# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds study inr`."""

import dataclasses

from fastds.studies.command import Files
from fastds.studies.common.config import PaperConfig
from fastds.studies.inr.methods import NETWORKS
from fastds.training.command import read_command_line


@dataclasses.dataclass
class DataConfig(Files):
    """The fields, whose columns in the west train, those after them validate and those in the east test.

    Args:
        path: NetCDF or GRIB file with variables over (time, [level,] latitude, longitude).
        variables: stacked as channels in this order.
        level: value of the vertical coordinate, where there are several.
        vectors: channels of (u, v), which flips turn round; -1 = absent, none: empty.
        crop: side of the crops that are tested on, fine pixels.
        per_cell: test crops of each time and latitude band.
        together: successive times that the bootstrap draws as one.
    """

    variables: list[str] = dataclasses.field(default_factory=lambda: ["r", "t", "u", "z"])
    level: float | None = None
    vectors: list[int] = dataclasses.field(default_factory=list)
    crop: int = 64
    per_cell: int = 2
    together: int = 1


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Every method of the paper, trained for the same samples in as many steps, and scored on the same crops.

    Args:
        data: the fields.
    """

    data: DataConfig
    output: str = dataclasses.field(default="study-inr", kw_only=True)

    def __post_init__(self):
        self.check(NETWORKS)
        if self.data.crop < 32 or self.data.per_cell < 1 or self.data.together < 1:
            raise ValueError(
                "data.crop must be at least 32, data.per_cell and data.together positive, got "
                f"{self.data.crop}, {self.data.per_cell} and {self.data.together}"
            )


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Read `arguments`, the command line of `fastds study inr`, into a StudyConfig."""
    about = "Arbitrary-scale downscaling with DPFA and what it is compared with, on fields of your own."
    return read_command_line(StudyConfig, arguments, "fastds study inr", about, {})
