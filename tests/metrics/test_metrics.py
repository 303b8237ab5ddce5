# SPDX-License-Identifier: Apache-2.0
"""Tests of errors, skill scores and spectra."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, correlate1d

from fastds.metrics import csi, fss, interior, mse_total, radar_errors, spectral_ratio

PUBLISHED = {  # Chen, Qin and Dai 2022: total, t2, t1 and t3
    "trilinear": (2.452, 5.886, 0.735),
    "unet": (1.027, 2.054, 0.514),
    "unet3d": (0.855, 1.769, 0.398),
    "zsm": (0.730, 1.456, 0.367),
    "zsm-d": (0.696, 1.359, 0.365),
    "zsm-s": (0.676, 1.333, 0.347),
    "zsm-ds": (0.675, 1.318, 0.354),
}


def fields(shape=(2, 3, 40, 36), seed=0):
    rng = np.random.default_rng(seed)
    truth = torch.from_numpy(rng.uniform(5.0, 60.0, shape))
    return truth + torch.from_numpy(rng.normal(0.0, 2.0, shape)), truth


@pytest.mark.parametrize("row", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_rows_satisfy_the_identity(row):
    total, t2, t13 = row
    assert mse_total(t2, t13) == pytest.approx(total, abs=1.01e-3)


def test_errors_by_hand():
    truth = torch.full((3, 4, 4), 20.0)
    prediction = truth + torch.tensor([1.0, 3.0, 2.0])[:, None, None]
    result = radar_errors(prediction, truth)
    assert result["mse_t2"] == pytest.approx(9.0) and result["mse_t13"] == pytest.approx(2.5)
    assert result["mse_total"] == pytest.approx(14.0 / 3.0) == pytest.approx((9.0 + 2 * 2.5) / 3)
    assert result["mse_normalised"] == pytest.approx(14.0 / 3.0 / 55**2)
    assert result["bias"] == pytest.approx(2.0) and result["pixels"] == 16


@pytest.mark.parametrize(("floor", "expected"), [(15.0, 0.0), (0.0, 25.0)], ids=["15", "0"])
def test_echo_below_the_floor_does_not_count(floor, expected):
    truth, prediction = torch.full((3, 4, 4), 5.0), torch.full((3, 4, 4), 10.0)
    assert radar_errors(prediction, truth, floor=floor)["mse_total"] == pytest.approx(expected)


def test_missing_pixels_do_not_count_in_any_frame():
    prediction, truth = fields((1, 3, 20, 20))
    whole = radar_errors(prediction[..., 10:], truth[..., 10:])
    spoilt = truth.clone()
    spoilt[0, 1, :, :10] = float("nan")  # missing in one frame: the pixel leaves all three
    part = radar_errors(prediction, spoilt)
    assert part["mse_total"] == pytest.approx(whole["mse_total"]) and part["pixels"] == 200
    masked = radar_errors(prediction, truth, valid=~torch.isnan(spoilt))
    assert masked["mse_total"] == pytest.approx(whole["mse_total"])


def test_interior_is_an_erosion():
    valid = torch.from_numpy(np.random.default_rng(1).random((2, 30, 40)) > 0.02)
    for margin in (0, 1, 3):
        expected = np.stack(
            [binary_erosion(v, np.ones((3, 3)), margin, border_value=0) if margin else v for v in valid.numpy()]
        )
        assert np.array_equal(interior(valid, margin).numpy(), expected)


def test_ssim_equals_its_formula():
    prediction, truth = fields((3, 32, 32))
    x = np.arange(-5, 6)
    kernel = np.exp(-(x**2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def mean(z):
        return correlate1d(correlate1d(z, kernel, axis=-1), kernel, axis=-2)

    p, t = prediction.clamp(15, 70).numpy(), truth.clamp(15, 70).numpy()
    mp, mt, c1, c2 = mean(p), mean(t), (0.01 * 55) ** 2, (0.03 * 55) ** 2
    covariance, variances = mean(p * t) - mp * mt, mean(p * p) - mp**2 + mean(t * t) - mt**2
    full = (2 * mp * mt + c1) * (2 * covariance + c2) / ((mp**2 + mt**2 + c1) * (variances + c2))
    assert radar_errors(prediction, truth)["ssim"] == pytest.approx(full[:, 5:-5, 5:-5].mean(), abs=1e-5)


def test_ssim_of_equal_fields_and_of_small_grids():
    _, truth = fields()
    assert radar_errors(truth, truth)["ssim"] == pytest.approx(1.0)
    assert math.isnan(radar_errors(truth[..., :8, :8], truth[..., :8, :8])["ssim"])


def test_csi_by_hand():
    truth = torch.tensor([[40.0, 40.0, 0.0, 0.0, float("nan")]])
    prediction = torch.tensor([[40.0, 0.0, 40.0, 0.0, 40.0]])
    assert csi(prediction, truth, 30.0) == pytest.approx(1 / 3)
    assert math.isnan(csi(prediction, truth, 60.0))


def test_fss_forgives_a_small_shift_in_large_windows():
    truth = torch.zeros(1, 40, 40)
    truth[0, 15:20, 15:20] = 40.0
    moved = truth.roll(3, -1)
    small, large = fss(moved, truth, 30.0, 1), fss(moved, truth, 30.0, 15)
    assert fss(truth, truth, 30.0, 5) == pytest.approx(1.0)
    assert small == pytest.approx(10 / 25) and 0.9 > large > small  # 10 of 25 pixels overlap
    assert math.isnan(fss(truth, truth, 60.0, 5))


def test_spectral_ratio_distinguishes_scales():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(30.0 + rng.normal(0.0, 2.0, (2, 64, 64)))
    doubled = 30.0 + 2.0 * (truth - 30.0)
    assert all(r == pytest.approx(4.0, rel=0.02) for r in spectral_ratio(doubled, truth).values())
    wave = torch.cos(math.pi * (torch.arange(64) + 0.5) * 32 / 64) * torch.ones(64, 1)  # wavelength 4 pixels
    for disturbed in (truth + 3.0 * wave, truth + 3.0 * wave.T):
        ratio = spectral_ratio(disturbed, truth, bands=((3.5, 4.5), (8.0, 16.0)))
        assert ratio[(3.5, 4.5)] > 1.5 and ratio[(8.0, 16.0)] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, t: radar_errors(p, t[..., 1:]), "same|both have shape"),
        (lambda p, t: radar_errors(p * float("nan"), t), "missing values on valid pixels"),
        (lambda p, t: fss(p, t, 30.0, 99), "window must lie in"),
        (lambda p, t: csi(p[..., 1:], t, 30.0), "same shape"),
        (lambda p, t: spectral_ratio(p[..., 1:], t), "same shape"),
        (lambda p, t: interior(t > 0, -1), "margin"),
    ],
    ids=["shape", "nan", "window", "csi", "spectrum", "margin"],
)
def test_metrics_error_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(*fields())
