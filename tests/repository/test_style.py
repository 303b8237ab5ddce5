# SPDX-License-Identifier: Apache-2.0
"""Tests of the style of the sources: ruff's rules and format, and spelling."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (".py", ".md", ".h", ".cuh", ".cpp", ".cu", ".toml", ".yaml", ".yml", ".sh", ".txt")
COMMANDS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "."],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_ruff_accepts_the_sources(name):
    pytest.importorskip("ruff", reason="ruff belongs to the extra test")
    run = subprocess.run(COMMANDS[name], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_codespell_accepts_the_sources():
    if importlib.util.find_spec("codespell_lib") is None:
        pytest.skip("codespell belongs to the extra test")
    tops = ("fastds", "kernels", "csrc", "tests", "bench", "docs")
    files = [p for top in tops for p in (ROOT / top).rglob("*") if p.suffix in TEXTS and "_build" not in p.parts]
    files += [p for p in ROOT.iterdir() if p.suffix in TEXTS]
    run = subprocess.run(
        [sys.executable, "-m", "codespell_lib", "--toml", ROOT / "pyproject.toml", *files],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
