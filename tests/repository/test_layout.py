# SPDX-License-Identifier: Apache-2.0
"""Rules of the source tree: locations of files, import dependencies, and length of files."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastds

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sorted(p for top in ("fastds", "kernels", "tests", "bench") for p in (ROOT / top).rglob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"})
SOURCES = [*PYTHON, *NATIVE, ROOT / "setup.py"]

# Package under fastds -> packages that it may import. Imports inside functions count.
ARROWS = {
    "ops": {"_options", "kernels", "_import_hooks", "_suggestions", "_source_hash"},
    "nn": {"ops", "_suggestions"},
    "data": {"_options", "_argument_types", "_outputs", "_version", "_mixins", "ops"},
    "metrics": set(),
    "models": {
        "_html",
        "_options",
        "nn",
        "ops",
        "metrics",
        "data",
        "_argument_types",
        "_suggestions",
        "_outputs",
        "_version",
        "_mixins",
    },
    "plot": {"_options", "data", "metrics", "_outputs"},
    "report": {"_html", "_options", "data", "metrics", "plot", "_outputs", "_version"},
    "inference": {"_html", "_options", "data", "models", "report", "_argument_types", "_outputs", "info"},
    "training": {"_options", "data", "inference", "models", "plot", "report", "_suggestions", "_outputs", "_messages"},
    "tasks": {
        "_import_hooks",
        "_options",
        "data",
        "inference",
        "metrics",
        "models",
        "nn",
        "ops",
        "plot",
        "report",
        "training",
        "_argument_types",
        "_suggestions",
        "_outputs",
        "_parsers",
        "_messages",
        "_mixins",
        "_version",
        "memory",
        "info",
    },
    "archive": {"_options", "data", "inference", "tasks", "_outputs", "_version", "memory"},
    "watch": {
        "_options",
        "_parsers",
        "_command_arguments",
        "_unknown_names",
        "_messages",
        "_outputs",
        "_version",
        "archive",
        "data",
        "models",
        "tasks",
    },
    "studies": {
        "_options",
        "data",
        "inference",
        "metrics",
        "models",
        "plot",
        "report",
        "tasks",
        "training",
        "_suggestions",
        "_outputs",
    },
}
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PYTHON}


def imports(path):
    """Return the absolute dotted names that a Python file imports anywhere; `from a import b` gives a.b."""
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


def module_of(name):
    """Return the module of this checkout that a dotted name is or lies in, or None."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


@pytest.mark.parametrize(
    "op", sorted({p.name for p in (ROOT / "fastds" / "ops" / "impl").iterdir() if p.is_dir()} - {"__pycache__"})
)
def test_an_op_has_the_same_name_everywhere(op):
    folder = ROOT / "csrc" / op
    assert (folder / "params.h").is_file() and (folder / "bind.h").is_file() and list(folder.glob("cpu*.cpp"))
    assert f"inline void register_{op}(py::module_& m)" in (folder / "bind.h").read_text()
    files = {p.name for p in (ROOT / "fastds" / "ops" / "impl" / op).glob("*.py")}
    assert {"op.py", "reference.py"} <= files, files


@pytest.mark.parametrize("package", ARROWS)
def test_import_arrows(package):
    for path in (ROOT / "fastds" / package).rglob("*.py"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("fastds.")} - {package}
        assert used <= ARROWS[package], f"{relative(path)} imports fastds.{', fastds.'.join(used - ARROWS[package])}"


def test_no_import_circle():
    """Imports inside functions count; imports of the package `fastds` itself do not."""
    graph = {name: {module_of(n) for n in imports(path)} - {None, name, "fastds"} for name, path in MODULES.items()}
    done, open_, circles = set(), [], []

    def visit(name):
        if name in open_:
            circles.append(" -> ".join([*open_[open_.index(name) :], name]))
        elif name not in done:
            open_.append(name)
            for other in sorted(graph[name]):
                visit(other)
            open_.pop()
            done.add(name)

    for name in graph:
        visit(name)
    assert not circles, circles


def test_public_name_is_not_both_function_and_module():
    for package in (
        "fastds",
        "fastds.ops",
        "fastds.nn",
        "fastds.data",
        "fastds.metrics",
        "fastds.plot",
        "fastds.models",
    ):
        module = importlib.import_module(package)
        functions = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))}
        both = sorted(name for name in functions if f"{package}.{name}" in MODULES)
        assert not both, f"{package}: {both}"


def test_references_import_torch_alone():
    for path in (ROOT / "fastds" / "ops" / "impl").rglob("*reference.py"):
        used = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names
        assert used <= {"fastds", "torch"}, relative(path)


def test_kernels_import_torch_and_triton_only():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert {n.split(".")[0] for n in imports(path)} - sys.stdlib_module_names <= {"torch", "triton", "kernels"}, (
            relative(path)
        )


def test_nothing_imports_tests_or_bench():
    for path in (ROOT / "fastds").rglob("*.py"):
        allowed = {"_fastds"} if path.name == "native.py" else set()
        assert {n.split(".")[0] for n in imports(path)} & {"tests", "bench", "_fastds", "setup"} <= allowed, relative(
            path
        )


def test_subpackages_are_reachable_from_the_top():
    for name in ("data", "metrics", "models", "nn", "plot", "report", "studies", "tasks"):
        assert getattr(fastds, name).__name__ == f"fastds.{name}" and name in dir(fastds)
    with pytest.raises(AttributeError, match="module 'fastds' has no attribute 'modles'"):
        fastds.modles  # noqa: B018  misspelt on purpose


def test_native_code_includes_no_torch_header():
    for path in NATIVE:
        assert not re.search(r'#include *[<"](torch|ATen|c10)/', path.read_text()), relative(path)


def test_no_compiler_flag_changes_the_floating_point_environment():
    for path in [*NATIVE, ROOT / "setup.py"]:
        assert not re.search(r"ffast-math|Ofast|funsafe", path.read_text()), relative(path)


def faults(text, longest=800):
    """Return the violations of the rules in the text of a source file."""
    if text.count("\n") > longest:
        yield f"longer than {longest} lines: split it"
    if not re.match(r"(?:#|//) SPDX-License-Identifier: Apache-2.0\n", text) or text.count("\n# SPDX") + text.count(
        "\n// SPDX"
    ):
        yield "the licence is not its first line, once"
    if re.search(r"(?<![\w.])/(?:work|tmp|home|root)/[A-Za-z.]", text):
        yield "a path of one machine"


def test_files_follow_the_rules():
    found = {}
    for path in SOURCES:
        name = relative(path)
        found[name] = list(faults(path.read_text()))
    assert len(found) > 400 and not {name: problems for name, problems in found.items() if problems}


def test_file_checks_detect_every_fault():
    licence = "# SPDX-License-Identifier: Apache-2.0\n"
    assert list(faults(licence)) == []
    for text in ("", "\n" + licence, 2 * licence, licence + 801 * "\n", licence + "x = '/" + "tmp/x'"):
        assert len(list(faults(text))) == 1, text


def test_ci_script_parses():
    """The shell bash parses a script while it runs, so it would find an unterminated quote only at the end."""
    done = subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
