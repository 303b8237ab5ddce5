# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.explain."""

from contextlib import nullcontext
from random import Random

import pytest
import torch

import fastds
from fastds.ops.core import registry
from fastds.ops.impl.conv2d import kernels
from tests.fuzz.cases import DTYPES, build
from tests.fuzz.strategies import STRATEGIES, draw


@pytest.mark.filterwarnings("ignore:fastds.")
@pytest.mark.parametrize("op", STRATEGIES)
def test_explain_names_the_backend_of_every_op(op, native, monkeypatch):
    monkeypatch.setattr(kernels, "is_op_faster", lambda *args: True)  # else conv2d may leave it to torch
    chosen, choose = [], registry.select_backend
    monkeypatch.setattr(registry, "select_backend", lambda op, args: chosen.append(choose(op, args)) or chosen[-1])
    for seed in range(6):
        case = draw(op, "valid", Random(seed))
        arguments = build(case)
        with torch.autocast("cpu", DTYPES[case.autocast]) if case.autocast else nullcontext():
            reasons = fastds.explain(op, **arguments)
            assert not chosen  # nothing is computed
            getattr(fastds.ops, op)(**arguments)
        assert reasons[chosen[0]] == "chosen" and list(reasons.values()).count("chosen") == 1
        assert reasons["reference"] in ("chosen", "usable")
        chosen.clear()


def test_explain_accepts_positional_arguments():
    x = torch.rand(1, 4, 8, 8)
    assert "native" in fastds.explain("pixel_shuffle", x, 2)
    assert "native" in fastds.explain("conv3x3", x, torch.rand(2, 4, 3, 3), activation="relu")
    with fastds.use_backend("reference"):
        assert fastds.explain("conv1x1", x, torch.rand(2, 4, 1, 1))["reference"] == "chosen"


def test_explain_shows_the_signature_for_wrong_arguments():
    with pytest.raises(TypeError, match=r"arguments do not fit .*; of the function: conv3x3\(x: .*, weight: "):
        fastds.explain("conv3x3", torch.rand(1, 4, 8, 8))
    with pytest.raises(TypeError, match="gates_weight"):
        fastds.explain("conv_gru_cell", torch.rand(1, 4, 8, 8))
    with pytest.raises(TypeError, match="x is an int, expected a Tensor"):
        fastds.explain("conv3x3", 3, torch.rand(2, 4, 3, 3))


def test_explain_reports_the_reference_inside_transforms():
    def explain_inside(x):
        with pytest.raises(RuntimeError, match="inside a functorch transform the reference runs"):
            fastds.explain("null_op", x)
        return x

    torch.func.vmap(explain_inside)(torch.ones(2, 3))
