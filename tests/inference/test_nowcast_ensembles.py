# SPDX-License-Identifier: Apache-2.0
"""Tests of ensemble nowcasts: texture, dry areas, ensemble mean, reproducibility, files and messages."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter

import fastds
from fastds import cli
from fastds.data import reflectivity_to_rate, save_dataset, synthetic_event
from fastds.metrics import crps, fss, reliability_counts, spectral_ratio
from fastds.models.baselines.boundary import compute_local_mean
from fastds.models.ensembles import (
    ErrorModel,
    ForecastFeatures,
    LagrangianNoise,
    compute_expected_rain,
    convert_to_rain_rate,
    match_echo_areas,
    match_mean_rain,
    sample_reflectivity,
)
from fastds.models.ensembles.forecast_features import FEATURES, WIDTHS
from fastds.tasks.nowcast.members import find_detection_threshold
from tests.support.small_models import nowcaster

LEAST = 0.1  # mm/h: members know no weaker rain


@pytest.fixture(scope="module")
def event():
    """Return 14 fields of 96 x 110 pixels with a hole and, in field 6 only, a missing pixel."""
    event = synthetic_event(3, frames=14, shape=(96, 110))[["reflectivity", "crs"]].copy(deep=True)
    event["reflectivity"][:, 50:60, 70:80] = np.nan
    event["reflectivity"][6, 3, 5] = np.nan
    return event


@pytest.fixture(scope="module")
def known(event):
    return event.isel(time=slice(0, 7))


@pytest.fixture(scope="module")
def ensemble(known):
    return fastds.nowcast("extrapolation", known, steps=3, members=3, seed=5)


def rain(dataset):
    return dataset.rainfall_rate.values


# ---- noise


def texture(seed, size=(150, 130), width=3.0):
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(size), width)
    return (field / field.std()).astype(np.float32)


def noise_of(last, before=None, steps=3, shift=0):
    """Return noise for a forecast of zeros, in air that moves by `shift` rows a step."""
    rows, columns = np.mgrid[: last.shape[0], : last.shape[1]]
    rows = np.stack([rows - shift * (k + 1) for k in range(steps)])
    mean = np.zeros((steps, *last.shape), np.float32)
    fields = last, last if before is None else before, mean
    return LagrangianNoise(np.ones(last.shape, bool), *fields, rows, np.stack([columns] * steps))


def test_noise_is_standard_normal_everywhere_and_has_the_spectrum_of_the_field():
    last = texture(1)
    fields = np.stack([np.stack(list(noise_of(last, shift=7).draw([0, k]))) for k in range(40)])
    assert fields.dtype == np.float32 and abs(fields.mean()) < 0.02
    assert fields.std((0, 2, 3)) == pytest.approx(1, abs=0.03)
    for edge in (fields[..., :5, :], fields[..., -5:, :], fields[..., :5], fields[..., -5:]):
        assert edge.std() == pytest.approx(1, abs=0.06)
    truth = torch.from_numpy(last).expand(40, -1, -1)
    ratios = spectral_ratio(torch.from_numpy(fields[:, -1]), truth, -99.0, ((8, 16), (16, 32), (32, 64)))
    assert all(0.6 < ratio < 1.6 for ratio in ratios.values()), ratios


def test_noise_is_advected_and_large_scales_persist():
    large, small = texture(1, width=8.0), texture(2, width=1.5)
    noise = noise_of(large + small, large + texture(3, width=1.5), shift=4)
    drawn = [np.stack(list(noise.draw([0, k]))) for k in range(12)]
    first, second = np.stack(drawn)[:, 0, :-4], np.stack(drawn)[:, 1, 4:]
    smooth = [gaussian_filter(part, (0, 6, 6)) for part in (first, second)]
    rough = [part - gaussian_filter(part, (0, 3, 3)) for part in (first, second)]
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in (smooth, rough)]
    assert correlations[0] > 0.85 and correlations[1] < 0.4
    assert abs(np.corrcoef(np.stack(drawn)[:, 0].ravel(), np.stack(drawn)[:, 1].ravel())[0, 1]) < correlations[0] - 0.1


def test_masked_pixels_do_not_affect_the_texture():
    """The field is smooth in the valid disc and has strong small-scale noise at the masked pixels."""
    rows, columns = np.mgrid[:150, :130]
    disc = np.hypot(rows - 70, columns - 60) < 55
    smooth, mean = texture(1, width=5.0), np.zeros((1, 150, 130), np.float32)
    last = np.where(disc, smooth, 50 * texture(2, width=0.5)).astype(np.float32)
    drawn = [
        next(LagrangianNoise(valid, field, field, mean, rows[None], columns[None]).draw([1]))
        for valid, field in ((disc, last), (np.ones_like(disc), smooth))
    ]
    fine = [np.square(np.diff(field, axis=0)).mean() for field in drawn]
    assert fine[0] < 2 * fine[1]


def test_noise_of_a_number_of_workers_has_the_same_bits():
    one, four = (np.stack(list(noise_of(texture(1)).draw([3], workers=workers))) for workers in (1, 4))
    assert np.array_equal(one, four)


def test_thresholds_do_not_change_the_power_by_scale():
    def member(lead, noise):
        return np.where(noise > 0, 12 + 8 * noise, 0).astype(np.float32)

    last = member(0, texture(4, width=4.0))

    def worst(noise):
        made = np.stack([member(0, next(noise.draw([9, k]))) for k in range(6)])
        truth = torch.from_numpy(last).expand(6, -1, -1)
        ratios = spectral_ratio(torch.from_numpy(made), truth, -99.0, ((2, 4), (4, 8), (8, 16), (16, 32), (32, 64)))
        return np.abs(np.log(list(ratios.values()))).max()

    noise = noise_of(last, steps=1)
    before = worst(noise)
    noise.match(member)
    assert before > 0.5 and worst(noise) < 0.6 * before


# ---- error model


def test_windows_are_means():
    x = torch.rand(2, 60, 75, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(compute_local_mean(torch.full_like(x, 3.0), 8), torch.full_like(x, 3.0), atol=1e-5)
    expected = gaussian_filter(x[0].numpy(), 4, mode="nearest")
    inside = slice(12, -12), slice(12, -12)
    np.testing.assert_allclose(compute_local_mean(x, 4)[0][inside], expected[inside], atol=0.02)


def test_sampled_reflectivity_increases_with_noise():
    parameters = tuple(torch.tensor(v) for v in (3.0, 2.0, 0.7, 0.4))
    z = sample_reflectivity(parameters, torch.linspace(-4, 4, 81))
    assert (z.diff() > 0).all() and sample_reflectivity(parameters, torch.tensor(0.5)) == 4.0
    assert sample_reflectivity(parameters, torch.tensor(3.0)) == pytest.approx(3 + 2 * (1.5 + 1.5 / (1 + 0.7 * 1.5)))
    assert sample_reflectivity(parameters, torch.tensor(-2.0)) == pytest.approx(3 + 2 * (-1 - 1.4))


def test_untrained_error_model_is_centred_on_the_forecast():
    features = torch.rand(FEATURES, 5, generator=torch.Generator().manual_seed(1))
    m, s, g, e = ErrorModel(8)(features)
    lacking = (10 * features[2 + 3 * len(WIDTHS) + 1]).square()
    assert torch.allclose(m, 20 * features[0] - 3) and torch.allclose(s, (lacking + 4).sqrt())
    assert torch.allclose(g, torch.nn.functional.softplus(torch.tensor(-1.5)).expand(5)) and torch.equal(g, e)


EXAMPLE = tuple(part * torch.ones(96, 110) for part in (torch.linspace(5, 25, 110), 6.0, 0.2, 0.3))


def rain_of(z):
    return torch.where(z < 7.0, 0.0, convert_to_rain_rate(z, (200.0, 1.6)))


def test_error_model_mean_rain_equals_member_mean():
    z = sample_reflectivity(EXAMPLE, torch.randn(400, 96, 110, generator=torch.Generator().manual_seed(0)))
    found = compute_expected_rain(EXAMPLE, rain_of)
    assert found.mean().item() == pytest.approx(rain_of(z).mean().item(), rel=0.03)
    assert convert_to_rain_rate(torch.tensor(35.0), (200.0, 1.6)) == pytest.approx(
        float(reflectivity_to_rate(35.0)), rel=1e-5
    )


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_mean_rain_matching_preserves_the_shape(factor):
    valid = torch.ones(96, 110, dtype=torch.bool)
    valid[:20, :30] = False
    target = torch.where(valid, factor * compute_expected_rain(EXAMPLE, rain_of), 1e3)
    m, *shape = parameters = match_mean_rain(EXAMPLE, target, torch.ones(96, 110), valid, rain_of, 16.0)
    found = compute_expected_rain(parameters, rain_of)
    assert found[valid].mean().item() == pytest.approx(target[valid].mean().item(), rel=0.03)
    assert all(torch.equal(a, b) for a, b in zip(shape, EXAMPLE[1:], strict=True))
    assert (m - EXAMPLE[0]).std() < 1e-5  # by one number
    half = torch.where(valid, 0.5, 1.0)  # known of what counts
    fewer = match_mean_rain(EXAMPLE, target, half, valid, rain_of, 16.0)[0]
    assert torch.allclose(fewer - EXAMPLE[0], (m - EXAMPLE[0]) / 2, atol=1e-4)


def test_one_strong_pixel_makes_no_drizzle_around():
    dry = tuple(part * torch.ones(128, 128) for part in (torch.tensor(-20.0), 3.0, 0.2, 0.3))
    target = torch.zeros(128, 128)
    target[64, 64] = 200.0
    m = match_mean_rain(dry, target, torch.ones(128, 128), torch.ones(128, 128, dtype=torch.bool), rain_of, 16.0)[0]
    assert (m - dry[0]).max() <= 6.0 and (sample_reflectivity((m, *dry[1:]), torch.tensor(3.0)) < 7.0).all()


STRONG, STRONGEST, ALL = 22.0, 60.0, torch.ones(96, 110, dtype=torch.bool)


def count_above(z, level):
    return (z >= level).float().sum((-1, -2)).mean().item()


@pytest.mark.parametrize("stretch", [-0.4, 0.4])
def test_strong_echo_gets_the_areas_of_the_target(stretch):
    drawn = sample_reflectivity(EXAMPLE, torch.randn(300, 96, 110, generator=torch.Generator().manual_seed(0)))
    target = drawn + stretch * (drawn - STRONG).clamp(min=0)
    shift = match_echo_areas(EXAMPLE, target[0], ALL, 1.0, STRONG, STRONGEST)
    shifted = shift(drawn)
    for level in (27.0, 29.0, 31.0):
        before, after, expected = (count_above(z, level) for z in (drawn, shifted, target))
        assert abs(np.log(after / expected)) < 0.12 < 0.25 < abs(np.log(before / expected))
    below = drawn <= STRONG
    assert torch.equal(shifted[below], drawn[below])
    levels = torch.linspace(0, 70, 701)
    assert (shift(levels).diff() >= -1e-4).all()
    halved = match_echo_areas(EXAMPLE, target[0], ALL, 0.5, STRONG, STRONGEST)
    assert torch.allclose(halved(levels) - levels, (shift(levels) - levels) / 2, atol=1e-4)


def test_shifts_of_strong_echo_are_limited():
    far = match_echo_areas(EXAMPLE, EXAMPLE[0] + 30.0, ALL, 1.0, STRONG, STRONGEST)
    levels = torch.linspace(0, 70, 701)
    assert 5.9 < (far(levels) - levels).max() <= 6.0 and (far(levels) - levels).min() == 0
    counted = ALL.clone()
    counted[10:] = False
    target = torch.where(counted, EXAMPLE[0], 60.0)
    shift = match_echo_areas(EXAMPLE, target, counted, 1.0, STRONG, STRONGEST)
    assert (shift(levels) <= levels).all()  # the strong target is where it does not count


@pytest.mark.parametrize("pixels", [4, 8, 40])
def test_few_strong_pixels_shift_less(pixels):
    """No jump from one field to the next if a pixel crosses a level."""
    levels, target = torch.linspace(0, 70, 701), torch.zeros(96 * 110)
    target[:pixels] = STRONG + 1.5
    shift = match_echo_areas(EXAMPLE, target.view(96, 110), ALL, 1.0, STRONG, STRONGEST)
    most = (levels - shift(levels)).max().item()
    assert 0.5 * pixels / (pixels + 8) * 6 < most <= pixels / (pixels + 8) * 6
    assert torch.equal(shift(levels)[levels <= STRONG], levels[levels <= STRONG])


def test_without_strong_echo_nothing_is_shifted():
    weak = torch.full((96, 110), 10.0)
    assert match_echo_areas(EXAMPLE, weak, ALL, 1.0, STRONG, STRONGEST) is None
    model = weak, *(torch.ones(96, 110) for _ in range(3))
    assert match_echo_areas(model, EXAMPLE[0] + 20.0, ALL, 1.0, STRONG, STRONGEST) is None


def test_probabilities_of_heavy_rain_sum_to_about_its_area():
    """Narrow cores, which the error model alone makes too weak: 0.38 of the area."""
    y, x = np.mgrid[:96, :112]
    z = np.full((96, 112), 18.0)
    for centre in np.random.default_rng(1).uniform(12, 84, (14, 2)):
        z = np.maximum(z, 52 - ((y - centre[0]) ** 2 + (x - 1.2 * centre[1]) ** 2) / 1.5)
    given = synthetic_event(seed=0, frames=5, shape=(96, 112))
    given = given.assign(reflectivity=given.reflectivity.copy(data=np.repeat(z[None], 5, 0).astype(np.float32)))
    made = fastds.nowcast("nowcast-small", given, steps=3, probability=[30.0], members=12, seed=1)
    area = 3 * float((reflectivity_to_rate(z) >= 30).sum())
    assert 0.55 < float(made.probability_of_rainfall_rate_above_threshold.sum()) / area < 1.2


def test_features_are_advected_with_the_forecast():
    z = torch.zeros(2, 96, 96)
    z[:, 40:56, 40:56] = 30.0
    z[:, 0] = 10.0
    paths = torch.zeros(1, 2, 96, 96)
    paths[:, 0] = -10.0  # from above
    (moved,) = ForecastFeatures(z, z[-1:], paths).advect(z[-1])
    assert (moved[50:66, 40:56] == 30).all() and (moved[20:50] == 0).all() and (moved[10] == 10).all()
    assert (moved[0] > 0).all() and (moved[0] < 4).all()  # a mean: from outside


def test_inflow_has_no_stripes():
    z = torch.zeros(2, 128, 128)
    z[:, ::8, :] = 40.0  # stripes along the flow
    paths = torch.zeros(12, 2, 128, 128)
    paths[:, 1] = 8.0 * torch.arange(1, 13).view(-1, 1, 1)  # from the right
    around = ForecastFeatures(z, z[-1:].repeat(12, 1, 1), paths)
    features = around.compute(11, 7.0)
    contrast = [features[0][:, columns].std(0) for columns in (slice(0, 20), slice(108, 128))]
    assert contrast[0].min() > 0.5 and contrast[1].max() < 0.05 * contrast[0].min()


def test_features_of_an_even_field():
    z, paths = torch.full((2, 64, 64), 12.0), torch.zeros(2, 2, 64, 64)
    z[:, 20:26, :9] = torch.nan
    paths[:, 0] = 3.0
    around = ForecastFeatures(z, torch.full((2, 64, 64), 12.0), paths)
    n = len(WIDTHS)
    maps = [0.6] * (2 + 3 * n) + [0.01] * 2 * n  # in 20 dB; what is lacking and the change are 0 + 0.01 dB2
    scalars = [np.log(3), 0.76, 0.99**2, np.log(4) / 4, 1.2, 0.7]
    want = torch.tensor([*maps, *scalars], dtype=torch.float32).view(-1, 1, 1).expand(FEATURES, 64, 64)
    torch.testing.assert_close(around.compute(1, 7.0), want, rtol=0, atol=2e-3)


# ---- members


def test_members_are_missing_like_the_last_frame(known, ensemble):
    values, hole = rain(ensemble), np.isnan(known.reflectivity.values[-1])
    assert ensemble.rainfall_rate.dims == ("realization", "time", "y", "x") and values.shape == (3, 3, 96, 110)
    assert ensemble.realization.attrs["standard_name"] == "realization" and hole[3, 5]
    assert np.array_equal(np.isnan(values), np.broadcast_to(hole, values.shape))
    there = values[:, :, ~hole]
    assert ensemble.attrs["fastds_dry_below_mm_h"] == LEAST == pytest.approx(there[there > 0].min(), rel=0.05)
    assert ensemble.attrs["fastds_dry_below_dBZ"] == pytest.approx(10 * np.log10(200 * LEAST**1.6))
    assert (there[there < LEAST * 0.999] == 0).all() and (there == 0).any()
    assert [ensemble.attrs[f"fastds_{key}"] for key in ("members", "seed", "errors")] == [3, 5, "nowcast-errors"]


def test_result_marks_unobserved_areas(known):
    """The air comes from the west with 4 pixels per step, so that 4 k columns are unobserved after k steps."""
    z = np.stack([texture(1, (96, 140), 4.0)[:, 30 - 4 * k : 140 - 4 * k] for k in range(5)]) * 10 + 25
    z[:, 50:60, 70:80] = np.nan
    drift = known.isel(time=slice(0, 5))
    drift = drift.assign(reflectivity=drift.reflectivity.copy(data=z.astype(np.float32)))
    for options in ({}, {"members": 2}, {"probability": [1.0]}):
        made = fastds.nowcast("extrapolation", drift, steps=3, **options)
        (field,), mask = made.filter_by_attrs(ancillary_variables="from_outside").data_vars, made.from_outside
        assert field.startswith(("rainfall_rate", "probability"))
        assert mask.dims == ("time", "y", "x") and mask.attrs["flag_meanings"] == "observed not_observed"
        for k in (1, 2, 3):
            assert mask.values[k - 1, :, : 4 * k - 1].all() and not mask.values[k - 1, 1:40, 4 * k + 1 :].any()
            assert mask.values[k - 1, 52:58, 71 + 4 * k : 79 + 4 * k].all()
    assert "from_outside" not in fastds.nowcast("persistence", drift, steps=1)


@pytest.mark.parametrize("members", [{"members": 2}, {"probability": [1.0]}])
def test_members_without_echo_are_dry(known, members):
    dry = known.assign(reflectivity=known.reflectivity.where(known.reflectivity.isnull(), -32.0))
    out = next(v for v in fastds.nowcast("extrapolation", dry, steps=2, **members).data_vars.values() if v.ndim == 4)
    assert (out.values[~np.isnan(out.values)] == 0).all()


def test_members_far_from_rain_are_dry():
    z = np.full((3, 200, 240), -32.0, np.float32)
    z[:, 30:60, 30:60] = 30 + 5 * texture(1, (30, 30))
    event = synthetic_event(3, frames=3, shape=(200, 240))[["reflectivity"]]
    event["reflectivity"].values[:] = z
    values = rain(fastds.nowcast("extrapolation", event, steps=3, members=4))
    assert (values[..., 40:50, 40:50] > 0).mean() > 0.8 and (values[..., 150:, 150:] > 0).mean() < 0.005


def test_members_have_the_observed_texture_and_rain(event):
    """In each band of scales, the power of members is 0.35 to 2 times that of the truth."""
    truth = reflectivity_to_rate(event.reflectivity.values[5:9].clip(0), no_echo=0.0)
    made = rain(fastds.nowcast("nowcast-small", event.isel(time=slice(0, 5)), steps=4, members=8))
    hole = np.isnan(made[0, 0])

    def power(fields):
        z = [
            np.where(hole | (field < LEAST), 0, 10 * np.log10(200 * np.maximum(field, LEAST) ** 1.6))
            for field in fields
        ]
        return torch.from_numpy(np.stack(z))

    for lead in (1, 3):
        expected = power(truth[lead : lead + 1]).expand(8, -1, -1)
        ratios = spectral_ratio(power(made[:, lead]), expected, 0.0, ((2, 4), (4, 8), (8, 16), (16, 32)))
        assert all(0.35 < ratio < 2.0 for ratio in ratios.values()), (lead, ratios)
    assert 0.75 < np.nanmean(made) / np.nanmean(np.where(hole, np.nan, truth)) < 1.33


def test_member_depends_only_on_seed_start_and_index(known, event, ensemble, monkeypatch):
    def again(**options):
        return rain(fastds.nowcast("extrapolation", known, **{"steps": 3, "members": 3, "seed": 5, **options}))

    def same(a, b):
        return np.array_equal(a, b, equal_nan=True)

    assert same(again(), rain(ensemble)) and same(again(threads=1), again(threads=2))
    assert same(again(members=2), rain(ensemble)[:2]) and not same(again(seed=6)[0], rain(ensemble)[0])
    assert not same(rain(ensemble)[0], rain(ensemble)[1])
    late = {"start": str(known.time.values[6]), "every": "10min"}
    hindcasts = fastds.nowcast("extrapolation", event, steps=3, members=2, seed=5, **late)
    assert hindcasts.rainfall_rate.dims[:3] == ("realization", "forecast_reference_time", "forecast_period")
    assert same(rain(hindcasts)[:, 0], rain(ensemble)[:2]) and hindcasts.sizes["forecast_reference_time"] == 4
    later = known.assign_coords(time=known.time + np.timedelta64(1, "h"))
    assert not same(rain(fastds.nowcast("extrapolation", later, steps=3, members=1, seed=5))[0], rain(ensemble)[0])


def test_probabilities_are_shares_of_the_members(known, ensemble):
    rates = [0.5, 2.25, 5.0]
    out = fastds.nowcast("extrapolation", known, steps=3, members=3, seed=5, probability=rates)
    field = out.probability_of_rainfall_rate_above_threshold
    assert field.dims == ("threshold", "time", "y", "x") and field.attrs["units"] == "1"
    assert list(out.threshold.values) == rates and out.threshold.attrs["units"] == "mm h-1"
    expected = np.stack([(rain(ensemble) >= rate).mean(0) for rate in rates])
    there = ~np.isnan(rain(ensemble)[0])
    assert np.array_equal(np.isnan(field.values), np.broadcast_to(~there, field.shape))
    np.testing.assert_allclose(field.values[:, there], expected[:, there], atol=1e-6)
    assert fastds.nowcast("extrapolation", known, steps=1, probability=[1.0]).attrs["fastds_members"] == 24


@pytest.mark.parametrize("what", [{"members": 2, "seed": 1}, {"members": 2, "probability": [1.0]}])
def test_members_in_chunks_and_archives_are_identical(event, what, tmp_path, monkeypatch):
    pytest.importorskip("dask", reason="lazy results need dask")
    options = {"steps": 2, "every": "15min", **what}
    expected = fastds.nowcast("extrapolation", event, **options)
    (name,) = (key for key, value in expected.data_vars.items() if value.ndim == 5)
    monkeypatch.setattr("fastds.inference.chunking.choose_chunk_steps", lambda job, workers=1: 1)
    lazy = fastds.nowcast("extrapolation", event.chunk(time=1), **options)
    assert np.array_equal(lazy[name], expected[name], equal_nan=True)
    pytest.importorskip("zarr", reason="archives need Zarr")
    monkeypatch.setattr("fastds.archive.run.choose_chunk_steps", lambda job, workers=1: 1)
    save_dataset(event, tmp_path / "in.nc")
    words = f"nowcast {tmp_path}/in.nc {tmp_path}/out.zarr --model extrapolation --steps 2 --every 15min --workers 1"
    words += " --members 2" + (" --seed 1" if "seed" in what else " --probability 1")
    assert cli.main(words.split()) == 0
    stored = xr.open_zarr(tmp_path / "out.zarr")
    assert np.array_equal(stored[name], expected[name], equal_nan=True)


def test_members_of_an_autoregressive_network(known):
    values = rain(fastds.nowcast(nowcaster(), known, steps=2, members=2, coarsen=1))
    assert values.shape == (2, 2, 96, 110) and not np.array_equal(values[0], values[1], equal_nan=True)


# ---- scores


def test_members_are_scored_against_observations(event, tmp_path):
    made = fastds.nowcast("extrapolation", event.isel(time=slice(0, 10)), steps=2, every="10min", members=4)
    save_dataset(made, tmp_path / "members.nc")
    table = fastds.evaluate(made, event, baselines=["persistence"])
    assert list(table.rows) == ["persistence", "extrapolation, mean", "extrapolation, one member"]
    starts = [list(event.time.values).index(time) for time in made.forecast_reference_time.values]
    values = np.where(rain(made) < LEAST, 0, rain(made))
    for lead in (0, 1):
        z = event.reflectivity.values[[start + 1 + lead for start in starts]]
        truth = reflectivity_to_rate(z, no_echo=0.0)
        truth = np.where(truth < LEAST, 0, truth)
        x, valid = values[:, :, lead], ~(np.isnan(z) | np.isnan(values[0, :, lead]))
        members, truth = torch.from_numpy(x[:, valid]), torch.from_numpy(truth[valid]).float()
        row = {name: part[lead] for name, part in table.ensemble.rows.items()}
        assert row["crps"] == pytest.approx(crps(members, truth), rel=1e-4)
        assert row["rain"] == pytest.approx(float(members.double().mean() / truth.double().mean()), rel=1e-4)
        counts = reliability_counts(members, truth, 2.0).double()
        error = (counts[:, 1] / counts[:, 0] - torch.arange(5) / 4).abs()
        judged = counts[:, 0] >= 1e-3 * counts[:, 0].sum()
        assert row["reliability"][1] == pytest.approx(float(error[judged].max()), abs=1e-6)
        hits = [
            ((members.double().mean(0) >= 2) & (truth >= 2)).sum(),
            ((members.double().mean(0) >= 2) | (truth >= 2)).sum(),
        ]
        assert row["csi"][1] == pytest.approx(float(hits[0] / hits[1]), abs=1e-6)
    table.to_csv(tmp_path / "t.csv")
    assert "ensemble crps" in (tmp_path / "t.csv").read_text()
    assert "Ensemble of 4 members" in str([part.title for part in table.tables()])
    assert any("CRPS is fair" in sentence for sentence in table.list_notes())


def test_reliability_counts_by_hand():
    members = torch.tensor([[0.0, 3.0, 1.0, 4.0], [2.0, 3.0, 0.0, 0.0]])
    truth = torch.tensor([2.0, 1.0, 5.0, 2.0])
    assert reliability_counts(members, truth, 2.0).tolist() == [[1, 1], [2, 2], [1, 0]]


def test_windows_of_probabilities_score_as_fields_do(event):
    """The FSS of two equal members is that of the field."""
    from fastds.tasks.nowcast.ensemble_scores import EnsembleSums

    pytest.importorskip("scores", reason="FSS by the package scores")
    truth, field = (reflectivity_to_rate(np.nan_to_num(event.reflectivity.values[k]), no_echo=0.0) for k in (5, 4))
    sums = EnsembleSums(2, [300.0])
    sums.add(0, np.stack([field, field]), truth)
    expected = fss(torch.from_numpy(field), torch.from_numpy(truth), 2.0, 9)
    assert sums.rows().rows["fss"][0, 1] == pytest.approx(expected, abs=0.02)


def test_wet_area_and_mean_rain_are_ratios_to_the_truth():
    """The mean over the members is compared with the truth; missing pixels are ignored."""
    from fastds.tasks.nowcast.ensemble_scores import EnsembleSums

    truth = np.zeros((4, 8), np.float32)
    truth[0, :4], truth[3] = 2.0, np.nan
    members = np.stack([np.full((4, 8), 0.09, np.float32), np.zeros((4, 8), np.float32)])
    members[0, :2], members[1, 0, 0] = 1.0, 4.0
    sums = EnsembleSums(2, [300.0])
    sums.add(0, members, truth)
    rows = sums.rows().rows
    assert rows["wet"][0] == pytest.approx((16 + 1) / 2 / 4) and rows["rain"][0] == pytest.approx((16 + 4) / 2 / 8)


# ---- options


BAD = {
    "--members 0": "--members must be a whole number from 1 to 10000, got 0",
    "--seed 3": "--seed is that of members, give --members or --probability, got 3",
    "--members 2 --seed -1": "--seed must be a whole number >= 0, got -1",
    "--probability 5,1": "--probability must be growing rain rates in mm/h such as 1,5,10, got [5.0, 1.0]",
    "--probability rain": "--probability must be growing rain rates in mm/h such as 1,5,10, got 'rain'",
    "--probability 1 --quantity reflectivity": "--quantity must be rate with probability, whose thresholds are mm/h",
    "--members 2 --model persistence": "method persistence moves nothing, and members need the motion of two fields",
    "--members 2 --to mlcast --license CC0-1.0 --creator A<a@b.org> --identifier DE-A-b": "MLCast's form has one field",
    "--members two": "--members must be a whole number, got 'two'",
}


@pytest.mark.parametrize("words", BAD)
def test_invalid_ensemble_options_are_rejected(event, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_dataset(event, "in.nc")
    target = "out.zarr" if "mlcast" in words else "out.nc"
    model = "" if "--model" in words else "--model extrapolation"
    assert cli.main(f"nowcast in.nc {target} {model} {words}".split()) == 2
    stderr = capsys.readouterr().err
    assert BAD[words] in stderr and stderr.count("\n") == 1 and not (tmp_path / target).exists()


def test_dry_fields_have_probability_zero_and_are_not_missing(known):
    """0.01 mm/h is below the floor of the method, which dry pixels have."""
    dry = known.copy(deep=True)
    dry["reflectivity"][:] = np.where(np.isnan(known.reflectivity), np.nan, -32.0)
    out = fastds.nowcast("extrapolation", dry, steps=2, members=3, probability=[0.01, 1.0])
    values = out.probability_of_rainfall_rate_above_threshold.values
    assert np.array_equal(np.isnan(values[0, 0]), np.isnan(known.reflectivity.values[-1]))
    assert np.nanmax(values) == 0


def test_detection_threshold_of_a_field():
    field = np.zeros((50, 50), np.float32)
    assert find_detection_threshold(field, (200.0, 1.6)) == pytest.approx(10 * np.log10(200 * 0.1**1.6), abs=1e-4)
    field[:20] = np.linspace(12, 40, 1000).reshape(20, 50)
    assert find_detection_threshold(field, (200.0, 1.6)) == pytest.approx(12.56, abs=0.01)
    assert find_detection_threshold(field + 30, (200.0, 1.6)) == 20.0


def test_uniform_rain_is_preserved(known):
    even = known.assign(reflectivity=known.reflectivity.where(known.reflectivity.isnull(), 35.0))
    values = rain(fastds.nowcast("extrapolation", even, steps=3, members=2))
    for field in np.moveaxis(values, 1, 0):  # no event is even
        assert np.nanmean(field) == pytest.approx(float(reflectivity_to_rate(35.0)), rel=0.1)


def test_members_in_widespread_rain_have_the_mean_of_the_single_forecast(data_dir):
    window = {"time": slice(24, 29), "latitude": slice(100, 300), "longitude": slice(120, 320)}
    with xr.open_dataset(data_dir / "radar_dpc_sardinia_20250416_5min.nc", engine="h5netcdf") as dataset:
        known = dataset.isel(window).load()
    single, members = (
        rain(fastds.nowcast("nowcast-small", known, steps=4, **options)) for options in ({}, {"members": 4})
    )
    assert np.nanmean(single) > 0.5
    for lead in (0, 3):
        assert np.nanmean(members[:, lead]) == pytest.approx(np.nanmean(single[lead]), rel=0.12)
