# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds study fczsm`."""

import dataclasses

from fastds._options import OptionError, spell_name
from fastds.data.radar.preparation import ECHO_FRACTION
from fastds.studies.common.config import PAPER, PaperConfig, RadarFiles
from fastds.studies.fczsm.methods import METHODS
from fastds.training.command import read_command_line


def _dynamics() -> dict[str, list[float]]:
    return {"probability": [0.0, 100.0], "measurement_height": [0.0, 20000.0]}


@dataclasses.dataclass
class DataConfig(RadarFiles):
    """Radar files of the study.

    Args:
        statics: FILE:VARIABLE for each static field of ZSM-S and ZSM-DS, such as height and land-sea mask; without them
            these methods are left out.
        dynamics: variables of the files that ZSM-D and ZSM-DS read in addition to the reflectivity, with the ends of
            their range; if a file lacks one of them, these methods are left out.
        split: "time": every file is divided along time into training, validation and test; "random": fixed samples are
            drawn from all times of all files, as in the paper. Default: random with the budget paper, otherwise time.
        fixed_samples: numbers of training, validation and test samples of split "random".
        split_seed: random seed of split "random".
        minimum_echo: minimum fraction of echo in a test sample. Default: the minimum of the trainings with split
            "random", and 0 with split "time".
    """

    statics: list[str] = dataclasses.field(default_factory=list)
    dynamics: dict[str, list[float]] = dataclasses.field(default_factory=_dynamics)
    split: str | None = None
    fixed_samples: list[int] = dataclasses.field(default_factory=lambda: [6000, 100, 1000])
    split_seed: int = 0
    minimum_echo: float | None = None


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Options of the FC-ZSM study.

    All methods of the tables in the paper are trained on the same samples for the same number of steps and scored at
    the same times.

    Args:
        data: the files.
    """

    data: DataConfig
    output: str = dataclasses.field(default="study-fczsm", kw_only=True)

    def __post_init__(self):
        self.check(METHODS)
        self.data.check(multiple=4)
        if self.data.split is None:
            self.data.split = "random" if self.budget == PAPER else "time"
        self._check_split()

    def _check_split(self) -> None:
        data = self.data
        if data.split not in ("time", "random"):
            raise OptionError("data.split", f"must be time or random, got {data.split!r}")
        if len(data.fixed_samples) != 3 or min(data.fixed_samples) < 1:
            raise OptionError(
                "data.fixed_samples",
                "must be the numbers of training, validation and test samples, each at least 1, got "
                f"{data.fixed_samples}",
            )
        if data.split == "random" and data.files:
            raise OptionError(
                "data.files",
                f"is for {spell_name('data.split')}=time: random samples are drawn from all files of "
                f"{spell_name('data.path')}",
            )
        if data.minimum_echo is None:
            data.minimum_echo = ECHO_FRACTION if data.split == "random" else 0.0
        if not 0 <= data.minimum_echo <= 1:
            raise OptionError("data.minimum_echo", f"must lie in [0, 1], got {data.minimum_echo}")


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study fczsm` into a StudyConfig."""
    about = "The tables and figures of the FC-ZSM paper on files of your own."
    return read_command_line(StudyConfig, arguments, "fastds study fczsm", about, {})
