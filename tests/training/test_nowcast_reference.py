# SPDX-License-Identifier: Apache-2.0
"""Tests of losses and validation of nowcasting networks against separate computations."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastds.models.db_rnn import DBRNN
from fastds.models.db_rnn.losses import compute_scheduled_weights
from fastds.tasks.nowcast.config import LossConfig
from fastds.tasks.nowcast.training import NowcastModule
from tests.support.nowcast_training import batch_of, samples, tiny


@pytest.mark.parametrize(("floor", "floors"), [(-10.0, [10 / 80, 25 / 80]), (5.0, [10 / 65])])
def test_loss_uses_the_scale_of_the_fields(floor, floors):
    config = tiny("x", data=samples("x", floor=floor, ceiling=70.0), loss=LossConfig(csi_weight=0.3, rates=[1.0]))
    for loss in NowcastModule(DBRNN(hidden=4), config).rain_losses:
        unit, z = 1 / (70 - floor), 10 * np.log10(200)  # of 1 mm/h
        assert loss.floors == pytest.approx(floors) and loss.thresholds == pytest.approx([(z - floor) * unit])
        assert (loss.width, loss.weight, loss.unit) == pytest.approx((1.5 * unit, 0.3, unit))
        assert loss.sums.shape == (2, 1, config.data.future)


def test_weights_of_two_outputs():
    module = NowcastModule(DBRNN(hidden=4), tiny("x", loss=LossConfig(weights="scheduled")))
    batch, weights = batch_of(), compute_scheduled_weights(0)
    del module.rain_losses
    module.rain_losses = [lambda *_: 1.0, lambda *_: 10.0]
    expected = weights.forecast + 10 * weights.deblurred
    assert module.forecast_loss(module(batch), batch) == pytest.approx(expected)
    assert weights.forecast != weights.deblurred


def test_validation_scores_by_hand():
    module = NowcastModule(DBRNN(hidden=4), tiny("x"))
    module.config.loss.csi_weight, square, rate = 2.0, module.range_dbz**2, module.config.loss.rates[1]
    ours = {"mse": np.array([0.02, 0.04]), "csi": np.array([[0.5, 0.9, 0.5]] * 2)}
    reference = {"mse": np.array([0.04, 0.04]), "csi": np.array([[0.7, 0.6, 0.5]] * 2)}
    module._scores, module._reference = (SimpleNamespace(by_frame=lambda s=s: s) for s in (ours, reference))
    scores = module.validation_scores()
    assert [scores[f"val_mse{of}"] for of in ("", "_reference")] == pytest.approx([0.03 * square, 0.04 * square])
    assert [scores[f"val_csi_{rate:g}{of}"] for of in ("", "_reference")] == pytest.approx([0.9, 0.6])
    assert scores["val_error"] == pytest.approx(0.75 + 2 * 0.2 / 3)
