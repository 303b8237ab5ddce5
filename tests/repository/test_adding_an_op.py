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
    "tests/fuzz/ops/null_op.py", "tests/gpuless/test_null_op_emulated.py", "tests/gpuless/test_compile_null_op.py",
    "tests/gpu/test_null_op.py",
)  # fmt: skip
LISTS = ("fastds/ops/__init__.py", "tests/nn/test_fx.py", "tests/ops/test_flops.py")  # each has a line for each op
BOTH = """
import fastds, torch

def test_both():
    assert fastds.ops.copied_op(torch.ones(1)).tolist() == fastds.ops.null_op(torch.ones(1)).tolist() == [1.0]
"""
TESTS = ("tests/ops/test_both.py", "tests/ops/test_copied_op.py")
# Test file that covers all ops -> one of its tests that must pass for the new op.
OF_ALL = {
    "tests/ops/test_fuzz.py": "test_fuzz_calls_agree_with_the_reference[copied_op-special]",
    "tests/ops/test_registered_ops.py": "test_schema_change_is_detected[copied_op_backward]",
    "tests/ops/test_explain.py": "test_explain_names_the_backend_of_every_op[copied_op]",
    "tests/ops/test_flops.py": "test_every_op_of_products_is_counted",
    "tests/nn/test_fx.py": "test_fx_op_is_one_node[copied_op]",
}
WITHOUT_GPU = {
    "tests/gpuless/test_copied_op_emulated.py": "test_cuda_kernel_agrees_with_the_reference[torch.bfloat16]",
    "tests/gpuless/test_compile_copied_op.py": "test_triton_kernel_compiles[torch.bfloat16-90]",
}
SELECTED = "copied_op or test_every_op_of_products_is_counted or test_fx_covers_every_op"
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


def add_to_the_lists(checkout):
    """Do step 4 of the instructions: repeat each line of a list that names the template."""
    for place in LISTS:
        lines = (checkout / place).read_text().splitlines()
        added = [line for old in lines for line in ([old, renamed(old)] if "null_op" in old else [old])]
        assert len(added) == len(lines) + 1, f"{place} names the template in more than one line"
        (checkout / place).write_text("\n".join(added) + "\n")


@pytest.fixture
def checkout(tmp_path):
    """Copy the checkout without the native code of the other ops, which shortens the compilation."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("fastds", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("core", "emu", "null_op"):
        shutil.copytree(ROOT / "csrc" / name, tmp_path / "csrc" / name)
    for name in ("csrc/bind.cpp", "setup.py", "pyproject.toml", "README.md", "tests/conftest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("tests/ops/test_null_op.py", "tests/gpu/test_null_op.py", *OF_ALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("fuzz", "support", "gpuless"):
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
    add_to_the_lists(checkout)
    run(checkout, BUILD_MINUTES, "setup.py", "-q", "build_ext", "--inplace")
    (checkout / "tests" / "ops" / "test_both.py").write_text(BOTH)
    results = run(checkout, TEST_MINUTES, "-m", "pytest", "-v", "-p", "no:cacheprovider", *TESTS)
    assert "test_both.py::test_both PASSED" in results and "failed" not in results
    assert results.count("test_copied_op.py::") > 10
    results = run(checkout, TEST_MINUTES, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", SELECTED, *OF_ALL)
    for file, test in OF_ALL.items():
        assert f"{file}::{test} PASSED" in results, test
    if importlib.util.find_spec("triton") is None:
        return
    results = run(checkout, TEST_MINUTES, "-m", "pytest", "-v", "-p", "no:cacheprovider", *WITHOUT_GPU)
    for file, test in WITHOUT_GPU.items():
        assert f"{file}::{test} PASSED" in results, test


def test_template_name_has_one_spelling():
    for place in TEMPLATE:
        source = ROOT / place
        files = [source] if source.is_file() else [p for p in source.rglob("*") if p.suffix in {".py", ".h", ".cpp"}]
        for file in files:
            text = renamed(file.read_text()).lower().replace("nullptr", "")
            assert "null" not in text, file


def test_recipe_lists_the_copied_files():
    recipe = (ROOT / "csrc" / "README.md").read_text()
    assert all(f"`{name}`" in recipe for name in NAMES)
    assert all(place in recipe for place in (*TEMPLATE, *LISTS))
