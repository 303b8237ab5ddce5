# SPDX-License-Identifier: Apache-2.0
"""Alternate timing of the benchmarks of two checkouts: `python -m bench.compare_checkouts OTHER`.

Two processes, one for this checkout and one for OTHER, build the same row and take turns of some milliseconds, so that
disturbances of the machine affect both. The addresses of memory differ between processes and change times by up to a
third. The ratio of a row is therefore the median over `--processes` pairs of processes, and over three times as many if
it exceeds 1.03.

OTHER is a checkout with the native module built in place. A comparison of this checkout with itself shows the noise.

The program prints, for every module, the median of (time here) / (time there) and the rows above 1.03. The exit status
is 1 if there are such rows.
"""

import argparse
import importlib
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

HERE = pathlib.Path(__file__).resolve()
DTYPES = (torch.float32, torch.bfloat16)
SLOWER = 1.03
MIN_TURNS = 3
LONG_SECONDS = 0.1  # a longer call is a turn by itself: the state of the caches does not matter for it


def _list_pairs(module, peers):
    modes = ("forward", "backward")
    return [(p, c, m, d) for c, m, (p, d, *_) in itertools.product(module.CASES, modes, peers)]


# Function of a benchmark module that returns the arguments of its build() for all rows. In older checkouts, list_rows()
# is named rows() and get_sizes() is named sizes().
ROWS = {
    "conv3x3": lambda m: [(p, c, mode, d) for c, mode, (p, d) in itertools.product(m.CASES, m.MODES, m.PEERS)],
    "deform_conv2d": lambda m: _list_pairs(m, m.ROWS),
    "inr_query": lambda m: [(p, m.CASES[c], d) for c, p, d in itertools.product(m.CASES, m.BUILDERS, DTYPES)],
    "lstm_gates": lambda m: [row.values for row in (m.list_rows if hasattr(m, "list_rows") else m.rows)()],
    "pixel_shuffle": lambda m: _list_pairs(m, m.ROWS),
    "window_attention2d": lambda m: list(itertools.product(m.CASES, ("forward", "forward+backward"), m.PEERS)),
    "fczsm": lambda m: [(p, mode, d) for mode, p, d, memory in m.ROWS if memory == "kept"],
    "db_rnn": lambda m: [
        (name, mode, p, (m.get_sizes if hasattr(m, "get_sizes") else m.sizes)(name, mode)) for name, mode, p in m.ROWS
    ],
    "wgan_gp": lambda m: [(p, mode, d) for mode, p, d in m.ROWS],
    "inr_model": lambda m: [(p, part, torch.float32) for part, p in itertools.product(m.FLOPS, m.PEERS)],
}


def list_own_rows(name: str) -> list[tuple]:
    """Return the arguments of build() for the rows of fastds in the module bench_NAME."""
    module = importlib.import_module(f"bench.bench_{name}")
    return [row for row in ROWS[name](module) if any(str(v).startswith(("fastds", "attention")) for v in row)]


def time_fastest_call(run: Callable) -> float:
    """Return the seconds of the fastest call of one turn."""
    # The module is imported from the folder of this script. The packages bench and fastds, in contrast, are those of
    # the checkout that the process measures.
    from interleaved_timing import time_turn

    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return seconds if seconds > LONG_SECONDS else min(time_turn(run))


def serve() -> None:
    """Answer requests on stdin: each line is the JSON of a module's name and a row's number.

    Each answer is one line: the seconds of the fastest call of a turn, or null if the row cannot run.
    """
    import fastds

    fastds.memory.set_malloc_retention()
    built, run = None, None
    for line in sys.stdin:
        name, number = request = json.loads(line)
        try:
            if built != request:
                run = importlib.import_module(f"bench.bench_{name}").build(*list_own_rows(name)[number])
                built = request
            answer = time_fastest_call(run)
        except Exception as error:  # a row of an old checkout may not run with the libraries of today
            print(f"row {number} of {name}: {error}", file=sys.stderr)
            answer = None
        print(json.dumps(answer), flush=True)


class CheckoutProcess:
    """A process that times rows of one checkout.

    Its memory is in huge pages: the physical addresses of small pages, and with them the times, differ between
    processes.
    """

    def __init__(self, root: pathlib.Path):
        command, env = [sys.executable, str(HERE), "--serve"], os.environ | {"PYTHONPATH": str(root)}
        env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        self.process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def time_row(self, name: str, number: int) -> float | None:
        """Return the seconds of the fastest call of one turn of a row, or None if the row cannot run."""
        self.process.stdin.write(json.dumps([name, number]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench.compare_checkouts: the process of row {number} of {name} ended")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare_in_new_processes(
    roots: Sequence[pathlib.Path], name: str, numbers: list[int], seconds: float
) -> dict[int, tuple[float, float]]:
    """Time rows alternately in a new pair of processes.

    Args:
        roots: the two checkouts.
        name: module bench_NAME.
        numbers: rows of list_own_rows(name).
        seconds: time spent on each row.

    Returns:
        {row: (time in the first checkout / time in the second, milliseconds in the first)}. Times are medians over
        turns of the fastest call of a turn. Rows that one of the checkouts cannot run are missing.
    """
    processes, results = [CheckoutProcess(root) for root in roots], {}
    for number in numbers:
        if None in [process.time_row(name, number) for process in processes]:  # also builds the row and fills caches
            continue
        turns, end = ([], []), time.perf_counter() + seconds
        while len(turns[0]) < MIN_TURNS or time.perf_counter() < end:
            for process, times in zip(processes, turns, strict=True):
                times.append(process.time_row(name, number))
        first, second = map(statistics.median, turns)
        results[number] = first / second, 1e3 * first
    for process in processes:
        process.close()
    return results


def compare_module(
    roots: Sequence[pathlib.Path], name: str, processes: int, seconds: float
) -> dict[int, tuple[float, float]]:
    """Compare all rows of one benchmark module, rows above SLOWER in further pairs of processes.

    Args:
        roots: the two checkouts.
        name: module bench_NAME.
        processes: pairs of processes for each row.
        seconds: time spent on each row of a pair.

    Returns:
        {row: (ratio, milliseconds)}, medians over the pairs of processes.
    """
    samples, medians, numbers = {}, {}, list(range(len(list_own_rows(name))))
    for pairs in (processes, 2 * processes):
        for _ in range(pairs):
            for number, result in compare_in_new_processes(roots, name, numbers, seconds).items():
                samples.setdefault(number, []).append(result)
        for number in samples:
            medians[number] = tuple(map(statistics.median, zip(*samples[number], strict=True)))
        numbers = [number for number, (ratio, _) in medians.items() if ratio > SLOWER]
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=pathlib.Path, help="the other checkout")
    parser.add_argument("--only", default=",".join(ROWS), help=f"of {', '.join(ROWS)}; default all")
    parser.add_argument("--processes", type=int, default=3, help="pairs of processes for each row; default 3")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each row of a pair; default 0.5")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if options.other is None or not (options.other / "bench").is_dir():
        parser.error("OTHER must be a checkout of fastds")
    roots, slower = (HERE.parents[1], options.other.resolve()), 0
    for name in options.only.split(","):
        results, rows = compare_module(roots, name, options.processes, options.seconds), list_own_rows(name)
        slow = {number: result for number, result in results.items() if result[0] > SLOWER}
        slower += len(slow)
        median = statistics.median(ratio for ratio, _ in results.values())
        print(f"{name}: {len(results)} rows, median ratio {median:.2f}, {len(slow)} above {SLOWER}", flush=True)
        for number, (ratio, milliseconds) in sorted(slow.items(), key=lambda item: -item[1][0]):
            print(f"  {ratio:.2f}  {milliseconds:.3f} ms  {' '.join(map(str, rows[number]))}", flush=True)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
