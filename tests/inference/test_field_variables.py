# SPDX-License-Identifier: Apache-2.0
"""Tests of the choice of variables for downscaling and query."""

import csv

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds import models
from fastds.cli import main
from fastds.data import save_dataset


def files_variables():
    """Return a dataset with orography, rain at two times, and other variables of a satellite product."""
    lat, lon = np.linspace(48, 45, 7), np.linspace(0, 4, 9)
    rain = np.add.outer(np.cos(lat), np.sin(lon)).astype("float32") + np.arange(3, 5, dtype="float32")[:, None, None]
    flags = {"flag_values": np.array([0, 3], "int8"), "flag_meanings": "good bad"}
    return xr.Dataset(
        {
            "orography": (("lat", "lon"), 100 * rain[0], {"units": "m"}),
            "tp": (("time", "lat", "lon"), rain, {"units": "mm", **flags}),
            "quality": (("time", "lat", "lon"), np.zeros(rain.shape, "int8"), flags),
            "t": (("time", "lat", "lon"), rain + 280, {"units": "K"}),
        },
        coords={
            "time": np.datetime64("2024-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h"),
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
    )


@pytest.fixture
def path(tmp_path):
    save_dataset(files_variables(), tmp_path / "in.nc")
    return tmp_path / "in.nc"


def test_field_selection_by_dimensions(path, capsys):
    assert main(["downscale", str(path), str(path.parent / "out.nc"), "--scale", "2", "--model", "bicubic"]) == 0
    assert "tp, t on 14 x 18 points\nnot in the result: orography, quality" in capsys.readouterr().out
    data = files_variables()
    assert {"tp", "t"} == {*fastds.downscale("bicubic", data[["quality", "t", "orography", "tp"]], scale=2).data_vars}
    data["soil"] = data.t.drop_vars("time").rename(time="depth")
    assert {"tp", "t"} == {*fastds.downscale("bicubic", data, scale=2).data_vars}
    with pytest.raises(ValueError, match="^there is no field over lat and lon$"):
        fastds.downscale("bicubic", data[["quality"]], scale=2)


@pytest.mark.parametrize("model", ["inr-any", "bicubic"])
def test_non_negative_fields_stay_non_negative(model):
    """The wind speed, which is never negative in the input, stays non-negative. A wind component may be negative."""
    calm = xr.where(np.hypot(*np.meshgrid(np.arange(12) - 5, np.arange(10) - 4)) < 3, 0.05, 20.0)
    data = files_variables()[["t"]].isel(time=[0]).interp(lat=np.linspace(48, 45, 10), lon=np.linspace(0, 4, 12))
    names = {"speed": "wind_speed", "east": "eastward_wind"}
    for name, standard in names.items():
        data[name] = data.t.copy(data=calm[None]).assign_attrs(units="m s-1", standard_name=standard)
    data["offset"] = (data.speed - 1).assign_attrs(data.speed.attrs)
    least = fastds.downscale(model, data, scale=4).min()
    assert least.speed == 0 and least.east < 0 and least.offset < -0.95


def test_one_variable_by_its_name(path, capsys):
    words = [str(path), str(path.parent / "out.nc"), "--scale", "2", "--model", "bicubic"]
    assert main(["downscale", *words, "--units", "cm"]) == 2
    assert "units 'cm' are of one variable; name it with --var" in capsys.readouterr().err
    assert main(["downscale", *words, "--units", "cm", "--var", "orography"]) == 0
    with xr.open_dataset(path.parent / "out.nc", engine="h5netcdf") as found:
        expected = fastds.downscale("bicubic", files_variables()[["orography"]], scale=2)
        assert [*found.data_vars] == ["orography"] and found.orography.attrs["units"] == "cm"
        assert np.array_equal(found.orography, expected.orography)
    assert main(["downscale", *words, "--var", "quality"]) == 2
    assert "there is no field 'quality' over lat and lon; there are: orography, tp, t" in capsys.readouterr().err
    main(["check", str(path), "--var", "t"])
    assert "downscale --scale 2: t at any scale" in capsys.readouterr().out


def test_one_variable_at_points(path):
    (path.parent / "points.csv").write_text("lat,lon\n46.5,2\n")
    words = [str(path), "--points", str(path.parent / "points.csv"), "--output", str(path.parent / "out.csv")]
    assert main(["query", *words, "--var", "t", "--threads", "1"]) == 0
    rows = list(csv.DictReader((path.parent / "out.csv").open()))
    assert len(rows) == 2 and {"t", "t_bilinear", "time"} <= {*rows[0]} and "tp" not in rows[0]
    made = fastds.query("inr-any", files_variables(), [(46.5, 2.0)], var="t", threads=1)
    assert [float(row["t"]) for row in rows] == [row["t"] for row in made]


def test_an_archive_of_one_variable(path):
    pytest.importorskip("zarr", reason="archives need the package zarr")
    out = path.parent / "out.zarr"
    words = [str(path), str(out), "--scale", "2", "--model", "bilinear", "--var", "t", "--workers", "1"]
    assert main(["downscale", *words]) == 0
    with xr.open_zarr(out) as found:
        assert [*found.data_vars] == ["t"] and found.sizes["time"] == 2


def test_result_records_the_weights_file(path, capsys):
    model = models.load("inr-any")
    models.save(model, path.parent / "own.safetensors")
    words = ["downscale", str(path), str(path.parent / "out.nc"), "--scale", "2", "--model"]
    assert main([*words, f"{path.parent}/own.safetensors"]) == 0 and main([*words, "inr-any"]) == 0
    printed = capsys.readouterr().out
    assert f"model inr-any ({path.parent}/own.safetensors): tp, t" in printed and "model inr-any: tp, t" in printed
