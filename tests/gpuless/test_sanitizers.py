# SPDX-License-Identifier: Apache-2.0
"""Runs the tests marked "sanitized" again with emulated kernels built with ASan and UBSan."""

import re
from pathlib import Path

import pytest
from gpuless.emu import CSRC, LAUNCHED, kernels_of, sanitized_run, sanitizing


@pytest.mark.skipif(sanitizing(), reason="this is that process")
def test_marked_tests_pass_the_sanitizer(tmp_path, monkeypatch):
    """The marked tests must also start every CUDA kernel of csrc."""
    launched = tmp_path / "launched"
    monkeypatch.setenv(LAUNCHED, str(launched))
    options = ["-q", "-x", "-p", "no:cacheprovider", "-s", "--durations=0"]
    marked = [path for path in Path(__file__).parent.glob("test_*.py") if "pytest.mark.sanitized" in path.read_text()]
    done = sanitized_run(["-m", "pytest", *options, "-m", "sanitized", *marked])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.search(r"[1-9]\d* passed", done.stdout), done.stdout
    kernels = {name for path in CSRC.glob("*/*.cuh") for name in kernels_of(path.parent.name)}
    assert len(kernels) >= 14 and kernels == set(launched.read_text().split())
