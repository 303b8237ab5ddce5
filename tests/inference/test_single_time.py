# SPDX-License-Identifier: Apache-2.0
"""Tests of downscaling a radar field with a single time, which refines space only."""

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds.cli import main
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event, to_reflectivity
from fastds.metrics import interior

FINER = "one time, so finer in space alone: time factor 1"


@pytest.fixture
def event():
    return synthetic_event(3, frames=3, shape=(64, 80))


@pytest.fixture
def coarse(event):
    return coarsen_dataset(event)[["reflectivity"]]


@pytest.mark.parametrize("model", ["bicubic", "trilinear", "advection", "fczsm-small"])
@pytest.mark.filterwarnings("ignore:.*trained for")
def test_single_time_is_refined_in_space(coarse, tmp_path, capsys, model):
    """With interpolation, the result equals the first frame of a longer series."""
    save_dataset(coarse.isel(time=[0]), tmp_path / "one.nc")
    assert main(["downscale", str(tmp_path / "one.nc"), str(tmp_path / "o.nc"), f"--model={model}"]) == 0
    assert FINER in capsys.readouterr().out
    with open_dataset(tmp_path / "o.nc") as out:
        assert out.reflectivity.shape == (1, 64, 80) and out.attrs["fastds_time_factor"] == 1
        assert out.time.values == coarse.time.values[:1]
        if model in ("bicubic", "trilinear"):
            both = fastds.downscale(model, coarse).reflectivity[0]
            np.testing.assert_allclose(out.reflectivity[0], both, atol=1e-4)


def test_scalar_time_is_one_frame(coarse):
    series = coarse.isel(time=[0])
    expected = fastds.downscale("bicubic", series)
    made = fastds.downscale("bicubic", coarse.isel(time=0))
    assert made.reflectivity.dims == expected.reflectivity.dims
    np.testing.assert_array_equal(made.reflectivity, expected.reflectivity)
    with pytest.raises(ValueError, match="has no time dimension"):
        fastds.downscale("bicubic", coarse.isel(time=0, drop=True))


@pytest.mark.parametrize("raw", ["mch/AQC161932200V_00005.801.gif"])
@pytest.mark.filterwarnings("ignore:.*trained for")
def test_one_raw_file_keeps_its_amounts(data_dir, tmp_path, capsys, raw):
    source, out = data_dir / "raw" / raw, tmp_path / "o.nc"
    assert main(["check", str(source)]) == 0
    assert f"can        downscale: rainfall_amount to 1 field of 1280 x 1420; {FINER}" in capsys.readouterr().out
    words = ["downscale", str(source), str(out), "--model=bicubic", "--report", str(tmp_path / "r.html")]
    assert main(words) == 0 and FINER in capsys.readouterr().out
    with open_dataset(source) as given, open_dataset(out) as made:
        mean = made.rainfall_amount.coarsen(y=2, x=2).mean()
        np.testing.assert_allclose(mean, given.rainfall_amount, rtol=1e-4, atol=1e-4)
        assert made.rainfall_amount.attrs["cell_methods"] == given.rainfall_amount.attrs["cell_methods"]
        np.testing.assert_array_equal(np.diff(made.time_bnds.values), [[np.timedelta64(5, "m")]])


def test_an_amount_needs_an_interval(coarse):
    rain = coarse.reflectivity.isel(time=[0]).clip(0) / 20
    rain.attrs = {"units": "kg m-2", "standard_name": "rainfall_amount", "cell_methods": "time: sum"}
    with pytest.raises(ValueError, match="amount is an amount at one time, whose interval nothing tells"):
        fastds.downscale("bicubic", xr.Dataset({"amount": rain}))


def test_single_time_errors(coarse, tmp_path, capsys):
    one, out = str(save_dataset(coarse.isel(time=[0]), tmp_path / "one.nc")), str(tmp_path / "o.zarr")
    with pytest.raises(ValueError, match="at least 2 times are needed, variable reflectivity has 1"):
        to_reflectivity(coarse.isel(time=[0]))
    assert main(["nowcast", one, str(tmp_path / "o.nc"), "--model=persistence"]) == 2
    assert main(["downscale", one, out, "--model=bicubic", "--workers=1"]) == 2
    assert "at least 2 times are needed for an archive" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*trained for")
def test_scores_of_one_time(event, coarse, tmp_path, capsys):
    truth = save_dataset(event.isel(time=[0, 1]), tmp_path / "truth.nc")
    one = str(save_dataset(coarse.isel(time=[0]), tmp_path / "one.nc"))
    other = str(save_dataset(event.isel(time=[1]), tmp_path / "other.nc"))
    words = ["downscale", one, str(tmp_path / "o.nc"), "--model=bicubic"]
    assert main([*words, f"--truth={other}"]) == 2
    assert "it has no field of" in capsys.readouterr().err and not (tmp_path / "o.nc").exists()
    assert main([*words, f"--truth={truth}", "--report", str(tmp_path / "r.html")]) == 0
    printed = capsys.readouterr().out
    assert "One time, " in printed and "advection" not in printed and (tmp_path / "r.html").exists()
    with open_dataset(tmp_path / "o.nc") as made, open_dataset(truth) as fine:
        table = fastds.evaluate(made, fine)
        valid = interior(~np.isnan(torch.from_numpy(fine.reflectivity.values[0])))
        error = (made.reflectivity.values[0].clip(15, 70) - fine.reflectivity.values[0].clip(15, 70))[valid.numpy()]
    row = table.rows["bicubic (PRED)"]
    assert row["mse_total_15"] == pytest.approx(float((error.astype(float) ** 2).mean()), rel=1e-6)
    assert np.isnan(row["mse_t2_15"]) and table.single and set(table.rows) == {"trilinear", "bicubic", "bicubic (PRED)"}
    drawn = fastds.downscale("fczsm-small", open_dataset(one), members=2, seed=1)
    row = fastds.evaluate(drawn, open_dataset(truth)).rows["fczsm-small, mean of 2 members"]
    assert row["crps_15"] > 0
