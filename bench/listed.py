# SPDX-License-Identifier: Apache-2.0
"""Our listed rows in this tree and in another checkout, in turn: `python -m bench.listed OTHER [--only conv3x3,...]`.

Two processes, one for each tree, build the same row and take turns of some milliseconds, so that what else happens to
the machine happens to both. Where memory lies differs from process to process, and times by a third with it: a row's
ratio is the median of `--processes` such pairs, and of three times as many where it is above 1.03. OTHER is a checkout
whose native module is built in place; this tree itself says what of a difference is chance. Prints, for every op, the
median of the times here over the times there, and the rows that stay slower; exit status 1 where there are any.
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

import torch

HERE = pathlib.Path(__file__).resolve()
DTYPES = (torch.float32, torch.bfloat16)
SLOWER = 1.03


def _pairs(module, peers):
    modes = ("forward", "backward")
    return [(p, c, m, d) for c, m, (p, d, *_) in itertools.product(module.CASES, modes, peers)]


# Of a module, the arguments of its build() for every row of any peer.
ROWS = {
    "conv3x3": lambda m: [(p, c, mode, d) for c, mode, (p, d) in itertools.product(m.CASES, m.MODES, m.PEERS)],
    "deform_conv2d": lambda m: _pairs(m, m.ROWS),
    "inr_query": lambda m: [(p, m.CASES[c], d) for c, p, d in itertools.product(m.CASES, m.BUILDERS, DTYPES)],
    "lstm_gates": lambda m: [row.values for row in m.rows()],
    "pixel_shuffle": lambda m: _pairs(m, m.ROWS),
    "window_attention2d": lambda m: list(itertools.product(m.CASES, ("forward", "forward+backward"), m.PEERS)),
    "fczsm": lambda m: [(p, mode, d) for mode, p, d, memory in m.ROWS if memory == "kept"],
    "db_rnn": lambda m: [(name, mode, p, m.sizes(name, mode)) for name, mode, p in m.ROWS],
    "wgan_gp": lambda m: [(p, mode, d) for mode, p, d in m.ROWS],
    "inr_model": lambda m: [(p, part, torch.float32) for part, p in itertools.product(m.FLOPS, m.PEERS)],
}
LEAST_TURNS = 3
LONG_SECONDS = 0.1  # a call from this on is a turn by itself: caches full of others' data do not matter


def of_ours(name: str) -> list[tuple]:
    """Arguments of build() for the rows of ours."""
    module = importlib.import_module(f"bench.bench_{name}")
    return [row for row in ROWS[name](module) if any(str(v).startswith(("fastds", "attention")) for v in row)]


def turn_of(run) -> float:
    """Seconds of a turn's quickest call."""
    from in_turn import turn  # of this tree, beside this file: bench and fastds are the other's in its process

    start = time.perf_counter()
    run()
    taken = time.perf_counter() - start
    return taken if taken > LONG_SECONDS else min(turn(run))


def serve() -> None:
    """For every line, a name and a row's number, build it or take a turn; answers in JSON, null where it failed."""
    import fastds

    fastds.keep_freed_memory()
    built, run = None, None
    for line in sys.stdin:
        name, number = wanted = json.loads(line)
        try:
            if built != wanted:
                run = importlib.import_module(f"bench.bench_{name}").build(*of_ours(name)[number])
                built = wanted
            answer = turn_of(run)
        except Exception as error:  # an old tree's row may not run beside today's libraries
            print(f"row {number} of {name}: {error}", file=sys.stderr)
            answer = None
        print(json.dumps(answer), flush=True)


class Tree:
    """A process that runs the rows of one checkout, in huge pages: small ones lie elsewhere in every process."""

    def __init__(self, root: pathlib.Path):
        command, env = [sys.executable, str(HERE), "--serve"], os.environ | {"PYTHONPATH": str(root)}
        env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        self.process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def turn(self, name: str, number: int) -> float | None:
        self.process.stdin.write(json.dumps([name, number]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench.listed: the process of row {number} of {name} ended")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def of_pair(roots, name: str, numbers: list[int], seconds: float) -> dict[int, tuple[float, float]]:
    """{row: time in the first tree over that in the second, milliseconds in the first} by a new pair of processes.

    Times are of the least of each turn's calls, in the median; rows that one of the trees cannot run are left out.
    """
    trees, found = [Tree(root) for root in roots], {}
    for number in numbers:
        if None in [tree.turn(name, number) for tree in trees]:  # built, caches filled
            continue
        turns, end = ([], []), time.perf_counter() + seconds
        while len(turns[0]) < LEAST_TURNS or time.perf_counter() < end:
            for tree, times in zip(trees, turns, strict=True):
                times.append(tree.turn(name, number))
        first, second = map(statistics.median, turns)
        found[number] = first / second, 1e3 * first
    for tree in trees:
        tree.close()
    return found


def of_op(roots, name: str, processes: int, seconds: float) -> dict[int, tuple[float, float]]:
    """{row: ratio, milliseconds}, medians of several pairs of processes."""
    looks, middles, numbers = {}, {}, list(range(len(of_ours(name))))
    for pairs in (processes, 2 * processes):
        for _ in range(pairs):
            for number, found in of_pair(roots, name, numbers, seconds).items():
                looks.setdefault(number, []).append(found)
        for number in looks:
            middles[number] = tuple(map(statistics.median, zip(*looks[number], strict=True)))
        numbers = [number for number, (ratio, _) in middles.items() if ratio > SLOWER]
    return middles


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
        found, rows = of_op(roots, name, options.processes, options.seconds), of_ours(name)
        late = {number: look for number, look in found.items() if look[0] > SLOWER}
        slower += len(late)
        middle = statistics.median(ratio for ratio, _ in found.values())
        print(
            f"{name}: {len(found)} rows, {middle:.2f} of the other's time in the median, {len(late)} above {SLOWER}",
            flush=True,
        )
        for number, (ratio, milliseconds) in sorted(late.items(), key=lambda item: -item[1][0]):
            print(f"  {ratio:.2f}  {milliseconds:.3f} ms  {' '.join(map(str, rows[number]))}", flush=True)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
