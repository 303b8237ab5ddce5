# SPDX-License-Identifier: Apache-2.0
"""python -m tests.mutants: a random sample of small errors in fastds/, each planted in a copy, and which tests see it.

Errors are those of cosmic-ray's operators, annotations left out. For each, the test files that run its line are run,
first those that run most of its file for the time they take, as many as the limit allows, until one fails. Which file
runs which lines is measured once, by coverage, and kept outside the repository. A line of the log is an error and what
became of it; a run that was stopped goes on behind the last.
"""

import argparse
import ast
import dataclasses
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastds-mutants"
LEFT_OUT = shutil.ignore_patterns(".git", "build", "__pycache__", ".*_cache", "*.egg-info")
PYTEST = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0"]
OUTCOMES = ("killed", "survived", "timeout", "uncovered")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """The error that an operator makes at its n-th place in a file; line: of that place."""

    path: str
    operator: str
    occurrence: int
    line: int


# ---- errors


def annotations(source: str) -> list[tuple]:
    """Where annotations start and end, (line, column): mutants of these change nothing."""
    found = []
    for node in ast.walk(ast.parse(source)):
        found += [getattr(node, name, None) for name in ("annotation", "returns")]
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in found if isinstance(n, ast.AST)]


def mutants_of(path: Path, root: Path = ROOT) -> list[Mutant]:
    """All errors of all operators in a file."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source, found = path.read_text(), []
    nodes, left_out = list(ast_nodes(get_ast(source))), annotations(source)
    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or name == "core/NoOp":  # for errors of one's own, and for none
            continue
        places = [start for node in nodes for start, _ in operator().mutation_positions(node)]
        for k, start in enumerate(places):
            if not any(first <= start < last for first, last in left_out):
                found.append(Mutant(path.relative_to(root).as_posix(), name, k, start[0]))
    return found


def mutated(source: str, mutant: Mutant) -> str:
    """The source with the error in it."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)


def sample(count: int, seed: int, under: str) -> list[Mutant]:
    """`count` of all errors below fastds/`under`, at random; a larger sample of a seed begins with the smaller."""
    files = sorted((ROOT / "fastds" / under).rglob("*.py"))
    every = [mutant for path in files for mutant in mutants_of(path)]
    random.Random(seed).shuffle(every)
    print(f"{len(every)} errors in {len(files)} files, {min(count, len(every))} of them drawn", flush=True)
    return every[:count]


# ---- which tests run which lines


def tests() -> list[str]:
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py") if "gpu" not in p.parts)


def versions(paths) -> dict[str, str]:
    """The checksums of files, by their paths from the root; empty for a file that is gone."""
    files = {str(path): ROOT / path for path in sorted(paths)}
    return {n: hashlib.sha256(f.read_bytes()).hexdigest() if f.exists() else "" for n, f in files.items()}


def measured(test: str) -> dict:
    """{"seconds", "passed", "lines": {file: lines}} of a test file, from the cache where neither it nor a file that it
    runs has changed."""
    import coverage

    cached = CACHE / f"{test.replace('/', '-')}.json"
    if cached.exists() and (found := json.loads(cached.read_text()))["versions"] == versions(found["versions"]):
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data, settings, start = Path(folder, "data"), Path(folder, "coveragerc"), time.monotonic()
        settings.write_text(f"[run]\nsource = {ROOT}/fastds\ndata_file = {data}\npatch = subprocess\nparallel = true\n")
        command, own = [sys.executable, "-m", "coverage"], {"cwd": ROOT, "capture_output": True}
        run = subprocess.run([*command, "run", f"--rcfile={settings}", *PYTEST, test], env=environment(ROOT), **own)
        seconds = time.monotonic() - start
        subprocess.run([*command, "combine", f"--rcfile={settings}"], **own)
        (kept := coverage.CoverageData(data)).read()
        ran = {name: kept.lines(name) for name in kept.measured_files()}
        lines = {Path(name).relative_to(ROOT).as_posix(): sorted(found) for name, found in ran.items() if found}
    found = {"versions": versions([test, *lines]), "seconds": round(seconds, 1), "passed": run.returncode == 0}
    found["lines"] = lines
    cached.write_text(json.dumps(found))
    print(f"measured {test}: {seconds:.0f} s, {'passed' if found['passed'] else 'FAILED, left out'}", flush=True)
    return found


@functools.cache
def statements(path: str) -> list[range]:
    """The lines of every statement, of one with a body those before it."""
    found = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.stmt)]
    return [range(n.lineno, n.body[0].lineno if getattr(n, "body", None) else n.end_lineno + 1) for n in found]


def covering(mutant: Mutant, known: dict[str, dict], limit: float) -> tuple[list[str], int]:
    """The test files that run the statement, first those that run most lines of its file a second, as many as the limit
    takes; and how many there are."""
    lines = min((lines for lines in statements(mutant.path) if mutant.line in lines), key=len, default=[mutant.line])
    found = [t for t, m in known.items() if m["passed"] and not set(lines).isdisjoint(m["lines"].get(mutant.path, ()))]
    found.sort(key=lambda test: known[test]["seconds"] / len(known[test]["lines"][mutant.path]))
    chosen, left = [], limit
    for test in found:
        if not chosen or known[test]["seconds"] <= left:
            chosen.append(test)
            left -= known[test]["seconds"]
    return chosen, len(found)


# ---- runs


def environment(root: Path) -> dict[str, str]:
    data = os.environ.get("FASTDS_DATA", str(ROOT.parent / "shared" / "data"))
    own = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "FASTDS_DATA": data}
    return {**os.environ, **own}


def tried(mutant: Mutant, copy: Path, files: list[str], seconds: float) -> dict:
    """What became of an error planted in the copy, which is as before afterwards."""
    if not files:
        return {"outcome": "uncovered"}
    file, start = copy / mutant.path, time.monotonic()
    source = file.read_text()
    changed = mutated(source, mutant)
    pairs = zip(source.splitlines(), changed.splitlines(), strict=False)
    what = next((f"{a.strip()}  ->  {b.strip()}" for a, b in pairs if a != b), "")
    result = {"outcome": "timeout", "what": what}
    try:
        file.write_text(changed)
        command = [sys.executable, *PYTEST, *files]
        run = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=seconds)
        failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        result |= {"outcome": "killed" if run.returncode else "survived", "test": "".join(failed[:1])[:200]}
    except subprocess.TimeoutExpired:  # it hangs, or is far slower
        pass
    finally:
        file.write_text(source)
    return result | {"seconds": round(time.monotonic() - start, 1)}


def resumed(log: Path) -> dict[Mutant, dict]:
    """What is in a log, its last line left out where a kill has cut it off."""
    found = {}
    for line in log.read_text().splitlines() if log.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found[Mutant(**entry.pop("mutant"))] = entry
    return found


def summary(results: dict[Mutant, dict]) -> str:
    """Counts by folder, and what survived."""
    counts = Counter((str(Path(m.path).parent), r["outcome"]) for m, r in results.items())
    folders = sorted({folder for folder, _ in counts})
    lines = [f"{'folder':36}" + "".join(f"{o:>11}" for o in OUTCOMES)]
    for folder in folders:
        lines.append(f"{folder:36}" + "".join(f"{counts[folder, o]:11}" for o in OUTCOMES))
    lines.append(f"{'all':36}" + "".join(f"{sum(counts[f, o] for f in folders):11}" for o in OUTCOMES))
    for mutant, result in sorted(results.items(), key=lambda item: (item[0].path, item[0].line)):
        if result["outcome"] != "killed":
            files = "{} of {} files".format(*result["files"])
            lines.append(f"{result['outcome']}, {files}: {mutant.path}:{mutant.line} {result.get('what', '')}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=100, help="how many errors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--under", default="", metavar="FOLDER", help="of fastds/, such as tasks/humidity; default: all"
    )
    parser.add_argument("--tests", nargs="+", default=tests(), metavar="FILE", help="test files to try; default: all")
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="for the tests of one error")
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "mutants.jsonl")
    parser.add_argument("--summary", action="store_true", help="of the log; nothing is run")
    args = parser.parse_args()
    results = resumed(args.log)
    if not args.summary:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        drawn = sample(args.sample, args.seed, args.under)
        known = {test: measured(test) for test in args.tests}
        with tempfile.TemporaryDirectory() as folder, args.log.open("a") as log:
            copy = Path(shutil.copytree(ROOT, Path(folder, "copy"), ignore=LEFT_OUT))
            for mutant in (m for m in drawn if m not in results):
                files, there = covering(mutant, known, args.limit)
                results[mutant] = tried(mutant, copy, files, 2 * args.limit) | {"files": [len(files), there]}
                log.write(json.dumps({"mutant": dataclasses.asdict(mutant), **results[mutant]}) + "\n")
                log.flush()
                print(f"{results[mutant]['outcome']:10}{mutant.path}:{mutant.line} {mutant.operator}", flush=True)
    print(summary(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
