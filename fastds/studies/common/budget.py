# SPDX-License-Identifier: Apache-2.0
"""Time budget of a study, from which the number of training steps is computed."""

import time
from collections.abc import Callable

from fastds.data.grid.variables import duration_seconds

PAPER = "paper"
MIN_STEPS = 20
# Fraction of the budget that is reserved for unmeasured work.
_RESERVE = 0.12


def parse_budget(budget: str) -> float | None:
    """Return the seconds of a budget such as "45min", or None for "paper", which has no limit. Raises ValueError for
    other texts."""
    if budget == PAPER:
        return None
    try:
        return duration_seconds(budget, "budget")
    except ValueError:
        raise ValueError(f"budget must be a duration such as 45min or the word {PAPER}, got {budget!r}") from None


def time_call(call: Callable[[], object], least: float = 1.0, most: int = 10) -> float:
    """Measure the mean seconds of a call after the first one.

    Args:
        call: the function.
        least: calls are repeated for this many seconds,
        most: but at most this many times.
    """
    call()
    began, count = time.perf_counter(), 0
    while count < most and (count < 2 or time.perf_counter() - began < least):
        call()
        count += 1
    return (time.perf_counter() - began) / count


def has_time_for(seconds: float, spent: float) -> bool:
    """Return True if `spent` seconds fit into a budget, apart from a reserve."""
    return spent <= (1 - _RESERVE) * seconds


def compute_steps(seconds: float, step_seconds: float, fixed: float) -> int:
    """Compute the number of steps that all trainings take.

    Args:
        seconds: budget of the whole study.
        step_seconds: sum over all trainings of the seconds of a step.
        fixed: seconds of scores and figures.
    Raises:
        ValueError: if fewer than MIN_STEPS steps fit.
    """
    steps = int(((1 - _RESERVE) * seconds - fixed) / step_seconds)
    if steps < MIN_STEPS:
        needed = (MIN_STEPS * step_seconds + fixed) / (1 - _RESERVE) / 60
        raise ValueError(f"budget must be at least {needed:.0f}min on this machine for these files and methods")
    return steps
