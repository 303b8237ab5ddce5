# SPDX-License-Identifier: Apache-2.0
"""Runs a few random calls of tests.fuzz and tests its comparison."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastds import ops
from fastds.ops.core.backends import forced_backend
from tests.fuzz import compare
from tests.fuzz.campaign import campaign, case_of, one, resumed, summary
from tests.fuzz.strategies import KINDS, STRATEGIES, draw
from tests.support import forked

pytestmark = pytest.mark.filterwarnings("ignore:fastds.")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("op", STRATEGIES)
def test_fuzz_calls_agree_with_the_reference(op, kind, native):
    @settings(max_examples=20, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def right(choose):
        case = draw(op, kind, choose)
        assert compare.check_call(case, kind) is None, case

    right()


def test_every_public_op_has_a_strategy():
    functions = {name for name in ops.__all__ if name[0].islower()}
    assert functions == set(STRATEGIES)


@pytest.mark.parametrize(
    "kind,op,wrong",
    [
        ("valid", "lstm_gates", lambda h, c: (h, c + 1e-3)),
        ("special", "null_op", lambda x: x.nan_to_num(0)),
        ("valid", "pixel_shuffle", lambda y: y.mT if y.shape[2] == y.shape[3] else y[:, :, 1:]),
    ],
)
def test_fuzz_detects_wrong_results(kind, op, wrong, native, monkeypatch):
    right = getattr(ops, op)

    def planted(*args, **kwargs):
        y = right(*args, **kwargs)
        return y if forced_backend() else wrong(y) if isinstance(y, torch.Tensor) else wrong(*y)

    monkeypatch.setattr(ops, op, planted)
    found = [one(0, op, kind, number) for number in range(40)]
    assert "wrong" in {f[0] for f in found if f}


def test_fuzz_detects_unclear_error_messages(native, monkeypatch):
    def refused(**kwargs):
        raise ValueError("no")

    monkeypatch.setattr(ops, "null_op", refused)
    assert one(0, "null_op", "invalid", 0)[0] == "unclear"


def test_fuzz_call_is_reproducible():
    assert case_of(1, "conv3x3", "valid", 7) == case_of(1, "conv3x3", "valid", 7) != case_of(2, "conv3x3", "valid", 7)


MODULE = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("tests.fuzz", run_name="__main__", alter_sys=True)
"""


def test_killed_fuzz_campaign_resumes(tmp_path, native):
    """The log has a line for a crashed call, and a last line that was cut off by the kill."""
    log = tmp_path / "log.jsonl"
    name = {"seed": 0, "op": "null_op", "kind": "valid"}
    lines = [name | {"number": 3, "outcome": "crashed", "what": "-11"}, name | {"stop": 5, "faults": {"crashed": 1}}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"seed": 0, "op": "nu')
    root = Path(__file__).resolve().parents[2]
    words = ["--calls", "24", "--ops", "null_op", "--log", log]
    run = forked.run(MODULE, root, *words, imports=forked.TORCH)
    made, counts = resumed(log, 0)
    assert made == {("null_op", kind): 8 for kind in KINDS}, run.stderr
    assert counts["null_op", "valid", "crashed"] == 1 and run.returncode == 1
    assert summary(made, counts) in run.stdout


def test_fuzz_log_of_another_seed_is_rejected(tmp_path, native):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"seed": 1, "op": "null_op", "kind": "valid", "stop": 5, "faults": {}}) + "\n")
    with pytest.raises(SystemExit, match="is of seed 1, expected 0"):
        campaign(3, 0, ["null_op"], log)
