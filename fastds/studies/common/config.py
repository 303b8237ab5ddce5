# SPDX-License-Identifier: Apache-2.0
"""Options that the studies of papers share."""

import dataclasses
from collections.abc import Collection

from fastds.studies.command import Files
from fastds.studies.common.budget import parse_budget


@dataclasses.dataclass(kw_only=True)
class PaperConfig:
    """Options of a study.

    Args:
        budget: total time, such as 45min, in which small networks are trained, all for the same number of steps; or the
            word paper: networks, steps and learning rates of the paper.
        run: networks to include; default all that the data allow. Methods without a network are always included.
        seeds: random seeds of weights and samples; scores are means over the seeds.
        max_steps: steps of each training, instead of the number that fits the budget.
        output: folder of the study; an interrupted study is resumed.
        threads: number of threads of torch; None leaves the number unchanged.
        device: "auto" (a GPU if there is one), "cpu" or "cuda".
        progress: print the progress on standard error.
        report: HTML page to write at the end; None writes none.
        plan: print files, networks, configurations, steps and estimated hours, and train nothing.
    """

    budget: str = "45min"
    run: list[str] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    max_steps: int | None = None
    output: str = "study"
    threads: int | None = None
    device: str = "auto"
    progress: bool = True
    report: str | None = None
    plan: bool = False

    def check(self, methods: Collection[str]) -> None:
        """Check the options that all studies share; methods: names that `run` accepts. Raises ValueError."""
        parse_budget(self.budget)
        unknown = [name for name in self.run if name not in methods]
        if unknown:
            raise ValueError(f"run must name some of {', '.join(methods)}, got {', '.join(unknown)}")
        if not self.seeds:
            raise ValueError("seeds must be one number or more, got none")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps must be positive, got {self.max_steps}")


@dataclasses.dataclass
class RadarFiles(Files):
    """Radar files; each is divided along time into parts for training, validation and test.

    Args:
        path: file or folder.
        files: names of files in the folder; default all usable *.nc and *.npz files.
        var: name of the reflectivity variable; None detects it.
        test_samples: largest number of test samples of each file, evenly spaced.
        window: side in pixels of the test window, which is where the file has the largest echo area.
        block: length of the blocks of time that the bootstrap draws.
    """

    files: list[str] = dataclasses.field(default_factory=list)
    var: str | None = None
    test_samples: int = 24
    window: int = 400
    block: str = "30min"

    def check(self, multiple: int) -> None:
        """Check the options; multiple: factor by which `window` must be divisible. Raises ValueError."""
        if self.test_samples < 1 or self.window < 32 or self.window % multiple:
            raise ValueError(
                f"data.test_samples must be positive and data.window a multiple of {multiple} from 32 on, got "
                f"{self.test_samples} and {self.window}"
            )
