# SPDX-License-Identifier: Apache-2.0
"""Our listed rows in this tree and in another checkout, in turn: `python -m bench.listed OTHER [--only conv3x3,...]`.

Two processes, one for each tree, build the same row and take turns of some milliseconds, so that what else happens to
the machine happens to both. A row that takes more than 1.03 times as long here is measured once more, four times as
long. OTHER is a checkout whose native module is built in place. Prints, for every op, the median of the times here over
the times there, and the rows that stay slower; exit status 1 where there are any.
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
}


def of_ours(name: str) -> list[tuple]:
    """Arguments of build() for the rows of ours."""
    module = importlib.import_module(f"bench.bench_{name}")
    return [row for row in ROWS[name](module) if "fastds" in row or "attention" in row]


def serve() -> None:
    """For every line, a name and a row's number, build it or take a turn; answers in lines of JSON."""
    from in_turn import turn  # of this tree, beside this file: bench and fastds are the other's there

    import fastds

    fastds.keep_freed_memory()
    built, run = None, None
    for line in sys.stdin:
        name, number = wanted = json.loads(line)
        if built != wanted:
            run = importlib.import_module(f"bench.bench_{name}").build(*of_ours(name)[number])
            built = wanted
        print(json.dumps(min(turn(run))), flush=True)


class Tree:
    """A process that runs the rows of one checkout."""

    def __init__(self, root: pathlib.Path):
        command, env = [sys.executable, str(HERE), "--serve"], os.environ | {"PYTHONPATH": str(root)}
        self.process = subprocess.Popen(
            command, cwd=root, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def turn(self, name: str, number: int) -> float:
        self.process.stdin.write(json.dumps([name, number]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench.listed: the process of row {number} of {name} ended")
        return json.loads(answer)


def ratio(here: Tree, other: Tree, name: str, number: int, seconds: float) -> tuple[float, float]:
    """Time of a row here over that there, of the least of each turn's calls in the median, and milliseconds here."""
    turns, end = ([], []), time.perf_counter() + seconds
    here.turn(name, number), other.turn(name, number)  # built, caches filled
    while len(turns[0]) < 5 or time.perf_counter() < end:
        for tree, found in zip((here, other), turns, strict=True):
            found.append(tree.turn(name, number))
    ours, theirs = map(statistics.median, turns)
    return ours / theirs, 1e3 * ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=pathlib.Path, help="the other checkout")
    parser.add_argument("--only", default=",".join(ROWS), help=f"of {', '.join(ROWS)}; default all")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row, both trees together")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if options.other is None or not (options.other / "bench").is_dir():
        parser.error("OTHER must be a checkout of fastds")
    here, other, slower = Tree(HERE.parents[1]), Tree(options.other.resolve()), 0
    for name in options.only.split(","):
        rows = of_ours(name)
        found = {}
        for number, row in enumerate(rows):
            found[row] = ratio(here, other, name, number, options.seconds)
            if found[row][0] > SLOWER:
                found[row] = ratio(here, other, name, number, 4 * options.seconds)
        middle = statistics.median(r for r, _ in found.values())
        late = {row: r for row, r in found.items() if r[0] > SLOWER}
        slower += len(late)
        print(f"{name}: {len(rows)} rows, {middle:.2f} of the other's time in the median, {len(late)} above {SLOWER}")
        for row, (over, milliseconds) in sorted(late.items(), key=lambda item: -item[1][0]):
            print(f"  {over:.2f}  {milliseconds:.3f} ms  {' '.join(map(str, row))}", flush=True)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
