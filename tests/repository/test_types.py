# SPDX-License-Identifier: Apache-2.0
"""Tests of types: signatures of public functions, and mypy on the package and on the program of a user."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastds import _accessor, _mixins, nn

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ("fastds", "fastds.ops", "fastds.nn", "fastds.models", "fastds.models.baselines", "fastds.data",
          "fastds.metrics", "fastds.plot", "fastds.report")  # fmt: skip
# Functions that pass further arguments on to a callable of the caller's choice, which defines and checks them.
FORWARDING = {"compile_graph", "create", "explain"}


def public_functions(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif inspect.isclass(thing) and thing.__module__.startswith("fastds"):
            for method, function in vars(thing).items():
                if inspect.isfunction(function) and (not method.startswith("_") or method == "__init__"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize("package", PUBLIC)
def test_public_functions_are_annotated(package):
    bare = []
    for name, function in public_functions(package):
        if function.__module__.partition(".")[0] != "fastds" or function.__qualname__.startswith("__create_fn__"):
            continue
        signature = inspect.signature(function)
        missing = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        if signature.return_annotation is signature.empty and not name.endswith("__init__"):
            missing.append("return")
        if missing:
            bare.append(f"{name}: {', '.join(missing)}")
    assert not bare, bare


METHODS = (
    (_accessor.Accessor, ("downscale", "nowcast", "query", "evaluate", "plot", "check")),
    (_mixins.DownscaleMixin, ("downscale",)),
    (_mixins.NowcastMixin, ("nowcast",)),
)
FUNCTIONS = ("fastds.tasks.fit:fit", "fastds.tasks.finetune:finetune", "fastds.archive.evaluation:evaluate_archive")


def list_documented_functions():
    """Yield the name and the function of each public function and method."""
    for package in PUBLIC:
        for name, function in public_functions(package):
            kind, _, method = name.rpartition(".")
            if function.__module__.partition(".")[0] != "fastds" or method == "__init__":
                continue  # the docstring of the class describes the arguments of __init__
            if not kind or package in ("fastds.ops", "fastds.nn"):
                yield f"{package}.{name}", function
    for kind, names in METHODS:
        for name in names:
            yield f"{kind.__name__}.{name}", getattr(kind, name)
    for location in FUNCTIONS:
        module, name = location.split(":")
        yield location, getattr(importlib.import_module(module), name)


def find_undocumented(function):
    """Return the parameters that the section Args of the docstring does not name."""
    arguments = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
    named = {n.strip().lstrip("*") for line in re.findall(r"^    (\S[^:]*):", arguments, re.M) for n in line.split(",")}
    return [name for name in inspect.signature(function).parameters if name != "self" and name not in named]


def test_public_functions_have_explicit_parameters():
    failures = []
    for name, function in list_documented_functions():
        parameters = inspect.signature(function).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters) and function.__name__ not in FORWARDING:
            failures.append(f"{name} takes arguments without names")
        if missing := find_undocumented(function):
            failures.append(f"{name}: Args does not name {', '.join(missing)}")
    for name in nn.__all__:
        kind = getattr(nn, name)
        if missing := find_undocumented(kind):
            failures.append(f"fastds.nn.{name}: Args does not name {', '.join(missing)}")
    assert not failures, "\n".join(failures)


def test_package_and_user_program_pass_mypy():
    """Check all modules of fastds and tests/typing."""
    pytest.importorskip("mypy", reason="mypy belongs to the extra test")
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, "--config-file", ROOT / "pyproject.toml"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
