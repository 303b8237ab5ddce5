# SPDX-License-Identifier: Apache-2.0
"""Tests that values, times and places of files of other software are read correctly."""

import contextlib
import itertools

import h5py
import numpy as np
import pytest
import xarray as xr

from fastds.cli import main
from fastds.data import open_dataset, save_dataset, synthetic_event
from fastds.data.formats.masking import decode_dataset
from fastds.data.grid.grids import grid_spacing_m
from fastds.data.grid.units import get_metres_per_unit
from tests.faulty.drawn import METRES
from tests.faulty.drawn_binary import write_meteonet, write_nimrod
from tests.faulty.drawn_grib import write_projected
from tests.faulty.drawn_radar import write_geotiff, write_knmi, write_odim
from tests.faulty.judged import compare


def gridded(times=2, step=6, shift=0.0, start="2024-06-01"):
    """Return temperatures on 24 x 36 points."""
    lat, lon = 60.0 - 0.5 * np.arange(24), 0.5 * np.arange(36)
    values = 280 + 8 * np.sin(lat)[:, None] * np.cos(lon) + np.arange(times)[:, None, None] + shift
    axes = {
        "time": np.datetime64(start, "ns") + np.arange(times) * np.timedelta64(step, "h"),
        "latitude": ("latitude", lat, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", lon, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    attrs = {"units": "K", "standard_name": "air_temperature"}
    return xr.Dataset({"t2m": (("time", "latitude", "longitude"), values.astype("f4"), attrs)}, axes)


def packed(scale, offset):
    return {"dtype": "int16", "scale_factor": scale, "add_offset": offset, "_FillValue": np.int16(-32767)}


def write(dataset, path, encoding=None, **how):
    dataset.to_netcdf(path, engine="h5netcdf", encoding=encoding and {"t2m": encoding}, **how)
    return path


@pytest.mark.parametrize("target", ["out.nc", "out.zarr"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (packed(0.0005, 280.0), packed(0.0005, 310.0)),
        (packed(1.0, 280.0), packed(0.0005, 310.0)),
        ({"dtype": "int16", "_FillValue": np.int16(-1)}, None),
        (packed(0.0005, 280.0), {"dtype": "float64"}),
    ],
    ids=["offsets", "steps", "whole numbers", "floats"],
)
def test_files_of_several_packings_are_written_with_their_values(tmp_path, first, second, target):
    write(gridded(), tmp_path / "a.nc", first)
    write(gridded(shift=30, start="2024-06-02"), tmp_path / "b.nc", second)
    pattern = str(tmp_path / "?.nc")
    with open_dataset(pattern) as dataset:
        expected = dataset.load()
    assert main(["convert", pattern, str(tmp_path / target), "--to", "cf"]) == 0
    with open_dataset(tmp_path / target) as found:
        np.testing.assert_array_equal(found["t2m"], expected["t2m"])


@pytest.mark.parametrize("lazy", [False, True])
def test_arithmetic_beyond_the_packing_of_the_file(tmp_path, lazy):
    with open_dataset(write(gridded(), tmp_path / "a.nc", packed(0.0005, 280.0))) as dataset:
        changed = dataset.load().copy(deep=True)
    changed["t2m"].values += 40
    written = changed.chunk(time=1) if lazy else changed
    assert written["t2m"].encoding["scale_factor"] == 0.0005
    with open_dataset(save_dataset(written, tmp_path / "b.nc")) as found:
        np.testing.assert_array_equal(found["t2m"], changed["t2m"])


def test_suitable_packing_is_preserved(tmp_path):
    source = write(gridded(), tmp_path / "a.nc", packed(0.0005, 280.0))
    assert main(["convert", str(source), str(tmp_path / "b.nc")]) == 0
    with xr.open_dataset(tmp_path / "b.nc", mask_and_scale=False, engine="h5netcdf") as found:
        assert found["t2m"].dtype == np.int16


def test_a_value_equal_to_the_fill_value_is_not_lost(tmp_path):
    dataset = gridded()
    dataset["t2m"].values[0, 0, 0] = -9999.0
    dataset["t2m"].encoding["_FillValue"] = np.float32(-9999.0)
    with xr.open_dataset(save_dataset(dataset, tmp_path / "a.nc"), engine="h5netcdf") as found:
        assert float(found["t2m"][0, 0, 0]) == -9999.0 and not found["t2m"].isnull().any()


def test_lossy_packing_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("fastds.data.io.storage.Packing.fits", lambda self, values: True)
    dataset = gridded()
    dataset["t2m"].encoding = packed(0.0005, 310.0)
    with pytest.raises(ValueError, match=r"a\.nc cannot be written \(ValueError: variable t2m would be stored as"):
        save_dataset(dataset, tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("up", "left", "columns", "alternate"), itertools.product((0, 1), repeat=4))
def test_every_way_of_scanning_a_grib_message(tmp_path, up, left, columns, alternate):
    """The expected order of values follows the definition of the scanning flags in WMO code table 3.4."""
    eccodes = pytest.importorskip("eccodes", reason="GRIB files need the package cfgrib")
    values = 270 + np.arange(96.0).reshape(8, 12)  # by latitude from 60 down to 53, longitude from 0 up to 11
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    north, south = (53.0, 60.0) if up else (60.0, 53.0)
    west, east = (11.0, 0.0) if left else (0.0, 11.0)
    keys = {
        "Ni": 12, "Nj": 8, "latitudeOfFirstGridPointInDegrees": north, "latitudeOfLastGridPointInDegrees": south,
        "longitudeOfFirstGridPointInDegrees": west, "longitudeOfLastGridPointInDegrees": east,
        "iDirectionIncrementInDegrees": 1.0, "jDirectionIncrementInDegrees": 1.0, "jScansPositively": up,
        "iScansNegatively": left, "jPointsAreConsecutive": columns, "alternativeRowScanning": alternate,
        "shortName": "2t", "dataDate": 20240601, "bitsPerValue": 24,
    }  # fmt: skip
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    order = [(i, j) for i in range(12) for j in range(8)] if columns else [(i, j) for j in range(8) for i in range(12)]
    scanned = []
    for i, j in order:  # numbers of columns and rows as the message scans them
        i = 11 - i if alternate and not columns and j % 2 else i
        j = 7 - j if alternate and columns and i % 2 else j
        scanned.append(values[7 - j if up else j, 11 - i if left else i])
    eccodes.codes_set_values(handle, np.array(scanned))
    (tmp_path / "a.grib2").write_bytes(eccodes.codes_get_message(handle))
    eccodes.codes_release(handle)
    with open_dataset(tmp_path / "a.grib2") as dataset:
        field = dataset["t2m"].squeeze().sortby("latitude", ascending=False).sortby("longitude")
        np.testing.assert_allclose(field, values, atol=1e-4)
        np.testing.assert_allclose(dataset["t2m"].isel(latitude=[2], longitude=[3]).values.ravel(), [
            float(dataset["t2m"].squeeze()[2, 3])
        ])  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore:the fields are forecasts")
@pytest.mark.parametrize("writer", [write_odim, write_knmi, write_geotiff, write_nimrod, write_meteonet])
def test_radar_files_of_drawn_units_and_codes(tmp_path, writer, seed):
    for package in ("pyproj", "rasterio"):
        pytest.importorskip(package, reason="radar files need the extra radar")
    rng = np.random.default_rng(seed)
    drawn = writer(rng, tmp_path)
    with open_dataset(drawn.path) as dataset:
        assert compare(drawn, dataset.load(), rng) == ("right", "")


@pytest.mark.parametrize("seed", range(12))
def test_projected_grib_coordinates_match_pyproj(tmp_path, seed):
    pytest.importorskip("eccodes", reason="the extra test brings it")
    drawn = write_projected(np.random.default_rng(seed), tmp_path)
    if drawn.refused:
        with pytest.raises(ValueError, match=drawn.refused):
            open_dataset(drawn.path)
        return
    southwards = drawn.how["grid"] != "rotated_ll" and "up 0" in drawn.how["scan"]
    warns = pytest.warns(UserWarning, match="first point is taken for the northernmost row") if southwards else None
    with warns or contextlib.nullcontext(), open_dataset(drawn.path) as dataset:
        found = dataset.load()
    assert compare(drawn, found, np.random.default_rng(0)) == ("right", "")


def test_corners_that_do_not_fit_the_grid_are_an_error(tmp_path):
    drawn = write_odim(np.random.default_rng(0), tmp_path)
    with h5py.File(drawn.path, "a") as file:
        file["where"].attrs["UR_lat"] = file["where"].attrs["LL_lat"] + 5.0
        file["where"].attrs["UR_lon"] = file["where"].attrs["LL_lon"]
    with pytest.raises(ValueError, match=r"file\.h5: the corner UR is .* and by projection, size and cells"):
        open_dataset(drawn.path)


@pytest.mark.parametrize(
    ("dtype", "limits", "beyond"),
    [("uint8", {"valid_range": np.array([0, 200], "u1")}, 230), ("uint8", {"valid_max": np.float32(68.0)}, 230),
     ("float32", {"valid_min": np.float32(-32), "valid_max": np.float32(75)}, 85.0),
     ("float32", {"valid_range": np.array([-32, 75], "i8")}, 85.0),
     ],
    ids=["codes", "unpacked", "floats", "long integers"],
)  # fmt: skip
def test_values_beyond_the_valid_range_are_missing(tmp_path, dtype, limits, beyond):
    event = synthetic_event(1, frames=2, shape=(32, 32))[["reflectivity"]]
    how = {"dtype": dtype}
    if dtype != "float32":
        how |= {"scale_factor": np.float32(0.5), "add_offset": np.float32(-32)}
    event["reflectivity"].attrs.pop("grid_mapping", None)
    event.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding={"reflectivity": how})
    with h5py.File(tmp_path / "a.nc", "a") as file:
        file["reflectivity"].attrs.update(limits)
        file["reflectivity"][:, 5:9, 5:9] = beyond
    with open_dataset(tmp_path / "a.nc") as dataset:
        missing = dataset["reflectivity"].isnull().values
        assert missing[:, 5:9, 5:9].all() and missing.sum() == 32
        assert not {"valid_range", "valid_min", "valid_max"} & set(dataset["reflectivity"].attrs)


def test_valid_ranges_of_unsigned_codes():
    attrs = {"_Unsigned": "true", "scale_factor": 0.5, "add_offset": -32.0, "valid_range": np.array([0, -56], "i1")}
    raw = xr.Dataset({"v": (("y", "x"), np.array([[0, 1], [-56, -55]], "i1"), attrs)})
    np.testing.assert_array_equal(decode_dataset(raw, default_fill=False)["v"], [[-32.0, -31.5], [68.0, np.nan]])


@pytest.mark.filterwarnings("ignore:variable 'v' has multiple fill values")
@pytest.mark.parametrize("name", ["_FillValue", "missing_value"])
@pytest.mark.parametrize("fill", [np.int8(-1), -1, 255, 255.0, "255", np.array([-1, 17], "i1"), np.array([255, 17])])
@pytest.mark.parametrize(("dtype", "unsigned"), [("i1", "true"), ("i1", "True"), ("u1", "false")])
def test_fill_values_of_codes_in_the_other_sign(name, fill, dtype, unsigned):
    attrs = {"_Unsigned": unsigned, "scale_factor": 0.5, name: fill}
    raw = xr.Dataset({"v": (("y", "x"), np.array([[0, 16], [200, 255]], "u1").view(dtype), attrs)})
    meant = 100.0 if dtype == "i1" else -28.0
    np.testing.assert_array_equal(decode_dataset(raw, default_fill=False)["v"], [[0.0, 8.0], [meant, np.nan]])


@pytest.mark.parametrize(
    ("declared", "missing"),
    [({}, True), ({"_Unsigned": "true"}, False), ({"valid_min": np.int16(-32767)}, False),
     ({"valid_min": np.int16(-32766)}, True), ({"valid_range": np.array([-400.0, 400.0])}, False)],
)  # fmt: skip
def test_the_default_fill_value_of_netcdf_may_be_a_code_like_others(declared, missing):
    attrs = {"scale_factor": 0.01, "units": "K"} | declared
    raw = xr.Dataset({"v": (("y", "x"), np.array([[-32767, 4]], "i2"), attrs)})
    found = decode_dataset(raw, default_fill=True)["v"].values
    assert np.isnan(found[0, 0]) == missing and found[0, 1] == pytest.approx(0.04)


@pytest.mark.parametrize("limits", [{"valid_range": np.array([-2.0, 60.0])}, {"valid_min": -2.0, "valid_max": 60.0}])
def test_negative_floating_limits_of_unsigned_codes_are_unpacked_values(limits):
    attrs = {"_Unsigned": "true", "scale_factor": 0.5, "add_offset": -10.0} | limits
    raw = xr.Dataset({"v": (("y", "x"), np.array([[0, 16], [-116, -115]], "i1"), attrs)})
    np.testing.assert_array_equal(decode_dataset(raw, default_fill=False)["v"], [[np.nan, -2.0], [60.0, np.nan]])


def test_impossible_coordinates_are_missing(tmp_path):
    x, y = np.meshgrid(np.linspace(5, 9, 20), np.linspace(50, 46, 16))
    x[:3, :3] = y[:3, :3] = -9999
    names = {"lat": (y, "degrees_north", "latitude"), "lon": (x, "degrees_east", "longitude")}
    coords = {n: (("y", "x"), v, {"units": u, "standard_name": s}) for n, (v, u, s) in names.items()}
    field = xr.Dataset({"w": (("y", "x"), np.ones((16, 20), "f4"), {"units": "1"})}, coords)
    field.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.warns(UserWarning, match="9 points of lat and lon are impossible positions"):
        dataset = open_dataset(tmp_path / "a.nc")
    assert int(dataset["lat"].isnull().sum()) == int(dataset["lon"].isnull().sum()) == 9
    dataset.close()
    spacing = grid_spacing_m(field.assign_coords(coords)["w"])
    assert all(10_000 < step < 40_000 for step in spacing)


@pytest.mark.parametrize("scale", [None, 0.1])
def test_zero_as_the_fill_value_of_a_zarr_store(tmp_path, scale):
    zarr = pytest.importorskip("zarr", reason="Zarr stores need the package zarr")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    rain = np.eye(8, dtype="f4" if scale is None else "i2")[None]
    stored = {"tp": (rain, ("time", "latitude", "longitude"), {"units": "mm"}),
              "time": (np.array([3]), ("time",), {"units": "hours since 2024-06-01"}),
              "latitude": (np.arange(8.0), ("latitude",), {"units": "degrees_north"}),
              "longitude": (np.arange(8.0), ("longitude",), {"units": "degrees_east"})}  # fmt: skip
    for name, (values, dims, attrs) in stored.items():
        array = group.create_array(name, shape=values.shape, dtype=values.dtype)
        array[...] = values
        scaled = {"scale_factor": scale} if name == "tp" and scale else {}
        array.attrs.update({"_ARRAY_DIMENSIONS": list(dims)} | attrs | scaled)
    message = r"tp \(a value\)" if scale is None else r"tp \(missing, as it is packed\)"
    with pytest.warns(UserWarning, match=message), open_dataset(tmp_path / "a.zarr") as dataset:
        assert int(dataset["tp"].isnull().sum()) == (0 if scale is None else 56)
        assert float(dataset["longitude"][0]) == 0.0


@pytest.mark.parametrize("lead", [np.arange(2) * np.timedelta64(6, "h"), [1, 2]])
def test_lead_time_dimension(tmp_path, lead):
    dataset = gridded().expand_dims(lead=lead, axis=1)
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    source, target = str(tmp_path / "a.nc"), str(tmp_path / "b.nc")
    assert main(["downscale", source, target, "--scale", "2", "--model", "bilinear"]) == 0
    with open_dataset(target) as found:
        assert found["t2m"].shape == (2, 2, 48, 72)


def test_single_lead_time_is_scalar_and_varying_one_lies_along_time(tmp_path):
    for k in range(2):
        part = gridded(1, start=f"2024-06-0{k + 1}").assign_coords(lead=np.timedelta64(6 * k, "h"))
        part.to_netcdf(tmp_path / f"{k}.nc", engine="h5netcdf")
    with open_dataset(tmp_path / "0.nc") as one, open_dataset(tmp_path) as both:
        assert one["lead"].ndim == 0
        np.testing.assert_array_equal(both["lead"].values / np.timedelta64(1, "h"), [0, 6])


def test_wrf_character_times(tmp_path):
    letters = np.array([list("2024-06-01_00:00:00"), list("2024-06-01_06:00:00")], "S1")
    dataset = gridded().drop_vars("time").rename(time="Time").assign(Times=(("Time", "DateStrLen"), letters))
    write(dataset, tmp_path / "a.nc")
    with open_dataset(tmp_path / "a.nc") as found:
        np.testing.assert_array_equal(found["Time"].values, gridded()["time"].values)
        assert "Times" not in found


def test_files_with_two_calendars(tmp_path):
    cftime = pytest.importorskip("cftime", reason="other calendars need the package cftime")
    gridded().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    dates = [cftime.DatetimeNoLeap(2024, 6, 3, hour) for hour in (0, 6)]
    gridded().assign_coords(time=dates).to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"calendar standard in .*a\.nc and noleap in .*b\.nc"):
        open_dataset(tmp_path)


def test_a_block_closes_its_file(tmp_path):
    path = write(gridded(), tmp_path / "a.nc")
    with open_dataset(path) as dataset:
        held = dataset["t2m"][0].values
    write(gridded(), path)  # HDF5 truncates no file that is open
    assert held.shape == (24, 36)


def test_texts_and_truth_values_of_other_writers(tmp_path):
    path = write(gridded(), tmp_path / "a.nc")
    with h5py.File(path, "a") as file:
        file.attrs["institution"] = np.bytes_("Météo-France".encode("latin-1"))
        file["t2m"].attrs["flags"] = np.array([True, False])
    assert main(["downscale", str(path), str(tmp_path / "b.nc"), "--scale", "2", "--model", "bilinear"]) == 0
    with xr.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as found:
        assert found.attrs["institution"] == "Météo-France" and list(found["t2m"].attrs["flags"]) == [1, 0]


def test_a_filter_that_is_not_installed_is_named(tmp_path, monkeypatch):
    path = write(gridded(), tmp_path / "a.nc")
    monkeypatch.setattr("h5py.h5z.filter_avail", lambda code: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with h5py.File(path, "a") as file:
        file.create_dataset("v", data=np.ones((4, 4)), compression="gzip")
    with pytest.raises(
        ValueError, match=r"a\.nc: v is compressed by the HDF5 filter .* \(1\).* pip install hdf5plugin"
    ):
        open_dataset(path)


@pytest.mark.parametrize(
    ("clock", "hour"), [("240000", 24), ("1200", 12), ("120000", 12)], ids=["24 h", "four digits", "six digits"]
)
def test_odim_times(tmp_path, clock, hour):
    drawn = write_odim(np.random.default_rng(0), tmp_path)
    with h5py.File(drawn.path, "a") as file:
        file["what"].attrs["time"] = np.bytes_(clock)
    with open_dataset(drawn.path) as dataset:
        assert dataset["time"].values[0] == np.datetime64("2024-06-01") + np.timedelta64(hour, "h")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file["what"].attrs.__delitem__("date"), "attribute what/date is missing"),
        (
            lambda file: file["what"].attrs.modify("time", np.bytes_("noon")),
            "what/date and time are '20240601' and 'noon'",
        ),
        (lambda file: file["dataset1/data1/what"].attrs.modify("gain", 0.0), "gain 0 .* values are lost"),
        (lambda file: file["where"].attrs.modify("xsize", np.int64(7)), "shape .* where/ysize and xsize say"),
        (lambda file: file["dataset1/data1"].__delitem__("data"), "has no group or array data"),
    ],
)
def test_odim_with_a_part_missing_or_wrong(tmp_path, change, message):
    drawn = write_odim(np.random.default_rng(1), tmp_path)
    with h5py.File(drawn.path, "a") as file:
        change(file)
    with pytest.raises(ValueError, match=rf"file\.h5.*{message}"):
        open_dataset(drawn.path)


@pytest.mark.parametrize("part", ["overview", "geographic", "image1", "image1/calibration"])
def test_knmi_without_any_one_attribute_is_read_or_refused(tmp_path, part):
    drawn = write_knmi(np.random.default_rng(0), tmp_path)
    with h5py.File(drawn.path) as file:
        names = list(file[part].attrs)
    for name in names:
        write_knmi(np.random.default_rng(0), tmp_path)
        with h5py.File(drawn.path, "a") as file:
            del file[part].attrs[name]
        try:
            open_dataset(drawn.path).close()
        except ValueError as error:
            assert "file.h5" in str(error) and name in str(error)


def test_further_fields_of_an_odim_file_are_named(tmp_path):
    drawn = write_odim(np.random.default_rng(0), tmp_path)
    with h5py.File(drawn.path, "a") as file:
        file.copy("dataset1", "dataset2")
        file["dataset2/what"].attrs.update({"starttime": np.bytes_("120000"), "endtime": np.bytes_("121500")})
    with pytest.warns(UserWarning, match=r"1 further field of .* forecasts up to 15 min ahead .* is left out"):
        open_dataset(drawn.path).close()


@pytest.mark.parametrize(
    ("units", "metres"),
    [("m", 1.0), ("kilometers", 1e3), ("Kilometres", 1e3), ("100 m", 100.0), ("1e3 m", 1e3), ("dm", 0.1),
     ("US_survey_foot", METRES["us-ft"]), ("degrees", None), ("", None), ("K", None), ("s", None)],
)  # fmt: skip
def test_units_of_length(units, metres):
    assert get_metres_per_unit(units) == (None if metres is None else pytest.approx(metres, rel=1e-12))


def test_coordinates_in_float32_are_evenly_spaced(tmp_path):
    longitude = (230 + 0.01 * np.arange(7000)).astype("f4")[-36:]
    dataset = gridded(1).assign_coords(longitude=("longitude", longitude, gridded()["longitude"].attrs))
    path = write(dataset, tmp_path / "a.nc")
    assert main(["downscale", str(path), str(tmp_path / "b.nc"), "--scale", "2", "--model", "bilinear"]) == 0


def test_zarr_store_replaces_a_file(tmp_path):
    pytest.importorskip("zarr", reason="Zarr stores need the package zarr")
    (tmp_path / "a.ZARR").write_text("a file")
    save_dataset(gridded(), tmp_path / "a.ZARR")
    assert (tmp_path / "a.ZARR" / "zarr.json").exists() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match=r"not as \.zip"):
        save_dataset(gridded(), tmp_path / "a.zarr.zip")


@pytest.mark.parametrize("fill", [-9999.0, 1e20, 9.969209968386869e36])
def test_undeclared_fill_values_are_masked_with_a_warning(tmp_path, capsys, fill):
    dataset = gridded().rename(t2m="w")
    dataset["w"].attrs = {"units": "m"}
    dataset["w"].values[0, 5, 5:8] = fill
    path = write(dataset, tmp_path / "a.nc")
    assert main(["downscale", str(path), str(tmp_path / "b.nc"), "--scale", "2", "--model", "bilinear"]) == 0
    with open_dataset(tmp_path / "b.nc") as found:
        assert int(found["w"].isnull().sum()) == 12 and float(found["w"].max()) < 300
