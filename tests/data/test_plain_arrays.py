# SPDX-License-Identifier: Apache-2.0
"""Tests of open_array and of the option --array: raw binary files without metadata."""

import gzip

import numpy as np
import pytest
import xarray as xr

from fastds import cli
from fastds.data import open_array, open_dataset
from fastds.data.formats.plain_array import ArrayLayout, parse_layout
from fastds.training.rewriting import rewrite_with_metadata

NUMBERS = np.arange(24).reshape(2, 3, 4)
LAYOUT = "shape=2,3,4 dtype=<f4"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    NUMBERS.astype("<f4").tofile("a.bin")
    return tmp_path


@pytest.mark.parametrize("dtype", ["<f4", ">f8", ">i2", "u1", "<u2", "int32"])
def test_numbers_of_any_type_and_after_any_header(folder, dtype):
    (folder / "b.RAW").write_bytes(b"header" + NUMBERS.astype(dtype).tobytes())
    with open_array("b.RAW", (2, 3, 4), dtype, offset=6, units="dBZ", name="z", standard_name="s", no_echo=-32.0) as d:
        np.testing.assert_array_equal(d.z, NUMBERS)
        assert d.z.dims == ("time", "y", "x") and d.z.dtype == np.float32 and not d.coords
        assert d.z.attrs == {"units": "dBZ", "standard_name": "s", "no_echo_value": -32.0}


def test_missing_numbers_and_packing(folder):
    values = open_array("a.bin", (2, 3, 4), "<f4", missing=5.0, scale_factor=0.5, add_offset=-32.0).field.values
    expected = np.where(NUMBERS == 5, np.nan, NUMBERS * 0.5 - 32)
    np.testing.assert_array_equal(values, expected)


def test_bounds_are_the_outer_limits_of_the_cells(folder):
    d = open_array("a.bin", (2, 3, 4), "<f4", bounds=(40, 46, 10, 18), time="2024-01-01T00:00", step="90min")
    assert d.latitude.values.tolist() == [45, 43, 41] and d.longitude.values.tolist() == [11, 13, 15, 17]
    assert d.latitude.attrs["units"] == "degrees_north"
    assert list(d.time.values) == [np.datetime64(f"2024-01-01T0{hour}", "ns") for hour in ("0:00", "1:30")]
    south = open_array("a.bin", (2, 3, 4), "<f4", bounds=(40, 46, 10, 18), order="south_first")
    assert south.latitude.values.tolist() == [41, 43, 45]
    np.testing.assert_array_equal(south.field, NUMBERS)


@pytest.mark.parametrize("ascending", [False, True])
def test_grid_of_a_file(folder, ascending):
    y = np.array([0.0, 1000.0, 2000.0])[:: 1 if ascending else -1]
    grid = xr.Dataset(
        {"rain": (("y", "x"), np.zeros((3, 4)), {"grid_mapping": "crs"}), "crs": ((), 0, {"grid_mapping_name": "a"})},
        coords={"y": ("y", y, {"units": "m"}), "x": ("x", np.arange(4) * 1000.0, {"units": "m"})},
    )
    grid.to_netcdf("grid.nc", engine="h5netcdf")
    found = [
        open_array("a.bin", (2, 3, 4), "<f4", grid="grid.nc", order=o) for o in (None, "north_first", "south_first")
    ]
    north, south = [2000.0, 1000.0, 0.0], [0.0, 1000.0, 2000.0]
    assert [d.y.values.tolist() for d in found] == [south if ascending else north, north, south]
    for d in found:
        np.testing.assert_array_equal(d.field, NUMBERS)
        assert d.field.attrs["grid_mapping"] == "crs" and d.crs.attrs["grid_mapping_name"] == "a"
    with pytest.raises(ValueError, match="grid must have a field of 4,6 points, got 3,4"):
        open_array("a.bin", (4, 6), "<f4", grid="grid.nc")


def test_files_are_joined_by_the_times_in_their_names(folder):
    for minute in (10, 5, 0):
        (NUMBERS[0] + minute).astype("<f4").tofile(f"rain_2024060112{minute:02d}.dat")
    layout = "shape=3,4 dtype=<f4 time=rain_%Y%m%d%H%M.dat"
    with open_dataset("rain_*.dat", array=layout, start="2024-06-01T12:05") as d:
        assert d.encoding["files"] == 3 and d.sizes["time"] == 2
        np.testing.assert_array_equal(d.field[:, 0, 0], [5, 10])
    with pytest.raises(ValueError, match="array: time must be a pattern of file names such as .* for 3 files"):
        open_dataset("rain_*.dat", array="shape=3,4 dtype=<f4 time=2024-06-01")
    with pytest.raises(ValueError, match="array: time must match the name of the file, got 'x%Y.dat' for rain_2024"):
        open_dataset("rain_202406011205.dat", array="shape=3,4 dtype=<f4 time=x%Y.dat")


def test_compressed_files(folder):
    (folder / "a.bin.gz").write_bytes(gzip.compress(NUMBERS.astype("<f4").tobytes()))
    np.testing.assert_array_equal(open_array("a.bin.gz", (2, 3, 4), "<f4").field, NUMBERS)


def test_layout_of_a_text():
    text = "shape=2,3,4 dtype=>i2 offset=8 bounds=40,46.5,-10,18 missing=-99 units='mm h-1' time=2024-01-01 step=5min"
    bounds = (40.0, 46.5, -10.0, 18.0)
    expected = ArrayLayout(
        (2, 3, 4), ">i2", 8, bounds=bounds, missing=-99.0, units="mm h-1", time="2024-01-01", step="5min"
    )
    assert parse_layout(text) == expected


ERRORS = {
    "": "array needs the key shape, such as shape=500,500 dtype=<f4",
    "shape=3,4": "array needs the key dtype",
    f"{LAYOUT} sahpe=3": "array has no key sahpe, which takes shape, dtype, offset, grid, bounds, missing, scale",
    f"{LAYOUT} shape=3,4": "array has the key shape twice",
    f"{LAYOUT} north": "array must be KEY=VALUE separated by spaces, got 'north'",
    f"{LAYOUT} units='mm": "array must be KEY=VALUE separated by spaces, .*No closing quotation",
    "shape=2x3 dtype=<f4": "array: shape must be whole numbers H,W or T,H,W, got '2x3'",
    "shape=24 dtype=<f4": "array: shape must be H,W or T,H,W, got 24",
    "shape=0,4 dtype=<f4": "array: shape must be H,W or T,H,W, got 0,4",
    "shape=2,3,4 dtype=float4": "array: dtype must be a type of numbers such as <f4, >i2 or u1, got 'float4'",
    "shape=2,3,4 dtype=U4": "array: dtype must be a type of numbers",
    f"{LAYOUT} offset=-4": "array: offset must be a number of bytes, got -4",
    f"{LAYOUT} offset=4.5": "array: offset must be a whole number of bytes, got '4.5'",
    f"{LAYOUT} offset=4": "array: shape must fit a.bin, which has 96 bytes, got 100 bytes, .* of 4 bytes after 4",
    "shape=2,3,4 dtype=<f8": "array: shape must fit a.bin, which has 96 bytes, got 192 bytes, 2,3,4 numbers of 8 bytes",
    f"{LAYOUT} bounds=1,2,3": "array: bounds must be south,north,west,east in degrees, got 1,2,3",
    f"{LAYOUT} bounds=46,40,10,18": "array: bounds must be south < north and west < east in degrees, got 46,40,10,18",
    f"{LAYOUT} bounds=40,46,10,18 grid=a.nc": "array: bounds must not be given together with grid",
    f"{LAYOUT} missing=none": "array: missing must be a number, got 'none'",
    f"{LAYOUT} missing=nan": "array: missing must be a finite number, got nan",
    f"{LAYOUT} scale_factor=0": "array: scale_factor must be a finite number but 0, got 0",
    f"{LAYOUT} time=01.06.2024 step=1h": "array: time must be a date such as .* or a pattern .*, got '01.06.2024'",
    f"{LAYOUT} time=2024-01-01": "array: step must be given for 2 times, such as step=5min",
    f"{LAYOUT} step=5min": "array: step needs the time of the first field",
    f"{LAYOUT} time=2024-01-01 step=5": "array: step must be a duration with its unit such as 60min or 1h, got '5'",
    f"{LAYOUT} order=up": "array: order must be north_first or south_first, got 'up'",
    f"{LAYOUT} name=": "array: name must be a name of the variable",
    f"{LAYOUT} grid=none.nc": "no such file: none.nc",
}


@pytest.mark.parametrize("layout", ERRORS)
def test_layouts_that_do_not_fit_are_refused(folder, layout):
    with pytest.raises((ValueError, FileNotFoundError), match=ERRORS[layout]):
        open_dataset("a.bin", array=layout)


def test_errors_name_the_arguments_of_open_array(folder):
    with pytest.raises(ValueError, match="^shape must fit a.bin, which has 96 bytes"):
        open_array("a.bin", (3, 4), "<f4")
    with pytest.raises(ValueError, match="^order must be north_first or south_first"):
        open_array("a.bin", (2, 3, 4), "<f4", order="up")
    for shape in (24, "3,4", (2.0, 12.0)):
        with pytest.raises(ValueError, match="shape must be H,W or T,H,W, got"):
            open_array("a.bin", shape, "<f4")
    with pytest.raises(TypeError, match="offset must be a whole number"):
        open_array("a.bin", (2, 3, 4), "<f4", offset="4")
    with pytest.raises(FileNotFoundError, match="no such file: none.bin"):
        open_array("none.bin", (3, 4), "<f4")


def test_array_is_for_raw_files_only(folder, capsys):
    xr.Dataset({"t": (("y", "x"), np.zeros((3, 4)))}).to_netcdf("a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"array is for files \*.bin, \*.dat, \*.raw, got a.nc"):
        open_dataset("a.nc", array=LAYOUT)
    assert cli.main(["convert", "a.nc", "b.nc", "--array", LAYOUT]) == 2
    assert "--array is for raw binary files *.bin, *.dat, *.raw, got a.nc" in capsys.readouterr().err
    assert cli.main(["convert", "a.bin", "b.nc"]) == 2
    assert "a.bin is in no format that is known; if it holds plain numbers, give --array" in capsys.readouterr().err
    assert not (folder / "b.nc").exists()


def test_rewriting_for_a_training_takes_a_folder_of_raw_files(folder):
    (folder / "raw").mkdir()
    NUMBERS.astype("<f4").tofile("raw/a.bin")
    layout = f"{LAYOUT} name=rain time=2024-01-01 step=5min"
    made = rewrite_with_metadata(folder / "raw", folder / "made", "rain", array=layout, units="mm/h")
    with xr.open_dataset(made / "a.nc") as d:
        np.testing.assert_array_equal(d.rain, NUMBERS)
        assert d.rain.attrs["units"] == "mm/h" and d.sizes["time"] == 2
    with pytest.raises(FileNotFoundError, match="no file to train on"):
        rewrite_with_metadata(folder / "raw", folder / "made", "rain", units="mm/h")
