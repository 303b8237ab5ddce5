# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing of several callables, so that disturbances of a shared machine affect all of them alike.

Callables take turns of some milliseconds. The first call of a turn is not timed, because it finds the caches filled
with the data of other callables. A turn begins after a pause, because the threads of OpenMP, onnxruntime and OpenVINO
wait actively after a call and would occupy a core during the next turn.
"""

import statistics
import time
from collections.abc import Callable

SECONDS = 0.5  # time spent on each callable
ACTIVE_WAIT_SECONDS = 0.01  # threads of libgomp wait actively for 8 ms on a processor of 2.6 GHz
TURN_SECONDS, MIN_CALLS, MAX_CALLS, MIN_TURNS = 0.01, 3, 30, 3


def measure_medians(runs: dict) -> dict[object, float]:
    """Return the median seconds of one call of each of {name: callable}."""
    return {name: statistics.median(sum(turns, [])) for name, turns in _time_turns(runs).items()}


def measure_fastest_calls(runs: dict) -> dict[object, float]:
    """Return the time in seconds of the fastest call of a turn, the median over turns, for each of {name: callable}.

    Two threads that share a core with other work wait for a time slice at each barrier. Single calls then vary
    too much; the fastest call of a turn does not.
    """
    return {name: statistics.median(map(min, turns)) for name, turns in _time_turns(runs).items()}


def _time_turns(runs: dict) -> dict[object, list[list[float]]]:
    """Return the seconds of the calls of each turn, after one call of each callable that is not timed."""
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    turns, end = 0, time.perf_counter() + SECONDS * len(runs)
    while turns < MIN_TURNS or time.perf_counter() < end:
        for name, run in runs.items():
            times[name].append(time_turn(run))
        turns += 1
    return times


def time_turn(run: Callable) -> list[float]:
    """Return the seconds of the calls of one turn except the first."""
    time.sleep(ACTIVE_WAIT_SECONDS)
    run()
    times = []
    while len(times) < MIN_CALLS or (sum(times) < TURN_SECONDS and len(times) < MAX_CALLS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times
