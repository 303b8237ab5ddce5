# SPDX-License-Identifier: Apache-2.0
"""Tests of DB-RNN: numbers of parameters and multiply-adds, and the reference network."""

import pytest
import torch

import fastds
from fastds.models.db_rnn import DBRNN, MSRNN, StagedRNN
from fastds.models.db_rnn.cells import CELLS
from tests.references import db_rnn as reference
from tests.support.cell_cases import SMALL, compare, three_steps_of_a_cell

pytestmark = pytest.mark.usefixtures("native")

PARAMETERS = {  # of dbrnn.md 6: MS; DB has twice as many
    ("convlstm",): 250_057, ("trajgru",): 286_465, ("predrnn",): 507_097, ("predrnn++",): 685_753,
    ("predrnn++", ("all_highways", True)): 789_913, ("mim",): 897_697, ("mim", ("keep_dead", True)): 986_233,
    ("motionrnn",): 926_842, ("preciplstm",): 993_097, ("preciplstm", ("qkv_kernel", 3)): 1_076_041,
    ("mk-lstm",): 1_067_257, ("predrnn-v2",): 507_097 + 600,  # the latter: PredRNN and one 1x1 convolution
}  # fmt: skip
GIGA_MACS = {
    "convlstm": (25.17, 50.34), "trajgru": (28.83, 57.65), "predrnn": (51.02, 102.049), "predrnn++": (68.24, 136.49),
    "mim": (80.205, 160.41), "motionrnn": (81.71, 163.42), "preciplstm": (99.80, 199.6),
}  # fmt: skip


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_preciplstm_window_equals_the_paper():
    with torch.device("meta"):
        assert {m.window for m in MSRNN("preciplstm").modules() if hasattr(m, "window")} == {30}


@pytest.mark.parametrize("key", PARAMETERS, ids=lambda key: "-".join(map(str, key)))
def test_db_rnn_parameter_counts(key):
    name, *options = key
    with torch.device("meta"):
        assert count(MSRNN(name, cell_options=dict(options))) == PARAMETERS[key]
        assert count(DBRNN(name, cell_options=dict(options))) == 2 * PARAMETERS[key]
        assert count(StagedRNN(name, cell_options=dict(options))) == 2 * PARAMETERS[key]


@pytest.mark.parametrize("name", GIGA_MACS)
def test_multiply_adds(name, monkeypatch):
    """The multiply-adds of 9 steps (batch 1, 160 x 160 pixels) agree with the paper.

    Those of attention and of sampling are not counted. The reference network runs 2 steps on meta tensors, because all
    steps after the first need the same number of multiply-adds.
    """
    monkeypatch.setattr(reference, "attention", lambda q, k, v, window: v)  # the paper leaves its core uncounted
    monkeypatch.setattr(reference, "sample", lambda x, flow, align_corners: x)
    for network, run, expected in ((MSRNN, reference.ms_rnn, 0), (DBRNN, reference.db_rnn, 1)):
        with torch.device("meta"):
            model, frames, found = network(name), torch.zeros(1, 1, 1, 160, 160), []
            for steps in (1, 2):
                reference.MACS[0] = 0
                run(model, frames, steps)
                found.append(reference.MACS[0])
        assert found[0] + 8 * (found[1] - found[0]) == pytest.approx(1e9 * GIGA_MACS[name][expected], rel=1e-3)


@pytest.mark.parametrize("layer", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_three_steps_of_a_cell(name, dtype, layer):
    three_steps_of_a_cell(name, dtype, layer)


@pytest.mark.parametrize("name", CELLS)
def test_three_steps_of_a_cell_equal_torch(name):
    with fastds.use_backend("reference"):
        three_steps_of_a_cell(name, torch.float32, 1)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("network,run", [(MSRNN, reference.ms_rnn), (DBRNN, reference.db_rnn)], ids=["ms", "db"])
def test_db_rnn_networks_equal_the_reference(network, run, name):
    """Two known frames and two forecast frames cover skip connections, zigzag memory and feedback."""
    model = network(name, 8, SMALL.get(name)).double()
    frames = torch.rand(2, 2, 1, 16, 24, dtype=torch.float64)
    got, expected = model(frames, 2), run(model, frames, 2)
    compare(got, expected, 1e-10)
    parameters = [p for key, p in model.named_parameters() if "shared" not in key]  # those are of a loss
    grads = torch.autograd.grad(sum(y.square().sum() for y in got), parameters)
    exact = torch.autograd.grad(sum(y.square().sum() for y in expected), parameters)
    compare(grads, exact, 1e-9)
    assert all(g.abs().max() > 0 for g in grads)
