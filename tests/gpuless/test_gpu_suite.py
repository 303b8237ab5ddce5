# SPDX-License-Identifier: Apache-2.0
"""bench/gpu_suite.sh as far as a machine without a GPU can run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# Packages of ours that a machine with a GPU and torch need not have.
ABSENT = ("jsonargparse", "h5netcdf", "h5py", "lightning", "pytorch_lightning", "scores", "torchmetrics", "torchvision",
          "zarr", "cfgrib", "onnxruntime", "openvino", "scoringrules", "properscoring")  # fmt: skip


def suite(*arguments, path=None, modules=None):
    environment = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
    if modules is not None:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # zarr brings a plugin
        environment["PYTHONPATH"] = f"{modules}:{environment.get('PYTHONPATH', '')}"
    command = ["bash", ROOT / "bench" / "gpu_suite.sh", *arguments]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)


def test_dry_run(tmp_path):
    """With the packages alone that the suite asks for."""
    Path(tmp_path, "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    run = suite("--dry-run", "--out", tmp_path, modules=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    started = {line.split()[1]: line for line in lines if line.startswith(("ok ", "FAILED "))}
    assert list(started) == ["build", "tests", "bench", "memcheck", "racecheck"]
    assert all(line.startswith("ok ") for line in started.values())
    assert "those of torch" in started["build"] and re.search(r"\d\d passed", started["tests"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["ceilings"]) == {"GB/s", "float32", "float16", "bfloat16"}
    modules = {path.stem for path in (ROOT / "bench" / "gpu_rows").glob("[a-z]*.py")}
    ops = {row["op"].split()[0] for row in results["rows"]}
    assert modules - {"gates"} <= ops and {"lstm_gates", "gru_update"} <= ops, ops
    assert all(row["error"] < 0.1 and row["median_ms"] > 0 for row in results["rows"])
    table = (tmp_path / "table.md").read_text()
    assert "torch eager" in table and table.strip() in run.stdout
    assert not list((ROOT / "bench" / "results").glob("*dry*")), "a dry run is no result"


def test_failed_part_is_one_line_and_the_rest_goes_on(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho the compiler is broken\nexit 3\n")
    compiler.chmod(0o755)
    run = suite("--dry-run", "--parts", "build,racecheck", "--out", tmp_path / "out", path=tmp_path)
    assert run.returncode == 1
    lines = [line for line in run.stdout.splitlines() if line.startswith(("ok ", "FAILED "))]
    assert lines[0].startswith("FAILED  build") and "exit status 3): the compiler is broken" in lines[0]
    assert lines[1].startswith("ok      racecheck") and len(lines) == 2
    assert "1 of the parts build,racecheck failed" in run.stdout


def test_rows_stay_when_the_benchmarks_are_killed(tmp_path):
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "bench.gpu_bench", "--device", "cpu", "--out", out]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    first = run.stdout.readline()  # printed when the row is in the file
    run.kill()
    run.wait()
    (row, *_) = json.loads(out.read_text())["rows"]
    assert first.startswith(f"{row['op']} {row['case']} {row['mode']} {row['dtype']} {row['peer']}: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
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
