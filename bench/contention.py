# SPDX-License-Identifier: Apache-2.0
"""Time ops and networks while other processes keep the cores busy: `python -m bench.contention [--csv FILE]`.

Each call is timed with one thread, with all threads in all loops, and as fastds runs it, which uses one thread while
several threads are slower (csrc/core/team.h). Rows named torch, onnxruntime and openvino are the same computation by
these libraries, with one thread and with all threads. The modes take turns of two seconds, so that other work affects
all of them alike. Busy processes are Python loops.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.contention_calls import PEERS, Call, find_missing, list_calls
from fastds.ops.core import native

TURNS, TURN_SECONDS = 3, 2.0
MODES = {"one thread": ("one", False), "all threads": ("all", True), "fastds": ("auto", True)}
COLUMNS = ("busy", "call", "mode", "median_ms", "mean_ms", "p90_ms", "mean_over_quiet", "p90_over_quiet")


@contextmanager
def keep_busy(processes: int) -> Iterator[None]:
    """Context manager in which this number of other processes computes without pause."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def time_call(call: Call, threads: int) -> dict[str, list[float]]:
    """Return the durations of a call in ms by mode. The mode "fastds" is for calls of fastds."""
    modes = {mode: value for mode, value in MODES.items() if call.library == "fastds" or mode != "fastds"}
    built = {mode: call.build(threads if parallel else 1) for mode, (_, parallel) in modes.items()}
    durations: dict[str, list[float]] = {mode: [] for mode in modes}
    for _ in range(TURNS):
        for mode, (team, parallel) in modes.items():
            torch.set_num_threads(threads if parallel else 1)
            native.get_module().set_team_mode(team)
            built[mode]()
            end = time.perf_counter() + TURN_SECONDS
            while True:
                start = time.perf_counter()
                built[mode]()
                durations[mode].append(1e3 * (time.perf_counter() - start))
                if time.perf_counter() >= end:
                    break
    return durations


def make_rows(busy: int, call: Call, durations: dict[str, list[float]], quiet: dict[tuple, float]) -> list[dict]:
    """Return the rows of a call, one for each mode.

    Args:
        busy: number of busy processes.
        call: the call.
        durations: result of time_call.
        quiet: medians in ms without busy processes by label and mode, to which those of this call are added.
    """
    rows = []
    for mode, times in durations.items():
        median, mean, p90 = statistics.median(times), statistics.mean(times), sorted(times)[int(0.9 * len(times))]
        if busy == 0:
            quiet[call.label, mode] = median
        reference = quiet.get((call.label, mode), float("nan"))
        values = busy, call.label, mode, median, mean, p90, mean / reference, p90 / reference
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4], help="numbers of busy processes")
    parser.add_argument("--only", default="", help="part of the names of the calls")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="libraries besides fastds")
    parser.add_argument("--csv", type=Path, help="file to write the rows to")
    options = parser.parse_args(arguments)
    peers = tuple(options.peers)
    for peer, names in find_missing(peers).items():
        print(f"The rows of {peer} are left out, because {names} is not installed.")
    threads, rows, quiet = torch.get_num_threads(), [], {}
    print(f"{'median, mean, 90 % (ms)':>60}" + "".join(f"{mode:>27}" for mode in MODES), flush=True)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls = list(list_calls(Path(folder), peers, options.only))
        for busy in sorted(options.busy):
            with keep_busy(busy):
                for call in calls:
                    made = make_rows(busy, call, time_call(call, threads), quiet)
                    rows += made
                    numbers = (f"{row[name]:9.3f}" for row in made for name in ("median_ms", "mean_ms", "p90_ms"))
                    print(f"{busy} {call.label:58}" + "".join(numbers), flush=True)
    torch.set_num_threads(threads)
    native.get_module().set_team_mode("auto")
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
