# SPDX-License-Identifier: Apache-2.0
"""Tests of degradations of training samples, of crops and of field metrics."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import j1

from fastds.data.samples.degradation import (
    RESIZING,
    Degradation,
    DegradationConfig,
    blur,
    compute_area_mean,
    make_gaussian_kernel,
    make_resizing_matrix,
    make_sinc_kernel,
    pack,
    round_mantissa,
)
from fastds.data.samples.fields import FieldBlock, FieldCrops, compute_statistics
from fastds.metrics import detail_ratio, latitude_weights, psnr

f64 = torch.float64


def seeded(n):
    return torch.Generator().manual_seed(n)


def smooth(*shape):
    """Return a field with many scales and standard deviation 1."""
    x = sum(
        torch.nn.functional.interpolate(torch.randn(1, shape[0], k, k), shape[1:], mode="bicubic") / math.sqrt(k)
        for k in (4, 8, 16, 32)
    )[0]
    return (x - x.mean()) / x.std()


ALWAYS = DegradationConfig(probability=1.0)


def test_degradation_is_determined_by_the_seed():
    degrade, x = Degradation(ALWAYS), smooth(2, 72, 80)[None]
    first = degrade(x, (24, 30), seeded(3))
    assert torch.equal(degrade(x, (24, 30), seeded(3)), first)
    assert not torch.equal(degrade(x, (24, 30), seeded(4)), first)
    clean = Degradation(DegradationConfig(probability=0.0))
    assert torch.equal(clean(x, (24, 30), seeded(3))[0], compute_area_mean(x[0], (24, 30)))


@pytest.mark.parametrize("size", [(200, 200), (133, 117), (75, 100), (50, 50)])
def test_degradation_preserves_a_ramp(size):
    """A shift by half a pixel would change the mean error."""
    config = DegradationConfig(probability=1.0, noise=(0.0, 0.0), packing=1.0, bits=((45,), (1.0,)))
    degrade, n = Degradation(config), 200
    at = torch.arange(n, dtype=f64)
    x = (at[:, None] + 2 * at[None])[None, None]
    expected = [((torch.arange(m, dtype=f64) + 0.5) * n / m - 0.5) for m in size]
    expected = expected[0][:, None] + 2 * expected[1][None]
    for seed in range(6):
        y = degrade(x, size, seeded(seed))[0, 0]
        halo = [math.ceil(40 * m / n) + 13 for m in size]  # the stages' kernels in fine pixels, then the last two
        error = (y - expected)[halo[0] : -halo[0], halo[1] : -halo[1]]
        assert error.abs().max() < 1e-5, seed


@pytest.mark.parametrize("kind", RESIZING)
@pytest.mark.parametrize("n,m", [(90, 45), (90, 41), (90, 23), (41, 90), (90, 89), (7, 7), (90, 1)])
def test_degradation_resizing_preserves_linear_functions(kind, n, m):
    w = make_resizing_matrix(n, m, kind)
    assert (w.sum(1) - 1).abs().max() < 1e-12
    expected = (torch.arange(m, dtype=f64) + 0.5) * n / m - 0.5
    reach = math.ceil(2 * max(1, n / m)) + 1
    inner = (expected > reach) & (expected < n - 1 - reach)
    # The repeated border bends a ramp, but not where it does so on both sides alike or where nothing is resized.
    straight = inner | (m in (1, n))
    assert straight.any() and (w @ torch.arange(n, dtype=f64) - expected)[straight].abs().max() < 1e-9
    if kind == "area" and n % m == 0:
        assert torch.allclose(w, compute_area_mean(torch.eye(n, dtype=f64), (m, n)))
    if kind in ("linear", "cubic") and n > m > 1:
        torch_mode = {"linear": "bilinear", "cubic": "bicubic"}[kind]
        x = torch.randn(1, 1, n, 9, dtype=f64)
        theirs = F.interpolate(x, (m, 9), mode=torch_mode, antialias=True)[0, 0]
        assert inner.any() and (w @ x[0, 0] - theirs)[inner].abs().mean() < 0.03


@pytest.mark.parametrize("size", [(90, 90), (45, 30), (41, 53), (23, 30)])
def test_degradation_area_mean_preserves_ramps_and_means(size):
    at = (torch.arange(90, dtype=f64) + 0.5) / 90
    expected = [(torch.arange(m, dtype=f64) + 0.5) / m for m in size]
    ramp = at[:, None] + 2 * at[None]
    error = compute_area_mean(ramp, size) - (expected[0][:, None] + 2 * expected[1][None])
    # Integer factors are exact. Otherwise the area mean of a ramp has errors, because pixels are constant: a cell
    # border inside a pixel changes the mean by up to 1/8 of a step on either side.
    if all(90 % m == 0 for m in size):
        assert error.abs().max() < 1e-12
    assert error.abs().max() < 0.25 * 3 / 90 and error.mean().abs() < 1e-12
    x = torch.randn(3, 90, 90, dtype=f64)
    assert (compute_area_mean(x, size).mean((1, 2)) - x.mean((1, 2))).abs().max() < 1e-12
    assert torch.allclose(compute_area_mean(x, (45, 30)), torch.nn.functional.avg_pool2d(x, (2, 3)))


def test_degradation_kernels_preserve_the_mean():
    x = smooth(1, 120, 120).double()
    inner = (slice(None), slice(20, -20), slice(20, -20))
    for cutoff in (math.pi / 5, math.pi / 3, 2.0, math.pi):
        k = make_sinc_kernel(21, cutoff)
        assert torch.isfinite(k).all() and abs(k.sum() - 1) < 1e-12
    kernels = [
        make_sinc_kernel(13, 2.0), make_gaussian_kernel(15, 2.0, 1.0, 0.7), make_gaussian_kernel(9, 1.0, 1.0, 0.0, 2.0),
        make_gaussian_kernel(9, 1.5, 1.0, 0.3, 1.5, plateau=True),
    ]  # fmt: skip
    for k in kernels:
        assert abs(k.sum() - 1) < 1e-12 and torch.allclose(k, k.flip(0, 1))
        assert (blur(x, k) - x)[inner].mean().abs() < 2e-2
        assert (blur(torch.full_like(x, 3.0), k) - 3).abs().max() < 1e-12
    wide = make_gaussian_kernel(21, 3.0, 1.0, 0.0)
    assert wide[10, 14] > 100 * wide[14, 10]
    assert torch.allclose(make_gaussian_kernel(21, 3.0, 1.0, math.pi / 2), wide.T)


def test_degradation_kernels_equal_their_formulas():
    rows, columns = np.mgrid[-4:5, -4:5].astype(float)
    along, across = (
        (columns * np.cos(0.3) + rows * np.sin(0.3)) / 1.5,
        (rows * np.cos(0.3) - columns * np.sin(0.3)) / 0.8,
    )
    m = along**2 + across**2
    for options, k in (
        ({}, np.exp(-m / 2)),
        ({"beta": 1.5}, np.exp(-(m**1.5) / 2)),
        ({"beta": 1.5, "plateau": True}, 1 / (1 + m**1.5)),
    ):
        np.testing.assert_allclose(make_gaussian_kernel(9, 1.5, 0.8, 0.3, **options), k / k.sum(), rtol=1e-12)
    r = np.hypot(rows, columns)
    r[4, 4] = 1e-9  # the limit
    for cutoff in (1.2, 2.5):
        k = cutoff * j1(cutoff * r) / (2 * np.pi * r)
        np.testing.assert_allclose(make_sinc_kernel(9, cutoff), k / k.sum(), rtol=1e-5)


def test_degradation_noise_has_the_requested_strength():
    """The standard deviation of the noise is uniform between 0 and a maximum."""
    degrade, zero = Degradation(ALWAYS), torch.zeros(1, 48, 48)
    found = torch.stack([degrade._add_noise(zero, 0.03, seeded(k)).std() for k in range(200)])
    assert found.max() < 0.032 and found.mean() == pytest.approx(0.015, rel=0.1) and found.min() < 0.001
    config = DegradationConfig(probability=1.0, non_negative=(0,), lower=(-2.0,))
    rain = torch.full((1, 48, 48), 4.0)
    logs = [((Degradation(config)._add_noise(rain, 0.03, seeded(k)) + 2) / 6).log() for k in range(100)]
    assert torch.stack([z.std() for z in logs]).mean() == pytest.approx(0.05, rel=0.15)  # up to 0.1


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_degradation_packing(bits):
    x = 250 + 30 * torch.randn(50, 60, dtype=f64)
    step = 2.0 ** math.ceil(math.log2(float(x.max() - x.min()) / (2**bits - 1)))
    y = pack(x, bits)
    assert (y - x).abs().max() <= step / 2 * (1 + 1e-9)
    levels = ((y - x.min()) / step).round()
    assert torch.equal(y, x.min() + levels * step) and levels.max() <= 2**bits - 1
    constant = torch.full((4, 5), 7.3)
    assert torch.equal(pack(constant, bits), constant)


def test_degradation_mantissa_rounding():
    x = torch.randn(1000)
    for bits in (6, 12):
        y = round_mantissa(x, bits)
        assert ((y - x) / x).abs().max() <= 2.0 ** -(bits + 1) and torch.equal(round_mantissa(y, bits), y)
    assert torch.equal(round_mantissa(torch.tensor([1.0, -2.0, 0.0]), 6), torch.tensor([1.0, -2.0, 0.0]))


# Sums of both channels times a pattern, by seed, computed when this test was written.
OF_A_SEED = [
    (-2.774, -0.409), (-2.303, -0.282), (0.549, -0.877), (1.716, 2.798), (-0.18, -0.328), (-1.123, 0.456),
    (1.208, -0.937), (-1.239, 0.192), (-0.226, -1.363), (-0.342, 1.218), (2.285, 0.365), (0.995, 0.3),
    (-1.2, -1.362), (-0.219, 0.671), (-4.157, -0.453), (0.961, 0.976), (-0.025, -0.555), (2.146, -0.294),
    (-0.418, -0.78), (1.01, 1.935), (-1.002, -0.062), (1.881, 2.948), (-1.402, -0.94), (0.109, 0.904),
    (0.282, 0.652), (0.34, 2.585), (-1.153, 0.601), (1.01, 1.935),
]  # fmt: skip


def test_degradation_result_of_a_seed_is_fixed():
    """The result depends on every step of the pipeline, on their order and on their strength."""
    config = DegradationConfig(probability=0.9, sinc=0.3, noise=(0.3, 0.2), non_negative=(1,), lower=(-0.5,))
    degrade = Degradation(config, torch.tensor([[-1.5, 1.5], [-0.5, 2.0]]))
    rows, columns = torch.arange(24.0)[:, None], torch.arange(26.0)[None]
    x = torch.stack([torch.sin(0.3 * rows) * torch.cos(0.5 * columns), torch.sin(0.9 * rows + 0.2 * columns)])
    pattern = torch.cos(1.1 * torch.arange(10.0))[:, None] * torch.sin(0.7 * torch.arange(11.0) + 1)
    sums = [(degrade(x[None], (10, 11), seeded(k))[0] * pattern).sum((1, 2)).tolist() for k in range(len(OF_A_SEED))]
    assert np.array(sums) == pytest.approx(np.array(OF_A_SEED), abs=2e-3)


def test_degradation_is_bounded_and_finite():
    config = DegradationConfig(probability=1.0, non_negative=(1,), lower=(-0.5,))
    limits = torch.tensor([[-4.0, 4.0], [-0.5, 6.0]])
    degrade, x = Degradation(config, limits), smooth(2, 72, 72)[None]
    x[:, 1].clamp_(min=-0.5)
    for seed in range(20):
        y = degrade(x, (24, 24), seeded(seed))
        assert torch.isfinite(y).all() and y[:, 1].min() >= -0.5
        assert (y - compute_area_mean(x, (24, 24))).std() < 0.6  # still the same field


# ---- crops


def crops(**options):
    block = FieldBlock(100 + 5 * torch.stack([smooth(2, 80, 120) for _ in range(2)]), (10, 110))
    mean, std = compute_statistics([block])
    clean = Degradation(DegradationConfig(probability=0.0))
    options = {"crop": 12, "halo": 2, "queries": 500, "seed": 5} | options
    return block, FieldCrops([block], mean, std, clean, **options)


def test_crops_are_a_function_of_seed_and_index():
    _, data = crops()
    a, b = data[3], data[3]
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["x"], data[4]["x"])
    assert a["x"].shape == (2, 12, 12) and a["target"].shape == (500, 2) and a["base"].dtype == torch.int32


def test_targets_match_their_coordinates():
    """Interpolating the crop of a ramp at the target coordinates gives the targets."""
    rows, columns = torch.arange(80.0)[:, None], torch.arange(120.0)[None]
    block = FieldBlock(torch.stack([rows + 0 * columns, 0 * rows + columns])[None], (0, 120))
    clean = Degradation(DegradationConfig(probability=0.0))
    data = FieldCrops([block], *compute_statistics([block]), clean, crop=12, halo=2, queries=500)
    anisotropic = set()
    for index in range(12):
        s = data[index]
        u = s["base"] + s["frac"]
        anisotropic.add(bool((s["factor"][0] - s["factor"][1]).abs() > 1e-6))
        for axis in (0, 1):
            line = s["x"][axis, :, 0] if axis == 0 else s["x"][axis, 0]
            i = s["base"][:, axis].clamp(0, 10).long()
            expected = line[i] + (line[i + 1] - line[i]) * (u[:, axis] - i)
            error = expected - s["target"][:, axis]
            assert error.abs().max() < 0.3 and error.mean().abs() < 0.05
            assert math.isclose(abs(line[-1] - line[0]) / 11, s["factor"][axis], rel_tol=0.03)  # the true factor
    assert anisotropic == {False, True}


def test_flipped_winds_change_sign():
    block, data = crops(vectors=(0, 1))
    data.mean, data.std = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    means = torch.tensor([data[i]["x"].mean((1, 2)).tolist() for i in range(20)])
    assert {tuple(m) for m in torch.sign(means).tolist()} == {(1, 1), (-1, 1), (1, -1), (-1, -1)}


def test_static_fields_are_cropped_with_the_window():
    block, _ = crops()
    block.static = block.values[0, :1] + 7.0
    block.values = block.values[:1]
    clean = Degradation(DegradationConfig(probability=0.0))
    data = FieldCrops([block], *compute_statistics([block]), clean, crop=12, halo=2, queries=5)
    for i in range(12):  # flips and both axes' factors among them
        assert (data[i]["static"][0] - 7.0 - data[i]["x"][0]).abs().max() < 1e-3
    assert "static" not in crops()[1][0]


def test_too_small_fields_are_refused():
    with pytest.raises(ValueError, match="too small for crop 90"):
        crops(crop=90)


# ---- metrics


def test_psnr_by_hand():
    truth = torch.zeros(2, 4, 5)
    prediction = torch.stack([torch.full((4, 5), 0.1), torch.full((4, 5), 0.2)])
    result = psnr(prediction, truth, 10.0)
    assert math.isclose(result["psnr"], (40 + 20 * math.log10(50)) / 2, rel_tol=1e-6)
    assert math.isclose(result["psnr_pooled"], 10 * math.log10(100 / 0.025), rel_tol=1e-6)
    assert math.isclose(result["rmse"], math.sqrt(0.025), rel_tol=1e-6)
    assert psnr(truth, truth, 1.0)["psnr"] == math.inf
    truth[0, 0, 0] = math.nan
    assert math.isclose(psnr(prediction, truth, 10.0)["rmse"], math.sqrt(0.025), rel_tol=1e-6)
    with pytest.raises(ValueError, match="value_range must be positive"):
        psnr(truth, truth, 0.0)


def test_psnr_latitude_weights():
    weights = latitude_weights(torch.linspace(90, -90, 19))
    assert math.isclose(weights.sum(), 1, rel_tol=1e-12) and weights.argmax() == 9 and weights[0] < 1e-12
    truth, prediction = torch.zeros(19, 4), torch.zeros(19, 4)
    prediction[0] = 100.0  # at the pole: no area
    assert psnr(prediction, truth, 1.0, weights)["rmse"] < 1e-6


def test_detail_ratio_measures_lost_detail():
    x = torch.randn(2, 64, 64)
    low = torch.nn.functional.interpolate(compute_area_mean(x, (32, 32))[None], (64, 64), mode="bilinear")[0]
    assert math.isclose(detail_ratio(x, x, 2), 1, rel_tol=1e-9) and detail_ratio(low, x, 2) < 0.2
