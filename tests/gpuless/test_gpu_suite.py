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
PARTS = ["build", "profile", "bench", "smoke", "memcheck", "tests", "others", "racecheck"]
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
    run = suite("--dry-run", "--parts", ",".join(PARTS), "--out", tmp_path, modules=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    started = {line.split()[1]: line for line in lines if line.startswith(("ok ", "FAILED "))}
    assert list(started) == PARTS
    assert all(line.startswith("ok ") for line in started.values())
    assert "those of torch" in started["build"] and re.search(r"\d\d passed", started["tests"])
    assert re.search(r" \d\d/\d+ tests collected", started["smoke"])
    profiled = (tmp_path / "profile.log").read_text().splitlines()
    assert [line.split()[1] for line in profiled] == ["deform_conv2d", "conv3x3", "conv_lstm_cell"]
    (ceilings, results), (_, others) = (read_rows(tmp_path / f"{name}.csv") for name in ("first", "others"))
    keys = [{tuple(row[k] for k in LABEL) for row in rows} for rows in (results, others)]
    assert keys[0] and keys[1] and not keys[0] & keys[1]
    assert {(row["case"], row["dtype"]) for row in ceilings} == {
        ("copy", "float32"), ("product", "float32"), ("product", "float16"), ("product", "bfloat16")
    }  # fmt: skip
    assert {row["device"] for row in results} == {"dry run on a CPU"} and not any(row["threads"] for row in results)
    modules = {path.stem for path in (ROOT / "bench" / "gpu_rows").glob("[a-z]*.py")}
    ops = {row["op"].split()[0] for row in results + others}
    assert modules - {"gates"} <= ops and "lstm_gates" in ops, ops
    order = list(dict.fromkeys(row["op"].split()[0] for row in results))
    assert order[0] == "deform_conv2d" and order[-2:] == ["fczsm", "db_rnn"], order
    for part, log in (("first", "bench"), ("others", "others")):  # all rows of a GPU ran, but those of torchvision
        text = (tmp_path / f"{log}.log").read_text()
        assert "FAILED" not in text
        left_out = re.findall(r"LEFT OUT (.*): torchvision cannot be imported", text)
        assert all("torchvision" in label for label in left_out) and text.count("LEFT OUT") == len(left_out)
        rows = len(read_rows(tmp_path / f"{part}_none.csv")[1])
        assert (part == "others" or left_out) and rows > 50, (part, rows)
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
rows = gpu_bench.make_rows(False, None, "all")
first = gpu_bench.make_rows(False, None, "first")
assert {row.op for row in first} >= {"deform_conv2d", "conv3x3", "lstm_gates", "fczsm", "db_rnn convlstm"}
assert len(rows) == len(first) + len(gpu_bench.make_rows(False, None, "others"))
labels = [gpu_bench.format_label(row) for row in rows]
assert len(set(labels)) == len(labels), sorted(label for label in labels if labels.count(label) > 1)
assert all("stream" in row.timing for row in rows if "torchvision" in row.peer)
model = fczsm.make_cached_network(False)
assert count_flops(model.state_dict(), model.config, 2, 8, 8) == 64 * fczsm.FLOPS_PER_PIXEL
for (op, mode), peers in gpu_bench.PROFILED.items():
    for peer in peers:
        assert any((row.op, row.mode, row.peer) == (op, mode, peer) for row in rows), (op, peer)
"""
    done = forked.run(code, ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def gpu_bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from bench import gpu_bench

    return gpu_bench


@pytest.fixture
def measure(gpu_bench):
    """Return a function that measures a row with the result (1, 1, 1) on a CPU, and returns its error."""

    def run(build, **options):
        expected = torch.ones(3, dtype=torch.float64)
        options |= {"expected": lambda device: expected, "reference_key": ("planted",), "tolerance": 0.1}
        row = gpu_bench.Row("op", "case", "forward", "float32", "peer", build, flops=1, bytes=1, **options)
        return gpu_bench.measure(row, gpu_bench.CpuTimer(), {"GB/s": 1.0, "float32": 1.0}, {})["error"]

    return run


def test_call_that_computes_nothing_fails_its_row(gpu_bench, measure, monkeypatch):
    """As a graph that does not contain the kernels, because they were started on another stream."""
    y = torch.empty(3)
    assert measure(lambda device: lambda: y.fill_(1)) == 0
    monkeypatch.setattr(gpu_bench.CpuTimer, "prepare", lambda self, run, timing: (lambda: graph, "graph"))
    graph = torch.ones(3)  # the memory that the capture wrote, and no replay writes again
    with pytest.raises(AssertionError, match="error nan of the call to time"):
        measure(lambda device: lambda: torch.ones(3))


def test_buffers_of_an_own_graph_are_poisoned(measure):
    buffer = torch.ones(3)
    assert measure(lambda device: buffer.clone) == 0
    with pytest.raises(AssertionError, match="error nan of the call to time"):
        measure(lambda device: buffer.clone, buffers=lambda run: [buffer])


def test_inputs_that_a_call_returns_are_not_poisoned(gpu_bench):
    x = torch.ones(3)
    gpu_bench.poison([x], [x])
    assert x.isfinite().all()
    gpu_bench.poison([x], [x.clone()])
    assert x.isnan().all()


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
    log, end = tmp_path / "tests.log", time.monotonic() + 600
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
