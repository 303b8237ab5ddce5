# SPDX-License-Identifier: Apache-2.0
"""Tests of bench/gpu_suite.sh that need no GPU."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support import forked

ROOT = Path(__file__).resolve().parents[2]
LABEL = ("op", "case", "mode", "dtype", "peer")
# Packages that the GPU suite must not need.
ABSENT = ("jsonargparse", "h5netcdf", "h5py", "lightning", "pytorch_lightning", "scores", "torchmetrics", "torchvision",
          "zarr", "cfgrib", "onnxruntime", "openvino", "scoringrules", "properscoring")  # fmt: skip


def suite(*arguments, path=None, modules=None):
    environment = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    if modules is not None:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # zarr brings a plugin
        environment["PYTHONPATH"] = f"{modules}:{environment.get('PYTHONPATH', '')}"
    command = ["bash", ROOT / "bench" / "gpu_suite.sh", *arguments]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)


def read_rows(path):
    """Read a CSV file of bench.gpu_bench; return the rows with peak rates and the other rows."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["op"] == "ceiling"], [row for row in rows if row["op"] != "ceiling"]


def test_gpu_suite_dry_run(tmp_path):
    """The suite runs with only the packages that it requires."""
    Path(tmp_path, "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    run = suite("--dry-run", "--call", "both", "--out", tmp_path, modules=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    started = {line.split()[1]: line for line in lines if line.startswith(("ok ", "FAILED "))}
    assert list(started) == ["build", "smoke", "bench", "memcheck", "profile", "tests", "others", "racecheck"]
    assert all(line.startswith("ok ") for line in started.values())
    assert "those of torch" in started["build"] and re.search(r"\d\d passed", started["tests"])
    assert re.search(r" \d\d/\d+ tests collected", started["smoke"])
    profiled = (tmp_path / "profile.log").read_text().splitlines()
    assert [line.split()[1] for line in profiled] == ["conv3x3", "conv_lstm_cell", "deform_conv2d", "inr_query"]
    (ceilings, results), (_, others) = (read_rows(tmp_path / f"{name}.csv") for name in ("first", "others"))
    keys = [{tuple(row[k] for k in LABEL) for row in rows} for rows in (results, others)]
    assert keys[0] and keys[1] and not keys[0] & keys[1]
    assert {(row["case"], row["dtype"]) for row in ceilings} == {
        ("copy", "float32"), ("product", "float32"), ("product", "float16"), ("product", "bfloat16")
    }  # fmt: skip
    assert {row["device"] for row in results} == {"dry run on a CPU"} and not any(row["threads"] for row in results)
    modules = {path.stem for path in (ROOT / "bench" / "gpu_rows").glob("[a-z]*.py")}
    ops = {row["op"].split()[0] for row in results}
    assert modules - {"gates"} <= ops and "lstm_gates" in ops, ops
    assert all(float(row["error"]) < 0.1 and float(row["median_ms"]) > 0 for row in results + others)
    table = (tmp_path / "table_first.md").read_text()
    assert "torch eager" in table and table.strip() in run.stdout
    assert "dry run" not in (ROOT / "bench" / "results" / "gpu.csv").read_text(), "a dry run is no result"


def test_profiled_rows_exist():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from bench import gpu_bench
from bench.gpu_rows import fczsm
from tests.references.fczsm import count_flops
rows = sum(gpu_bench.make_rounds(False, None), [])
model = fczsm.make_cached_network(False)
assert count_flops(model.state_dict(), model.config, 2, 8, 8) == 64 * fczsm.FLOPS_PER_PIXEL
for op, peer in gpu_bench.PROFILED.items():
    assert any((row.op, row.peer, row.mode) == (op, peer, "forward") for row in rows), op
"""
    done = forked.run(code, ROOT)
    assert done.returncode == 0, done.stderr


STOPPED = """
import time
import pytest
@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem, count=[0]):
    count[0] += 1
    assert count[0] > 1, "planted"
    if count[0] == 3:
        print("SLOW", flush=True)
        time.sleep(600)
"""


def test_timed_out_part_names_failed_tests(tmp_path):
    """The tests are stopped by SIGINT, the signal that gpu_suite.sh sends by `timeout`."""
    (tmp_path / "stopped.py").write_text(STOPPED)
    environment = os.environ | {"PYTEST_ADDOPTS": "-s -p stopped", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = ["bash", ROOT / "bench" / "gpu_suite.sh", "--dry-run", "--parts", "tests", "--out", tmp_path]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    log, end = tmp_path / "tests.log", time.monotonic() + 120
    while not (log.exists() and "SLOW" in log.read_text()):
        assert run.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    (part,) = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.killpg(int(part), signal.SIGINT)
    lines = run.communicate(timeout=60)[0].splitlines()
    assert lines[1].startswith("FAILED  tests") and "1 failed, 1 passed" in lines[1], lines
    assert lines[2].startswith("FAILED tests/gpu/test_"), lines
    assert lines[-1].startswith("1 of the parts tests failed")


def test_failed_part_does_not_stop_the_others(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho the compiler is broken\nexit 3\n")
    compiler.chmod(0o755)
    run = suite("--dry-run", "--parts", "build,racecheck", "--out", tmp_path / "out", path=tmp_path)
    assert run.returncode == 1
    lines = [line for line in run.stdout.splitlines() if line.startswith(("ok ", "FAILED "))]
    assert lines[0].startswith("FAILED  build") and "exit status 3): the compiler is broken" in lines[0]
    assert lines[1].startswith("ok      racecheck") and len(lines) == 2
    assert "1 of the parts build,racecheck failed" in run.stdout


def test_rows_survive_a_killed_benchmark(tmp_path):
    out = tmp_path / "results.csv"
    command = [sys.executable, "-m", "bench.gpu_bench", "--device", "cpu", "--out", out]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    first = run.stdout.readline()  # printed when the row is in the file
    run.kill()
    run.wait()
    (row, *_) = read_rows(out)[1]
    assert first.startswith(f"{row['op']} {row['case']} {row['mode']} {row['dtype']} {row['peer']}: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_message_without_a_gpu(tmp_path):
    run = suite("--out", tmp_path)
    assert run.returncode == 2 and "sees no CUDA device; --dry-run" in run.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--fast",), "unknown argument --fast"),
        (("--parts", "lint"), "unknown part lint"),
        (("--out",), "needs a folder"),
    ],
)
def test_wrong_arguments(arguments, words):
    run = suite(*arguments)
    assert run.returncode != 0 and words in run.stderr
