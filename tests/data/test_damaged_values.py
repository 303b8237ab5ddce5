# SPDX-License-Identifier: Apache-2.0
"""Tests of files that open but have damaged values: the error names the file."""

import pickle
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import xarray as xr

from fastds.cli import _suppress_close_errors, main
from fastds.data import open_dataset
from fastds.data.formats.opening import _translate_errors
from fastds.data.formats.registry import list_formats
from tests.faulty.drawn_grib import write_regular
from tests.faulty.drawn_radar import write_geotiff

SHAPE = 2, 16, 20


def field():
    """Return temperatures at two times on a geographic grid."""
    lat, lon = 50 + 0.5 * np.arange(SHAPE[1]), 5 + 0.5 * np.arange(SHAPE[2])
    values = np.random.default_rng(0).normal(280, 5, SHAPE).astype("f4")
    axes = {
        "time": np.array(["2024-06-01T00", "2024-06-01T06"], "M8[ns]"),
        "latitude": ("latitude", lat, {"units": "degrees_north", "standard_name": "latitude"}),
        "longitude": ("longitude", lon, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    attrs = {"units": "K", "standard_name": "air_temperature"}
    return xr.Dataset({"t2m": (("time", "latitude", "longitude"), values, attrs)}, axes)


def damaged_netcdf4(folder):
    path = folder / "damaged.nc"
    field().to_netcdf(path, engine="h5netcdf", encoding={"t2m": {"zlib": True, "chunksizes": (1, *SHAPE[1:])}})
    with h5py.File(path) as file:
        chunk = file["t2m"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 20] = b"\xff" * 20
    path.write_bytes(bytes(content))
    return path


def damaged_zarr(folder, version):
    path = folder / "damaged.zarr"
    field().to_zarr(path, zarr_format=version, consolidated=False)
    for chunk in (path / "t2m").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith((".z", "zarr")):
            chunk.write_bytes(chunk.read_bytes()[:-40])
    return path


def damaged_zarr2(folder):
    return damaged_zarr(folder, 2)


def damaged_zarr3(folder):
    return damaged_zarr(folder, 3)


def damaged_grib(folder):
    """Write a GRIB file whose last message declares more bits than its data section has."""
    pytest.importorskip("eccodes", reason="the extra test brings it")
    rng = np.random.default_rng(0)
    while True:
        drawn = write_regular(rng, folder)
        if drawn.how["edition"] == 2 and len(drawn.values) > 1:
            break
    content = bytearray(drawn.path.read_bytes())
    at = content.rfind(b"GRIB") + 16
    while content[at + 4] != 5:  # the section that says how values are packed
        at += int.from_bytes(content[at : at + 4], "big")
    content[at + 19] = 57
    drawn.path.unlink()
    path = folder / "damaged.grib"
    path.write_bytes(bytes(content))
    return path


def damaged_tiff(folder):
    rasterio = pytest.importorskip("rasterio", reason="the extra test brings it")
    drawn = write_geotiff(np.random.default_rng(0), folder)
    path = folder / "damaged_202406011200.tif"
    with rasterio.open(drawn.path) as image, rasterio.open(path, "w", **image.profile | {"compress": "deflate"}) as out:
        out.write(image.read())
        out.units = image.units
    drawn.path.unlink()
    content = bytearray(path.read_bytes())
    at = content.find(b"\x78\x9c")  # a stream of zlib
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(bytes(content))
    return path


LAZY = [damaged_netcdf4, damaged_zarr2, damaged_zarr3, damaged_grib]


@pytest.mark.parametrize("make", [*LAZY, damaged_tiff])
def test_read_error_names_the_damaged_variable(tmp_path, make):
    path = make(tmp_path)
    for read in (
        lambda d: d.load(),
        lambda d: d[next(iter(d.data_vars))].isel(time=-1).values,
        lambda d: d.chunk().compute(),
    ):
        message = rf"{path}.*(values of t2m cannot be read|damaged TIFF)"
        with pytest.raises(ValueError, match=message) as found, open_dataset(path) as dataset:
            read(dataset)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("make", [*LAZY, damaged_tiff])
def test_check_reports_damaged_values(tmp_path, make, capfd):
    path = make(tmp_path)
    assert main(["check", str(path)]) in (0, 2)
    printed = capfd.readouterr().out
    assert "internal error" not in printed
    assert f"{path}: the values of t2m cannot be read" in printed or f"{path} is a damaged TIFF image" in printed


@pytest.mark.parametrize("make", LAZY)
def test_intact_values_of_a_damaged_file_are_read(tmp_path, make):
    with open_dataset(make(tmp_path)) as dataset:
        assert dataset["t2m"].shape[0] > 1 and np.isfinite(dataset["latitude"].values).all()
        if make in (damaged_netcdf4, damaged_grib):
            assert np.nanmin(dataset["t2m"].isel(time=0).values) > 200
            assert np.nanmin(pickle.loads(pickle.dumps(dataset))["t2m"][0, 3:5, [2, 4]].values) > 200


@pytest.mark.parametrize("words", [
    ["convert", "IN", "out.nc", "--to", "cf"],
    ["convert", "IN", "out.zarr", "--to", "cf"],
    ["downscale", "IN", "out.nc", "--scale", "2", "--model", "bilinear"],
    ["evaluate", "IN", "IN"],
    ["query", "IN", "--points", "points.csv", "--output", "out.csv"],
    ["nowcast", "IN", "out.nc", "--model", "persistence"],
])  # fmt: skip
@pytest.mark.parametrize("make", [*LAZY, damaged_tiff])
def test_commands_name_the_damaged_file(tmp_path, make, words, capfd):
    path = make(tmp_path)
    (tmp_path / "points.csv").write_text("name,lat,lon\nA,52,8\n")
    given = [str(path) if word == "IN" else str(tmp_path / word) if "." in word else word for word in words]
    before = set(tmp_path.iterdir())
    assert main(given) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fastds ")]
    assert len(lines) == 1 and "internal error" not in lines[0]
    assert path.name in lines[0] or words[0] == "nowcast"  # which may miss a field of reflectivity first
    assert set(tmp_path.iterdir()) == before


def test_one_damaged_file_of_several_is_named(tmp_path):
    path = damaged_netcdf4(tmp_path)
    later = field().assign_coords(time=field()["time"] + np.timedelta64(1, "D"))
    later.to_netcdf(tmp_path / "sound.nc", engine="h5netcdf")
    with (
        pytest.raises(ValueError, match=rf"{path}.*values of t2m cannot be read"),
        open_dataset(str(tmp_path / "*.nc")) as dataset,
    ):
        dataset.load()


@pytest.mark.parametrize("error", [ValueError("bad number"), OSError("CRC check failed"), EOFError(), LookupError("x"),
                                   RuntimeError("a\nb"), UnicodeDecodeError("utf-8", b"a", 0, 1, "bad")])  # fmt: skip
def test_reader_errors_name_the_file(tmp_path, error):
    with pytest.raises(ValueError, match="a.nc") as found, _translate_errors(list_formats()[0], tmp_path / "a.nc"):
        raise error
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("error", [MemoryError("so much"), ImportError("no zarr"), KeyboardInterrupt()])
def test_unrelated_errors_are_not_changed(tmp_path, error):
    with pytest.raises(type(error)), _translate_errors(list_formats()[0], tmp_path / "a.nc"):
        raise error


def test_removed_file_is_reported(tmp_path):
    field().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path / "a.nc")))
    (tmp_path / "a.nc").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.nc"):
        dataset.load()


@pytest.mark.parametrize(
    ("place", "is_shown"), [("rasterio._env.log_error", False), (len, True), (h5py.File.close, False)]
)
def test_library_messages_are_suppressed_after_an_error(monkeypatch, place, is_shown):
    seen = []
    monkeypatch.setattr("sys.__unraisablehook__", seen.append)
    _suppress_close_errors(SimpleNamespace(object=place))
    assert bool(seen) == is_shown
