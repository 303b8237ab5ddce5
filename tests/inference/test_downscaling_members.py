# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds downscale --members`: noise, members of radar fields and their scores."""

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds import models
from fastds.cli import main
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event
from fastds.metrics import crps
from fastds.models.ensembles import downscaling_features as detail
from fastds.models.ensembles.downscaling_features import (
    FEATURES,
    WET_SHARE_INDEX,
    DownscalingFeatures,
    draw_smooth_noise,
    draw_zero_block_mean_noise,
    estimate_correlation,
)
from fastds.tasks.radar import members as drawing
from fastds.tasks.radar import refinement
from fastds.tasks.radar.pairs import average_above

NO_ECHO = -32.0


@pytest.fixture(scope="module")
def truth():
    return synthetic_event(4, frames=5, shape=(96, 128), spacing_m=1000.0)[["reflectivity", "crs"]]


@pytest.fixture(scope="module")
def coarse(truth):
    return coarsen_dataset(truth)


@pytest.fixture(scope="module")
def drawn(coarse):
    return fastds.downscale("fczsm-small", coarse, members=4, seed=3)


# ---- noise


def test_lost_detail_is_white_with_zero_block_means():
    noise = draw_zero_block_mean_noise([1, 2], (400, 600), 2)
    blocks = noise.view(200, 2, 300, 2)
    assert blocks.mean((1, 3)).abs().max() < 1e-6
    assert noise.var().item() == pytest.approx(1, abs=0.02)
    inside, across = (noise[:, k::2][:, :299] * noise[:, k + 1 :: 2][:, :299] for k in (0, 1))
    assert inside.mean().item() == pytest.approx(-1 / 3, abs=0.02) and abs(across.mean().item()) < 0.02
    assert torch.equal(noise, draw_zero_block_mean_noise([1, 2], (400, 600), 2))
    assert not torch.equal(noise, draw_zero_block_mean_noise([1, 3], (400, 600), 2))


@pytest.mark.parametrize("near", [0.3, 0.7, 0.9])
def test_the_correlation_of_smooth_noise_falls_exponentially(near):
    parts = [draw_smooth_noise([seed], (300, 420), near) for seed in range(8)]
    assert np.mean([part.square().mean() for part in parts]) == pytest.approx(1, abs=0.06)
    for rows, columns in ((1, 0), (0, 1), (2, 0), (0, 4), (3, 4)):
        found = np.mean([(p[rows:, columns:] * p[: 300 - rows, : 420 - columns]).mean() for p in parts])
        assert found == pytest.approx(near ** np.hypot(rows, columns), abs=0.05), (rows, columns)


def test_smooth_noise_has_the_same_bits_with_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        fields = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fields.append(draw_smooth_noise([5], (200, 210), 0.6))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*fields)


def test_correlation_grows_with_what_motion_adds():
    assert estimate_correlation(1.0, 2.0) == pytest.approx(0.5**1.6)
    assert estimate_correlation(2.0, 1.0) == estimate_correlation(0.0, 0.0) == estimate_correlation(1.0, 1.0) == 0.01
    assert estimate_correlation(0.0, 1.0) == 0.98


# ---- features of the error model


def fields(height=150, width=90):
    generator = torch.Generator().manual_seed(0)
    coarse = (torch.randn(height // 2, width // 2, generator=generator) * 8 + 6).clamp(min=0)
    fine = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return fine, coarse, torch.randn(height, width, generator=generator)


def test_features_by_hand_where_nothing_varies():
    fine, coarse = torch.full((64, 80), 10.0), torch.full((32, 40), 10.0)
    found = DownscalingFeatures(fine, coarse, torch.full_like(fine, 3.0)).compute(slice(0, 64))
    assert found.shape == (FEATURES, 64, 80)
    likely = (0.2 * 9 + 0.01) ** 0.5 / 10
    expected = [0.5, likely, 0, *[0.5] * 4, *[0.01] * 4, *[9.01**0.5 / 10] * 4, *[1] * 4]
    expected += [np.log(0.1) / 2] * 4 + [0, 0] + [np.log(0.1) / 2, 0, 0.3, 1.0]
    torch.testing.assert_close(found[:, 30, 40], torch.tensor(expected, dtype=torch.float32), rtol=1e-3, atol=2e-3)
    assert found[WET_SHARE_INDEX, 30, 40] == pytest.approx(1.0)


def test_features_in_bands_are_identical(monkeypatch):
    whole = DownscalingFeatures(*fields(480, 64))
    expected = whole.compute(slice(0, 480))
    monkeypatch.setattr(detail, "_ROWS", 128)
    assert len(whole.split_rows()) == 4
    found = torch.cat([whole.compute(rows) for rows in whole.split_rows()], 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_texture_is_the_variance_within_blocks():
    _, coarse, _ = fields()
    inner, outer = detail._compute_texture(coarse)
    assert inner[10, 20] == pytest.approx(coarse[10:12, 20:22].var(correction=0).item(), abs=1e-3)
    blocks = coarse[10:14, 20:24].var(correction=0)
    parts = [coarse[10 + i : 12 + i, 20 + j : 22 + j].var(correction=0) for i in range(3) for j in range(3)]
    within = np.mean([inner[10 + i, 20 + j] for i in range(4) for j in range(4)])
    assert len(parts) == 9 and outer[10, 20] == pytest.approx(max(blocks.item() - within, 0), abs=1e-3)


# ---- members


def test_members_have_their_own_dimension(coarse, drawn):
    single = fastds.downscale("fczsm-small", coarse)
    assert drawn.reflectivity.dims == ("realization", *single.reflectivity.dims)
    assert drawn.realization.values.tolist() == [0, 1, 2, 3] and drawn.reflectivity.dtype == np.float32
    assert {k: drawn.attrs[f"fastds_{k}"] for k in ("members", "seed", "errors")} == {
        "members": 4, "seed": 3, "errors": "downscaling-errors",
    }  # fmt: skip
    assert drawn.time.equals(single.time) and drawn.x.equals(single.x)
    values = drawn.reflectivity.values
    assert all(np.abs(values[0] - values[k]).max() > 1 for k in (1, 2, 3))
    assert np.abs(values.mean(0) - single.reflectivity.values).mean() < np.abs(values - values.mean(0)).mean()


def test_member_does_not_depend_on_ensemble_size_or_times(coarse, drawn, monkeypatch):
    fewer = fastds.downscale("fczsm-small", coarse, members=2, seed=3)
    assert fewer.reflectivity.equals(drawn.reflectivity.isel(realization=slice(0, 2)))
    other = fastds.downscale("fczsm-small", coarse, members=2, seed=4)
    assert not np.array_equal(other.reflectivity, fewer.reflectivity)
    monkeypatch.setattr(refinement, "smooth_flow", lambda this, before, after: this.flow)  # the same with fewer fields
    whole, last = (
        fastds.downscale("fczsm-small", coarse.isel(time=slice(first, None)), members=2, seed=3) for first in (0, 1)
    )
    np.testing.assert_array_equal(last.reflectivity[:, -1], whole.reflectivity[:, -1])


def test_members_preserve_dry_and_missing(coarse):
    coarse = coarse.copy(deep=True)
    coarse.reflectivity[:, 5:9, 5:9] = np.nan
    made = fastds.downscale("fczsm-small", coarse, members=2)
    single = fastds.downscale("fczsm-small", coarse)
    for member in made.reflectivity.values:
        np.testing.assert_array_equal(np.isnan(member), np.isnan(single.reflectivity.values))
    dry = (coarse.reflectivity.values == NO_ECHO).repeat(2, 1).repeat(2, 2)
    assert dry.any() and (made.reflectivity.values[:, ::2][:, dry] == NO_ECHO).all()


def test_members_without_input_echo_have_none(coarse):
    none = coarse.copy(deep=True)
    none.reflectivity[:] = NO_ECHO
    assert (fastds.downscale("fczsm-small", none, members=2).reflectivity == NO_ECHO).all()


def test_members_are_identical_lazily_and_in_chunks(coarse, drawn):
    pytest.importorskip("dask")
    lazy = fastds.downscale("fczsm-small", coarse.chunk(time=1), members=4, seed=3)
    assert lazy.reflectivity.chunks is not None
    xr.testing.assert_identical(lazy.reflectivity.compute(), drawn.reflectivity)


def test_every_member_keeps_the_amounts_of_the_input(coarse):
    rate = 0.036 * 10 ** (coarse.reflectivity.clip(min=0) / 16)
    amount = (rate / 6).where(coarse.reflectivity > 0, 0).rename("rain")
    amount.attrs = {"standard_name": "rainfall_amount", "units": "mm", "cell_methods": "time: sum"}
    amount = xr.Dataset({"rain": amount, "crs": coarse.crs})
    made = fastds.downscale("fczsm-small", amount, members=2)
    blocks = made.rain.coarsen(y=2, x=2).mean().values
    together = blocks.reshape(2, -1, 2, *blocks.shape[2:]).sum(2)
    np.testing.assert_allclose(together, np.broadcast_to(amount.rain, together.shape), rtol=1e-4, atol=1e-5)


def test_twice_in_time_each_time_has_members(coarse):
    made = fastds.downscale("fczsm-small", coarse, members=2, time_factor=4)
    assert made.reflectivity.shape[:2] == (2, 9)
    assert all(np.abs(a - b).max() > 1 for a, b in zip(*made.reflectivity.values, strict=True))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("fczsm-small", {"members": 1}, "members must be a whole number from 2 to 10000, got 1"),
        ("fczsm-small", {"members": 2.5}, "members must be a whole number, got 2.5"),
        ("fczsm-small", {"members": 2, "seed": -1}, "seed must be a whole number >= 0, got -1"),
        ("fczsm-small", {"seed": 1}, "seed is that of members, give the argument members, got 1"),
        ("advection", {"members": 2}, "from 15 to 70 dBZ 2 times as fine, such as fczsm-small; advection is none"),
    ],
)
def test_members_reject_invalid_arguments(coarse, model, options, message):
    with pytest.raises(ValueError, match=message):
        fastds.downscale(model, coarse, **options)


# ---- scores


def test_scores_of_members_by_hand(truth, coarse, drawn):
    rows = fastds.evaluate(drawn, truth, input=coarse).rows
    name, member = list(rows)[-2:]
    assert (name, member) == ("fczsm-small, mean of 4 members", "fczsm-small, member 1")
    alone = drawn.isel(realization=0, drop=True)
    single = fastds.evaluate(alone, truth, input=coarse).rows["fczsm-small"]
    assert rows[member] == pytest.approx(single, nan_ok=True)
    assert "crps_15" not in rows[member] and "crps_15" not in rows["advection"]
    inner = slice(2, -2)
    x, t = (torch.from_numpy(z.reflectivity.values[..., inner, inner]).clamp(15, 70) for z in (drawn, truth))
    frames = [0, 1, 2, 2, 3, 4]  # of two pairs
    assert rows[name]["crps_15"] == pytest.approx(crps(x[:, frames], t[frames]), rel=1e-5)
    assert rows[name]["mae_15"] == pytest.approx((x.mean(0) - t).abs()[frames].double().mean().item(), rel=1e-5)
    errors = (average_above(x, 15.0) - t).square()
    total = errors[[1, 3]].mean() + errors[[0, 2, 2, 4]].mean() * 2
    assert rows[name]["mse_total_15"] == pytest.approx(total.item() / 3, rel=1e-4)


def test_members_have_detail_and_calibrated_spread(truth, coarse, drawn):
    rows = fastds.evaluate(drawn, truth, input=coarse).rows
    mean, member = (rows[name] for name in list(rows)[-2:])
    made = fastds.downscale("fczsm-small", coarse, smooth=True)
    single = fastds.evaluate(made, truth, input=coarse).rows["fczsm-small"]
    fields = (z.reflectivity.values[[0, 1, 2, 2, 3, 4], 2:-2, 2:-2].clip(15, 70) for z in (made, truth))
    assert mean["crps_15"] < 0.9 * np.abs(np.subtract(*fields)).mean()
    assert member["spectrum"] > 2 * single["spectrum"] and 0.6 < mean["spread_skill_15"] < 1.6


def test_downscale_command_writes_and_scores_members(truth, coarse, tmp_path, capsys):
    for name, dataset in (("coarse", coarse), ("truth", truth)):
        save_dataset(dataset, tmp_path / f"{name}.nc")
    files = [str(tmp_path / f"{name}.nc") for name in ("coarse", "fine")]
    page = tmp_path / "page.html"
    options = ["--members", "2", "--seed", "1", "--truth", str(tmp_path / "truth.nc"), "--report", str(page)]
    assert main(["downscale", *files, *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 members, error model downscaling-errors" in printed and "spread/skill" in printed
    with open_dataset(files[1]) as made:
        assert made.sizes["realization"] == 2
    assert "mean of 2 members" in page.read_text()
    assert main(["downscale", *files, "--members", "2", "--report", str(page)]) == 0
    assert "member 1" in page.read_text()


def test_shipped_error_model_card_names_its_data():
    from fastds.studies import fit_downscaling_errors, radar

    card = models.load_card(drawing.ERROR_MODEL)
    assert card.licence and len(card.training_data) == len(fit_downscaling_errors.BLOCKS)
    for block in fit_downscaling_errors.BLOCKS:
        first, *_ = radar.TEST_BLOCKS.get(block.file, (10**6,))
        assert block.frames[1] <= first
