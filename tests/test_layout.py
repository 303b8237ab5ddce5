# SPDX-License-Identifier: Apache-2.0
"""The house rules that a machine can check: where files are, who imports whom, how long they get."""

import ast
import re
import sys
from pathlib import Path

import pytest

import fastds
import fastds.ops

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sorted(p for top in ("fastds", "kernels", "tests", "bench") for p in (ROOT / top).rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"})
SOURCES = [*PYTHON, *NATIVE, ROOT / "setup.py"]

# Packages under fastds and what of fastds they may import; models also reach up to the commands, inside functions.
ARROWS = {
    "reference": {"reference"},
    "ops": {"ops", "reference", "kernels", "_native", "_registry", "backend", "convolution"},
    "nn": {"nn", "ops", "reference"},
    "models": {"models", "nn", "ops", "reference", "metrics", "data", "_version", "downscaling", "nowcasting"},
    "data": {"data", "_version"},
    "metrics": {"metrics"},
    "plot": {"plot", "data", "metrics"},
}


def imports(path):
    """Absolute dotted names that a Python file imports anywhere; `from a import b` gives a.b."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def relative(path):
    return path.relative_to(ROOT).as_posix()


# Public names that live in the file of another one.
GUESTS = {"pixel_unshuffle", "conv_memory_gates", "conv_output_gate", "GridSpec", "PointSpec"}


@pytest.mark.parametrize("op", sorted(set(fastds.ops.__all__) - GUESTS))
def test_op_siblings(op):
    for path in (f"fastds/ops/{op}.py", f"fastds/reference/{op}.py", f"tests/test_{op}.py"):
        assert (ROOT / path).is_file(), path
    shared = "fastds.ops._gates" in (ROOT / f"fastds/ops/{op}.py").read_text()  # one folder for all pointwise passes
    op = "gates" if shared else op
    folder = ROOT / "csrc" / op
    assert (folder / "params.h").is_file() and (folder / "bind.h").is_file() and list(folder.glob("cpu*.cpp"))
    assert f"inline void register_{op}(py::module_& m)" in (folder / "bind.h").read_text()


@pytest.mark.parametrize("package", ARROWS)
def test_import_arrows(package):
    for path in (ROOT / "fastds" / package).rglob("*.py"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("fastds.")}
        assert used <= ARROWS[package], f"{relative(path)} imports fastds.{', fastds.'.join(used - ARROWS[package])}"
    if package == "reference":
        for path in (ROOT / "fastds" / package).rglob("*.py"):
            used = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
            assert used <= {"fastds", "torch"}, relative(path)


def test_kernels_import_torch_and_triton_only():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert {n.split(".")[0] for n in imports(path)} - sys.stdlib_module_names <= {"torch", "triton", "kernels"}, (
            relative(path)
        )


def test_nothing_imports_tests_or_bench():
    for path in (ROOT / "fastds").rglob("*.py"):
        allowed = {"_fastds"} if path.name == "_native.py" else set()
        assert {n.split(".")[0] for n in imports(path)} & {"tests", "bench", "_fastds", "setup"} <= allowed, relative(
            path
        )


def test_subpackages_are_reachable_from_the_top():
    for name in ("data", "metrics", "models", "nn", "plot", "reference", "training"):
        assert getattr(fastds, name).__name__ == f"fastds.{name}" and name in dir(fastds)
    with pytest.raises(AttributeError, match="module 'fastds' has no attribute 'modles'"):
        fastds.modles  # noqa: B018  misspelt on purpose


def test_native_code_knows_nothing_of_torch():
    for path in NATIVE:
        assert not re.search(r'#include *[<"](torch|ATen|c10)/', path.read_text()), relative(path)


def test_no_flag_that_changes_floating_point_for_the_process():
    for path in [*NATIVE, ROOT / "setup.py"]:
        assert not re.search(r"ffast-math|Ofast|funsafe", path.read_text()), relative(path)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_file(path):
    text = path.read_text()
    assert text.count("\n") <= 500, "longer than 500 lines: split it"
    assert len(re.findall(r"^(?:#|//) SPDX", text, re.M)) <= 1
    assert not re.search(r"(?<![\w.])/(?:work|tmp|home|root)/[A-Za-z.]", text), "a path of one machine"
