# SPDX-License-Identifier: Apache-2.0
import gc
import os
import pickle

import numpy as np
import pytest
import xarray as xr
from scipy.io import netcdf_file

from fastds.data import open_dataset, save_dataset, synthetic_event, to_reflectivity
from fastds.data.packages import format_install_command
from tests.support import forked


@pytest.fixture(scope="module")
def event():
    return synthetic_event(1, frames=3, shape=(32, 40))


def test_netcdf4_round_trip(event, tmp_path):
    path = save_dataset(event, tmp_path / "event.nc")
    with open_dataset(path) as back:
        xr.testing.assert_identical(back.load(), event)
        encoding = back["reflectivity"].encoding
        assert encoding["zlib"] and encoding["shuffle"] and encoding["chunksizes"] == (1, 32, 40)
        assert np.isnan(encoding["_FillValue"])
        assert back["x"].encoding.get("_FillValue") is None
    assert os.listdir(tmp_path) == ["event.nc"]


@pytest.mark.parametrize("count", [1, 3])
def test_files_are_closed_when_nothing_holds_them(event, tmp_path, count):
    for k in range(count):
        save_dataset(event.isel(time=[k]), tmp_path / f"{k}.nc")

    def open_files():
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(str(tmp_path) in os.readlink(link) for link in links if os.path.lexists(link))

    dataset = open_dataset(tmp_path)
    assert dataset["reflectivity"][0].values.shape == (32, 40) and open_files() == count
    xr.testing.assert_identical(pickle.loads(pickle.dumps(dataset)).load(), event.isel(time=slice(count)))
    del dataset
    gc.collect()
    assert open_files() == 0


def test_netcdf3_is_read_by_scipy(event, tmp_path):
    path = tmp_path / "classic.nc"
    event.drop_vars("crs").to_netcdf(path, engine="scipy")
    with open_dataset(path) as back:
        np.testing.assert_array_equal(back["reflectivity"], event["reflectivity"])
        assert to_reflectivity(back).shape == event["reflectivity"].shape


def test_netcdf3_with_64_bit_offsets(data_dir):
    with open_dataset(data_dir / "raw" / "netcdf3" / "era5_500hPa_cds_int16.nc") as dataset:
        assert dataset["t"].shape == (8, 181, 360)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing\.nc"):
        open_dataset(tmp_path / "nothing.nc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file.nc is empty"),
        (b"hello, this is text\n", "is in no format that is known: ODIM HDF5, KNMI HDF5, .*, RADOLAN"),
        (b"GRIB" + bytes(20), "looks like GRIB but cannot be read .* truncated or damaged"),
        (b"\x1f\x8b" + bytes(20), "file.nc is damaged: it cannot be unpacked"),
        (b"PK\x03\x04" + bytes(20), "file.nc is a zip archive; unpack it first"),
        (b"CDF\x05" + bytes(20), "file.nc is NetCDF of the format CDF-5; nccopy -k nc4 converts it"),
        (b"AR2V0006." + bytes(20), "file.nc is a NEXRAD level II volume; xradar reads it"),
    ],
    ids=["empty", "text", "grib", "gzip", "zip", "cdf5", "nexrad"],
)
def test_unsupported_files_are_named(tmp_path, content, message):
    path = tmp_path / "file.nc"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(path)
    assert "\n" not in str(caught.value) and "file.nc" in str(caught.value)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_netcdf4(event, tmp_path, share):
    path = save_dataset(event, tmp_path / "event.nc")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"event\.nc looks like NetCDF-4 but cannot be read .* truncated or damaged"):
        open_dataset(path)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_netcdf3(tmp_path, share):
    path = tmp_path / "classic.nc"
    with netcdf_file(path, "w") as file:
        file.createDimension("x", 5000)
        file.createVariable("v", "f8", ("x",))[:] = np.arange(5000.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"looks like NetCDF-3 but cannot be read .* truncated or damaged"):
        open_dataset(path)


def test_folder_without_fields(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of fields in"):
        open_dataset(tmp_path)


def test_zarr_without_the_package(tmp_path, monkeypatch, event):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["numpy>=2", 'zarr>=3.0; extra == "radar"'])
    advice = r"python -m pip install zarr, or, in a clone of fastds, python -m pip install '\.\[radar\]'$"
    with pytest.raises(ImportError, match=advice):
        save_dataset(event, tmp_path / "event.zarr")
    assert format_install_command("pysteps") == "python -m pip install pysteps"


def test_zarr_round_trip(event, tmp_path):
    pytest.importorskip("zarr", reason="Zarr stores need the package zarr")
    for _ in range(2):  # the second time it replaces a store
        save_dataset(event, tmp_path / "event.zarr")
    with open_dataset(tmp_path / "event.zarr") as back:
        xr.testing.assert_equal(back.load(), event)
    assert os.listdir(tmp_path) == ["event.zarr"]


def test_failed_save_keeps_the_old_file(event, tmp_path, monkeypatch):
    path = save_dataset(event, tmp_path / "event.nc")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(xr.Dataset, "dump_to_store", fail)
    with pytest.raises(OSError, match="no space left"):
        save_dataset(event, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["event.nc"]


def test_save_rejects_unsupported_values(event, tmp_path):
    with pytest.raises(ValueError, match=r"odd\.nc cannot be written") as caught:
        save_dataset(event.assign_attrs(bad={"a": 1}), tmp_path / "odd.nc")
    assert "\n" not in str(caught.value) and os.listdir(tmp_path) == []


def test_save_converts_unsupported_attributes(event, tmp_path):
    path = save_dataset(event.assign_attrs(flag=True, nothing=None), tmp_path / "event.nc")
    with open_dataset(path) as back:
        assert back.attrs["flag"] == 1 and "nothing" not in back.attrs


def test_save_into_missing_folder(event, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        save_dataset(event, tmp_path / "missing" / "event.nc")


def test_encoding_is_preserved(event, tmp_path):
    packed = event.copy(deep=True)
    packed["reflectivity"][0, 0, 0] = np.nan
    packed["reflectivity"].encoding = {"dtype": "uint8", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": 255}
    with xr.open_dataset(save_dataset(packed, tmp_path / "packed.nc"), engine="h5netcdf", mask_and_scale=False) as raw:
        assert raw["reflectivity"].dtype == np.uint8 and raw["reflectivity"][0, 0, 0] == 255
    with open_dataset(tmp_path / "packed.nc") as back:
        assert np.isnan(back["reflectivity"][0, 0, 0])
        assert float(abs(back["reflectivity"] - packed["reflectivity"]).max()) <= 0.25


def test_save_replaces_a_file_atomically(event, tmp_path):
    """A process that has the old file open continues to read the old content."""
    path = save_dataset(event, tmp_path / "event.nc")
    with path.open("rb") as old:
        content = path.read_bytes()
        save_dataset(event.isel(time=slice(0, 2)), path)
        assert old.read() == content


def test_times_that_cannot_be_decoded(event, tmp_path):
    strange = event.assign_coords(time=("time", np.arange(3.0), {"units": "moons since the flood"}))
    save_dataset(strange, tmp_path / "event.nc")
    with pytest.raises(ValueError, match=r"the times in .*event\.nc cannot be decoded \(ValueError") as caught:
        open_dataset(tmp_path / "event.nc")
    assert "\n" not in str(caught.value)


def test_single_group_with_fields_is_read(tmp_path):
    event = synthetic_event(1, frames=2, shape=(32, 32))
    event.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", group="Grid")
    with pytest.warns(UserWarning, match="are those of its group Grid"), open_dataset(tmp_path / "a.nc") as found:
        np.testing.assert_array_equal(found["reflectivity"], event["reflectivity"])
    event.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", group="Other", mode="a")
    with pytest.raises(ValueError, match=r"no variables at its top level \(groups: Grid, Other\).* group=NAME"):
        open_dataset(tmp_path / "a.nc")


def test_process_reading_grib_exits_cleanly(data_dir):
    """The library ecCodes has its own copy of PROJ, which may conflict with that of pyproj."""
    pytest.importorskip("cfgrib", reason="GRIB files need the package cfgrib")
    path = data_dir / "era5_t2m_025deg_uk_201903_1h.grib"
    program = (
        f"from fastds.data import open_dataset; open_dataset({str(path)!r}).load(); import pyproj; pyproj.CRS(4326)"
    )
    run = forked.run(program, imports=forked.TORCH)
    assert run.returncode == 0, run.stderr


def test_projections_after_loading_eccodes():
    """A process with two copies of PROJ computes coordinates and exits normally."""
    pytest.importorskip("eccodes", reason="GRIB files need the package cfgrib")
    pytest.importorskip("pyproj", reason="projections need the package pyproj")
    program = (
        "import eccodes; from fastds.data.formats.cf_builder import project; print(*project('EPSG:32632', 9.0, 48.0))"
    )
    run = forked.run(program, imports=forked.TORCH)
    assert run.returncode == 0, run.stderr
    x, y = map(float, run.stdout.split())
    assert x == pytest.approx(500_000.0) and y == pytest.approx(5_316_300.22)


@pytest.mark.parametrize("name", ["event.nc", "event.zarr"])
def test_save_dask_arrays(event, tmp_path, name):
    pytest.importorskip("dask", reason="lazy fields need dask")
    if name.endswith("zarr"):
        pytest.importorskip("zarr", reason="Zarr stores need the package zarr")
    save_dataset(event.chunk(time=1), tmp_path / name)
    with open_dataset(tmp_path / name) as back:
        xr.testing.assert_identical(back.load(), event)
