# SPDX-License-Identifier: Apache-2.0
"""Tests of back-projection: the means of fine cells equal the coarse input."""

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds.cli import main
from fastds.data import open_dataset
from fastds.data.samples.degradation import compute_area_mean
from fastds.tasks.fields.back_projection import BackProjection, find_cells, make_averaging_matrix


def waves(rows, columns, west=0.0, missing=False):
    """Return temperatures of a global or regional grid."""
    y, x = np.linspace(80, -80, rows), west + 360 / columns * np.arange(columns)
    field = 280 + 8 * np.sin(np.deg2rad(9 * y))[:, None] * np.cos(np.deg2rad(14 * x)) + np.cos(np.deg2rad(31 * x))
    field = np.stack([field, field[:, ::-1]])
    if missing:
        field[:, 20:24, 30:36] = np.nan
    attrs = {"standard_name": "air_temperature", "units": "K"}
    return xr.Dataset(
        {"t": (("time", "latitude", "longitude"), field.astype("float32"), attrs)},
        {"time": [np.datetime64("2020-01-01"), np.datetime64("2020-01-02")], "latitude": y, "longitude": x},
    )


def means(ds, rows=2, columns=2):
    return ds.coarsen(latitude=rows, longitude=columns).mean()


@pytest.mark.parametrize(("n", "m"), [(10, 20), (10, 15), (7, 19), (6, 6)])
def test_means_over_cells_are_those_of_shared_areas(n, m):
    weights, covered = make_averaging_matrix(((2 * np.arange(m) + 1) * n - m) / (2 * m), n, False)
    fine = torch.rand(m, m, dtype=torch.float64)
    np.testing.assert_allclose(weights @ (weights @ fine.numpy().T).T, compute_area_mean(fine, (n, n)), rtol=1e-12)
    assert covered.all()


def test_cells_that_are_covered_in_part_correct_nothing():
    assert make_averaging_matrix(np.arange(20) / 2, 10, True)[1].all()  # around the globe
    assert make_averaging_matrix(np.arange(19) / 2, 10, False)[1].tolist() == [False, *[True] * 8, False]
    assert make_averaging_matrix(np.arange(19)[::-1] / 2, 10, False)[1].tolist() == [False, *[True] * 8, False]
    with pytest.raises(ValueError, match="coarsened needs a grid that is finer"):
        make_averaging_matrix(np.arange(5) * 1.5, 8, False)


@pytest.mark.parametrize("model", ["bilinear", "bicubic", "inr-any"])
@pytest.mark.parametrize("flipped", [False, True])
def test_back_projected_means_equal_the_input(model, flipped):
    truth = waves(48, 96)
    coarse = means(truth)
    if flipped:
        coarse = coarse.isel(latitude=slice(None, None, -1))
    for scale in (2, 1.5):
        plain, corrected = (fastds.downscale(model, coarse, scale=scale, coarsened=way) for way in (None, "mean"))
        assert "fastds_coarsened" not in plain.attrs and corrected.attrs["fastds_coarsened"] == "mean"
        back = [compute_area_mean(torch.from_numpy(made.t.values), coarse.t.shape[1:]) for made in (plain, corrected)]
        away = [float(abs(mean - coarse.t.values).max()) for mean in back]
        assert away[1] < 0.02 * away[0]
        if scale == 2:
            error = [float(((made.t - truth.t.sortby("latitude")) ** 2).mean()) for made in (plain, corrected)]
            assert error[1] < error[0]


@pytest.mark.parametrize("west", [0.0, -180.0])
def test_back_projection_is_periodic_in_longitude(west):
    coarse = waves(24, 48, west).isel(time=[0])
    coarse = coarse.assign_coords(latitude=np.linspace(90, -90, 24))
    plain, corrected = (
        fastds.downscale("bicubic", coarse, scale=2, coarsened=way).t.values[0] for way in (None, "mean")
    )
    there = coarse.t.values[0][1:-1]
    away = []
    for fine in (plain, corrected):
        around = np.pad(fine, ((0, 0), (1, 1)), "wrap")
        means = np.array([0.25, 0.5, 0.25])
        columns = sum(w * around[:, k : k + fine.shape[1]] for k, w in enumerate(means))[:, ::2]
        away.append(abs(sum(w * columns[k + 1 : len(fine) - 3 + k : 2] for k, w in enumerate(means)) - there).max(0))
    assert away[1].max() < 0.02 * away[0].max()
    np.testing.assert_array_equal(corrected[[0, -1]], plain[[0, -1]])


def test_back_projection_ignores_missing_cells():
    coarse = means(waves(48, 96, missing=True))
    assert coarse.t.isnull().any()
    corrected, plain = (fastds.downscale("bicubic", coarse, scale=2, coarsened=way) for way in ("mean", None))
    np.testing.assert_array_equal(corrected.t.isnull(), plain.t.isnull())
    back = means(corrected).t.values
    there = ~np.isnan(back) & ~np.isnan(coarse.t.values)
    assert there.mean() > 0.9
    np.testing.assert_allclose(back[there], coarse.t.values[there], atol=5e-3)


def test_positions_beyond_the_last_column_lie_in_the_first_cell():
    assert find_cells(np.array([-0.5, 0.4, 9.5]), 10, True).tolist() == [0, 0, 0]
    assert find_cells(np.array([-0.6, 0.5, 9.5]), 10, False).tolist() == [0, 1, 9]


def test_cell_with_missing_values_is_not_corrected():
    """In each direction, two coarse cells cover three fine ones, and the middle one belongs to both halves."""
    agreement = BackProjection((2, 2), [np.array([-1 / 6, 0.5, 7 / 6])] * 2)
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros((3, 3))
    y[0, 0] = np.nan
    lone = y.copy()
    agreement.correct(np.where(np.arange(4).reshape(2, 2) == 0, x, np.nan), lone)
    np.testing.assert_array_equal(lone, y)
    agreement.correct(x, y)
    assert np.isnan(y[0, 0]) and np.isfinite(y).sum() == 8 and y[2, 2] > 2
    agreement.correct(np.zeros((2, 2)), y, (0.0, np.inf))
    assert np.isnan(y[0, 0]) and np.nansum(y) == 0


def test_rain_stays_within_its_bounds_and_dry_cells_are_dry():
    rain = (((waves(48, 96).t - 284).clip(0)) / 1e4).to_dataset(name="rain")
    rain.rain.attrs = {"standard_name": "precipitation_flux", "units": "kg m-2 s-1"}
    coarse = means(rain)
    plain, corrected = (
        fastds.downscale("bicubic", coarse, scale=2, coarsened=way).rain.values for way in (None, "mean")
    )
    dry = (coarse.rain.values == 0).repeat(2, 1).repeat(2, 2)
    assert dry.mean() > 0.3 and (corrected[dry] == 0).all() and (plain[dry] > 0).any() and corrected.min() == 0
    away = [
        abs(compute_area_mean(torch.from_numpy(z), coarse.rain.shape[1:]) - coarse.rain.values).max()
        for z in (plain, corrected)
    ]
    assert away[1] < 0.1 * away[0]
    assert corrected.mean() == pytest.approx(float(coarse.rain.mean()), rel=5e-3)


def test_downscale_command_back_projects_in_chunks(tmp_path, capsys):
    truth, coarse = tmp_path / "truth.nc", tmp_path / "in.nc"
    waves(48, 96).to_netcdf(truth, engine="h5netcdf")
    means(waves(48, 96)).to_netcdf(coarse, engine="h5netcdf")
    words = ["--scale=2", "--model=inr-any", "--coarsened=mean"]
    assert main(["downscale", str(coarse), str(tmp_path / "o.nc"), *words, f"--truth={truth}"]) == 0
    printed = capsys.readouterr().out
    assert "bicubic, agreeing" in printed
    assert main(["downscale", str(coarse), str(tmp_path / "o.zarr"), *words, "--workers=1"]) == 0
    with open_dataset(tmp_path / "o.nc") as whole, open_dataset(tmp_path / "o.zarr") as pieces:
        np.testing.assert_array_equal(whole.t, pieces.t)
        rows = fastds.evaluate(whole, open_dataset(truth)).rows["t"]
    assert rows["bicubic, agreeing"]["rmse"] < rows["bicubic"]["rmse"]
    plain = ["downscale", str(coarse), str(tmp_path / "p.nc"), *words[:2], f"--truth={truth}"]
    assert main(plain) == 0 and "agreeing" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--scale=2 --coarsened=dbz", "--coarsened must be mean for gridded fields, got 'dbz'"),
        ("--scale=0.5 --coarsened=mean", "coarsened needs a grid that is finer than that of the fields"),
    ],
)
@pytest.mark.filterwarnings("ignore:the new grid is coarser")
def test_back_projection_rejects_unsuitable_grids(options, message, tmp_path, capsys):
    means(waves(48, 96)).to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    assert main(["downscale", str(tmp_path / "in.nc"), str(tmp_path / "o.nc"), *options.split()]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "o.nc").exists()


def test_radar_rejects_plain_mean_coarsening(tmp_path, capsys):
    coarse = fastds.data.coarsen_dataset(fastds.data.synthetic_event(1, 3, (64, 64)))
    fastds.data.save_dataset(coarse, tmp_path / "in.nc")
    assert main(["downscale", str(tmp_path / "in.nc"), str(tmp_path / "o.nc"), "--coarsened=mean"]) == 2
    assert "--coarsened must be one of" in capsys.readouterr().err


def test_correction_reports_clipping_at_limits():
    """Some cells cannot reach their means, because fine values are limited to 0 and above."""
    rng = np.random.default_rng(0)
    coarse = np.where(rng.random((8, 8)) < 0.5, 0.01, 60.0)
    fine = np.repeat(np.repeat(coarse, 3, 0), 3, 1)
    at = ((2 * np.arange(24) + 1) * 8 - 24) / 48
    agreement, unchanged = BackProjection((8, 8), [at, at]), fine.copy()
    assert agreement.correct(coarse, unchanged, (0.0, np.inf)) == 0
    fine = rng.permuted(fine.ravel()).reshape(fine.shape)
    free = fine.copy()
    assert agreement.correct(coarse, free) == 0
    cut = agreement.correct(coarse, fine, (0.0, np.inf))
    assert 0 < cut < fine.size and agreement.correct(coarse, fine, (0.0, np.inf), slack=1e9) == 0


def test_share_of_clipped_correction_is_reported():
    truth = waves(48, 96)
    rain = truth.assign(t=(truth.t - 285).clip(0).assign_attrs(standard_name="rainfall_amount", units="mm"))
    out = fastds.downscale("bicubic", means(rain), scale=2, coarsened="mean")
    assert 0 < out.attrs["fastds_cut_correction_share"] < 1
    assert "fastds_cut_correction_share" not in fastds.downscale("bicubic", means(rain), scale=2).attrs
    steady = fastds.downscale("bicubic", means(truth), scale=2, coarsened="mean")
    assert steady.attrs["fastds_cut_correction_share"] == 0
