# SPDX-License-Identifier: Apache-2.0
"""Options of `fastds study wgan-gp`."""

import dataclasses

from fastds._options import OptionError, spell_name
from fastds.studies.command import Files
from fastds.studies.common.config import PAPER, PaperConfig
from fastds.studies.wgan_gp.methods import NETWORKS
from fastds.training.command import read_command_line


@dataclasses.dataclass
class DataConfig(Files):
    """Files of the training.

    Args:
        tile: side, in grid points, of the tiles of a test region. Tiles are scored separately. The default is 32, or 64
            with budget "paper", where a tile is the whole region of the paper.
    """

    tile: int | None = None


@dataclasses.dataclass
class StudyConfig(PaperConfig):
    """Options of the humidity WGAN-GP study.

    All methods of the tables in the paper are trained on the same samples for the same number of steps and scored on
    the same days.

    Args:
        data: the files.
        training: name or file of a training configuration, with generator, critic, loss, and the regions for training,
            validation and test. Default: wgan-gp with the budget paper, otherwise wgan-gp-small.
        members: number of ensemble members.
    """

    data: DataConfig
    training: str | None = None
    members: int = 8
    output: str = dataclasses.field(default="study-wgan-gp", kw_only=True)

    def __post_init__(self):
        self.check(NETWORKS)
        paper = self.budget == PAPER
        if self.training is None:
            self.training = "wgan-gp" if paper else "wgan-gp-small"
        if self.data.tile is None:
            self.data.tile = 64 if paper else 32
        if self.members < 2 or self.data.tile < 11:
            raise OptionError(
                "members",
                f"must be at least 2 and {spell_name('data.tile')} at least 11, got "
                f"{self.members} and {self.data.tile}",
            )


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of `fastds study wgan-gp` into a StudyConfig."""
    about = "The tables and figures of the humidity WGAN-GP on fields of your own."
    return read_command_line(StudyConfig, arguments, "fastds study wgan-gp", about, {})
