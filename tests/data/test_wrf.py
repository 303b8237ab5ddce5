# SPDX-License-Identifier: Apache-2.0
"""Tests of WRF output: its positions, which repeat for every time, and its projection."""

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.data import open_dataset, save_dataset

pyproj = pytest.importorskip("pyproj", reason="projections need the package pyproj")
SIZE, STEP = (12, 15), 9000.0
PROJECTIONS = {
    "lambert": (1, {"TRUELAT1": 45.0, "TRUELAT2": 50.0, "STAND_LON": 8.0, "MOAD_CEN_LAT": 47.5}),
    "lambert with one parallel": (1, {"TRUELAT1": 30.0, "TRUELAT2": 30.0, "STAND_LON": -100.0, "MOAD_CEN_LAT": 35.0}),
    "polar stereographic": (2, {"TRUELAT1": 70.0, "TRUELAT2": 0.0, "STAND_LON": 20.0, "MOAD_CEN_LAT": 75.0}),
    "southern stereographic": (2, {"TRUELAT1": -71.0, "TRUELAT2": 0.0, "STAND_LON": 0.0, "MOAD_CEN_LAT": -75.0}),
    "mercator": (3, {"TRUELAT1": 10.0, "TRUELAT2": 0.0, "STAND_LON": 115.0, "MOAD_CEN_LAT": 5.0}),
}


def make_positions(number: int, given: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return latitudes and longitudes of a grid around the centre of a domain, as WRF's preprocessor makes them."""
    first, second, middle = given["TRUELAT1"], given["TRUELAT2"], given["MOAD_CEN_LAT"]
    shape = {
        1: {"proj": "lcc", "lat_1": first, "lat_2": second, "lat_0": middle},
        2: {"proj": "stere", "lat_0": 90 if first > 0 else -90, "lat_ts": first},
        3: {"proj": "merc", "lat_ts": first},
    }[number]
    project = pyproj.Proj({**shape, "lon_0": given["STAND_LON"], "R": 6370000})
    x, y = project(given["STAND_LON"] + 3, middle)
    across, down = (STEP * (np.arange(n) - (n - 1) / 2) for n in SIZE[::-1])
    longitude, latitude = project(*np.meshgrid(x + across, y + down), inverse=True)
    return latitude.astype("f4"), longitude.astype("f4")


def make_wrf_file(path, number=1, given=PROJECTIONS["lambert"][1], moves=0.0, times=(0, 1, 2), **wrong):
    """Write a file with the structure of WRF output and return its positions at the first time.

    Args:
        path: the file.
        number: MAP_PROJ.
        given: other attributes of the projection.
        moves: degrees by which the positions move between two times.
        times: hours.
        **wrong: attributes that do not fit the positions.
    """
    latitude, longitude = make_positions(number, given)
    shift = moves * np.arange(len(times), dtype="f4")[:, None, None]
    plane = ("Time", "south_north", "west_east")
    named = {"coordinates": "XLONG XLAT XTIME", "stagger": ""}
    temperature = 280 + np.random.default_rng(0).normal(size=(len(times), *SIZE)).astype("f4")
    letters = np.array([list(f"2020-01-01_{hour:02d}:00:00") for hour in times], "S1")
    xr.Dataset(
        {
            "T2": (plane, temperature, {"units": "K", "description": "TEMP at 2 M", **named}),
            "XLAT": (plane, latitude + shift, {"units": "degree_north"}),
            "XLONG": (plane, longitude + 0 * shift, {"units": "degree_east"}),
            "XTIME": ("Time", 60.0 * np.array(times, "f4"), {"units": "minutes since 2020-01-01 00:00:00"}),
            "Times": (("Time", "DateStrLen"), letters),
        },
        attrs={"MAP_PROJ": number, "DX": STEP, "DY": STEP, "WEST-EAST_GRID_DIMENSION": SIZE[1] + 1, **given, **wrong},
    ).to_netcdf(path, engine="h5netcdf", unlimited_dims=["Time"])
    return latitude, longitude


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projected_coordinates_are_those_of_the_positions(name, tmp_path):
    latitude, longitude = make_wrf_file(tmp_path / "wrfout.nc", *PROJECTIONS[name])
    with open_dataset(tmp_path / "wrfout.nc") as found:
        np.testing.assert_array_equal(found["XLAT"].values, latitude)
        steps = np.diff(found["west_east"].values), np.diff(found["south_north"].values)
        assert np.allclose(np.concatenate(steps), STEP, rtol=0, atol=1e-6)
        crs = pyproj.CRS.from_cf(found[found["T2"].attrs["grid_mapping"]].attrs)
        to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        back = to_degrees.transform(*np.meshgrid(found["west_east"].values, found["south_north"].values))
        np.testing.assert_allclose(back[0], longitude, atol=1e-3)
        np.testing.assert_allclose(back[1], latitude, atol=1e-3)


def test_positions_that_move_are_no_coordinates(tmp_path):
    make_wrf_file(tmp_path / "nest.nc", moves=0.1)
    with open_dataset(tmp_path / "nest.nc") as found:
        assert "south_north" not in found.coords and found["XLAT"].ndim == 3


def test_positions_of_another_projection_stay_two_dimensional(tmp_path):
    make_wrf_file(tmp_path / "other.nc", DX=2 * STEP)
    with open_dataset(tmp_path / "other.nc") as found:
        assert "crs" not in found and found["XLAT"].dims == ("south_north", "west_east")


def test_results_on_another_grid(tmp_path):
    """The result keeps the projection, but no attributes of the size of the input's grid; times are stored exactly."""
    make_wrf_file(tmp_path / "wrfout.nc")
    fine = fastds.downscale("inr-any", tmp_path / "wrfout.nc", scale=2)
    save_dataset(fine, tmp_path / "fine.nc")
    with xr.open_dataset(tmp_path / "fine.nc", engine="h5netcdf") as fine:
        assert fine["T2"].shape == (3, 2 * SIZE[0], 2 * SIZE[1])
        assert np.allclose(np.diff(fine["west_east"].values), STEP / 2)
        assert not {"DX", "DY", "WEST-EAST_GRID_DIMENSION"} & set(fine.attrs)
        assert "_FillValue" not in fine["XTIME"].encoding
        np.testing.assert_array_equal(fine["XTIME"].values, fine["Time"].values)


def test_files_of_single_times_are_joined(tmp_path):
    for hour in range(3):
        make_wrf_file(tmp_path / f"wrfout_d01_2020-01-01_{hour:02d}.nc", times=(hour,))
    with open_dataset(tmp_path) as found:
        assert found["T2"].shape == (3, *SIZE) and found["XLAT"].ndim == 2
        assert found["T2"].attrs["grid_mapping"] == "crs"
