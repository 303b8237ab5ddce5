# SPDX-License-Identifier: Apache-2.0
"""Tests of weighted scores against float64 loops, other packages and computed examples."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scoringrules import crps_ensemble

from fastds.metrics import EnsembleScores, FieldScores, crps, latitude_weights, rank_histogram, spread, spread_skill


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_errors_by_hand():
    """The weights are 1 and 1/2, the cosines of 0 and 60 degrees."""
    weights = latitude_weights(tensor([0.0, 60.0]))
    truth, prediction = tensor([[1.0, 2.0], [4.0, 8.0]]), tensor([[2.0, 2.0], [2.0, 4.0]])
    scores = FieldScores()
    scores.add(prediction, truth, weights)
    means = scores.means()  # errors 1, 0, -2, -4 with weights 1, 1, 0.5, 0.5
    assert means["bias"] == pytest.approx((1 - 1 - 2) / 3) and means["mae"] == pytest.approx((1 + 1 + 2) / 3)
    assert means["rmse"] == pytest.approx(math.sqrt((1 + 2 + 8) / 3))
    assert (scores.fields, scores.cells) == (1, 4) and "wet" not in means
    copies = np.array([[1, 2, 4, 8], [2, 2, 2, 4]]).repeat([2, 2, 1, 1], axis=1)  # a weight is a number of copies
    assert means["correlation"] == pytest.approx(np.corrcoef(copies)[0, 1])


def test_errors_over_fields_are_pooled_and_missing_cells_left_out():
    """A field with one cell counts a quarter of one with four."""
    truth, scores = tensor([[1.0, 2.0], [3.0, 5.0]]), FieldScores()
    scores.add(truth + 2.0, truth, torch.ones(2, 1))
    lost = tensor([[math.nan, 2.0], [math.nan, 5.0]])
    scores.add(tensor([[7.0, 9.0], [3.0, math.nan]]), lost, torch.ones(2, 1))
    scores.add(truth, truth * math.nan, torch.ones(2, 1))
    means = scores.means()
    assert (scores.fields, scores.cells) == (2, 5)
    assert means["bias"] == means["mae"] == pytest.approx((4 * 2 + 7) / 5)
    assert means["rmse"] == pytest.approx(math.sqrt((4 * 4 + 49) / 5)) and means["correlation"] == pytest.approx(1)


def test_no_field_and_no_variation_have_no_scores():
    flat, scores = torch.full((3, 4), 280.15), FieldScores()
    assert all(math.isnan(value) for value in scores.means().values())
    scores.add(flat + 1, flat, torch.ones(3, 1))
    assert math.isnan(scores.means()["correlation"]) and scores.means()["rmse"] == pytest.approx(1, abs=1e-4)
    assert all(math.isnan(value) for value in EnsembleScores().means().values())


def test_rain_by_hand():
    truth, prediction = tensor([[0.0, 0.1], [0.4, 0.5]]), tensor([[0.1, 0.2], [0.05, 0.15]])
    scores = FieldScores(wet=0.1)
    scores.add(prediction, truth, tensor([[1.0], [0.5]]))
    means = scores.means()
    assert means["wet"] == pytest.approx((1 + 1 + 0.5) / (1 + 0.5 + 0.5))
    assert means["rain"] == pytest.approx((0.3 + 0.1) / (0.1 + 0.45))


def test_power_of_a_wave_is_the_square_of_its_height():
    """A wavelength of 16 / 6 cells is in the band of 2 to 4 cells, and one of 16 cells is not."""
    x = (torch.arange(8, dtype=torch.float64) + 0.5) * math.pi / 8
    short, long = torch.cos(6 * x).expand(8, 8), torch.cos(x).expand(8, 8)
    scores = FieldScores()
    scores.add(0.5 * short + 9 * long, short, torch.ones(8, 1))
    assert scores.means()["power"] == pytest.approx(0.25)
    scores.add(3 * short, 2 * short, torch.ones(8, 1))
    assert scores.means()["power"] == pytest.approx((0.25 + 9) / (1 + 4)), "sums over fields"


def test_power_next_to_missing_cells():
    p, t = np.random.default_rng(0).normal(size=(2, 6, 7))
    powers = []
    for z in (p, t):
        filled = np.concatenate([z[:, :5], z[:, 4:5], z[:, 4:5]], axis=1)
        k = np.hypot(np.arange(6)[:, None] / 12, np.arange(7) / 14)
        powers.append((dctn(filled, norm="ortho")[(k > 1 / 4) & (k <= 1 / 2)] ** 2).sum())
    p[:, 5], t[:, 6] = np.nan, np.nan
    scores = FieldScores()
    scores.add(*map(torch.from_numpy, (p, t)), torch.ones(6, 1))
    assert scores.means()["power"] == pytest.approx(powers[0] / powers[1])


def test_crps_is_that_of_scoringrules():
    g = np.random.default_rng(1)
    members, truth, weights = g.normal(size=(5, 40)), g.normal(size=40), g.random(40)
    members[2] = members[1]
    points = crps_ensemble(truth, members.T, estimator="fair", backend="numpy")
    arguments = [torch.from_numpy(a) for a in (members, truth, weights)]
    assert crps(*arguments[:2]) == pytest.approx(points.mean(), rel=1e-12)
    assert crps(*arguments) == pytest.approx(np.average(points, weights=weights), rel=1e-12)


def test_ensembles_by_hand():
    members, truth = tensor([[[1.0], [0.0]], [[3.0], [0.0]]]), tensor([[2.0], [3.0]])
    weights = tensor([[3.0], [1.0]])
    assert spread(members) == pytest.approx(1.0) and spread(members, weights) == pytest.approx(math.sqrt(1.5))
    assert spread_skill(members, truth, weights) == pytest.approx(math.sqrt(1.5 * 1.5 / (9 / 4)))
    assert rank_histogram(members, truth, weights=weights) == pytest.approx([0, 0.75, 0.25])
    scores = EnsembleScores()
    scores.add(members, truth, weights)
    means = scores.means()
    assert means["crps"] == pytest.approx((3 * (1 - 1) + 1 * 3) / 4)  # |x - y| less half of |x_1 - x_2|
    assert means["spread"] == pytest.approx(math.sqrt(1.5)) and means["outliers"] == pytest.approx(0.25)
    assert means["spread_skill"] == pytest.approx(1.0)


def test_ensembles_over_fields_and_missing_cells():
    members, truth = tensor([[[1.0, 5.0]], [[3.0, 5.0]]]), tensor([[2.0, math.nan]])
    far = tensor([[[0.0, 0.0]], [[0.0, math.nan]]]), tensor([[3.0, 1.0]])
    scores = EnsembleScores()
    scores.add(members, truth, torch.ones(1, 1))
    scores.add(*far, torch.ones(1, 1))
    scores.add(members, truth * math.nan, torch.ones(1, 1))
    means = scores.means()
    assert means["crps"] == pytest.approx(1.5) and means["spread"] == pytest.approx(1.0)
    assert means["spread_skill"] == pytest.approx(math.sqrt(1.0 * 1.5 / 4.5)) and means["outliers"] == 0.5
    assert scores.rank_histogram() == pytest.approx([0, 0.5, 0.5])
