# SPDX-License-Identifier: Apache-2.0
"""Tests of the height correction of `fastds query`: --height and --lapse-rate."""

import csv

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds import cli
from fastds.models import create
from fastds.models.card import ANY
from tests.support.small_models import field_model

POINTS = {"lat": [45.3, 46.1, 44.9], "lon": [7.2, 8.9, 9.6], "elev": [3200.0, 150.0, 800.0]}
RATE = 5.5


def any_model():
    torch.manual_seed(1)
    options = {"encoder_options": {"channels": 8, "blocks": 2}, "dpfa_count": 1}
    model = create("inr-small", in_channels=1, **options, decoder_options={"width": 16, "heads": 2}).eval()
    model.card.input_variables = model.card.output_variables = [{"name": ANY}]
    return model


def atmosphere(rate=RATE, relief=1500.0, descending=True):
    """Return a dataset whose temperature decreases by `rate` K/km with the height of the orography."""
    lat, lon = 43 + 0.25 * np.arange(17), 6 + 0.25 * np.arange(19)
    rng = np.random.default_rng(2)
    z = relief * rng.random((17, 19))
    t = 290 - rate * z / 1000 + 0.4 * np.arange(17)[:, None] + 0.1 * np.arange(19)
    dims = ("time", "latitude", "longitude")
    air = {"standard_name": "air_temperature", "units": "K"}
    made = xr.Dataset(
        {
            "t2m": (dims, np.stack([t, t + 2]).astype("f4"), air),
            "u": (dims, np.stack([t, t]).astype("f4") - 280, {"units": "m s-1"}),
            "orog": (dims[1:], z.astype("f4"), {"standard_name": "surface_altitude", "units": "m"}),
        },
        coords={
            "time": np.datetime64("2020-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h"),
            "latitude": ("latitude", lat, {"units": "degrees_north"}),
            "longitude": ("longitude", lon, {"units": "degrees_east"}),
        },
    )
    return made.isel(latitude=slice(None, None, -1)) if descending else made


def on_levels(data, rate):
    """Return temperature and geopotential on four levels, with the lapse rate `rate`."""
    level = xr.DataArray([1000.0, 925.0, 850.0, 700.0], dims="level", attrs={"units": "hPa"})
    height = xr.DataArray([100.0, 900.0, 1800.0, 3300.0], dims="level")
    shape = xr.zeros_like(data.t2m)
    t = (290 - rate * height / 1000 + shape).assign_attrs(standard_name="air_temperature", units="K")
    z = (height * 9.80665 + shape).assign_attrs(standard_name="geopotential", units="m2 s-2")
    dims = ("time", "level", "latitude", "longitude")
    return data.assign(t=t.transpose(*dims), z=z.transpose(*dims)).assign_coords(level=level)


@pytest.mark.parametrize("descending", [True, False])
def test_query_adds_the_lapse_rate_times_the_height_of_the_model_above_the_point(descending):
    data = atmosphere(descending=descending)
    plain = fastds.query(any_model(), data, POINTS, var="t2m")
    rows = fastds.query(any_model(), data, POINTS, var="t2m", height="elev", lapse_rate=RATE)
    assert len(rows) == 6 and "fastds_model_height" not in plain[0]
    height = data.orog.interp(latitude=("p", POINTS["lat"]), longitude=("p", POINTS["lon"])).values
    for q, (row, before) in enumerate(zip(rows, plain, strict=True)):
        expected = RATE * (height[q % 3] - POINTS["elev"][q % 3]) / 1000
        assert row["fastds_model_height_bilinear"] == pytest.approx(height[q % 3], abs=0.01)
        assert row["t2m_bilinear_correction"] == pytest.approx(expected, abs=1e-4)
        assert row["t2m_bilinear"] == pytest.approx(before["t2m_bilinear"] + expected, abs=1e-4)
        assert row["t2m"] == pytest.approx(before["t2m"] + row["t2m_correction"], abs=1e-6)
        assert (row["t2m_lapse_rate"], row["t2m_lapse_rate_source"]) == (RATE, "given")
    assert rows[0]["t2m"] < plain[0]["t2m"] - 5 and rows[1]["t2m"] > plain[1]["t2m"] + 1  # a summit and a valley


def test_query_interpolates_the_orography_with_a_network_for_any_variable():
    data = atmosphere()
    model = any_model()
    with torch.no_grad():
        model.decoder.trunk[-1].weight.normal_(std=0.2)
    rows = fastds.query(model, data, POINTS, var="t2m", height="elev")
    orography = fastds.query(model, data[["orog"]], POINTS)
    assert [row["fastds_model_height"] for row in rows[:3]] == pytest.approx([row["orog"] for row in orography])
    assert rows[0]["fastds_model_height"] != pytest.approx(rows[0]["fastds_model_height_bilinear"], abs=1.0)
    other = fastds.query(field_model(), data, POINTS, height="elev", static=data[["orog"]])
    assert other[0]["fastds_model_height"] == other[0]["fastds_model_height_bilinear"]


def test_lapse_rate_neighbourhood_finds_the_rate_beside_a_horizontal_gradient():
    rows = fastds.query(any_model(), atmosphere(), POINTS, var="t2m", height="elev", lapse_rate="neighbourhood")
    assert [row["t2m_lapse_rate"] for row in rows] == pytest.approx([RATE] * 6, abs=0.01)
    assert {row["t2m_lapse_rate_source"] for row in rows} == {"neighbourhood"}


def test_lapse_rate_neighbourhood_is_limited_and_standard_without_relief():
    steep = fastds.query(any_model(), atmosphere(15.0), POINTS, var="t2m", height="elev", lapse_rate="neighbourhood")
    assert {row["t2m_lapse_rate"] for row in steep} == {10.0}
    flat = atmosphere(relief=100.0)
    rows = fastds.query(any_model(), flat, POINTS, var="t2m", height="elev", lapse_rate="neighbourhood")
    assert {(row["t2m_lapse_rate"], row["t2m_lapse_rate_source"]) for row in rows} == {(6.5, "standard")}


def test_lapse_rate_neighbourhood_leaves_missing_cells_out():
    data = atmosphere()
    data["t2m"][:, ::3, ::2] = np.nan
    rows = fastds.query(any_model(), data, POINTS, var="t2m", height="elev", lapse_rate="neighbourhood")
    assert [row["t2m_lapse_rate"] for row in rows] == pytest.approx([RATE] * 6, abs=0.02)


def test_lapse_rate_levels_is_fitted_above_the_surface():
    data = on_levels(atmosphere(relief=800.0), 4.25)
    data["t"][:, 0] -= 30  # below the ground
    rows = fastds.query(any_model(), data, POINTS, var="t2m", height="elev", lapse_rate="levels")
    assert [row["t2m_lapse_rate"] for row in rows] == pytest.approx([4.25] * 6, abs=0.01)
    few = data.isel(level=[0, 3])
    rows = fastds.query(any_model(), few, POINTS, var="t2m", height="elev", lapse_rate="levels")
    assert {row["t2m_lapse_rate_source"] for row in rows} == {"standard"}


def test_points_outside_have_no_correction():
    points = {"lat": [45.0, 10.0], "lon": [8.0, 8.0], "elev": [0.0, 0.0]}
    rows = fastds.query(any_model(), atmosphere(), points, var="t2m", height="elev", outside="nan")
    assert np.isfinite(rows[0]["t2m"]) and np.isnan([rows[1]["t2m"], rows[1]["t2m_correction"]]).all()


def test_query_command_reads_the_orography_from_a_static_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = atmosphere()
    data.drop_vars("orog").to_netcdf("in.nc", engine="h5netcdf")
    relief = (data.orog * 9.80665).assign_attrs(units="m**2 s**-2", standard_name="geopotential")
    data[[]].assign(z=relief, lsm=0 * relief.assign_attrs(units="1")).to_netcdf("static.nc", engine="h5netcdf")
    lines = ["name,lat,lon,Elev", *(f"{n},{a},{b},{h}" for n, a, b, h in zip("ABC", *POINTS.values(), strict=True))]
    (tmp_path / "points.csv").write_text("\n".join(lines))
    command = ["query", "in.nc", "--points", "points.csv", "--output", "out.csv", "--height", "elev"]
    command += ["--lapse-rate", "5.5"]
    for static in ("static.nc:z", "static.nc"):
        assert cli.main([*command, "--static", static, "--var", "t2m,u"]) == 0
        assert "5.5 K/km and orography z of static.nc: t2m" in capsys.readouterr().out
        rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
        expected = fastds.query(None, data, POINTS, var="t2m,u", height="elev", lapse_rate=5.5)
        assert [float(row["t2m"]) for row in rows] == pytest.approx([row["t2m"] for row in expected], abs=1e-4)
        assert "u_correction" not in rows[0] and rows[0]["name"] == "A"
    assert cli.main(command) == 2
    assert "--height needs the orography of the model, and the input has none; give it" in capsys.readouterr().err
    assert cli.main([*command, "--static", "static.nc:lsm"]) == 2
    assert "static map lsm of static.nc must be in m or m2 s-2, got '1'" in capsys.readouterr().err


ERRORS = {
    "a rate without heights": ({"lapse_rate": 6.5, "height": None}, "lapse_rate needs the heights of the points"),
    "a word": ({"lapse_rate": "steep"}, "lapse_rate must be a number in K/km such as 6.5, or levels or neighbourhood"),
    "a rate per metre": ({"lapse_rate": 0.0065}, "must be in K/km, got 0.0065, which is likely in K/m"),
    "a large rate": ({"lapse_rate": 65.0}, "must be within 20 K/km of 0, got 65"),
    "no column": ({"height": "altitude"}, "height must be a column of the points .* got 'altitude' of lat, lon, elev"),
    "wind": ({"var": "u"}, r"height is for air temperature and dew point .* not for u \[m s-1\]"),
    "no levels": ({"lapse_rate": "levels"}, "levels needs one temperature .* the input has none"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_height_options_that_do_not_fit_are_refused(case):
    options, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        fastds.query(any_model(), atmosphere(), POINTS, **{"height": "elev", "var": "t2m"} | options)


def test_heights_and_orographies_that_are_none_are_refused():
    for wrong in (float("nan"), "high", 14000.0):
        with pytest.raises(ValueError, match="height: elev of point 2 is .*, expected -500 to 9000 m"):
            fastds.query(any_model(), atmosphere(), POINTS | {"elev": [0.0, wrong, 0.0]}, var="t2m", height="elev")
    data = atmosphere().drop_vars("orog")
    upper = 0 * data.t2m + 15000.0 + 100 * data.time.dt.hour
    upper.attrs = {"units": "m2 s-2", "standard_name": "geopotential"}
    with pytest.raises(ValueError, match="needs the orography of the model, and the input has none"):
        fastds.query(any_model(), data.assign(z=upper), POINTS, var="t2m", height="elev")
    surface = upper.isel(time=[0, 0]).assign_coords(time=data.time)  # the same at all times
    rows = fastds.query(any_model(), data.assign(z=surface), POINTS, var="t2m", height="elev")
    assert rows[0]["fastds_model_height_bilinear"] == pytest.approx(15000 / 9.80665, abs=0.1)
    with pytest.raises(ValueError, match="heights from 15000 to 15100 m, which are no heights of a surface"):
        relief = upper.isel(time=0).to_dataset(name="orog")
        relief["orog"] = (relief.orog + 100 * (relief.latitude > 45)).assign_attrs(units="m")
        fastds.query(any_model(), data, POINTS, var="t2m", height="elev", static=relief)


def test_column_of_the_points_with_the_name_of_a_result_is_refused():
    points = POINTS | {"t2m_correction": [0.0] * 3}
    with pytest.raises(ValueError, match="column t2m_correction, as the result has"):
        fastds.query(any_model(), atmosphere(), points, var="t2m", height="elev")


def test_temperatures_on_pressure_levels_are_not_corrected():
    data = on_levels(atmosphere(), 5.0)
    with pytest.raises(ValueError, match="height is for air temperature and dew point .* not for t "):
        fastds.query(any_model(), data, POINTS, var="t", height="elev")
    scalar = atmosphere().assign_coords(plev=((), 85000.0, {"units": "Pa"}))
    with pytest.raises(ValueError, match="height is for air temperature"):
        fastds.query(any_model(), scalar, POINTS, var="t2m", height="elev")
