# SPDX-License-Identifier: Apache-2.0
"""Tests of scores of fields and ensembles, and of interpolation and regression baselines."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastds import metrics
from fastds.data.samples.fields import coarsen_fields
from fastds.models.baselines import interpolate
from fastds.models.baselines.regression import LocationRidge, StaticResidual
from fastds.models.baselines.super_resolution import SRCNN, SRGANDiscriminator, SRResNet


def fields(seed=0, shape=(2, 4, 16, 18)):
    generator = torch.Generator().manual_seed(seed)
    truth = 50 + 20 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return truth + 5 * torch.randn(shape, generator=generator, dtype=torch.float64), truth


def test_scores_by_hand():
    p, t = fields()
    s = metrics.field_scores(p, t, 100.0, climatology=torch.full((16, 18), 50.0, dtype=torch.float64))
    assert s["mse"] == pytest.approx(float(((p - t) ** 2).mean())) and s["mae"] == pytest.approx(
        float((p - t).abs().mean())
    )
    frames = [(p[i, k], t[i, k]) for i in range(2) for k in range(4)]
    psnr = [20 * math.log10(100 / math.sqrt(float(((a - b) ** 2).mean()))) for a, b in frames]
    assert s["psnr"] == pytest.approx(np.mean(psnr))
    acc = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in frames]
    assert s["acc"] == pytest.approx(np.mean(acc))
    pa, ta = p - p.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    anomalies = [(pa[i, k].flatten().numpy(), ta[i, k].flatten().numpy()) for i in range(2) for k in range(4)]
    literal = [(a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) for a, b in anomalies]  # equation 12 as printed
    assert s["acc_daymean"] == pytest.approx(np.mean(literal))
    centred = [np.corrcoef(a, b)[0, 1] for a, b in anomalies]
    assert abs(np.mean(centred) - np.mean(literal)) > 1e-5, "the two readings differ on these fields"
    tcc = [np.corrcoef(p[i, :, y, x], t[i, :, y, x])[0, 1] for i in range(2) for y in range(16) for x in range(18)]
    assert s["tcc"] == pytest.approx(np.mean(tcc))
    clim = [float((a - 50).flatten() @ (b - 50).flatten() / ((a - 50).norm() * (b - 50).norm())) for a, b in frames]
    assert s["acc_climatology"] == pytest.approx(np.mean(clim))
    assert 0 < s["ssim"] < 1


def test_perfect_and_constant_fields():
    _, t = fields()
    s = metrics.field_scores(t, t)
    assert (
        s["mse"] == 0
        and s["ssim"] == pytest.approx(1)
        and s["acc"] == pytest.approx(1)
        and s["tcc"] == pytest.approx(1)
    )
    flat = torch.full((3, 12, 12), 7.0)
    s = metrics.field_scores(flat, flat)
    assert math.isnan(s["acc"]) and math.isnan(s["tcc"]), "no variance, no correlation"
    t = t.clone()
    t[:, :, 3, 3] = 20.0  # one point that never varies is left out
    assert metrics.field_scores(t, t)["tcc"] == pytest.approx(1)


def test_range_is_explicit_and_series_is_per_day():
    p, t = fields()
    a, b = (metrics.field_scores(p, t, r)["psnr"] for r in (100.0, 200.0))
    assert b - a == pytest.approx(20 * math.log10(2))
    series = metrics.daily_series(p, t)
    assert len(series["mse"]) == 2 and np.mean(series["mse"]) == pytest.approx(metrics.field_scores(p, t)["mse"])


def test_ensemble_scores_of_a_reliable_ensemble():
    generator = torch.Generator().manual_seed(3)
    center = torch.randn(200, 100, generator=generator)
    draws = center + torch.randn(11, 200, 100, generator=generator)
    members, truth = draws[:10], draws[10]
    assert metrics.spread_skill(members, truth) == pytest.approx(1, abs=0.02)
    ranks = metrics.rank_histogram(members, truth)
    assert len(ranks) == 11 and sum(ranks) == pytest.approx(1) and max(ranks) < 0.1 and min(ranks) > 0.08
    direct = (members - truth).abs().mean() - sum(
        (members[i] - members[k]).abs().mean() for i in range(10) for k in range(10)
    ) / (2 * 90)
    assert metrics.crps(members, truth) == pytest.approx(float(direct), rel=1e-6)
    assert metrics.crps(members, truth) < float((members.mean(0) - truth).abs().mean())
    assert max(metrics.rank_histogram(members * 0, truth * 0)) < 0.1, "ties are drawn"


def test_metric_errors():
    p, t = fields()
    for message, call in [
        ("same shape", lambda: metrics.field_scores(p[0], t)),
        ("must be finite", lambda: metrics.field_scores(p * torch.nan, t)),
        ("data_range must be positive", lambda: metrics.field_scores(p, t, 0.0)),
        ("M >= 2", lambda: metrics.crps(p[:1], t[0])),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("r", [2, 3, 8])
@pytest.mark.parametrize(
    "method,align", [(m, a) for m in ("bilinear", "bicubic", "lanczos") for a in ("center", "grid")]
)
def test_a_ramp_is_exact_where_the_alignment_is_right(method, align, r):
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (10 * r, 12 * r)), indexing="ij")
    ramp = 3 + 2 * rows - columns
    coarse = coarsen_fields(ramp, r, "mean" if align == "center" else "decimate")
    inside = slice(3 * r, -4 * r)
    error = (interpolate(coarse, r, method, align) - ramp)[inside, inside].abs().max()
    assert error < (1e-9 if method != "lanczos" else 0.2 * r), "linear fields are preserved (Lanczos ripples)"
    wrong = interpolate(coarse, r, method, "grid" if align == "center" else "center")
    assert (wrong - ramp)[inside, inside].abs().max() > 0.4 * (r - 1), "the other convention shifts by half a block"


def test_interpolation_agrees_with_torch():
    x = torch.rand(2, 3, 7, 9, dtype=torch.float64)
    expected = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(interpolate(x, 4, "bilinear"), expected)
    expected = F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True, align_corners=False)  # a = -0.5
    torch.testing.assert_close(interpolate(x, 2)[..., 4:-4, 4:-4], expected[..., 4:-4, 4:-4], rtol=1e-6, atol=1e-6)
    for message, call in [
        ("method must be one of", lambda: interpolate(x, 2, "nearest")),
        ("align must be one of", lambda: interpolate(x, 2, "bicubic", "corner")),
        ("r must be a positive integer", lambda: interpolate(x, 0)),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_sizes_of_super_resolution_networks():
    def count(m):
        return sum(p.numel() for p in m.parameters())

    assert count(SRCNN()) == 8_129 and count(SRCNN(kernels=(9, 5, 5))) == 57_281 and count(SRResNet()) == 1_676_437
    x = torch.rand(2, 3, 1, 4, 5)
    assert SRCNN(scale=4)(x).shape == SRResNet(scale=4, blocks=1)(x).shape == (2, 3, 1, 16, 20)
    assert SRGANDiscriminator(width=8)(torch.rand(2, 3, 1, 16, 16)).shape == (2, 3)


def test_regressions_learn_the_geography():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(60, 5, 6, generator=generator, dtype=torch.float64)
    relief = torch.randn(20, 24, generator=generator, dtype=torch.float64)
    fine = interpolate(coarse, 4) * 0.5 + relief
    static, ridge = StaticResidual(4).fit(coarse[:50], fine[:50]), LocationRidge(4, 1e-6).fit(coarse[:50], fine[:50])
    errors = [float((model(coarse[50:]) - fine[50:]).square().mean()) for model in (static, ridge)]
    assert errors[1] < 0.05 < errors[0] < float((interpolate(coarse[50:], 4) - fine[50:]).square().mean())
    with pytest.raises(ValueError, match="fit must be called first"):
        LocationRidge(2)(coarse)
    with pytest.raises(ValueError, match="penalty must be positive"):
        LocationRidge(2, 0.0)
