# SPDX-License-Identifier: Apache-2.0
"""Times of several callables in turn, so that what else happens to a machine happens to all of them.

Rows measured one after the other, half a second each, differ by a third on a shared machine, whose neighbours come and
go in seconds. Turns take milliseconds; their first call is not counted: it finds the caches full of others' data.
"""

import statistics
import time
from collections.abc import Callable

SECONDS = 0.5  # for each callable
TURN_SECONDS, LEAST_CALLS, MOST_CALLS, LEAST_TURNS = 0.01, 3, 30, 3


def medians(runs: dict) -> dict[object, float]:
    """Median seconds of a call of each of {name: callable}."""
    return {name: statistics.median(sum(turns, [])) for name, turns in _turns(runs).items()}


def quiet(runs: dict) -> dict[object, float]:
    """As medians(), of the fastest call of each turn.

    A call of two threads that shares a core waits a time slice at every barrier: single calls say little then.
    """
    return {name: statistics.median(map(min, turns)) for name, turns in _turns(runs).items()}


def _turns(runs: dict) -> dict[object, list[list[float]]]:
    """Seconds of the calls of every turn, the first call of all left out."""
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    turns, end = 0, time.perf_counter() + SECONDS * len(runs)
    while turns < LEAST_TURNS or time.perf_counter() < end:
        for name, run in runs.items():
            times[name].append(turn(run))
        turns += 1
    return times


def turn(run: Callable) -> list[float]:
    """Seconds of a turn's calls but for the first."""
    run()
    taken = []
    while len(taken) < LEAST_CALLS or (sum(taken) < TURN_SECONDS and len(taken) < MOST_CALLS):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken
