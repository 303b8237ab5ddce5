# SPDX-License-Identifier: Apache-2.0
"""Mutation testing: `python -m tests.mutants` makes random errors in a copy of fastds/ and runs tests.

For each mutant, the tests that call its function run until one fails, as many as the time limit allows. The calls of
each test are measured once and cached outside the repository. The log has one line for each mutant; an interrupted run
continues after the last line.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .calls import chosen, environment, measured, tests
from .errors import ROOT, Mutant, mutated, sample

LEFT_OUT = shutil.ignore_patterns(".git", "build", "__pycache__", ".*_cache", "*.egg-info")
PYTEST = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
OUTCOMES = ("killed", "survived", "timeout", "uncovered")


def tried(mutant: Mutant, copy: Path, selected: list[str], seconds: float) -> dict:
    """Apply a mutant to the copy, run tests, restore the copy and return the outcome."""
    if not selected:
        return {"outcome": "uncovered"}
    file, start = copy / mutant.path, time.monotonic()
    source = file.read_text()
    changed = mutated(source, mutant)
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    what = next((f"{a.strip()}  ->  {b.strip()}" for a, b in pairs if a != b), "")
    result = {"outcome": "timeout", "what": what}
    try:
        file.write_text(changed)
        (arguments := copy / "selected").write_text("\n".join(selected))
        command = [sys.executable, *PYTEST, f"@{arguments}"]
        run = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=seconds)
        failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        result |= {"outcome": "killed" if run.returncode else "survived", "test": "".join(failed[:1])[:200]}
    except subprocess.TimeoutExpired:  # it hangs, or is far slower
        pass
    finally:
        file.write_text(source)
    return result | {"seconds": round(time.monotonic() - start, 1)}


def resumed(log: Path) -> dict[Mutant, dict]:
    """Read a log, ignoring a last line that was truncated by an interruption."""
    found = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[Mutant(**entry.pop("mutant"))] = entry
    return found


def summary(results: dict[Mutant, dict]) -> str:
    """Summarise counts by folder, and list the surviving mutants."""
    counts = Counter((str(Path(m.path).parent), r["outcome"]) for m, r in results.items())
    folders = sorted({folder for folder, _ in counts})
    lines = [f"{'folder':36}" + "".join(f"{o:>11}" for o in OUTCOMES)]
    for folder in folders:
        lines.append(f"{folder:36}" + "".join(f"{counts[folder, o]:11}" for o in OUTCOMES))
    lines.append(f"{'all':36}" + "".join(f"{sum(counts[f, o] for f in folders):11}" for o in OUTCOMES))
    for mutant, result in sorted(results.items(), key=lambda item: (item[0].path, item[0].line)):
        if result["outcome"] != "killed":
            ran = "{} of {} tests".format(*result["tests"])
            lines.append(f"{result['outcome']}, {ran}: {mutant.path}:{mutant.line} {result.get('what', '')}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=100, help="how many errors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--under", default="", metavar="FOLDER", help="of fastds/, such as tasks/humidity; default: all"
    )
    parser.add_argument("--tests", nargs="+", default=tests(), metavar="FILE", help="test files to try; default: all")
    parser.add_argument("--limit", type=float, default=100, metavar="SECONDS", help="for the tests of one error")
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "mutants.jsonl")
    parser.add_argument("--summary", action="store_true", help="of the log; nothing is run")
    args = parser.parse_args()
    results = resumed(args.log)
    if not args.summary:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        drawn = sample(args.sample, args.seed, args.under)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            known = dict(zip(args.tests, pool.map(measured, args.tests), strict=True))
        with tempfile.TemporaryDirectory() as folder, args.log.open("a") as log:
            copy = Path(shutil.copytree(ROOT, Path(folder, "copy"), ignore=LEFT_OUT))
            for mutant in (m for m in drawn if m not in results):
                selected, there = chosen(mutant, known, args.limit)
                results[mutant] = tried(mutant, copy, selected, 5 * args.limit) | {"tests": [len(selected), there]}
                log.write(json.dumps({"mutant": dataclasses.asdict(mutant), **results[mutant]}) + "\n")
                log.flush()
                print(f"{results[mutant]['outcome']:10}{mutant.path}:{mutant.line} {mutant.operator}", flush=True)
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
