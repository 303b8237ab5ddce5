# SPDX-License-Identifier: Apache-2.0
"""Tests of nowcast scores against loops over pixels and against the package scores."""

import math

import numpy as np
import pytest
import torch

from fastds.data import HKO_Z_R, RAIN_THRESHOLDS, normalised_rates
from fastds.metrics import NowcastScores

THRESHOLDS = normalised_rates(RAIN_THRESHOLDS, HKO_Z_R)
CASES, FRAMES, SIZE = 3, 4, 12


def fields(missing=True):
    generator = torch.Generator().manual_seed(3)
    truth = torch.rand(CASES, FRAMES, SIZE, SIZE, generator=generator) * 1.1 - 0.05
    prediction = truth + 0.2 * torch.randn(truth.shape, generator=generator)
    if missing:
        truth[:, :, :2, 5] = math.nan
    return prediction, truth


def counted(prediction, truth, frame):
    """Return TP, FN, FP, TN by threshold and the weighted sums of one frame, pixel by pixel."""
    table, weighted = np.zeros((5, 4), int), np.zeros(2)
    for case in range(CASES):
        for p, t in zip(prediction[case, frame].flatten().tolist(), truth[case, frame].flatten().tolist(), strict=True):
            if math.isnan(t):
                continue
            p, t = min(max(p, 0.0), 1.0), min(max(t, 0.0), 1.0)
            rate = (10 ** (6 * t) / 58.53) ** (1 / 1.56)
            for k, threshold in enumerate((0.5, 2, 5, 10, 30)):
                forecast_rate = (10 ** (6 * p) / 58.53) ** (1 / 1.56)
                table[k, 2 * (rate < threshold) + (forecast_rate < threshold)] += 1
            w = 30 if rate >= 30 else 10 if rate >= 10 else 5 if rate >= 5 else 2 if rate >= 2 else 1
            weighted += w * np.array([(p - t) ** 2, abs(p - t)])
    return table, weighted / CASES


def test_counts_and_weighted_errors_agree_with_a_loop():
    prediction, truth = fields()
    scores = NowcastScores(THRESHOLDS, FRAMES)
    scores.add(prediction[:2], truth[:2])
    scores.add(prediction[2:, :, None], truth[2:, :, None])
    found = scores.by_frame()
    for frame in range(FRAMES):
        table, weighted = counted(prediction, truth, frame)
        assert np.array_equal(scores.counts[frame], table)
        for k, (tp, fn, fp, tn) in enumerate(table.astype(float)):
            assert found["csi"][frame, k] == pytest.approx(tp / (tp + fn + fp))
            assert found["pod"][frame, k] == pytest.approx(tp / (tp + fn))
            assert found["far"][frame, k] == pytest.approx(fp / (tp + fp))
            hss = 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))
            assert found["hss"][frame, k] == pytest.approx(hss)
        np.testing.assert_allclose([found["b_mse"][frame], found["b_mae"][frame]], weighted, rtol=1e-6)


def test_contingency_scores_agree_with_the_package_scores():
    from scores.categorical import BinaryContingencyManager
    from xarray import DataArray

    prediction, truth = fields(missing=False)
    scores = NowcastScores(THRESHOLDS, FRAMES)
    scores.add(prediction, truth)
    for k, threshold in enumerate(THRESHOLDS):
        events = [DataArray((z >= threshold).float().numpy(), dims=("c", "t", "y", "x")) for z in (prediction, truth)]
        peer = BinaryContingencyManager(*events).transform(preserve_dims="t")
        for name, values in (
            ("csi", peer.critical_success_index()),
            ("hss", peer.heidke_skill_score()),
            ("pod", peer.probability_of_detection()),
            ("far", peer.false_alarm_ratio()),
        ):
            np.testing.assert_allclose(scores.by_frame()[name][:, k], values.values, rtol=1e-12)


def test_a_perfect_forecast_has_hss_one():
    _, truth = fields()
    scores = NowcastScores(THRESHOLDS, FRAMES)
    scores.add(torch.nan_to_num(truth), truth)
    means = scores.means()
    assert np.all(means["csi"] == 1) and np.all(means["hss"] == 1) and np.all(means["far"] == 0)
    assert means["b_mse"] == means["b_mae"] == means["mse"] == 0


def test_all_frames_and_future_frames_are_averages_of_frames():
    prediction, truth = fields()
    scores = NowcastScores(THRESHOLDS, FRAMES, future=2)
    scores.add(prediction, truth)
    by_frame = scores.by_frame()
    for frames, selected in (("all", slice(None)), ("future", slice(2, None))):
        for name, value in scores.means(frames).items():
            np.testing.assert_allclose(value, by_frame[name][selected].mean(0))


def test_frames_without_events_are_ignored():
    prediction, truth = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    truth[:, 1, :2], prediction[:, 1, :4] = 0.9, 0.9
    scores = NowcastScores(THRESHOLDS, 2)
    scores.add(prediction, truth)
    assert np.isnan(scores.by_frame()["csi"][0]).all()
    np.testing.assert_allclose(scores.means()["csi"], 0.5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p, t: (p[:, :2], t), "must both have shape"),
        (lambda p, t: (p * math.nan, t), "missing values on valid pixels"),
    ],
)
def test_mismatched_frames_are_rejected(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        NowcastScores(THRESHOLDS, FRAMES).add(*change(*fields()))


def test_invalid_settings_are_rejected():
    with pytest.raises(ValueError, match="thresholds must ascend"):
        NowcastScores(THRESHOLDS[::-1], 2)
    with pytest.raises(ValueError, match="future must lie in 1..2"):
        NowcastScores(THRESHOLDS, 2, future=3)
    with pytest.raises(ValueError, match="frames must be 'all' or 'future'"):
        NowcastScores(THRESHOLDS, 2).means("last")
