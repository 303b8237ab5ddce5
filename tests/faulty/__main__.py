# SPDX-License-Identifier: Apache-2.0
"""Tests the commands with malformed files: `python -m tests.faulty`.

Without options, each kind of malformed file is passed to each command that reads such files. With `--files N --seed S`,
N random files (drawn.py) are opened, converted and passed to one more command, and the results are compared with the
expected values (judged.py).

The expected outcome is a one-line error message that names the fault, exit status 2 and no output. Some kinds may also
give a result with a warning. Other outcomes are "crashed" (an exception was not handled), "wrong" (a result without a
warning, or leftover files) and "unclear" (another message than expected).
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .campaign import campaign
from .commands import commands, good_files, run
from .kinds import CONTAINERS, FIELDS, RADAR, Kind, make
from .planted import FAULTS, find_fault
from .writers import load_writers

TABLES = {"radar": CONTAINERS | RADAR, "fields": FIELDS}


def judge(kind: Kind, command: str, status: int | str, lines: list[str], left: list[str]) -> str:
    """Classify the outcome of a try, see the module's docstring."""
    if status not in (0, 2):
        return "crashed"
    *warnings, last = lines if status == 2 and lines else [*lines, ""]
    if any(not line.startswith("warning: ") for line in warnings):
        return "unclear"
    if status == 2:
        if left:
            return "wrong"
        return "right" if last.startswith("fastds ") and re.search(kind.says, last) else "unclear"
    warned = kind.warns is None or any(re.search(kind.warns, line) for line in warnings)
    return "right" if command in kind.taken and warned else "wrong"


def tries(folder: Path, names=None, pick=None):
    """Run commands with malformed files and yield (base, kind, command, outcome, message).

    Args:
        folder: folder for the files.
        names: kinds of malformed files; all kinds if empty or None.
        pick: function (number, rejecting commands, all commands) that selects commands for a kind; None for all.
    """
    files = good_files(folder)
    cases = [(base, name) for base, table in TABLES.items() for name in table if not names or name in names]
    for number, (base, name) in enumerate(cases):
        kind, every = TABLES[base][name], commands(base, folder / "faulty")
        refusing = [command for command in every if command not in kind.taken]
        for command in pick(number, refusing, list(every)) if pick else every:
            make(kind, files[base][1], folder / "faulty")
            found = run(every[command], folder)
            yield base, name, command, judge(kind, command, *found), found


def run_campaign(count: int, seed: int, first: int, formats: list[str] | None) -> int:
    counts: Counter[str] = Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, outcome, message, drawn in campaign(count, seed, Path(folder), first, formats):
            counts[outcome] += 1
            if outcome in ("wrong", "traceback", "unclear") or (outcome == "refused" and not drawn.damaged):
                print(
                    f"{outcome}: {number} {drawn.how}{' damaged' * drawn.damaged}: {message.strip()[:400]}", flush=True
                )
    rate = count / (time.monotonic() - started) * 3600
    print(f"{count} files of seed {seed}: {dict(counts)}, {rate:.0f} an hour")
    return int(bool(counts["wrong"] + counts["traceback"] + counts["unclear"]))


def run_planted(most: int, seed: int) -> int:
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for fault in FAULTS:
            found = find_fault(fault, seed, most, Path(folder))
            missed += found is None
            print(f"{fault}: {'not found' if found is None else f'file {found[0]}, {found[1][:200]}'}", flush=True)
    return int(missed > 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faulty", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, metavar="N", help="how many files are drawn by seed")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn files; default: 0")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="number of the first drawn file; default: 0")
    formats = list(load_writers())
    parser.add_argument("--formats", nargs="+", choices=formats, metavar="FORMAT", help="that are drawn; default: all")
    parser.add_argument(
        "--kinds", nargs="+", choices=sorted(set(TABLES["radar"]) | set(TABLES["fields"])), metavar="KIND"
    )
    parser.add_argument("--planted", action="store_true", help="find planted faults by the drawn files")
    options = parser.parse_args()
    if options.planted:
        return run_planted(options.files or 400, options.seed)
    if options.files:
        return run_campaign(options.files, options.seed, options.first, options.formats)
    counts, kinds = Counter(), set()
    with tempfile.TemporaryDirectory() as folder:
        for base, name, command, outcome, found in tries(Path(folder), names=options.kinds):
            counts[outcome] += 1
            kinds.add((base, name))
            if outcome != "right":
                print(f"{outcome}: {base}, {name}, {command}: {found}", flush=True)
    print(f"{len(kinds)} kinds, {counts.total()} tries: {dict(counts)}")
    return int(set(counts) != {"right"})


if __name__ == "__main__":
    sys.exit(main())
