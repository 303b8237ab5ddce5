# SPDX-License-Identifier: Apache-2.0
"""Selection of the input files of a nowcast by their times."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Set

import numpy as np

from fastds.data.grid.times import JITTER, estimate_time_step, find_times
from fastds.watch.state import Input

_FEW_TIMES = 4  # of which no time step is estimated if one is known
_TIMES_FOR_CADENCE = 64  # times before and after the initialization time of which the time step is estimated


@dataclasses.dataclass(frozen=True)
class Window:
    """Input files of a nowcast.

    Attributes:
        files: Names of the files, in alphabetical order.
        gap: Description of the missing fields; "" if there is none.
        cadence: Time step of the inputs in seconds; None: unknown.
    """

    files: list[str]
    gap: str = ""
    cadence: float | None = None


def select_window(
    newest: str,
    inputs: Mapping[str, Input],
    find_offsets: Callable[[float], tuple[np.ndarray, int]],
    count: int = 0,
    *,
    unusable: Set[str] = frozenset(),
    cadence: float | None = None,
) -> Window:
    """Select the files with the fields that a nowcast from the last time of a file reads.

    Files with later times are not used. Of several files of one time, that of the nowcast comes first, then the one
    that arrived last.

    Args:
        newest: Name of the file whose last time is the initialization time.
        inputs: All files by name.
        find_offsets: Function of the time step in seconds that returns the seconds before the initialization time at
            which fields are read, ascending from 0, and the number of the first offsets at which they are necessary.
            Of the further fields, those up to the first missing one are read.
        count: Least number of times in the files; 0: those that are read.
        unusable: Names of files of which only the times are used.
        cadence: Time step in seconds if it is known from earlier files.

    Raises:
        ValueError: `find_offsets` raises it.
    """
    start = inputs[newest].valid_time
    earlier = {name: one for name, one in inputs.items() if one.valid_time <= start and name not in unusable}
    times = np.unique([time for one in earlier.values() for time in one.times])[-max(_TIMES_FOR_CADENCE, count) :]
    # All times, also those of files that are not used: if a field is missing between two times, these alone would give
    # twice the time step.
    every = np.unique([time for one in inputs.values() for time in one.times])
    place = int(np.searchsorted(every, start))
    near = every[max(0, place - _TIMES_FOR_CADENCE) : place + _TIMES_FOR_CADENCE]
    if len(near) < 2:
        return Window([newest], "a nowcast needs fields of two or more times; there is one", cadence)
    if cadence is None or len(near) >= _FEW_TIMES:
        cadence = estimate_time_step(near - near[0])
    seconds = times - times[0]
    offsets, necessary = find_offsets(cadence)
    requested = seconds[-1] - offsets
    is_missing = find_times(seconds, requested, JITTER * cadence) < 0
    missing = requested[:necessary][is_missing[:necessary]]
    if len(missing):
        texts = ", ".join(_format_seconds(times[0] + one) for one in sorted(missing))
        return Window([newest], f"no field of {texts}", cadence)
    if is_missing.any():
        requested = requested[: np.argmax(is_missing)]
    first = min(requested[-1] - JITTER * cadence, seconds[-count:][0] if count else np.inf)
    return Window(sorted(_cover(newest, earlier, times[seconds >= first - 1e-3])), "", cadence)


def _cover(newest: str, inputs: Mapping[str, Input], times: np.ndarray) -> set[str]:
    """Return names of files that have all of some times."""
    uncovered = set(times.tolist()) - set(inputs[newest].times)
    chosen = {newest}
    for name, one in sorted(inputs.items(), key=lambda item: (item[1].valid_time, item[1].arrival), reverse=True):
        if name != newest and uncovered & set(one.times):
            uncovered -= set(one.times)
            chosen.add(name)
    return chosen


def _format_seconds(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(round(seconds), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
