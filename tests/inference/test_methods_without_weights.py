# SPDX-License-Identifier: Apache-2.0
"""Tests of methods that need no weights: interpolation and advection."""

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.ndimage import map_coordinates

import fastds
from fastds.cli import main
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event
from fastds.models.baselines.advection import advection
from fastds.models.baselines.interpolation import compute_interpolation_weights, interpolate
from fastds.tasks.api import select_downscaling_task
from fastds.tasks.radar.methods import BASELINES, Baseline
from tests.support.field_cases import region
from tests.support.small_models import field_model


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos"])
def test_interpolation_weights_equal_interpolate(method):
    x = torch.randn(9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for r in (2, 3):
        rows, columns = (compute_interpolation_weights((np.arange(r * n) + 0.5) / r - 0.5, n, method) for n in x.shape)
        np.testing.assert_allclose(rows @ x.numpy() @ columns.T.toarray(), interpolate(x, r, method), atol=1e-12)


def test_linear_interpolation_is_periodic():
    x = np.random.default_rng(0).normal(size=8)
    at = np.array([-0.3, 7.4, 7.9, 12.25])
    for method in ("bilinear", "bicubic", "lanczos"):
        expected = compute_interpolation_weights(at + 8, 24, method) @ np.tile(x, 3)
        np.testing.assert_allclose(
            compute_interpolation_weights(at, 8, method, periodic=True) @ x, expected, atol=1e-12
        )


def test_weights_are_those_of_scipys_linear_interpolation():
    x = np.random.default_rng(1).normal(size=11)
    at = np.linspace(0, 10, 37)
    np.testing.assert_allclose(
        compute_interpolation_weights(at, 11, "bilinear") @ x, map_coordinates(x, [at], order=1), atol=1e-12
    )


@pytest.mark.parametrize("options", [{"scale": 2.5}, {"grid": 0.75}])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos"])
def test_linear_interpolation_preserves_planes(method, options):
    """Away from the edges, where values are repeated, a plane stays a plane."""
    fine = fastds.downscale(method, region(), **options)
    inside = fine.t2m.sel(latitude=slice(17, 25), longitude=slice(108, 120))
    np.testing.assert_allclose(inside, 220.0 + inside.latitude + 0.5 * inside.longitude, atol=0.1)
    assert fine.t2m.attrs == {"units": "K", "standard_name": "air_temperature"} and method in fine.attrs["history"]


def test_like_takes_the_grid_of_another_and_refuses_places_outside():
    other = region(rows=5, columns=4).assign_coords(latitude=14.0 + np.arange(5), longitude=110.0 + np.arange(4))
    for name in ("latitude", "longitude"):
        other[name].attrs = region()[name].attrs
    fine = fastds.downscale("bilinear", region(), like=other)
    np.testing.assert_allclose(fine.t2m, 220.0 + other.latitude + 0.5 * other.longitude, atol=1e-4)
    with pytest.raises(ValueError, match="reaches beyond the fields"):
        fastds.downscale("bilinear", region(), like=other.assign_coords(latitude=other.latitude + 40))


def test_humidity_stays_within_its_range():
    values = np.zeros((12, 15))
    values[:, 7:] = 100.0
    humid = region(values)
    humid.t2m.attrs = {"units": "%", "standard_name": "relative_humidity"}
    fine = fastds.downscale("lanczos", humid, scale=4).t2m
    assert float(fine.min()) == 0.0 and float(fine.max()) == 100.0


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos", "inr-any"])
@pytest.mark.parametrize("scale", [2, 3])
def test_nearest_interpolation_preserves_coasts(method, scale):
    land = region(250 + np.random.default_rng(3).normal(size=(12, 15)))
    land.t2m[2:8, :6], land.t2m[10, 12], land.t2m[4, 3] = np.nan, np.nan, 250
    fine = fastds.downscale(method, land, scale=scale).t2m
    nearest = land.t2m.sel(latitude=fine.latitude, longitude=fine.longitude, method="nearest")
    assert np.array_equal(fine.isnull(), nearest.isnull()) and abs(fine - 250).max() < 6
    flipped = fastds.downscale(method, land.isel(latitude=slice(None, None, -1)), scale=scale).t2m
    xr.testing.assert_allclose(fine, flipped.sortby("latitude"), rtol=0, atol=1e-4)
    if method == "inr-any":
        points = [(float(fine.latitude[i]), float(fine.longitude[j])) for i, j in ((5, 4), (9, 7), (9, 20))]
        rows = fastds.query(method, land, points)
        expected = [fine.sel(latitude=y, longitude=x).isnull().item() for y, x in points]
        assert [np.isnan(row["t2m"]) for row in rows] == expected and True in expected and False in expected


@pytest.mark.parametrize("flipped", [(), ("latitude",), ("longitude",), ("latitude", "longitude")], ids=str)
def test_halfway_to_a_coast_the_southern_and_eastern_point_decides(flipped):
    land = region(250 + np.random.default_rng(3).normal(size=(18, 15)), rows=18)
    land.t2m[2:8, :6], land.t2m[16, 12] = np.nan, np.nan
    middles = {d: (d, land[d].values[1:] - 1.0, land[d].attrs) for d in land.dims}
    given = land.isel(dict.fromkeys(flipped, slice(None, None, -1)))
    fine = fastds.downscale("bilinear", given, like=xr.Dataset(coords=middles)).t2m
    assert np.array_equal(fine.isnull(), land.t2m.isnull()[:-1, 1:])


def test_a_coast_at_the_seam_of_a_globe_does_not_depend_on_the_convention():
    lat, lon = np.arange(80.0, -81.0, -10.0), np.arange(0.0, 360.0, 10.0)
    x = xr.Dataset(
        {"t": (("lat", "lon"), np.random.default_rng(1).normal(size=(17, 36)).astype("f4"), {"units": "K"})},
        {"lat": ("lat", lat, {"units": "degrees_north"}), "lon": ("lon", lon, {"units": "degrees_east"})},
    )
    x.t[5:9, :3] = np.nan
    wrapped = x.assign_coords(lon=("lon", (lon + 180) % 360 - 180, x.lon.attrs)).sortby("lon")
    for method in ("lanczos", "inr-any"):
        fine = (fastds.downscale(method, data, scale=2).t for data in (x, wrapped))
        a, b = (y.assign_coords(lon=y.lon % 360).sortby("lon") for y in fine)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 if method == "inr-any" else 1e-6)


def test_file_with_one_variable_uses_inr_any(tmp_path, capsys):
    """Without a model name, a file with one variable is downscaled by inr-any."""
    save_dataset(region(), tmp_path / "t.nc")
    assert main(["downscale", str(tmp_path / "t.nc"), str(tmp_path / "o.nc"), "--scale", "2"]) == 0
    printed = capsys.readouterr().out
    assert "model inr-any (any variable)" in printed
    with open_dataset(tmp_path / "o.nc") as out:
        assert out.t2m.shape == (24, 30) and out.attrs["fastds_model"] == "inr-any"
        xr.testing.assert_equal(out.t2m, fastds.downscale("inr-any", region(), scale=2).t2m)
        inside = out.t2m[4:-4, 4:-4]
        np.testing.assert_allclose(inside, 220.0 + inside.latitude + 0.5 * inside.longitude, atol=0.2)
    with pytest.raises(ValueError, match="there is no field over latitude and longitude"):
        fastds.downscale(None, region().assign(t2m=region().t2m.astype(str)), scale=2)
    with pytest.raises(ValueError, match="method bicubic reads no static maps"):
        fastds.downscale("bicubic", region(), scale=2, static=["h.nc"])


def test_variables_are_downscaled_independently():
    """Other variables in the file, and their missing values, do not change the result of a variable."""
    rng = np.random.default_rng(5)
    both = region(rng.normal(size=(12, 15)))
    both["p"] = both.t2m.copy(data=1e5 + 500 * rng.normal(size=(12, 15)).astype("f4"))
    both.t2m.attrs, both.p.attrs = {"units": "1"}, {"units": "Pa"}
    fine = fastds.downscale(None, both, scale=2)
    for name in ("t2m", "p"):
        alone = fastds.downscale("inr-any", both[[name]], scale=2)[name]
        np.testing.assert_allclose(fine[name], alone, rtol=1e-6, atol=1e-5)
    both.t2m[3, 3] = np.nan
    xr.testing.assert_equal(fastds.downscale(None, both, scale=2).p, fine.p)
    rows = fastds.query(None, both[["p"]], [(20.0, 110.0), (24.5, 117.0)])
    assert len(rows) == 2 and all(abs(row["p"] - row["p_bilinear"]) < 2000 for row in rows)
    assert all(row["p"] != row["p_bilinear"] for row in rows)


def test_the_order_of_the_axes_does_not_matter():
    x = region(250 + np.random.default_rng(3).normal(size=(12, 15)))
    flipped = x.isel(latitude=slice(None, None, -1), longitude=slice(None, None, -1))
    fine, other = (fastds.downscale("inr-any", d, scale=2).t2m for d in (x, flipped))
    assert other.latitude[0] > other.latitude[-1] and fine.latitude[0] < fine.latitude[-1]
    xr.testing.assert_allclose(fine, other.sortby("latitude").sortby("longitude"), rtol=0, atol=1e-4)
    points = [(13.1, 121.0), (27.3, 104.6)]
    for a, b in zip(*(fastds.query("inr-any", d, points) for d in (x, flipped)), strict=True):
        assert abs(a["t2m"] - b["t2m"]) < 1e-4 and abs(a["t2m_bilinear"] - b["t2m_bilinear"]) < 1e-4


@pytest.mark.parametrize("method", ["bicubic", "lanczos", "inr-any"])
def test_rain_is_never_negative_and_dry_is_dry(method):
    values = np.zeros((20, 24))
    values[6:9, 5:12] = 12.0
    rain = region(values, 20, 24).rename(t2m="tp")
    rain.tp.attrs = {"units": "kg m-2", "standard_name": "precipitation_amount"}
    fine = fastds.downscale(method, rain, scale=4).tp
    assert float(fine.min()) == 0.0 and float(fine.max()) > 10.0
    assert (fine[56:, :] == 0.0).all() and (fine[:, 72:] == 0.0).all()
    rain["tp"] = rain.tp - 1.0  # of what may be negative, such as degrees, nothing is cut
    assert float(fastds.downscale(method, rain, scale=4).tp.min()) < -1.0


@pytest.fixture(scope="module")
def coarse():
    return coarsen_dataset(synthetic_event(4, 5, (64, 96)))[["reflectivity"]]


@pytest.mark.parametrize("method", ["trilinear", "bicubic", "advection"])
def test_radar_by_methods_without_weights(coarse, tmp_path, capsys, method):
    save_dataset(coarse, tmp_path / "in.nc")
    assert main(["downscale", str(tmp_path / "in.nc"), str(tmp_path / "out.nc"), f"--model={method}"]) == 0
    assert f"method {method}, which needs no weights" in capsys.readouterr().out
    with open_dataset(tmp_path / "out.nc") as out:
        assert out.reflectivity.shape == (5, 64, 96) and out.attrs["fastds_model"] == method
        z, given = out.reflectivity.values, coarse.reflectivity.values
        dry = np.kron(given[0] <= -32, np.ones((2, 2)))
        assert (z[0][dry == 1] == -32).all()  # cells without echo stay without
        assert z.max() <= given.max() + (1e-3 if method == "trilinear" else 6)


def test_advection_moves_echo_and_trilinear_fades_it():
    """An echo of 40 dBZ moves by 8 pixels between two frames."""
    z = np.full((2, 48, 64), -32.0, np.float32)
    z[0, 12:36, 20:30] = z[1, 12:36, 28:38] = 40.0
    event = synthetic_event(1, 2, (48, 64))[["reflectivity"]]
    event["reflectivity"].values[:] = z
    halfway = {name: fastds.downscale(name, event).reflectivity.values[1, 48] for name in ("trilinear", "advection")}
    assert (halfway["advection"] > 30).sum() >= 14 > (halfway["trilinear"] > 30).sum()


def test_baseline_as_model_equals_the_baseline():
    x = torch.rand(1, 2, 1, 20, 24, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(Baseline("advection")(x), advection(x, 2), rtol=0, atol=0)


def test_xarray_accessor_has_the_task_functions(coarse, tmp_path):
    xr.testing.assert_identical(
        coarse.fastds.downscale("trilinear").reflectivity, fastds.downscale("trilinear", coarse).reflectivity
    )
    assert region().t2m.fastds.downscale(scale=2).t2m.shape == (24, 30)
    event = synthetic_event(4, 5, (64, 96))
    rain = event.fastds.nowcast("persistence", steps=2)
    assert rain.rainfall_rate.shape == (2, 64, 96)
    assert event.fastds.evaluate(event).pairs == 2
    rows = region().rename(t2m="t").fastds.query([(12.0, 110.0)], model=field_model(), outside="nan")
    assert rows[0]["t_bilinear"] == pytest.approx(220.0 + 12.0 + 55.0, abs=1e-3)


def test_methods_of_the_other_task_are_refused(coarse):
    with pytest.raises(FileNotFoundError, match="'lanczos' is neither a file nor one of the shipped weights"):
        fastds.downscale("lanczos", coarse)
    with pytest.raises(FileNotFoundError, match="'advection' is neither a file"):
        fastds.downscale("advection", region(), scale=2)


def test_methods_are_listed_once(monkeypatch):
    monkeypatch.setitem(BASELINES, "nearest", BASELINES["bicubic"])
    assert (
        select_downscaling_task("nearest", {}) == "radar"
        and select_downscaling_task("lanczos", {"scale": 2}) == "fields"
    )
    with pytest.raises(FileNotFoundError, match="'furthest' is neither a file nor one of the shipped weights"):
        select_downscaling_task("furthest", {})
