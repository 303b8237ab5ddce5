# SPDX-License-Identifier: Apache-2.0
"""Tests of --var t,u and --var all of `fastds downscale`, `query` and `evaluate` for gridded fields."""

import csv

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds import cli
from tests.support.small_models import TEMPERATURE, field_model


def mixed(lazy=False):
    """Return fields over (time, y, x), (time, level, y, x) and (y, x), a flag and a series."""
    rng = np.random.default_rng(4)
    sizes = {"time": 2, "level": 3, "latitude": 8, "longitude": 10}

    def make(dims, low, **attrs):
        return dims, (low + 20 * rng.random([sizes[dim] for dim in dims])).astype("f4"), attrs

    surface = ("time", "latitude", "longitude")
    made = xr.Dataset(
        {
            "t": make(surface, 260, standard_name="air_temperature", units="K"),
            "u": make(surface, -10, units="m s-1"),
            "r": make(("time", "level", "latitude", "longitude"), 40, units="%"),
            "z": make(("latitude", "longitude"), 100, units="m"),
            "kind": (surface, rng.integers(0, 3, (2, 8, 10)), {"flag_values": [0, 1, 2]}),
            "mean": (("time", "level"), rng.random((2, 3)), {"units": "1"}),
        },
        coords={
            "time": np.datetime64("2019-01-01", "ns") + np.arange(2) * np.timedelta64(3, "h"),
            "level": ("level", [1000.0, 850.0, 500.0], {"units": "hPa"}),
            "latitude": ("latitude", 52.0 - 2.0 * np.arange(8), {"units": "degrees_north"}),
            "longitude": ("longitude", 105.0 + 2.0 * np.arange(10), {"units": "degrees_east"}),
        },
    )
    return made.chunk(time=1) if lazy else made


@pytest.mark.parametrize("model", ["bilinear", "conservative", None])
def test_all_variables_are_those_computed_one_by_one(model):
    with pytest.warns(UserWarning, match="not in the result: kind, mean"):
        out = fastds.downscale(model, mixed(), scale=2, var="all")
    assert set(out.data_vars) - {"latitude_bnds", "longitude_bnds"} == {"t", "u", "r", "z"}
    for name in ("t", "u", "r", "z"):
        single = fastds.downscale(model, mixed(), scale=2, var=name)
        xr.testing.assert_identical(out[name], single[name])
    assert out.attrs["fastds_model"] == (model or "inr-any")


def test_lazy_fields_stay_lazy():
    with pytest.warns(UserWarning, match="not in the result"):
        out = fastds.downscale("bicubic", mixed(lazy=True), scale=1.5, var="all")
    assert out.t.chunks and out.r.chunks
    xr.testing.assert_identical(out.r.compute(), fastds.downscale("bicubic", mixed(), scale=1.5, var="r").r)


def test_named_variables_may_have_different_dimensions(recwarn):
    out = fastds.downscale("bilinear", mixed(), scale=2, var="r, t")
    assert set(out.data_vars) == {"t", "r"} and not recwarn.list
    assert out.r.dims == ("time", "level", "latitude", "longitude") and out.t.dims == ("time", "latitude", "longitude")


def test_unknown_names_and_names_with_a_comma():
    with pytest.raises(ValueError, match="there is no field 'q' over latitude and longitude; there are: t, u, r, z"):
        fastds.downscale("bilinear", mixed(), scale=2, var="t,q")
    with pytest.raises(ValueError, match="there is no field ','"):
        fastds.downscale("bilinear", mixed(), scale=2, var=",")
    odd = mixed()[["t", "u"]].rename(t="all", u="a,b")
    assert list(fastds.downscale("bilinear", odd, scale=2, var="all").data_vars) == ["all"]
    assert list(fastds.downscale("bilinear", odd, scale=2, var="a,b").data_vars) == ["a,b"]


def test_variables_that_do_not_fit_the_model_are_named():
    with pytest.warns(UserWarning, match="not in the result: u, kind, mean, r .the model needs the variable t"):
        out = fastds.downscale(field_model(), mixed(), scale=2, var="all")
    assert list(out.data_vars) == ["t"]
    with pytest.raises(ValueError, match="the model needs the variable t"):
        fastds.downscale(field_model(), mixed(), scale=2, var="t,r")
    with pytest.raises(ValueError, match="the model needs the variable t"):
        fastds.downscale(field_model(), mixed().drop_vars("t"), scale=2, var="all")


def test_command_writes_and_compares_all_variables(tmp_path, capsys):
    fine, coarse, out = (str(tmp_path / name) for name in ("fine.nc", "coarse.nc", "out.nc"))
    data = mixed().drop_vars("kind")
    data.to_netcdf(fine, engine="h5netcdf")
    data.coarsen(latitude=2, longitude=2).mean(keep_attrs=True).to_netcdf(coarse, engine="h5netcdf")
    report = str(tmp_path / "out.html")
    command = ["downscale", coarse, out, "--model", "bicubic", "--scale", "2", "--var", "all", "--truth", fine]
    assert cli.main([*command, "--report", report]) == 0
    printed = capsys.readouterr()
    assert printed.err == "warning: not in the result: mean\n" and "r on 8 x 10 points" in printed.out
    for table in (printed.out, (tmp_path / "out.html").read_text()):
        assert all(f"{name}, errors in" in table or f"{name}: errors in" in table for name in ("t", "u", "r", "z"))
    assert cli.main(["evaluate", out, fine, "--input", coarse, "--var", "r,t"]) == 0
    table = capsys.readouterr().out
    assert "r, errors in %" in table and "t, errors in K" in table and "u, errors" not in table
    assert (
        cli.main(["downscale", coarse, out, "--model", "bicubic", "--scale", "2", "--var", "all", "--report", report])
        == 0
    )
    assert cli.main([*command[:-4], "--var", "t,r", "--units", "K"]) == 2
    assert "units 'K' are of one variable; name it with --var: t, r" in capsys.readouterr().err


def test_archives_take_variables_with_the_same_dimensions(tmp_path, capsys):
    mixed().drop_vars(["kind", "mean"]).to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    command = ["downscale", str(tmp_path / "in.nc"), str(tmp_path / "out.zarr"), "--model", "bilinear", "--scale", "2"]
    assert cli.main([*command, "--workers", "1", "--var", "t,r"]) == 2
    message = "fields with different dimensions cannot be computed together here: t is over time, latitude, longitude"
    assert message in capsys.readouterr().err
    assert cli.main([*command, "--workers", "1", "--var", "t,u"]) == 0
    assert list(xr.open_zarr(tmp_path / "out.zarr").data_vars) == ["t", "u"]


def test_query_of_all_variables(tmp_path):
    (tmp_path / "points.csv").write_text("name,lat,lon\nA,45.2,110.1\nB,41.0,118.0\n")
    mixed().to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    command = ["query", str(tmp_path / "in.nc"), "--points", str(tmp_path / "points.csv")]
    with pytest.warns(UserWarning, match="not in the result: kind, mean"):
        rows = fastds.query(None, mixed(), tmp_path / "points.csv", var="all")
    assert cli.main([*command, "--var", "all", "--output", str(tmp_path / "out.csv")]) == 0
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert len(table) == len(rows) == 2 * (2 + 2 * 3 + 1)
    assert [row["r"] == "" for row in table] == [True] * 4 + [False] * 12 + [True] * 2
    single = fastds.query(None, mixed(), tmp_path / "points.csv", var="r")
    assert [row["r"] for row in rows[4:16]] == [row["r"] for row in single]
    assert {row["level"] for row in rows[4:16]} == {"1000.0", "850.0", "500.0"} and "time" not in rows[-1]
    assert {"t", "u"} <= rows[0].keys() and TEMPERATURE["name"] == "t"
