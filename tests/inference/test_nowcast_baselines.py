# SPDX-License-Identifier: Apache-2.0
"""Tests of persistence, blurred persistence and extrapolation on fields whose future is known."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from fastds.data import RadarWindows
from fastds.models.baselines import (
    blurred_persistence,
    compute_trajectories,
    estimate_backward_flow,
    extrapolation,
    optical_flow,
    persistence,
    pysteps_extrapolation,
)
from fastds.models.baselines.boundary import fill_inflow, fill_missing, inpaint_edge_motion

METHODS = [persistence, blurred_persistence, extrapolation]
GROWTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # pixels per step


def drifting(frames, dy=1.0, dx=2.0, size=(48, 64)):
    """Return fields (1, frames, 1, h, w) of two smooth cells that move by (dy, dx) pixels a frame."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(float)
    out = []
    for k in range(frames):
        cells = [((14 + dy * k, 12 + dx * k), 5.0, 0.8), ((26 + dy * k, 22 + dx * k), 3.5, 0.6)]
        out.append(sum(a * np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * s * s)) for (r, c), s, a in cells))
    return torch.tensor(np.stack(out), dtype=torch.float32)[None, :, None]


def test_persistence_repeats_the_last_field():
    x = drifting(3)
    assert torch.equal(persistence(x, 4), x[:, -1:].repeat(1, 4, 1, 1, 1))


def test_extrapolation_follows_a_drift():
    everything = drifting(11)
    x, truth = everything[:, :5], everything[:, 5:]
    errors = {method: (method(x, 6) - truth).square().mean((0, 2, 3, 4)) for method in METHODS}
    assert torch.all(errors[extrapolation] < 0.05 * errors[persistence])
    assert torch.all(errors[blurred_persistence] < errors[persistence])


def test_trajectories_agree_with_a_loop_in_float64():
    generator = torch.Generator().manual_seed(1)
    flow = torch.nn.functional.interpolate(
        4 * torch.rand(1, 2, 5, 6, generator=generator) - 2, (20, 24), mode="bicubic"
    )
    rows, columns = np.mgrid[:20, :24].astype(np.float64)
    d = np.zeros((2, 20, 24))
    for found in compute_trajectories(flow, 4)[0]:
        places = np.stack([np.clip(rows + d[0], 0, 19), np.clip(columns + d[1], 0, 23)])
        d = d + np.stack([map_coordinates(b.double().numpy(), places, order=1) for b in flow[0]])
        np.testing.assert_allclose(found, d, atol=2e-5)


def test_extrapolation_by_a_given_flow_shifts_whole_pixels():
    x, flow = drifting(2), torch.zeros(1, 2, 48, 64)
    flow[:, 0], flow[:, 1] = -3.0, 5.0
    moved = extrapolation(x, 2, flow)
    last = x[0, -1, 0]
    np.testing.assert_allclose(moved[0, 0, 0, 3:, :-5], last[:-3, 5:], atol=1e-6)
    np.testing.assert_allclose(moved[0, 1, 0, 6:, :-10], last[:-6, 10:], atol=1e-6)


def test_blur_grows_with_lead_by_the_rate_of_the_known_fields():
    x = drifting(5, 0.0, 2.0)
    fields = x[0, :, 0].numpy()
    errors = [
        sum(((gaussian_filter(fields[4 - j], g * j, mode="nearest") - fields[4]) ** 2).sum() for j in (1, 2, 3, 4))
        for g in GROWTHS
    ]
    best = GROWTHS[int(np.argmin(errors))]
    assert 0 < best < 8
    for k, field in enumerate(blurred_persistence(x, 3)[0, :, 0], 1):
        np.testing.assert_allclose(field, gaussian_filter(fields[4], best * k, mode="nearest"), atol=1e-6)


@pytest.mark.parametrize("growth", GROWTHS)
def test_blur_continues_its_growth(growth):
    first = torch.rand(40, 50, generator=torch.Generator().manual_seed(3)).numpy()
    second = gaussian_filter(first, growth, mode="nearest")
    forecast = blurred_persistence(torch.from_numpy(np.stack([first, second]))[None, :, None], 2)
    for k, field in enumerate(forecast[0, :, 0], 1):
        np.testing.assert_allclose(field, gaussian_filter(second, growth * k, mode="nearest"), atol=1e-6)


def test_inflow_fades_from_the_edge_value_to_the_local_mean():
    """Stripes along the flow move west; the area east of the stripes is not observed."""
    x, flow = torch.zeros(1, 2, 1, 96, 160), torch.zeros(1, 2, 96, 160)
    x[..., ::4, :], flow[:, 1], x[..., 120:] = 0.8, 5.0, math.nan
    moved = extrapolation(x, 12, flow)[0, -1, 0]
    np.testing.assert_allclose(moved[:, :60], x[0, -1, 0, :, :60], atol=1e-6)
    for distance in (1, 10, 40):
        share = math.exp(-distance / 32)
        expected = share * x[0, -1, 0, :, 0] + (1 - share) * 0.2
        np.testing.assert_allclose(moved[:, 59 + distance], expected, atol=0.004)


def test_inflow_is_not_wetter_than_observed():
    last, paths = torch.zeros(1, 1, 96, 160), torch.zeros(1, 1, 2, 96, 160)
    last[..., ::4, :], paths[:, :, 1] = 0.8, 1000.0
    last[..., :2, :] = math.nan  # takes no part
    moved = torch.rand(1, 1, 1, 96, 160, generator=torch.Generator().manual_seed(1)) * 1e-3 + 0.8
    mean, cut = (fill_inflow(moved, last, paths, wet)[0, 0, 0] for wet in (None, 0.1))
    assert (mean > 0.19).all() and (mean < 0.21).all()
    part = cut[2:]
    assert torch.equal(cut[:2], mean[:2]) and 0.24 < (part > 0.1).float().mean() < 0.26
    assert set(part[part <= 0.1].tolist()) == {torch.tensor(0.1).item()}
    selected = part > 0.1
    assert torch.equal(part[selected], mean[2:][selected]) and mean[2:][selected].min() >= mean[2:][~selected].max()
    still = torch.zeros_like(paths)
    assert torch.equal(fill_inflow(moved, last[..., 2:, :].new_ones(last.shape), still, 0.1), moved)  # all observed


def test_inflow_echo_does_not_spread():
    rows, columns = np.mgrid[:160, :160]
    fields = []
    for k in range(3):
        cells = [(80, 16 + 3 * k), *((y, x + 3 * k) for y in (40, 80, 120) for x in (50, 90, 130))]
        fields.append(sum(np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 50) for y, x in cells))
    x = torch.tensor(np.stack(fields), dtype=torch.float32).clamp(max=1)
    disc = torch.from_numpy(np.hypot(rows - 80, columns - 80) < 65)
    x = torch.where(disc, x, math.nan)[None, :, None]
    flow = optical_flow(torch.nan_to_num(x))[:, -1, 1]
    trusted, rim = (
        inpaint_edge_motion(flow, disc[None]),
        disc & torch.from_numpy((columns < 30) & (abs(rows - 80) < 20)),
    )
    errors = [(part[0, :, rim] - torch.tensor([[0.0], [-3.0]])).abs().mean() for part in (flow, trusted)]
    assert errors[1] < 0.5 * errors[0] and torch.equal(trusted[0, :, 60:100, 60:100], flow[0, :, 60:100, 60:100])
    flow = optical_flow(fill_missing(x)[:, -2:])[:, 0, 1]
    torch.testing.assert_close(extrapolation(x[:, -2:], 2), extrapolation(x, 2, inpaint_edge_motion(flow, disc[None])))
    assert torch.equal(extrapolation(x, 2), extrapolation(x, 2, estimate_backward_flow(x)))


def test_extrapolation_is_more_accurate_with_more_frames():
    noise = gaussian_filter(np.random.default_rng(3).standard_normal((10, 48, 64)), (0, 2, 2))
    x = (drifting(10) + torch.from_numpy(noise).float()[None, :, None]).clamp(0, 1)
    two, four = ((extrapolation(x[:, 4 - n : 4], 6) - x[:, 4:]).square().mean() for n in (2, 4))
    assert four < 0.9 * two


@pytest.mark.parametrize("method", METHODS)
def test_missing_pixels_are_filled_by_the_nearest_value(method):
    x = drifting(4)
    x[..., 30:, :] = math.nan
    filled = torch.where(x.isnan(), x[..., 29:30, :], x)
    same = torch.equal(method(x, 2), method(filled, 2))
    assert same == (method is not extrapolation) and not method(x, 2).isnan().any()  # which knows what was not observed
    x[:, 1:] = math.nan
    assert torch.equal(method(x, 2)[:, :1], torch.zeros(1, 1, 1, 48, 64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("x", "steps", "error", "sentence"),
    [
        (torch.zeros(1, 3, 1, 8, 8, dtype=torch.int64), 1, TypeError, "floating-point"),
        (torch.zeros(1, 0, 1, 8, 8), 1, ValueError, r"N >= \d fields"),
        (torch.zeros(3, 8, 8), 1, ValueError, "must have shape"),
        (torch.zeros(1, 3, 1, 8, 8), 0, ValueError, "steps must be a whole number >= 1, got 0"),
    ],
    ids=["integers", "no fields", "no batch", "no steps"],
)
def test_other_input_is_refused(method, x, steps, error, sentence):
    with pytest.raises(error, match=sentence):
        method(x, steps)


def test_a_flow_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"flow must have shape \(1, 2, 48, 64\)"):
        extrapolation(drifting(2), 1, torch.zeros(1, 2, 24, 32))


@pytest.mark.parametrize("file", ["radar_bom_melbourne_20180616_6min.nc", "radar_mch_20160711_5min.nc"])
def test_ranking_of_the_methods_on_real_radar(data_dir, file):
    sample = RadarWindows(data_dir / file, known=5, future=6, scale=4, every=11)[1]
    x, y = torch.where(sample["valid"][:5], sample["x"], math.nan)[None], sample["y"]
    valid = sample["valid"].all(0)[0]
    p, b, e = ((method(x, 6)[0] - y).square()[:, 0, valid].mean(1) for method in METHODS)
    assert torch.all(b < p) and torch.all(e < b)


def test_pysteps_agrees_on_a_drift():
    pytest.importorskip("pysteps", reason="pysteps is not installed (optional peer)")
    everything = drifting(8)
    x, truth = everything[:, :4], everything[:, 4:]
    error = (pysteps_extrapolation(x, 4) - truth).square().mean()
    assert error < 0.2 * (persistence(x, 4) - truth).square().mean()


def test_pysteps_is_called_per_sample(monkeypatch):
    """The test replaces methods of pysteps and checks their arguments and results."""
    x = drifting(5)[:, :3].repeat(2, 1, 1, 1, 1)
    x[1] *= 0.5
    seen = []

    def lucaskanade(fields):
        seen.append(fields)
        return np.full((2, *fields.shape[1:]), 3.0)

    def extrapolate(last, velocity, steps):
        assert velocity.shape == (2, *last.shape) and (velocity == 3).all()
        forecasts = np.stack([last * (k + 1) for k in range(steps)])
        forecasts[-1, 0, 0] = np.nan  # from outside
        return forecasts

    methods = {"lucaskanade": lucaskanade, "extrapolation": extrapolate}
    part = types.SimpleNamespace(get_method=methods.__getitem__)
    monkeypatch.setitem(sys.modules, "pysteps", types.SimpleNamespace(motion=part, nowcasts=part))
    got = pysteps_extrapolation(x, 2)
    assert [fields.dtype for fields in seen] == [np.float64] * 2
    assert np.array_equal(np.stack(seen), x[:, :, 0].double().numpy())
    expected = torch.stack([x[:, -1], 2 * x[:, -1]], 1)
    expected[:, 1, :, 0, 0] = 0
    assert got.dtype == x.dtype and torch.equal(got, expected)


def test_missing_pysteps_error_suggests_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysteps", None)
    with pytest.raises(ImportError, match="python -m pip install pysteps"):
        pysteps_extrapolation(drifting(2), 1)
