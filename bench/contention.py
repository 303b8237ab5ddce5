# SPDX-License-Identifier: Apache-2.0
"""Time ops and networks while other processes keep the cores busy: `python -m bench.contention [--csv FILE]`.

Each call is timed with one thread, with all threads in all loops, and as fastds runs it, which uses one thread while
several threads are slower (csrc/core/team.h). Rows named torch are the same computation by PyTorch's operators. The
modes take turns of two seconds, so that other work affects all of them alike. Busy processes are Python loops.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F

import fastds
from bench.torch_cells import compute_lstm_cell
from fastds import nn, ops
from fastds.ops.core import native

TURNS, TURN_SECONDS = 3, 2
MODES = {"one thread": ("one", False), "all threads": ("all", True), "fastds": ("auto", True)}
COLUMNS = ("busy", "call", "mode", "median_ms", "mean_ms", "p90_ms")


def list_calls() -> dict[str, Callable[[], object]]:
    """Return the calls by name."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape).to(memory_format=torch.channels_last)

    def deform(channels: int, side: int) -> Callable[[], object]:
        x, weight = draw(1, channels, side, side), torch.rand(channels, channels, 3, 3)
        offset, mask = torch.randn(1, 18, side, side), torch.rand(1, 9, side, side)
        return lambda: ops.deform_conv2d(x, offset, weight, mask=mask, padding=1)

    small, large = draw(1, 16, 32, 32), draw(1, 64, 100, 100)
    few, many = draw(16, 16, 3, 3), draw(64, 64, 3, 3)
    cell, state = nn.ConvLSTMCell(32, 32), (draw(1, 32, 64, 64), draw(1, 32, 64, 64))
    x = draw(1, 32, 64, 64)
    downscaler, nowcaster = fastds.load("fczsm-small").eval(), fastds.load("nowcast-small").network.eval()
    pair, frames = torch.rand(1, 2, 1, 64, 64), torch.rand(1, 4, 1, 64, 64)
    return {
        "deform_conv2d, 32 channels, 32 x 32": deform(32, 32),
        "deform_conv2d, 64 channels, 100 x 100": deform(64, 100),
        "conv3x3, 16 channels, 32 x 32": lambda: ops.conv3x3(small, few),
        "conv3x3, 64 channels, 100 x 100": lambda: ops.conv3x3(large, many),
        "ConvLSTMCell, 32 channels, 64 x 64": lambda: cell(x, state),
        "fczsm-small, 64 x 64": lambda: downscaler(pair),
        "network of nowcast-small, 64 x 64": lambda: nowcaster(frames, 6),
        "torch: conv3x3, 64 channels, 100 x 100": lambda: F.conv2d(large, many, padding=1),
        "torch: ConvLSTMCell, 32 channels, 64 x 64": lambda: compute_lstm_cell(
            x, *state, cell.gates.weight, cell.gates.bias
        ),
    }


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


def time_call(call: Callable[[], object], threads: int) -> dict[str, list[float]]:
    """Return the durations of a call in ms by mode."""
    durations: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(TURNS):
        for mode, (team, parallel) in MODES.items():
            torch.set_num_threads(threads if parallel else 1)
            native.get_module().set_team_mode(team)
            call()
            end = time.perf_counter() + TURN_SECONDS
            while time.perf_counter() < end:
                start = time.perf_counter()
                call()
                durations[mode].append(1e3 * (time.perf_counter() - start))
    return durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--only", default="", help="part of the names of the calls")
    parser.add_argument("--csv", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    threads, rows = torch.get_num_threads(), []
    print(f"{'median, mean, 90 % (ms)':>46}" + "".join(f"{mode:>27}" for mode in MODES), flush=True)
    for busy in options.busy:
        with keep_busy(busy), torch.no_grad():
            for name, call in list_calls().items():
                if options.only not in name:
                    continue
                line = f"{busy} {name:44}"
                for mode, times in time_call(call, threads).items():
                    values = statistics.median(times), statistics.mean(times), sorted(times)[int(0.9 * len(times))]
                    line += "".join(f"{value:9.3f}" for value in values)
                    rows.append(dict(zip(COLUMNS, (busy, name, mode, *values), strict=True)))
                print(line, flush=True)
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
