# SPDX-License-Identifier: Apache-2.0
"""Options that the studies of papers share, and the time budget from which training steps are computed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from fastds._options import OptionError, spell_name
from fastds.data.grid.variables import parse_duration
from fastds.studies.command import Files

PAPER = "paper"
MIN_STEPS = 20
# Fraction of the budget that is reserved for unmeasured work.
_RESERVE = 0.12


def parse_budget(budget: str) -> float | None:
    """Return the seconds of a budget such as "45min", or None for "paper", which has no limit.

    Raises:
        ValueError: if the text is neither a duration nor "paper".
    """
    if budget == PAPER:
        return None
    try:
        return parse_duration(budget, "budget")
    except ValueError:
        raise OptionError("budget", f"must be a duration such as 45min or the word {PAPER}, got {budget!r}") from None


def time_call(call: Callable[[], object], least: float = 1.0, most: int = 10) -> float:
    """Measure the mean seconds of a call after the first one.

    Args:
        call: the function.
        least: minimum seconds for which calls are repeated.
        most: maximum number of calls.
    """
    call()
    began, count = time.perf_counter(), 0
    while count < most and (count < 2 or time.perf_counter() - began < least):
        call()
        count += 1
    return (time.perf_counter() - began) / count


def has_time_for(seconds: float, spent: float) -> bool:
    """Return True if `spent` seconds fit into a budget of `seconds`, a fraction of which is reserved."""
    return spent <= (1 - _RESERVE) * seconds


def compute_steps(seconds: float, step_seconds: float, fixed: float) -> int:
    """Compute how many steps each training can take within the budget, the same number for all trainings.

    The fraction _RESERVE of the budget is not used.

    Args:
        seconds: budget of the whole study.
        step_seconds: sum over all trainings of the seconds of a step.
        fixed: seconds of everything else, such as reading files, validations, scores and figures.

    Raises:
        ValueError: if fewer than MIN_STEPS steps fit.
    """
    steps = int(((1 - _RESERVE) * seconds - fixed) / step_seconds)
    if steps < MIN_STEPS:
        needed = (MIN_STEPS * step_seconds + fixed) / (1 - _RESERVE) / 60
        raise OptionError("budget", f"must be at least {needed:.0f}min on this machine for these files and methods")
    return steps


@dataclasses.dataclass(kw_only=True)
class PaperConfig:
    """Options of a study.

    Args:
        budget: time of the whole study, such as 45min, in which small networks are trained, all for the same number of
            steps; or the word paper for the networks, steps and learning rates of the paper.
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

    if TYPE_CHECKING:  # subclasses define further options

        def __getattr__(self, name: str) -> Any: ...

    def check(self, methods: Collection[str]) -> None:
        """Check the options that all studies share.

        Args:
            methods: names that `run` accepts.

        Raises:
            ValueError: if an option is invalid.
        """
        parse_budget(self.budget)
        unknown = [name for name in self.run if name not in methods]
        if unknown:
            raise OptionError("run", f"must name some of {', '.join(methods)}, got {', '.join(unknown)}")
        if not self.seeds:
            raise OptionError("seeds", "must be one number or more, got none")
        if self.max_steps is not None and self.max_steps < 1:
            raise OptionError("max_steps", f"must be positive, got {self.max_steps}")


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
        """Check the options.

        Args:
            multiple: factor by which `window` must be divisible.

        Raises:
            ValueError: if an option is invalid.
        """
        if self.test_samples < 1 or self.window < 32 or self.window % multiple:
            raise OptionError(
                "data.test_samples",
                f"must be positive and {spell_name('data.window')} a multiple of {multiple} from 32 on, got "
                f"{self.test_samples} and {self.window}",
            )
