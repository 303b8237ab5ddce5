# SPDX-License-Identifier: Apache-2.0
"""How long a study takes: a time that its trainings share, told before the first one as a number of steps."""

import time
from collections.abc import Callable

from fastds.data.grid.variables import duration_seconds

PAPER = "paper"
MIN_STEPS = 20
# Of a budget is left for what was not measured.
_RESERVE = 0.12


def parse_budget(budget: str) -> float | None:
    """Seconds of a budget such as "45min", None for "paper": as much as the paper. Raises: ValueError for others."""
    if budget == PAPER:
        return None
    try:
        return duration_seconds(budget, "budget")
    except ValueError:
        raise ValueError(f"budget must be a duration such as 45min or the word {PAPER}, got {budget!r}") from None


def time_call(call: Callable[[], object], least: float = 1.0, most: int = 10) -> float:
    """The mean time of a call after the first, over so many seconds and calls at most."""
    call()
    began, count = time.perf_counter(), 0
    while count < most and (count < 2 or time.perf_counter() - began < least):
        call()
        count += 1
    return (time.perf_counter() - began) / count


def has_time_for(seconds: float, spent: float) -> bool:
    """Whether a study of so many seconds has time for what takes `spent`."""
    return spent <= (1 - _RESERVE) * seconds


def compute_steps(seconds: float, step_seconds: float, fixed: float) -> int:
    """The steps that each training may take, all the same.

    seconds: of the whole study. step_seconds: seconds that a step of every training takes, together. fixed: seconds of the
    rest, scores and figures.
    Raises: ValueError where that leaves too few.
    """
    steps = int(((1 - _RESERVE) * seconds - fixed) / step_seconds)
    if steps < MIN_STEPS:
        needed = (MIN_STEPS * step_seconds + fixed) / (1 - _RESERVE) / 60
        raise ValueError(f"budget must be at least {needed:.0f}min on this machine for these files and methods")
    return steps
