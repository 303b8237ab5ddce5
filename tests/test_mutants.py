# SPDX-License-Identifier: Apache-2.0
"""python -m tests.mutants: which errors there are, what becomes of one, a log that is resumed."""

import json

import mutants
import pytest
from mutants import Mutant

SOURCE = """def larger(a: int | None, b: int | None = 3) -> int | None:
    same: int | None = b
    return a if a > same else b + 0
"""
TEST = """from product import larger

def test_larger():
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
    return mutants.mutants_of(copy / "product.py", copy)


def test_annotations_are_left_alone(found):
    assert not [m for m in found if "Operator_BitOr" in m.operator]
    assert {m.line for m in found} == {1, 3}  # the default 3, and what is computed
    changed = {mutants.mutated(SOURCE, m) for m in found}
    assert len(changed) > 10 and SOURCE.replace("b + 0", "b - 0") in changed


def test_what_becomes_of_an_error(found, copy):
    results = {}
    for mutant in found:
        line = mutants.mutated(SOURCE, mutant).splitlines()[2]
        if line in ("    return a if a < same else b + 0", "    return a if a > same else b - 0"):
            results[line] = mutants.tried(mutant, copy, ["test_product.py"], 60)["outcome"]
    assert sorted(results.values()) == ["killed", "survived"] and (copy / "product.py").read_text() == SOURCE
    assert mutants.tried(found[0], copy, [], 60) == {"outcome": "uncovered"}


def test_files_that_run_most_of_the_file_a_second_are_tried_first(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text("def f(\n    a,\n):\n    x = [\n        1,\n    ]\n    return x\n")
    known = {
        name: {"passed": passed, "seconds": seconds, "lines": {"a.py": lines}}
        for name, passed, seconds, lines in (
            ("slow", True, 50, [4]), ("own", True, 2, [1, 4, 7]), ("broken", False, 1, [4]), ("other", True, 1, [1, 7]),
            ("quick", True, 1, [4])
        )
    }  # fmt: skip
    mutant = Mutant("a.py", "core/NumberReplacer", 0, 5)
    assert mutants.covering(mutant, known, 60) == (["own", "quick", "slow"], 3)
    assert mutants.covering(mutant, known, 52) == (["own", "quick"], 3)
    assert mutants.covering(mutant, known, 1) == (["own"], 3) and mutants.covering(mutant, {}, 9) == ([], 0)
    known["slow"]["lines"]["a.py"] = list(range(90))
    assert mutants.covering(mutant, known, 51) == (["slow", "quick"], 3)  # the second takes more than is left


def test_a_log_is_read_back_and_summed_up(tmp_path):
    places = [("fastds/a.py", 3, "killed"), ("fastds/b/c.py", 9, "survived"), ("fastds/b/d.py", 1, "killed")]
    lines = [
        json.dumps({"mutant": {"path": path, "operator": "core/AddNot", "occurrence": 0, "line": line},
                    "outcome": outcome, "what": "x  ->  not x", "files": [2, 5]})
        for path, line, outcome in places
    ]  # fmt: skip
    (tmp_path / "log").write_text("\n".join(lines) + '\n{"mutant": {"pa')
    results = mutants.resumed(tmp_path / "log")
    assert [r["outcome"] for r in results.values()] == ["killed", "survived", "killed"]
    said = mutants.summary(results).splitlines()
    assert [line.split()[:3] for line in said[1:4]] == [["fastds", "1", "0"], ["fastds/b", "1", "1"], ["all", "2", "1"]]
    assert said[4] == "survived, 2 of 5 files: fastds/b/c.py:9 x  ->  not x"
    assert mutants.resumed(tmp_path / "none") == {}
