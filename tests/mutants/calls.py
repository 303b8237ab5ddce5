# SPDX-License-Identifier: Apache-2.0
"""Measures which functions of fastds/ each test calls, and selects tests for a mutant."""

import ast
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from .errors import ROOT, Mutant

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastds-mutants"
STARTUP = Path(__file__).resolve().parent / "startup"
DURATION = re.compile(r"([\d.]+)s (?:setup|call|teardown) +(.+)")
Calls = dict[str, dict[str, list[str]]]  # file of fastds/ -> line where a function starts -> tests that call it


def tests() -> list[str]:
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py") if "gpu" not in p.parts)


def versions(paths) -> dict[str, str]:
    """Return the checksums of files by path; "" for a missing file."""
    files = {str(path): ROOT / path for path in sorted(paths)}
    return {n: hashlib.sha256(f.read_bytes()).hexdigest() if f.exists() else "" for n, f in files.items()}


def environment(root: Path) -> dict[str, str]:
    """Return the environment variables for a run of pytest on the tree `root`."""
    data = os.environ.get("FASTDS_DATA", str(ROOT.parent / "shared" / "data"))
    variables = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "FASTDS_DATA": data}
    return {**os.environ, **variables}


def measured(file: str) -> dict:
    """Return the durations of tests and their calls, {"seconds": {test: s}, "calls": ...}, of a test file.

    Cached results are used unless the test file, or a file of fastds/ that it calls, has changed.
    """
    cached = CACHE / f"{file.replace('/', '-')}.json"
    if cached.exists() and (found := json.loads(cached.read_text()))["versions"] == versions(found["versions"]):
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        variables = {"FASTDS_CALLS_OF": str(ROOT / "fastds"), "FASTDS_CALLS_TO": folder}
        variables["PYTEST_CURRENT_TEST"] = " ()"  # where pytest itself runs this
        variables["PYTHONPATH"] = os.pathsep.join([str(STARTUP), str(ROOT)])
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=0", "--durations-min=0"]
        start, env = time.monotonic(), {**environment(ROOT), **variables}
        printed = subprocess.run([*command, file], cwd=ROOT, env=env, capture_output=True, text=True).stdout
        whole = [path for path in Path(folder).iterdir() if path.suffix != ".part"]
        lines = [json.loads(line) for path in whole for line in path.read_text().splitlines()]
    seconds = passed_in(printed)
    calls = calls_of(lines, seconds)
    found = {"versions": versions([file, *calls]), "seconds": seconds, "calls": calls}
    cached.write_text(json.dumps(found))
    print(f"measured {file}: {len(seconds)} tests, {time.monotonic() - start:.0f} s", flush=True)
    return found


def passed_in(output: str) -> dict[str, float]:
    """Parse the output of pytest; return the seconds of every test that did not fail."""
    seconds = defaultdict(float)
    for line in output.splitlines():
        if match := DURATION.fullmatch(line.strip()):
            seconds[match[2]] += float(match[1])
    failed = [line.split(" ", 1)[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return {test: s for test, s in seconds.items() if not any(f == test or f.startswith(test + " - ") for f in failed)}


def calls_of(lines: list[list], seconds: dict[str, float]) -> Calls:
    """Return the calls of functions, with the fastest tests first.

    A call by a fixture or an import counts for all tests of the file, after the tests that call the function directly.
    """
    tests_of_function, shared = defaultdict(set), set()
    for test, phase, path, start in lines:
        function = Path(path).relative_to(ROOT).as_posix(), str(start)
        if phase == "call":
            tests_of_function[function].add(test)
        else:
            shared.add(function)
    found, tests = defaultdict(dict), sorted(seconds, key=seconds.get)
    for path, start in sorted(tests_of_function.keys() | shared):
        callers = tests_of_function[path, start]
        found[path][start] = [test for test in tests if test in callers]
        if (path, start) in shared:
            found[path][start] += [test for test in tests if test not in callers]
    return found


@functools.cache
def functions(path: str) -> list[range]:
    """Return the line ranges of all functions, including decorators."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, kinds)]
    return [range(min(n.lineno, *(d.lineno for d in n.decorator_list), n.lineno), n.end_lineno + 1) for n in found]


def callers(mutant: Mutant, calls: Calls) -> list[str]:
    """Return the tests that call the function of a mutant.

    Of nested functions, the innermost called one is used. For a mutant outside functions, these are the tests that call
    any function of the file.
    """
    there = calls.get(mutant.path, {})
    around = sorted((lines for lines in functions(mutant.path) if mutant.line in lines), key=len)
    if not around:
        return list(dict.fromkeys(test for found in there.values() for test in found))
    return next((there[str(lines.start)] for lines in around if there.get(str(lines.start))), [])


def chosen(mutant: Mutant, known: dict[str, dict], limit: float) -> tuple[list[str], int]:
    """Select tests that call the function of a mutant, and count all of them.

    The first test of each file comes first, then the others by duration. At least one test is selected, and as many as
    take `limit` seconds.
    """
    first, others = [], []
    for measure in known.values():
        found = [(measure["seconds"][test], test) for test in callers(mutant, measure["calls"])]
        first += found[:1]
        others += found[1:]
    taken, left = [], limit
    for seconds, test in sorted(first) + sorted(others):
        if not taken or seconds <= left:
            taken.append(test)
            left -= seconds
    return taken, len(first) + len(others)
