# SPDX-License-Identifier: Apache-2.0
"""Tests of metadata that a result preserves: bounds, projections, calendars and attributes."""

import cftime
import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.cli import main
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from fastds.data.formats.cf_builder import make_rain_amount_field
from tests.support.small_models import generator, radar_model

STORED = {"valid_range": np.array([-9, 9], "int16"), "actual_range": [0.0, 1.0], "ancillary_variables": "quality"}
BOUNDS = {"time": "time_bnds", "lat": "lat_bnds", "lon": "lon_bnds"}


def climate(times=(0.5, 1.5, 2.5), length=1.0, standard_name="air_temperature", units="K"):
    """Return climate model output with CF metadata, in a calendar without leap days."""
    lat, lon, times = np.linspace(48, 42, 7), np.linspace(0, 7, 8), np.array(times)

    def around(values, half):
        return np.stack([values - half, values + half], 1)

    values = 60 + np.cos(lat)[:, None] + np.sin(lon) + times[:, None, None]
    data = xr.Dataset(
        {
            "v": (("time", "lat", "lon"), values.astype("float32") + (220 if units == "K" else 0)),
            "time_bnds": (("time", "bnds"), around(times, length / 2)),
            "lat_bnds": (("lat", "bnds"), around(lat, -0.5)),
            "lon_bnds": (("lon", "bnds"), around(lon, 0.5)),
            "crs": ((), 0, {"grid_mapping_name": "latitude_longitude", "GeoTransform": "0 1 0 48 0 -1"}),
        },
        coords={
            "time": ("time", times, {"units": "days since 2000-02-27", "calendar": "noleap"}),
            "lat": ("lat", lat, {"units": "degrees_north", "valid_range": [42.0, 48.0]}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
            "height": ((), 2.0, {"units": "m"}),
        },
        attrs={"geospatial_lat_resolution": 1.0, "title": "run 1"},
    )
    data.v.attrs = {"standard_name": standard_name, "units": units, "grid_mapping": "crs", **STORED}
    for name, bounds in BOUNDS.items():
        data[name].attrs["bounds"] = bounds
    return xr.decode_cf(data)


@pytest.mark.parametrize("task", ["fields", "humidity"])
def test_bounds_and_projection_are_preserved(task, tmp_path):
    data = climate() if task == "fields" else climate(standard_name="relative_humidity", units="%")
    save_dataset(data.isel(time=[1, 0, 2] if task == "humidity" else slice(None)), tmp_path / "in.nc")
    given = {"scale": 2} if task == "fields" else {}
    made = fastds.downscale("bicubic" if given else generator(), tmp_path / "in.nc", **given)
    save_dataset(made, tmp_path / "out.nc")
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as fine:
        assert {name: fine[name].attrs.get("bounds") for name in BOUNDS} == BOUNDS
        assert np.array_equal(fine.time_bnds, data.time_bnds) and fine.time_bnds.values[1, 1].calendar == "noleap"
        assert np.allclose(fine.lat_bnds[:2], [[48.5, 48.0], [48.0, 47.5]])
        assert np.allclose(fine.lon_bnds[-1], [7.0, 7.5]) and fine.height == 2.0
        assert fine.crs.attrs["grid_mapping_name"] == "latitude_longitude" and fine.v.attrs["grid_mapping"] == "crs"
        assert not {*STORED, "GeoTransform"} & {*fine.v.attrs, *fine.lat.attrs} and fine.attrs["title"] == "run 1"
        assert "geospatial_lat_resolution" not in fine.attrs


def test_bounds_of_cells_at_a_pole_and_across_greenwich():
    data = climate()
    lat = {"lat": ("lat", np.linspace(90, 30, 7), data.lat.attrs)}
    data = data.assign_coords(lat | {"lon": ("lon", (np.arange(8) * 10 + 330) % 360, data.lon.attrs)})
    fine = fastds.downscale("bilinear", data, grid=5)
    assert np.array_equal(fine.lat_bnds[:2], [[90, 87.5], [87.5, 82.5]])
    assert np.array_equal(fine.lon[:7], [330, 335, 340, 345, 350, 355, 0])
    assert np.array_equal(fine.lon_bnds[5:7], [[352.5, 357.5], [-2.5, 2.5]])


def test_references_to_missing_variables_are_dropped():
    fine = fastds.downscale("bicubic", climate().v, scale=2)  # a DataArray has no bounds and no projection
    assert not any("bounds" in fine[name].attrs for name in BOUNDS) and "grid_mapping" not in fine.v.attrs
    event = synthetic_event(seed=1, frames=2, shape=(32, 32))
    assert event.reflectivity.attrs["grid_mapping"] == "crs"
    fine = fastds.downscale(radar_model(), event.reflectivity)
    assert "grid_mapping" not in fine.reflectivity.attrs


def test_coarse_radar_frames_keep_time_bounds():
    event = synthetic_event(seed=1, frames=4, shape=(32, 32))
    start = event.time.values - np.timedelta64(60, "s")
    event["time_bnds"] = ("time", "bnds"), np.stack([start, event.time.values], 1)
    event.time.attrs["bounds"] = "time_bnds"
    coarse = coarsen_dataset(event)
    assert np.array_equal(coarse.time_bnds, event.time_bnds[::2]) and coarse.time.attrs["bounds"] == "time_bnds"


def test_an_archive_of_another_calendar_is_appended_to_by_finer_times(tmp_path):
    pytest.importorskip("dask", reason="archives need the package dask")
    pytest.importorskip("zarr", reason="archives need the package zarr")
    (tmp_path / "in").mkdir()
    save_dataset(climate(), tmp_path / "in" / "a.nc")
    words = ["downscale", str(tmp_path / "in"), str(tmp_path / "a.zarr"), "--scale", "2", "--model", "bicubic"]
    assert main([*words, "--workers", "1"]) == 0
    save_dataset(climate((3.25, 3.75), 0.5), tmp_path / "in" / "b.nc")
    assert main([*words, "--workers", "1", "--append"]) == 0
    expected = xr.concat([climate(), climate((3.25, 3.75), 0.5)], "time", data_vars="minimal")
    with xr.open_zarr(tmp_path / "a.zarr") as found:
        assert found.time.values[3] == cftime.DatetimeNoLeap(2000, 3, 2, 6)
        assert np.array_equal(found.time, expected.time) and np.array_equal(found.time_bnds, expected.time_bnds)
        assert found.height == 2.0 and np.allclose(found.lat_bnds[0], [48.5, 48.0])
    words[2] = str(tmp_path / "b.zarr")  # of both files at once, which dask holds
    assert main([*words, "--workers", "1"]) == 0
    with xr.open_zarr(tmp_path / "b.zarr") as found:
        assert np.array_equal(found.time_bnds, expected.time_bnds) and found.height == 2.0


def test_amounts_record_their_interval_once():
    values = np.zeros((3, 16, 16), "float32")
    values[:, 4:8, 4:8] = 1.0
    amount, attrs = make_rain_amount_field(values, 5)["rainfall_amount"]
    time = np.datetime64("2024-06-01", "ns") + np.arange(3) * np.timedelta64(5, "m")
    space = {name: (name, 1000.0 * np.arange(16), {"units": "m"}) for name in ("y", "x")}
    data = xr.Dataset({"rain": (("time", "y", "x"), amount, attrs)}, {"time": time, **space})
    fine = fastds.downscale("advection", data, var="rain").rain
    assert fine.attrs["cell_methods"] == "time: sum (interval: 2.5 min)"
    assert not any(letter.isdigit() for letter in fine.attrs["long_name"])
