# SPDX-License-Identifier: Apache-2.0
"""The options of `fastds study fczsm`."""

import dataclasses

from fastds.studies.command import Files
from fastds.studies.common.budget import budget_seconds
from fastds.studies.fczsm.methods import METHODS
from fastds.tasks.common.command import read_command_line


def _dynamics() -> dict[str, list[float]]:
    return {"probability": [0.0, 100.0], "measurement_height": [0.0, 20000.0]}


@dataclasses.dataclass
class DataConfig(Files):
    """The radar files, each of which is trained, validated and tested on, one after the other in time.

    Args:
        path: a file or a folder of them.
        files: names of files in the folder; none: all *.nc and *.npz that can be used.
        var: name of the reflectivity variable; None finds it.
        statics: FILE:VARIABLE for each static map of ZSM-S and ZSM-DS, such as height and land-sea mask; none: these
            methods are left out.
        dynamics: variables of the files that ZSM-D and ZSM-DS read beside the reflectivity, and the ends of their
            range; where a file has not all of them, these methods are left out.
        test_samples: at most so many of each file, evenly spread.
        window: side of the part of each file that is tested on, the one with most echo; fine pixels.
        block: time that the bootstrap draws at once.
    """

    files: list[str] = dataclasses.field(default_factory=list)
    var: str | None = None
    statics: list[str] = dataclasses.field(default_factory=list)
    dynamics: dict[str, list[float]] = dataclasses.field(default_factory=_dynamics)
    test_samples: int = 24
    window: int = 400
    block: str = "30min"


@dataclasses.dataclass
class StudyConfig:
    """Every method of the paper's tables, trained for the same samples in as many steps, and scored on the same times.

    Args:
        data: the files.
        budget: a time that everything takes together, such as 45min, in which small networks are trained for equal
            numbers of steps; or the word paper: its networks, steps and learning rate.
        run: which networks, beside the methods without any; none: all that the data allow.
        seeds: of weights and samples; scores are means over them.
        max_steps: of each training, in place of what there is time for.
        output: folder of the study; one that was killed goes on.
        threads: of torch; None leaves them as they are.
        device: "auto", a GPU where there is one, "cpu" or "cuda".
        progress: say how far it is, on standard error.
        report: an HTML page to write at the end; None: none.
    """

    data: DataConfig
    budget: str = "45min"
    run: list[str] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    max_steps: int | None = None
    output: str = "study-fczsm"
    threads: int | None = None
    device: str = "auto"
    progress: bool = True
    report: str | None = None

    def __post_init__(self):
        budget_seconds(self.budget)
        unknown = [name for name in self.run if name not in METHODS]
        if unknown:
            raise ValueError(f"run must name some of {', '.join(METHODS)}, got {', '.join(unknown)}")
        if not self.seeds:
            raise ValueError("seeds must be one number or more, got none")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be positive, got {self.max_steps}")
        if self.data.test_samples < 1 or self.data.window < 32 or self.data.window % 4:
            raise ValueError(
                "data.test_samples must be positive and data.window a multiple of 4 from 32 on, got "
                f"{self.data.test_samples} and {self.data.window}"
            )


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Read `arguments`, the command line of `fastds study fczsm`, into a StudyConfig."""
    about = "The tables and figures of the FC-ZSM paper on files of your own."
    return read_command_line(StudyConfig, arguments, "fastds study fczsm", about, {})
