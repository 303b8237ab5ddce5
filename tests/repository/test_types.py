# SPDX-License-Identifier: Apache-2.0
"""Types of the public interface: all public functions are annotated, and mypy accepts a user's program."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ("fastds", "fastds.ops", "fastds.nn", "fastds.models", "fastds.models.baselines", "fastds.data",
          "fastds.metrics", "fastds.plot", "fastds.report")  # fmt: skip


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


def test_user_program_passes_mypy():
    pytest.importorskip("mypy", reason="mypy belongs to the extra test")
    program = ROOT / "tests" / "typing" / "users_program.py"
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", os.devnull, "--config-file", ROOT / "pyproject.toml", program],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
