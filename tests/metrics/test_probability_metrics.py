# SPDX-License-Identifier: Apache-2.0
"""Tests of scores of probabilities and of the parts of the CRPS, against formulas in NumPy and other libraries."""

import numpy as np
import pytest
import torch
import xarray as xr
from scoringrules import brier_score, crps_ensemble

from fastds import metrics

M = 8


@pytest.fixture(scope="module")
def sample():
    """Return shares of M members, and events that occur less often than forecast."""
    rng = np.random.default_rng(0)
    p = rng.binomial(M, rng.beta(0.4, 1.2, 4000)) / M
    return p, rng.random(4000) < 0.7 * p


def compute_reference(p, event):
    """Return the parts of the Brier score by a loop over the values of p."""
    o, n = event.astype(float), len(p)
    parts = dict.fromkeys(("reliability", "resolution"), 0.0)
    for value in np.unique(p):
        chosen = p == value
        parts["reliability"] += chosen.sum() * (value - o[chosen].mean()) ** 2 / n
        parts["resolution"] += chosen.sum() * (o[chosen].mean() - o.mean()) ** 2 / n
    return parts | {"brier": ((p - o) ** 2).mean(), "uncertainty": o.mean() * (1 - o.mean())}


def test_brier_score_and_its_parts_are_those_of_the_formulas(sample):
    p, event = sample
    found = metrics.compute_brier_scores(metrics.tally_probabilities(p, event))
    for name, value in compute_reference(p, event).items():
        assert found[name] == pytest.approx(value, rel=1e-10), name
    assert found["brier"] == pytest.approx(brier_score(event.astype(float), p).mean(), rel=1e-10)
    assert found["within"] == pytest.approx(0, abs=1e-12) and found["cells"] == len(p)
    assert found["brier_skill"] == pytest.approx(1 - found["brier"] / found["uncertainty"])


def test_parts_of_any_probabilities_add_up_with_the_part_within_classes(sample):
    p, event = np.random.default_rng(1).random(500), sample[1][:500]
    found = metrics.compute_brier_scores(metrics.tally_probabilities(p, event, 10))
    assert found["brier"] == pytest.approx(brier_score(event.astype(float), p).mean(), rel=1e-10)
    total = found["reliability"] - found["resolution"] + found["uncertainty"] + found["within"]
    assert metrics.tally_probabilities(np.array([0.26, 0.34]), np.ones(2, bool), 10)[3, 0] == 2  # the nearest class
    assert total == pytest.approx(found["brier"]) and abs(found["within"]) > 1e-5


def test_roc_area_is_the_chance_that_an_event_has_the_higher_probability(sample):
    p, event = (part[:700] for part in sample)
    higher, equal = p[event][:, None] > p[~event], p[event][:, None] == p[~event]
    expected = higher.mean() + equal.mean() / 2
    assert metrics.compute_roc_area(metrics.tally_probabilities(p, event)) == pytest.approx(expected, rel=1e-10)


def test_roc_curve_and_brier_score_are_those_of_scores(sample):
    scores = pytest.importorskip("scores.probability", reason="compares with the package scores")
    p, event = sample
    tally = metrics.tally_probabilities(p, event)
    forecast, observed = (xr.DataArray(part.astype(float), dims="case") for part in sample)
    data = scores.roc_curve_data(forecast, observed, np.arange(M + 1) / M)
    hits, alarms = metrics.compute_roc_curve(tally)
    assert metrics.compute_roc_area(tally) == pytest.approx(float(data.AUC), abs=1e-10)
    points = np.unique(np.stack([alarms, hits], -1).round(9), axis=0)
    theirs = np.unique(np.stack([data.POFD, data.POD], -1).round(9), axis=0)
    np.testing.assert_allclose(points, theirs, atol=1e-8)
    assert metrics.compute_brier_scores(tally)["brier"] == pytest.approx(float(scores.brier_score(forecast, observed)))


def test_perfect_and_climatological_forecasts(sample):
    event = sample[1]
    perfect = metrics.tally_probabilities(event.astype(np.float32), event)
    found = metrics.compute_brier_scores(perfect)
    assert found["brier"] == 0 and found["brier_skill"] == 1 and found["reliability"] == 0
    assert metrics.compute_roc_area(perfect) == 1
    climatology = metrics.tally_probabilities(np.full(len(event), event.mean()), event)
    found = metrics.compute_brier_scores(climatology)
    assert found["brier_skill"] == pytest.approx(0, abs=1e-10) and found["resolution"] == pytest.approx(0, abs=1e-12)
    assert metrics.compute_roc_area(climatology) == 0.5


def test_scores_without_events_or_cells_are_not_defined():
    dry = metrics.tally_probabilities(np.zeros(9), np.zeros(9, bool))
    found = metrics.compute_brier_scores(dry)
    assert found["brier"] == 0 and np.isnan(found["brier_skill"]) and np.isnan(metrics.compute_roc_area(dry))
    assert all(np.isnan(v) for k, v in metrics.compute_brier_scores(0 * dry).items() if k not in ("cells",))


def test_tallies_of_parts_add_up_and_counts_of_members_give_the_same(sample):
    p, event = sample
    whole = metrics.tally_probabilities(p, event, M)
    parts = [metrics.tally_probabilities(p[k::2], event[k::2], M) for k in (0, 1)]
    np.testing.assert_allclose(parts[0] + parts[1], whole)
    members = torch.from_numpy(np.arange(M)[:, None] < np.rint(M * p)).float()
    counts = metrics.reliability_counts(members, torch.from_numpy(event).float(), 0.5)
    np.testing.assert_allclose(metrics.convert_member_counts(counts), whole)


def test_classes_of_a_diagram_hold_all_cells(sample):
    tally = metrics.tally_probabilities(*sample)
    merged = metrics.merge_classes(tally)
    assert merged.shape == (11, 5) and np.allclose(merged.sum(0), tally.sum(0))
    assert merged[5, 0] == (sample[0] == 0.5).sum() and metrics.merge_classes(merged) is merged


def test_bootstrap_intervals_cover_the_score_of_the_sample():
    rng = np.random.default_rng(2)
    p = rng.random((40, 300))
    tallies = np.stack([metrics.tally_probabilities(part, rng.random(300) < part) for part in p])
    drawn = metrics.compute_brier_scores(metrics.resample_tallies(tallies))["brier"]
    each = metrics.compute_brier_scores(tallies)["brier"]
    assert drawn.mean() == pytest.approx(each.mean(), rel=0.01)
    assert drawn.std() == pytest.approx(each.std() / np.sqrt(40), rel=0.1)


def test_probabilities_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match="probabilities must be from 0 to 1, got 0 to 35"):
        metrics.tally_probabilities(np.array([0.0, 35.0]), np.zeros(2, bool))
    with pytest.raises(ValueError, match="must have the same shape"):
        metrics.tally_probabilities(np.zeros(3), np.zeros(2, bool))


# ---- parts of the CRPS


def compute_hersbach(x, y):
    """Return reliability and potential CRPS as in Hersbach 2000, by loops over points and members."""
    m, n = x.shape
    alpha, beta = np.zeros(m + 1), np.zeros(m + 1)
    for k in range(n):
        s = np.sort(x[:, k])
        for i in range(1, m):
            alpha[i] += min(max(y[k] - s[i - 1], 0), s[i] - s[i - 1]) / n
            beta[i] += min(max(s[i] - y[k], 0), s[i] - s[i - 1]) / n
        beta[0] += max(s[0] - y[k], 0) / n
        alpha[m] += max(y[k] - s[-1], 0) / n
    reliability = potential = 0.0
    for i in range(m + 1):
        outer = {0: (y < x.min(0)).mean(), m: (y <= x.max(0)).mean()}
        g, o = alpha[i] + beta[i], None
        if i in outer:
            o = outer[i]
            g = beta[0] / o if i == 0 and o else alpha[m] / (1 - o) if i == m and o < 1 else 0.0
        else:
            o = beta[i] / g
        reliability += g * (o - i / m) ** 2
        potential += g * o * (1 - o)
    return reliability, potential


@pytest.mark.parametrize("bias", [0.0, 0.8])
def test_parts_of_the_crps_are_those_of_hersbach(bias):
    rng = np.random.default_rng(3)
    centre = rng.normal(size=600)
    x, y = centre + bias + rng.normal(size=(5, 600)), centre + rng.normal(size=600)
    bins = metrics.sum_crps_bins(torch.from_numpy(x), torch.from_numpy(y), torch.ones(600, dtype=torch.float64))
    found = metrics.compute_crps_parts(bins, 600.0)
    reliability, potential = compute_hersbach(x, y)
    assert found["crps_reliability"] == pytest.approx(reliability, rel=1e-9)
    assert found["crps_potential"] == pytest.approx(potential, rel=1e-9)
    assert found["crps_ensemble"] == pytest.approx(crps_ensemble(y, x.T, estimator="nrg").mean(), rel=1e-9)
    assert found["crps"] == pytest.approx(crps_ensemble(y, x.T, estimator="fair").mean(), rel=1e-9)
    assert (found["crps_reliability"] > 0.05) == (bias > 0)


def test_parts_of_the_crps_of_an_accumulated_ensemble_ignore_missing_cells():
    rng = np.random.default_rng(4)
    x, y = torch.from_numpy(rng.gamma(0.3, 2, (6, 30, 20))), torch.from_numpy(rng.gamma(0.3, 2, (30, 20)))
    x[:, :9], y[:9] = 0, 0  # dry
    y[3, 4] = x[2, 5, 6] = np.nan
    scores = metrics.EnsembleScores()
    for part in (slice(0, 12), slice(12, 30)):
        scores.add(x[:, part], y[part], torch.ones(1, 1))
    valid = ~(torch.isnan(x).any(0) | torch.isnan(y))
    x, y = x[:, valid].numpy(), y[valid].numpy()
    means = scores.means()
    assert means["crps"] == pytest.approx(crps_ensemble(y, x.T, estimator="fair").mean(), rel=1e-9)
    total = means["crps_reliability"] + means["crps_potential"]
    assert total == pytest.approx(crps_ensemble(y, x.T, estimator="nrg").mean(), rel=1e-9)
    assert means["spread"] == pytest.approx(np.sqrt(x.var(0, ddof=1).mean()), rel=1e-9)


def test_crps_and_ranks_are_those_of_scores():
    scores = pytest.importorskip("scores.probability", reason="compares with the package scores")
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(7, 400)), rng.normal(size=400)
    members, truth = xr.DataArray(x, dims=("member", "case")), xr.DataArray(y, dims="case")
    ensemble = metrics.EnsembleScores()
    ensemble.add(torch.from_numpy(x)[..., None], torch.from_numpy(y)[:, None], torch.ones(1, 1))
    means = ensemble.means()
    for name, method in (("crps", "fair"), ("crps_ensemble", "ecdf")):
        assert means[name] == pytest.approx(float(scores.crps_for_ensemble(members, truth, "member", method=method)))
    ranks = scores.rank_histogram(members, truth, "member")
    np.testing.assert_allclose(ensemble.rank_histogram(), np.asarray(ranks).ravel(), atol=1e-12)
