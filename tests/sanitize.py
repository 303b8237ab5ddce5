# SPDX-License-Identifier: Apache-2.0
"""Runs the op tests under ASan with UBSan, and under TSan: `python -m tests.sanitize`.

A part is a sanitizer, an instruction set and a test file. Under TSan only tests with "thread" in their names run,
because they compute in several threads. Parts that passed are not run again while the sources of the native module are
unchanged. The output of each part is in build/sanitize.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import iter_modules

from fastds import ops
from fastds._source_hash import source_hash
from fastds.ops.core import native

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"asan": ("libasan.so", "libstdc++.so"), "tsan": ("libtsan.so",)}
OPTIONS = {
    "asan": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    "tsan": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 die_after_fork=0"},  # a test forks
}
SELECTED = {"asan": (), "tsan": ("-k", "thread")}
FINDINGS = ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer")
NAMES = (
    "op_arguments",
    "registered_ops",
    "fuzz",
    "packed_weight_cache",
    "memory_layout",
    "plans",
)  # and those of the ops


def op_tests() -> list[str]:
    """Return the test files of the ops, except those that only compare numbers with other packages."""
    names = {*NAMES, *(name for name in ops.__all__ if name.islower())}
    names |= {module.name for module in iter_modules(ops.impl.__path__)}
    files = {path.name for path in (ROOT / "tests" / "ops").glob("test_*.py") if any(n in path.name for n in names)}
    return sorted(name for name in files if "peers" not in name)


def isas() -> list[str]:
    """Return the instruction sets above the baseline that machine and build have, or ["baseline"] if there are none."""
    info = native.get_module().build_info()
    return [isa for isa in info["isa_usable"] if isa in info["isa_built"] and isa != "baseline"] or ["baseline"]


def built(kind: str) -> Path:
    """Return the folder with the sanitized module, which is built if its sources have changed."""
    folder = ROOT / "build" / kind
    stamp = folder / "source_hash"
    if not stamp.exists() or stamp.read_text() != source_hash(ROOT):
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)]
        command += ["--build-temp", str(folder / "temp")]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "FASTDS_DEBUG": kind, "FASTDS_CUDA": "0"})
        stamp.write_text(source_hash(ROOT))
    return folder


def environment(kind: str, isa: str, folder: Path) -> dict[str, str]:
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in LIBRARIES[kind]
    ]
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": path,
        "FASTDS_TEST_ISA": isa,
        "FASTDS_REQUIRE_NATIVE": "1",
    }
    return {**os.environ, **OPTIONS[kind], **variables}


def check_loaded(kind: str, folder: Path) -> None:
    """Exit unless a part would load the module of this folder."""
    command = [sys.executable, "-P", "-c", "import _fastds; print(_fastds.__file__)"]
    loaded = subprocess.run(command, cwd=ROOT, env=environment(kind, "auto", folder), capture_output=True, text=True)
    if not loaded.stdout.startswith(str(folder)):
        raise SystemExit(f"{kind}: expected the module in {folder}, got {loaded.stdout}{loaded.stderr}")


def part(kind: str, isa: str, test: str, folder: Path, log: Path) -> dict:
    """Run one part; write its output to the log and return its outcome."""
    # -P: a module that lies in the checkout does not come before the sanitized one.
    options = ["-s", "-q", "-p", "no:cacheprovider", *SELECTED[kind]]
    command = [sys.executable, "-P", "-m", "pytest", *options, f"tests/ops/{test}"]
    start = time.monotonic()
    run = subprocess.run(
        command, cwd=ROOT, env=environment(kind, isa, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = run.stdout.decode(errors="replace")
    log.write_text(output)
    found = sum(output.count(words) for words in FINDINGS)
    outcome = "clean" if run.returncode in (0, 5) and not found else f"exit status {run.returncode}"  # 5: no such test
    tests = next((line for line in reversed(output.splitlines()) if " in " in line), "")
    return {"findings": found, "outcome": outcome, "tests": tests.strip("= "), "seconds": time.monotonic() - start}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES))
    parser.add_argument("--tests", nargs="+", choices=op_tests(), default=op_tests(), metavar="FILE")
    args = parser.parse_args()
    logs = ROOT / "build" / "sanitize"
    logs.mkdir(parents=True, exist_ok=True)
    rows, file = [], logs / f"{source_hash(ROOT)}.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    for kind in args.kinds:
        folder = built(kind)
        check_loaded(kind, folder)
        for isa in isas():
            for test in args.tests:
                name = f"{kind} {isa} {test}"
                if done.get(name, {}).get("outcome") != "clean":
                    done[name] = part(kind, isa, test, folder, logs / f"{name.replace(' ', '-')}.log")
                    file.write_text(json.dumps(done, indent=1))
                rows.append((name, done[name]))
                print(f"{name:56}{row(done[name])}", flush=True)
    total = sum(r["seconds"] for _, r in rows)
    bad = [name for name, r in rows if r["outcome"] != "clean"]
    print(
        f"{len(rows)} parts, {total:.0f} s, {sum(r['findings'] for _, r in rows)} findings; not clean: {bad or 'none'}"
    )
    return 1 if bad else 0


def row(result: dict) -> str:
    return f"{result['findings']:4} findings  {result['outcome']:16}{result['seconds']:6.0f} s  {result['tests']}"


if __name__ == "__main__":
    sys.exit(main())
