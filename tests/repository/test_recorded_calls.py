# SPDX-License-Identifier: Apache-2.0
"""Tests that compile_graph uses the algorithm of the original call, with random benchmark calls."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fastds

OPS = (
    "conv1x1", "conv2d", "conv3x3", "conv_gru_cell", "conv_lstm_cell", "deform_conv2d", "inr_query", "lstm_gates",
    "pixel_shuffle", "window_attention2d",
)  # fmt: skip


class Drawn(nn.Module):
    """Module of one op with constant tensors except the first."""

    def __init__(self, op, constants):
        super().__init__()
        self.op = op
        self.constants = nn.ParameterList(nn.Parameter(t, requires_grad=False) for t in constants)

    def forward(self, x):
        return self.op(x, *self.constants)


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from bench import sweep

    monkeypatch.setattr(sweep.LIMITS, "flops", 1e8)
    monkeypatch.setattr(sweep.LIMITS, "numbers", 1 << 20)
    return sweep


def test_recorded_calls_cover_every_op(sweep):
    assert set(OPS) == set(sweep.OPS)


@pytest.mark.parametrize("name", OPS)
def test_recorded_random_calls(name, sweep):
    for case, layout, _ in sweep.draw_cases(name, 40, seed=1):
        x, *constants = sweep.convert_tensors(case.tensors, layout, torch.float32)
        model = Drawn(case.ours, constants)
        fast = fastds.compile_graph(model, x)
        with torch.no_grad():
            pairs = zip(*map(torch.utils._pytree.tree_leaves, (fast(x.flip(-1)), model(x.flip(-1)))), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), case.text
