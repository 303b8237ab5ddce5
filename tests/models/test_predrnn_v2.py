# SPDX-License-Identifier: Apache-2.0
"""Tests of the decoupling loss of PredRNN-V2."""

import pytest
import torch

from fastds.models.db_rnn import DBRNN, MSRNN
from fastds.models.db_rnn.cells import decoupling_loss, memory_similarities
from fastds.tasks.nowcast.config import DataConfig, TrainingConfig
from fastds.tasks.nowcast.training import NowcastModule
from tests.references import db_rnn as reference

pytestmark = pytest.mark.usefixtures("native")


def similarities_by_hand(model, frames, steps):
    """Return a reference cell that records its memory similarities, and a function that runs the network with it."""
    found, pred_rnn = [], reference.pred_rnn

    def watched(cell, x, state, m, previous):
        h, _ = state or (torch.zeros_like(x),) * 2
        i, _, g, _ = reference.summed(cell.gates, x, h).chunk(4, 1)
        j, _, k = reference.summed(cell.spatial.memory, x, torch.zeros_like(x) if m is None else m).chunk(3, 1)
        shared = model.module.shared
        a, b = (
            reference.layer(torch.sigmoid(gate) * torch.tanh(value), shared).flatten(2)
            for gate, value in ((i, g), (j, k))
        )
        found.append(((a * b).sum(2) / (a.square().sum(2) * b.square().sum(2)).sqrt()).abs())
        return pred_rnn(cell, x, state, m, previous)

    return found, watched, lambda: reference.ms_rnn(model, frames, steps)


def test_decoupling_loss_equals_the_reference(monkeypatch):
    """Values and gradients of all cells and steps are compared in float64."""
    torch.manual_seed(2)
    model, frames = MSRNN("predrnn-v2", 8).double(), torch.rand(2, 2, 1, 16, 24, dtype=torch.float64)
    with memory_similarities() as got:
        forecasts = model(frames, 2)[0]
    torch.testing.assert_close(forecasts, model(frames, 2)[0])

    expected, watched, run = similarities_by_hand(model, frames, 2)
    monkeypatch.setitem(reference.STEPS, "predrnn-v2", watched)
    run()
    assert len(got) == len(expected) == 3 * 6 and got[0].shape == (2, 8)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    by_hand = sum(cosine[b, k] for cosine in expected for b in range(2) for k in range(8)) / (2 * 3)
    torch.testing.assert_close(decoupling_loss(got, 3), by_hand)

    parameters = [p for key, p in model.named_parameters() if ".output." not in key and ".mix." not in key]
    grads = torch.autograd.grad(decoupling_loss(got, 3), parameters, retain_graph=True)
    torch.testing.assert_close(grads, torch.autograd.grad(by_hand, parameters))
    assert all(g.abs().max() > 0 for g in grads)


def test_decoupling_is_measured_only_on_request():
    frames = torch.rand(1, 2, 1, 16, 16)
    with memory_similarities() as similarities:
        MSRNN("predrnn", 4)(frames, 1)
        assert similarities == [] and decoupling_loss(similarities, 2) == 0.0
        DBRNN("predrnn-v2", 4)(frames, 1)
    assert len(similarities) == 2 * 12
    MSRNN("predrnn-v2", 4)(frames, 1)
    assert len(similarities) == 2 * 12


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_training_adds_the_loss(weight):
    data = DataConfig(path=".", known=2, future=2, crop=16)
    config = TrainingConfig(data, model="ms-predrnn-v2")
    config.loss.kind, config.loss.decoupling = "db-rnn", weight
    model = MSRNN("predrnn-v2", 4)
    module = NowcastModule(model, config).train()
    batch = {"frames": torch.rand(2, 4, 1, 16, 16), "valid": torch.ones(2, 4, 1, 16, 16, dtype=torch.bool)}
    with memory_similarities() as similarities:
        prediction = model(batch["frames"][:, :2], 2)
    expected = module.forecast_loss(prediction, batch) + weight * decoupling_loss(similarities, 3)
    loss = module.loss(module(batch), batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()  # distributed training wants a gradient of every parameter that has one
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert model.module.shared.weight.requires_grad == (weight > 0)
    module.eval()
    torch.testing.assert_close(module.loss(module(batch), batch), module.forecast_loss(prediction, batch))
