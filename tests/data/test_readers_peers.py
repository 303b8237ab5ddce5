# SPDX-License-Identifier: Apache-2.0
"""Tests of raw files against other libraries: values, missing cells, times and corners.

`pytest tests/data/test_readers_peers.py -s` prints a row for each file.
"""

import warnings

import h5py
import numpy as np
import pytest

from fastds.data import open_dataset

pyproj = pytest.importorskip("pyproj", reason="projections need the package pyproj")
RADOLAN = (
    "raa01-rw_10000-1408102050-dwd---bin.gz",
    "raa01-rx_10000-1408102050-dwd---bin.gz",
    "raa01-ry_10000-1408102050-dwd---bin.gz",
    "raa01-yw2017.002_10000-1708160120-dwd---bin.gz",
)


@pytest.fixture(scope="module")
def raw(data_dir):
    return data_dir / "raw"


def tell(name, peer, ours, theirs):
    """Compare two fields and print a row of a table."""
    assert ours.shape == theirs.shape
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    off = float(np.nanmax(np.abs(ours - theirs)))
    ends = f"{np.nanmin(theirs):g} to {np.nanmax(theirs):g}"
    print(f"| {name} | {peer} | {ours.shape} | {ends} | {int(np.isnan(ours).sum())} | {off:.2g} |")
    assert off <= 2e-6 * max(1.0, float(np.nanmax(np.abs(theirs))))


def edges(dataset, field):
    """Return x and y in metres of the outer lower left and upper right corners of a projected field."""
    y, x = (dataset[dim].values for dim in field.dims[-2:])
    half = abs(x[1] - x[0]) / 2, abs(y[1] - y[0]) / 2
    return x.min() - half[0], y.min() - half[1], x.max() + half[0], y.max() + half[1]


@pytest.mark.parametrize("name", RADOLAN)
def test_radolan_equals_wradlib(raw, name):
    wradlib = pytest.importorskip("wradlib", reason="wradlib is not installed (optional peer)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, attrs = wradlib.io.read_radolan_composite(str(raw / "radolan" / name))
        corner = wradlib.georef.get_radolan_grid(*theirs.shape, wgs84=False)[0, 0] * 1e3
    with open_dataset(raw / "radolan" / name) as dataset:
        field = dataset[next(n for n, v in dataset.data_vars.items() if v.ndim >= 2)]
        theirs = np.where(theirs == attrs["nodataflag"], np.nan, theirs)
        theirs.ravel()[attrs.get("cluttermask", [])] = np.nan  # clutter is no rain
        if attrs["producttype"] == "RX":
            theirs = theirs / 2 - 32.5
        tell(name, "wradlib", field.values[0, ::-1], theirs)
        np.testing.assert_allclose(edges(dataset, field)[:2], corner, atol=1.0)
        assert dataset.time.values[0] == np.datetime64(attrs["datetime"])


def test_odim_equals_wradlib(raw):
    wradlib = pytest.importorskip("wradlib", reason="wradlib is not installed (optional peer)")
    path = raw / "opera" / "T_PAAH21_C_EUOC_20180824200000.hdf"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = wradlib.io.read_opera_hdf5(str(path))
    what, where = theirs["dataset1/what"], theirs["where"]
    codes = theirs["dataset1/data1/data"]
    values = np.where(codes == what["undetect"], 0.0, codes * what["gain"] + what["offset"])
    values = np.where(codes == what["nodata"], np.nan, values)
    with open_dataset(path) as dataset:
        field = dataset["rainfall_rate"]
        tell(path.name, "wradlib", field.values[0], values)
        proj = pyproj.Proj(where["projdef"] if isinstance(where["projdef"], str) else where["projdef"].decode())
        corners = [
            float(v) for name in ("LL", "UR") for v in proj(float(where[f"{name}_lon"]), float(where[f"{name}_lat"]))
        ]
        np.testing.assert_allclose(edges(dataset, field), corners, atol=0.1)


@pytest.mark.parametrize("name", ["era5_t2m_20221001T00.grib1", "nam.t00z.awp21100.tm00.grib2"])
def test_grib_equals_eccodes(raw, name):
    """Compare three points of every field with the values and coordinates that ecCodes returns."""
    eccodes = pytest.importorskip("eccodes", reason="GRIB files need the package cfgrib")
    path, rng, count = raw / "grib" / name, np.random.default_rng(0), 0
    with open_dataset(path) as dataset, path.open("rb") as file:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            short = eccodes.codes_get(handle, "cfVarName")
            found = dataset.get(short)
            if found is None or found.squeeze().ndim != 2:
                eccodes.codes_release(handle)
                continue
            lat, lon, values = (eccodes.codes_get_array(handle, key) for key in ("latitudes", "longitudes", "values"))
            eccodes.codes_release(handle)
            field, count = found.squeeze(), count + 1
            for k in rng.integers(0, len(values), 3):
                if field["latitude"].ndim == 1:
                    here = field.sel(latitude=lat[k], longitude=lon[k], method="nearest")
                else:
                    off = np.hypot(field.latitude.values - lat[k], (field.longitude.values - lon[k] + 180) % 360 - 180)
                    i, j = np.unravel_index(off.argmin(), off.shape)
                    assert off[i, j] < 1e-4
                    here = field[i, j]
                assert float(here) == pytest.approx(values[k], rel=1e-6, abs=1e-6)
    print(f"| {name} | ecCodes | {count} fields, three points each | | | |")
    assert count


@pytest.mark.parametrize(
    ("folder", "name"), [("bom", "2_20180616_130000.prcp-cscn.nc"), ("netcdf3", "era5_500hPa_cds_int16.nc")]
)
def test_netcdf_equals_netcdf4(raw, folder, name):
    netcdf4 = pytest.importorskip("netCDF4", reason="the extra test brings netCDF4")
    with netcdf4.Dataset(raw / folder / name) as file, open_dataset(raw / folder / name) as dataset:
        for variable in dataset.data_vars:
            if dataset[variable].ndim < 2 or dataset[variable].dtype.kind != "f":
                continue
            theirs = np.ma.filled(file[variable][:].astype(float), np.nan)
            tell(
                f"{name} {variable}",
                "netCDF4",
                np.asarray(dataset[variable].values, float).reshape(theirs.shape),
                theirs,
            )
        for axis in ("x", "y", "latitude", "longitude"):
            if axis in file.variables:
                np.testing.assert_allclose(dataset[axis].values, np.asarray(file[axis][:]), rtol=1e-6)


def test_knmi_corners_equal_pyproj(raw):
    """Compare the corners in degrees that the files contain with those of our projection."""
    for path in sorted((raw / "knmi").glob("*.h5")):
        with h5py.File(path) as file, open_dataset(path) as dataset:
            place = file["geographic"].attrs
            corners = np.ravel(place["geo_product_corners"]).reshape(4, 2)
            codes = file["image1/image_data"][...]
            field = dataset[next(n for n, v in dataset.data_vars.items() if v.ndim >= 2)]
            crs = pyproj.CRS.from_wkt(dataset["crs"].attrs["crs_wkt"])
            project = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
            left, bottom, right, top = edges(dataset, field)
            for (lon, lat), (x, y) in zip(
                corners, ((left, bottom), (left, top), (right, top), (right, bottom)), strict=True
            ):
                assert np.hypot(*np.subtract(project.transform(lon, lat), (x, y))) < 60.0  # degrees of three digits
            print(f"| {path.name} | its corners, pyproj | {codes.shape} | | {int(field.isnull().sum())} | |")
