# SPDX-License-Identifier: Apache-2.0
"""The options that the studies of papers share."""

import dataclasses
from collections.abc import Collection

from fastds.studies.command import Files
from fastds.studies.common.budget import parse_budget


@dataclasses.dataclass(kw_only=True)
class PaperConfig:
    """How a study is run.

    Args:
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
        plan: only print what would be trained: files, networks, configurations, steps and estimated hours.
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
        """Raises: ValueError for options that no study takes; methods: of this one."""
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
    """The radar files, each of which is trained, validated and tested on, one after the other in time.

    Args:
        path: a file or a folder of them.
        files: names of files in the folder; none: all *.nc and *.npz that can be used.
        var: name of the reflectivity variable; None finds it.
        test_samples: at most so many of each file, evenly spread.
        window: side of the part of each file that is tested on, the one with most echo; pixels.
        block: time that the bootstrap draws at once.
    """

    files: list[str] = dataclasses.field(default_factory=list)
    var: str | None = None
    test_samples: int = 24
    window: int = 400
    block: str = "30min"

    def check(self, multiple: int) -> None:
        """Raises: ValueError for no test samples or a window that is no such multiple of pixels."""
        if self.test_samples < 1 or self.window < 32 or self.window % multiple:
            raise ValueError(
                f"data.test_samples must be positive and data.window a multiple of {multiple} from 32 on, got "
                f"{self.test_samples} and {self.window}"
            )
