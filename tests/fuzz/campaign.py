# SPDX-License-Identifier: Apache-2.0
"""Runs random calls in a child process and logs them, so that an interrupted run can be resumed.

A call is determined by seed, op, kind and number. The log has a line for each fault, and a line of counts after every
few hundred calls of an op; an interrupted run continues after the last of these lines.
"""

import json
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random

from .cases import Case
from .compare import check_call
from .strategies import KINDS, draw

OUTCOMES = ("crashed", "wrong", "unclear")
BATCH = 500  # calls between two lines of counts: what a killed campaign makes again


def case_of(seed: int, op: str, kind: str, number: int) -> Case:
    return draw(op, kind, Random(f"{seed} {op} {kind} {number}"))


def one(seed: int, op: str, kind: str, number: int):
    """Return the outcome of a call; an exception is "unclear"."""
    case = case_of(seed, op, kind, number)
    try:
        return check_call(case, kind)
    except Exception as error:
        return "unclear", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def child(pipe, seed: int) -> None:
    """Run the batches of calls that the parent requests.

    The number of a call is sent before the call, so that the parent knows which call crashed.
    """
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    warnings.simplefilter("ignore")
    pipe.send("ready")
    while batch := pipe.recv():
        op, kind, first, stop = batch
        for number in range(first, stop):
            pipe.send(number)
            failure = one(seed, op, kind, number)
            if failure:
                pipe.send((number, *failure))
        pipe.send(None)


class Child:
    """A process that makes calls; it is replaced after a crash."""

    def __init__(self, seed: int):
        self.seed, self.process = seed, None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=child, args=(end, self.seed), daemon=True)
        self.process.start()
        end.close()
        try:
            self.pipe.recv()
        except EOFError:
            sys.exit("fuzz: the child process does not start")

    def faults(self, op: str, kind: str, first: int, stop: int):
        """Yield (number, outcome, message) of the calls first .. stop - 1 that failed."""
        while first < stop:
            if self.process is None:
                self._start()
            self.pipe.send((op, kind, first, stop))
            number = first
            try:
                while (answer := self.pipe.recv()) is not None:
                    if isinstance(answer, tuple):
                        yield answer
                    else:
                        number = answer
                return
            except (EOFError, ConnectionError):
                self.process.join()
                yield number, "crashed", f"exit status {self.process.exitcode}"
                self.process, first = None, number + 1


def resumed(path: Path, seed: int) -> tuple[dict, Counter]:
    """Read a log of this seed; return the number of calls of each op and kind, and the counts of outcomes."""
    made, counts = {}, Counter()
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the line at which the campaign was killed
        if entry["seed"] != seed:
            sys.exit(f"--log: {path} is of seed {entry['seed']}, expected {seed}")
        if "stop" in entry:
            made[entry["op"], entry["kind"]] = entry["stop"]
            counts.update({(entry["op"], entry["kind"], k): n for k, n in entry["faults"].items()})
    return made, counts


def summary(made: dict, counts: Counter) -> str:
    lines = [f"{'op':22}{'kind':10}{'tried':>9}" + "".join(f"{o:>9}" for o in OUTCOMES)]
    for (op, kind), tried in sorted(made.items()):
        lines.append(f"{op:22}{kind:10}{tried:9}" + "".join(f"{counts[op, kind, o]:9}" for o in OUTCOMES))
    totals = [sum(n for key, n in counts.items() if key[2] == o) for o in OUTCOMES]
    return "\n".join([*lines, f"{'all':32}{sum(made.values()):9}" + "".join(f"{n:9}" for n in totals)])


def campaign(calls: int, seed: int, ops: list[str], path: Path) -> Counter:
    """Make the calls that are not in the log yet. Only one process may write a log."""
    pairs = [(op, kind) for op in ops for kind in KINDS]
    each = -(-calls // len(pairs))
    path.parent.mkdir(parents=True, exist_ok=True)
    made, counts = resumed(path, seed)
    worker, start, before = Child(seed), time.monotonic(), sum(made.values())
    with path.open("a") as log:
        print(file=log)  # a kill may have left an incomplete last line
        for first in range(0, each, BATCH):
            for op, kind in pairs:
                stop = min(each, first + BATCH)
                begin = made.get((op, kind), 0)
                if begin >= stop:
                    continue
                name, found = {"seed": seed, "op": op, "kind": kind}, Counter()
                for number, outcome, what in worker.faults(op, kind, begin, stop):
                    found[outcome] += 1
                    fault = {"number": number, "outcome": outcome, "what": what}
                    print(json.dumps(name | fault), file=log, flush=True)
                print(json.dumps({**name, "stop": stop, "faults": found}), file=log, flush=True)
                made[op, kind] = stop
                counts.update({(op, kind, k): n for k, n in found.items()})
    seconds = time.monotonic() - start
    rate = (sum(made.values()) - before) / max(seconds, 1e-9)
    print(summary(made, counts), f"{rate:.0f} calls a second in {seconds:.0f} s", sep="\n")
    return counts
