# SPDX-License-Identifier: Apache-2.0
"""Tests that a renamed copy of the template op builds and passes its tests, as csrc/README.md describes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"null_op": "copied_op", "NullOp": "CopiedOp", "NULL_OP": "COPIED_OP"}
TEMPLATE = (
    "csrc/null_op", "kernels/null_op.py", "fastds/ops/impl/null_op", "tests/ops/test_null_op.py",
    "tests/fuzz/ops/null_op.py",
)  # fmt: skip
BOTH = """
import fastds, torch

def test_both():
    assert fastds.ops.copied_op(torch.ones(1)).tolist() == fastds.ops.null_op(torch.ones(1)).tolist() == [1.0]
"""
TESTS = ("tests/ops/test_both.py", "tests/ops/test_copied_op.py")
OF_ALL = ("test_fuzz.py", "test_registered_ops.py", "test_explain.py")  # tests of all ops, which find the new one
BUILD_MINUTES, TEST_MINUTES = 10, 5


def renamed(text):
    for old, new in NAMES.items():
        text = text.replace(old, new)
    return text


def copy_of_the_template(checkout):
    """Do step 1 of the instructions."""
    for place in TEMPLATE:
        source = checkout / place
        files = [source] if source.is_file() else [p for p in source.rglob("*") if p.is_file()]
        for file in files:
            target = checkout / renamed(file.relative_to(checkout).as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(file.read_text()))


@pytest.fixture
def checkout(tmp_path):
    """Copy the checkout without the native code of the other ops, which shortens the compilation."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("fastds", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("core", "null_op"):
        shutil.copytree(ROOT / "csrc" / name, tmp_path / "csrc" / name)
    for name in ("csrc/bind.cpp", "setup.py", "pyproject.toml", "README.md", "tests/conftest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tests" / "ops").mkdir()
    for name in ("test_null_op.py", *OF_ALL):
        shutil.copy(ROOT / "tests" / "ops" / name, tmp_path / "tests" / "ops" / name)
    for name in ("fuzz", "support"):
        shutil.copytree(ROOT / "tests" / name, tmp_path / "tests" / name, ignore=ignore)
    for path in (tmp_path / "tests" / "fuzz" / "ops").glob("[!_]*.py"):
        if path.stem != "null_op":
            path.unlink()
    return tmp_path


def run(checkout, minutes, *command):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(checkout), "FASTDS_REQUIRE_NATIVE": "1", "FASTDS_CUDA": "0"}
    environment["FASTDS_DEBUG"] = "1"  # unoptimised: a quicker build
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60 * minutes
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.skipif(
    not (ROOT / "setup.py").is_file() or importlib.util.find_spec("ninja") is None or shutil.which("g++") is None,
    reason="needs the sources, g++ and ninja",
)
def test_copied_template_builds_and_passes(checkout):
    copy_of_the_template(checkout)
    run(checkout, BUILD_MINUTES, "setup.py", "-q", "build_ext", "--inplace")
    (checkout / "tests" / "ops" / "test_both.py").write_text(BOTH)
    results = run(checkout, TEST_MINUTES, "-m", "pytest", "-v", "-p", "no:cacheprovider", *TESTS)
    assert "test_both.py::test_both PASSED" in results and "failed" not in results
    assert results.count("test_copied_op.py::") > 10
    files = [f"tests/ops/{name}" for name in OF_ALL]
    results = run(checkout, TEST_MINUTES, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "copied_op", *files)
    for test in (
        "test_fuzz_calls_agree_with_the_reference[copied_op-special]",
        "test_schema_change_is_detected[copied_op_backward]",
        "test_explain_names_the_backend_of_every_op[copied_op]",
    ):
        assert f"{test} PASSED" in results, test


def test_template_name_has_one_spelling():
    for place in TEMPLATE:
        source = ROOT / place
        files = [source] if source.is_file() else [p for p in source.rglob("*") if p.suffix in {".py", ".h", ".cpp"}]
        for file in files:
            text = renamed(file.read_text()).lower().replace("nullptr", "")
            assert "null" not in text, file


def test_recipe_lists_the_copied_files():
    recipe = (ROOT / "csrc" / "README.md").read_text()
    assert all(place in recipe for place in TEMPLATE) and all(f"`{name}`" in recipe for name in NAMES)
