# SPDX-License-Identifier: Apache-2.0
"""Tests of python -m tests.mutants: mutants, their outcomes, and resuming from a log."""

import json

import pytest

from tests.mutants import __main__ as campaign
from tests.mutants import calls
from tests.mutants.errors import Mutant, mutants_of, mutated

SOURCE = """def larger(a: int | None, b: int | None = 3) -> int | None:
    same: int | None = b
    return a if a > same else b + 0
"""
TEST = """from product import larger

def test_mutated_larger_function():
    assert larger(2, 1) == 2 and larger(1, 2) == 2
"""


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "product.py").write_text(SOURCE)
    (tmp_path / "test_product.py").write_text(TEST)
    return tmp_path


@pytest.fixture
def found(copy):
    pytest.importorskip("cosmic_ray", reason="errors are made by cosmic-ray (extra 'test')")
    return mutants_of(copy / "product.py", copy)


def test_annotations_are_left_alone(found):
    assert not [m for m in found if "Operator_BitOr" in m.operator]
    assert {m.line for m in found} == {1, 3}  # the default 3, and what is computed
    changed = {mutated(SOURCE, m) for m in found}
    assert len(changed) > 10 and SOURCE.replace("b + 0", "b - 0") in changed


def test_outcome_of_a_mutant(found, copy):
    results = {}
    for mutant in found:
        line = mutated(SOURCE, mutant).splitlines()[2]
        if line in ("    return a if a < same else b + 0", "    return a if a > same else b - 0"):
            results[line] = campaign.tried(mutant, copy, ["test_product.py"], 60)["outcome"]
    assert sorted(results.values()) == ["killed", "survived"] and (copy / "product.py").read_text() == SOURCE
    assert campaign.tried(found[0], copy, [], 60) == {"outcome": "uncovered"}


PRODUCT = """from functools import cache

ONE = 1

@cache
def imported():
    return ONE

def shared():
    return 2

def outer():
    def inner():
        return 3
    return inner

imported()
"""
TESTS = """import os, pytest, subprocess, sys, threading
from fastds import product

@pytest.fixture(scope="module")
def two():
    return product.shared()

def test_nothing(two):
    pass

def test_function():
    product.shared(), product.outer()

def test_thread():
    (thread := threading.Thread(target=product.outer)).start()
    thread.join()

def test_program():
    subprocess.run([sys.executable, "-c", "from fastds import product; product.outer()()"], check=True)

def test_killed():  # while it writes down what it called
    with open(os.path.join(os.environ["FASTDS_CALLS_TO"], "x.part"), "w") as cut:
        cut.write('["test_it.py::test_k')

def test_fork():
    if not (child := os.fork()):
        product.outer()
        os._exit(0)
    os.waitpid(child, 0)

@pytest.mark.parametrize("text", ["a - b", "c d"])
def test_failing(text):
    product.outer()
    assert text == "c d"
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    (tmp_path / "fastds").mkdir()
    (tmp_path / "fastds" / "__init__.py").touch()  # an installed fastds comes before a folder without
    (tmp_path / "fastds" / "product.py").write_text(PRODUCT)
    (tmp_path / "test_it.py").write_text(TESTS)
    monkeypatch.setattr(calls, "ROOT", tmp_path)
    monkeypatch.setattr(calls, "CACHE", tmp_path / "cache")
    calls.functions.cache_clear()
    return tmp_path


def names(tests):
    return {test.partition("::test_")[2] for test in tests}


def test_callers_of_a_function(tree, capsys):
    found = calls.measured("test_it.py")
    there = found["calls"]["fastds/product.py"]
    passed = {"nothing", "function", "thread", "program", "killed", "fork", "failing[c d]"}
    assert names(found["seconds"]) == passed == names(there["5"])  # imported: by all; line 5 is the decorator
    assert names(there["9"]) == passed and there["9"][0] == "test_it.py::test_function"  # fixtures come after tests
    assert names(there["12"]) == passed - {"nothing", "killed"} and names(there["13"]) == {"program"}
    assert "measured test_it.py: 7 tests" in capsys.readouterr().out
    assert calls.measured("test_it.py") == found and not capsys.readouterr().out  # from the cache
    (tree / "fastds" / "product.py").write_text(PRODUCT + "\n")
    calls.measured("test_it.py")
    assert "measured" in capsys.readouterr().out


def error_at(line):
    return Mutant("fastds/product.py", "core/NumberReplacer", 0, line)


def test_tests_selected_for_a_mutant(tree):
    there = {"fastds/product.py": {"9": ["a", "b"], "12": ["b", "c"], "13": []}}
    assert calls.callers(error_at(10), there) == ["a", "b"]
    assert calls.callers(error_at(14), there) == ["b", "c"]  # nobody calls the inner function
    assert calls.callers(error_at(3), there) == ["a", "b", "c"]  # a constant: all of the file
    assert calls.callers(error_at(7), there) == [] and calls.callers(error_at(3), {}) == []


def test_one_test_of_each_file_runs_first(tree):
    known = {
        "x": {"seconds": {"own": 30, "x2": 1}, "calls": {"fastds/product.py": {"9": ["own", "x2"]}}},
        "y": {"seconds": {"y1": 5, "y2": 8}, "calls": {"fastds/product.py": {"9": ["y1", "y2"], "12": ["y2"]}}},
        "z": {"seconds": {"z": 1}, "calls": {}},
    }
    assert calls.chosen(error_at(10), known, 100) == (["y1", "own", "x2", "y2"], 4)
    assert calls.chosen(error_at(10), known, 36) == (["y1", "own", "x2"], 4)
    assert calls.chosen(error_at(12), known, 1) == (["y2"], 1) and calls.chosen(error_at(7), known, 9) == ([], 0)


def test_log_is_read_and_summarised(tmp_path):
    places = [("fastds/a.py", 3, "killed"), ("fastds/b/c.py", 9, "survived"), ("fastds/b/d.py", 1, "killed")]
    lines = [
        json.dumps({"mutant": {"path": path, "operator": "core/AddNot", "occurrence": 0, "line": line},
                    "outcome": outcome, "what": "x  ->  not x", "tests": [2, 5]})
        for path, line, outcome in places
    ]  # fmt: skip
    (tmp_path / "log").write_text("\n".join(lines) + '\n{"mutant": {"pa')
    results = campaign.resumed(tmp_path / "log")
    assert [r["outcome"] for r in results.values()] == ["killed", "survived", "killed"]
    summary = campaign.summary(results).splitlines()
    assert [row.split()[:3] for row in summary[1:4]] == [
        ["fastds", "1", "0"],
        ["fastds/b", "1", "1"],
        ["all", "2", "1"],
    ]
    assert summary[4] == "survived, 2 of 5 tests: fastds/b/c.py:9 x  ->  not x"
    assert campaign.resumed(tmp_path / "none") == {}
