# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds study fczsm`."""

import dataclasses

from fastds.studies.common.config import PaperConfig, RadarFiles
from fastds.studies.fczsm.methods import METHODS
from fastds.tasks.common.command import read_command_line


def _dynamics() -> dict[str, list[float]]:
    return {"probability": [0.0, 100.0], "measurement_height": [0.0, 20000.0]}


@dataclasses.dataclass
class DataConfig(RadarFiles):
    """The radar files.

    Args:
        statics: FILE:VARIABLE for each static map of ZSM-S and ZSM-DS, such as height and land-sea mask; none: these
            methods are left out.
        dynamics: variables of the files that ZSM-D and ZSM-DS read beside the reflectivity, and the ends of their
            range; where a file has not all of them, these methods are left out.
    """

    statics: list[str] = dataclasses.field(default_factory=list)
    dynamics: dict[str, list[float]] = dataclasses.field(default_factory=_dynamics)


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Every method of the paper's tables, trained for the same samples in as many steps, and scored on the same times.

    Args:
        data: the files.
    """

    data: DataConfig
    output: str = dataclasses.field(default="study-fczsm", kw_only=True)

    def __post_init__(self):
        self.check(METHODS)
        self.data.check(multiple=4)


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Read `arguments`, the command line of `fastds study fczsm`, into a StudyConfig."""
    about = "The tables and figures of the FC-ZSM paper on files of your own."
    return read_command_line(StudyConfig, arguments, "fastds study fczsm", about, {})
