# SPDX-License-Identifier: Apache-2.0
"""Tests of raw files of weather services: positions of fields, and joining of files with one time each."""

import gzip
import shutil
import struct

import h5py
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from fastds.cli import main
from fastds.data import open_dataset, save_dataset, synthetic_event, to_reflectivity
from fastds.data.formats import grib
from fastds.data.formats.file_probe import FileProbe
from fastds.data.formats.registry import detect_format

pyproj = pytest.importorskip("pyproj", reason="projections need the package pyproj")

FMI = "fmi/201609281500_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz"
KNMI = "knmi/RAD_NL25_RAP_5min_201008260030.h5"
KNMI_ECHO = "knmi/RAD_NL25_PCP_CM_202106222000.h5"
OPERA = "opera/T_PAAH21_C_EUOC_20180824200000.hdf"
DWD = "dwd_hdf5/composite_rv_20250923_0855_000-hd5"
MCH = "mch/AQC161932200V_00005.801.gif"
DX = "radolan/raa00-dx_10908-0806021700-fbg---bin"
RAIN, AMOUNT, ECHO = "rainfall_rate", "rainfall_amount", "reflectivity"


@pytest.fixture
def raw(data_dir):
    return data_dir / "raw"


def places(dataset, field):
    """Return (longitude, latitude) of the outer corners: upper left, upper right, lower right, lower left."""
    y, x = (dataset[dim].values for dim in dataset[field].dims[-2:])
    dy, dx = (y[1] - y[0]) / 2, (x[1] - x[0]) / 2
    corners = [(x[i] + (dx if i else -dx), y[j] + (dy if j else -dy)) for i, j in ((0, 0), (-1, 0), (-1, -1), (0, -1))]
    if "longitude" in dataset.dims:
        return corners
    mapping = dataset[dataset[field].attrs["grid_mapping"]].attrs
    proj = pyproj.Proj(pyproj.CRS.from_cf(mapping))
    return [proj(*corner, inverse=True) for corner in corners]


# Upper right and lower left corners in degrees from the headers of the files. Only one reader uses these entries.
CORNERS = [
    (FMI, "FMI PGM", ECHO, (34.903, 69.005), (18.6, 57.93), "2016-09-28T15:00"),
    (KNMI, "KNMI HDF5", AMOUNT, (10.856453, 55.388973), (0.0, 49.362064), "2010-08-26T00:30"),
    (OPERA, "ODIM HDF5", RAIN, (57.81196475, 67.62103710), (-10.43457684, 31.74621532), "2018-08-24T20:00"),
    (DWD, "ODIM HDF5", AMOUNT, (18.73161645, 55.84543856), (3.56699464, 45.69642538), "2025-09-23T08:55"),
    (KNMI_ECHO, "KNMI HDF5", ECHO, (10.856453, 55.388973), (0.0, 49.362064), "2021-06-22T20:00"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "field", "right", "left", "time"), CORNERS, ids=[c[0][:9] for c in CORNERS])
def test_composite_coordinates_match_their_headers(raw, name, form, field, right, left, time):
    with open_dataset(raw / name) as dataset:
        assert dataset.encoding["format"] == form
        assert str(dataset.time.values[0]).startswith(time) and dataset[field].dims[0] == "time"
        _, upper_right, _, lower_left = places(dataset, field)
        np.testing.assert_allclose(upper_right, right, atol=2e-3)
        np.testing.assert_allclose(lower_left, left, atol=2e-3)


PREPARED = [
    (FMI, ECHO, "radar_fmi_20160928_5min.nc", ECHO),
    (KNMI, AMOUNT, "radar_knmi_20100826_5min.nc", AMOUNT),
    (OPERA, RAIN, "radar_opera_20180824_15min.nc", RAIN),
    ("dpc/VMI_1744834500000.h5", ECHO, "radar_dpc_north_20250416_5min.nc", ECHO),
    ("bom/2_20180616_130000.prcp-cscn.nc", "precipitation", "radar_bom_melbourne_20180616_6min.nc", AMOUNT),
]


@pytest.mark.parametrize(("name", "field", "prepared", "variable"), PREPARED, ids=[c[0][:5] for c in PREPARED])
def test_composite_values_match_independent_files(raw, data_dir, name, field, prepared, variable):
    with open_dataset(raw / name) as dataset, open_dataset(data_dir / prepared) as other:
        known = other[variable].sel(time=dataset.time.values[0])
        if name == FMI:  # the same grid, other false origin
            found = dataset[field][0].values
        else:
            unit = 1e-3 if name.startswith("bom") else 1.0
            dims = dataset[field].dims[-2:]
            places = {dim: unit * known[other].values for dim, other in zip(dims, known.dims, strict=True)}
            found = dataset[field][0].sel(places, method="nearest", tolerance=1e-3 if "dpc" in name else 10.0).values
        expected = known.values
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        if variable == ECHO:
            dry = expected <= known.attrs["no_echo_value"]
            np.testing.assert_array_equal(found <= dataset[field].attrs["no_echo_value"], dry)
            found, expected = np.where(dry, 0.0, found), np.where(dry, 0.0, expected)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_meteoswiss_classes_are_decoded(raw, data_dir):
    with open_dataset(raw / MCH) as dataset, open_dataset(data_dir / "radar_mch_20160711_5min.nc") as other:
        known = other.reflectivity.sel(time="2016-07-11T22:00").values
        amount = dataset.rainfall_amount[0].values
        with np.errstate(divide="ignore"):
            z = 10.0 * np.log10(316.0 * (12.0 * amount) ** 1.5)
        np.testing.assert_array_equal(np.isnan(z), np.isnan(known))
        wet = amount > 0
        np.testing.assert_allclose(z[wet], known[wet], atol=1e-4)
        assert np.all(known[amount == 0] == np.float32(other.reflectivity.attrs["no_echo_value"]))
        np.testing.assert_array_equal([dataset.x[0], dataset.y[0]], [255500.0, 479500.0])
        # The middle of the national grid is the observatory of Bern.
        proj = pyproj.Proj(pyproj.CRS.from_cf(dataset.crs.attrs))
        np.testing.assert_allclose(proj(600e3, 200e3, inverse=True), (7.4386, 46.9511), atol=2e-3)


@pytest.mark.parametrize("shape", [(641, 710), (640, 709)])
def test_meteoswiss_needs_its_grid_size(tmp_path, shape):
    path = tmp_path / MCH.split("/")[1]
    Image.fromarray(np.zeros(shape, np.uint8), "P").save(path, comment=b"Meteoswiss")
    with pytest.raises(ValueError, match="must be a palette image of 640 x 710 pixels, got "):
        open_dataset(path)


def test_single_radar_matches_its_composite(raw, data_dir):
    """Bins within 60 km are compared; a shifted position must give a lower correlation."""
    with open_dataset(raw / DX) as dataset, open_dataset(data_dir / "radar_dwd_dx_sw_20080602_5min.nc") as other:
        known = other.reflectivity.sel(time=dataset.time.values[0])
        x, y = np.meshgrid(other.x.values, other.y.values)
        lon, lat = pyproj.Proj(other.crs.attrs["proj4"])(x, y, inverse=True)
        x, y = pyproj.Proj(pyproj.CRS.from_cf(dataset.crs.attrs))(lon, lat)
        near = np.hypot(x, y) < 60e3

        def likeness(east, north):
            where = {"x": xr.DataArray(x[near] + east), "y": xr.DataArray(y[near] + north)}
            z = dataset.reflectivity[0].sel(where, method="nearest").values
            both = np.isfinite(z) & np.isfinite(known.values[near])
            return np.corrcoef(z[both], known.values[near][both])[0, 1]

        best = likeness(0.0, 0.0)
        assert best > 0.96
        assert all(likeness(*shift) < best for shift in ((1e3, 0), (-1e3, 0), (0, 1e3), (0, -1e3)))
        assert np.isnan(dataset.reflectivity.values[0, 0, 0])  # the corner is beyond the range


def test_mrms(raw, tmp_path):
    pytest.importorskip("cfgrib", reason="GRIB files need the package cfgrib")
    name = "MRMS_PrecipRate_00.00_20250601-005800.grib2.gz"
    with open_dataset(raw / "mrms" / name) as dataset:
        rate = dataset.rainfall_rate
        assert rate.attrs["units"] == "mm h-1" and rate.shape == (1, 3500, 7000)
        assert str(dataset.time.values[0])[:16] == "2025-06-01T00:58"
        np.testing.assert_allclose(dataset.latitude[[0, -1]], [54.995, 20.005], atol=1e-4)
        np.testing.assert_allclose(dataset.longitude[[0, -1]], [230.005, 299.995], atol=1e-4)
        assert float(rate.min()) == 0.0 and float(rate.max()) < 300.0 and bool(rate.isnull().any())
    shutil.copy(raw / "mrms" / name, tmp_path / "rain.grib2.gz")
    with pytest.raises(ValueError, match="the name of an MRMS file must contain a product of rain or reflectivity"):
        open_dataset(tmp_path / "rain.grib2.gz")


@pytest.mark.parametrize(
    ("product", "field", "codes", "expected"),
    [
        ("PrecipRate", RAIN, [-3.0, -1.0, 0.0, 2.5], [np.nan, np.nan, 0.0, 2.5]),
        ("MultiSensor_QPE_24H_Pass2", AMOUNT, [-3.0, -1.0, 0.0, 2.5], [np.nan, np.nan, 0.0, 2.5]),
        ("MergedReflectivityQCComposite", ECHO, [-999.0, -99.0, -5.0, 30.0], [np.nan, -32.0, -5.0, 30.0]),
    ],
)
def test_mrms_codes_are_decoded(product, field, codes, expected):
    """The codes -1 and -3 mean no coverage; for reflectivity, -99 is no echo and -999 no coverage."""
    axes = {"latitude": [40.0, 39.9], "longitude": [260.0, 260.1], "time": np.datetime64("2025-06-01", "ns")}
    dataset = xr.Dataset({"unknown": (("latitude", "longitude"), np.reshape(codes, (2, 2)))}, axes)
    made = grib._convert_mrms(dataset, FileProbe(f"MRMS_{product}_00.00_20250601-000000.grib2.gz"))
    np.testing.assert_array_equal(made[field].values.ravel(), expected)
    assert ("time: sum (interval: 1440 min)" in str(made[field].attrs)) == (field == AMOUNT)


def test_meteonet(raw, tmp_path):
    old, new = (
        f"meteonet/reflectivity_{kind}_NW_{part}.npz" for kind, part in (("old", "2016_08.3"), ("new", "2018_12.2"))
    )
    with open_dataset(raw / old) as dataset:
        z = dataset.reflectivity
        assert str(dataset.time.values[0]) == "2016-08-21T00:25:00.000000000" and z.attrs["no_echo_value"] == 0
        np.testing.assert_allclose([dataset.latitude[0], dataset.longitude[0]], [51.891, -5.837])
        assert float(z.max()) == 52.0 and float(z.isnull().mean()) == pytest.approx(1738457 / z.size)
    with open_dataset(raw / new) as dataset:
        z = dataset.reflectivity
        assert z.attrs["no_echo_value"] == -10.0 and (float(z.min()), float(z.max())) == (-10.0, 29.0)
        assert float(z.isnull().mean()) == pytest.approx(1479141 / z.size)
        ends = {"probability": (0, 38, "%"), "measurement_height": (180, 3190, "m")}
        for name, (low, high, units) in ends.items():
            found = dataset[name]
            assert (float(found.min()), float(found.max()), found.attrs["units"]) == (low, high, units)
            assert found.dims == z.dims and bool(found.isnull().any())
    rain = "rainfall_SE_2016_08.3.npz"
    with pytest.raises(FileNotFoundError, match="has no coordinates; MeteoNet has them in radar_coords_SE.npz"):
        open_dataset(raw / "meteonet" / rain)
    shutil.copy(raw / "meteonet" / rain, tmp_path / rain)
    lat, lon = np.meshgrid(np.arange(515) * -0.01 + 46, np.arange(784) * 0.01 + 2, indexing="ij")
    np.savez(tmp_path / "radar_coords_SE.npz", lats=lat, lons=lon)
    with open_dataset(tmp_path / rain) as dataset:
        assert float(dataset.rainfall_amount.max()) == 5.0 and dataset.sizes["time"] == 45
        assert dataset.rainfall_amount.attrs["cell_methods"] == "time: sum (interval: 5 min)"


def test_dates_of_meteonet_are_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    dates = np.array([Trap(), Trap()], object)
    np.savez(tmp_path / "rainfall_NW_2016_08.3.npz", data=np.zeros((2, 3, 4), "i2"), dates=dates, miss_dates=dates)
    with pytest.raises(ValueError, match="holds 0 dates that can be read, of"):
        open_dataset(tmp_path / "rainfall_NW_2016_08.3.npz")
    assert not (tmp_path / "opened").exists()


def nimrod(units, codes, *, data_time=(2024, 6, 1, 12, 0), minutes=0, origin=0):
    """Return the bytes of a Nimrod file on the British National Grid with pixels of 1 km."""
    rows, columns = codes.shape
    grid = [0, rows, columns, 2, 63, *[0] * 4, origin]
    whole = [2024, 6, 1, 12, 0, 0, *data_time, 1, 2, 0, *grid, -32767, minutes, *[0] * 5]
    real = [9999.0, -32767.0, 900e3, 1e3, 100e3, 1e3, -32767.0, 1.0, *[0.0] * 20]
    text = units.ljust(8) + "a radar".ljust(24) + "rain rate".ljust(24)
    header = struct.pack(">31h28f", *whole[:31], *real) + bytes(180) + text.encode() + bytes(102)
    body = codes.astype(">i2").tobytes()
    records = ((struct.pack(">i", len(part)), part) for part in (header[:512], body))
    return b"".join(size + part + size for size, part in records)


def test_nimrod(raw, tmp_path):
    codes = np.array([[0, 32, 64], [-1, -32767, 8]])
    (tmp_path / "a.dat").write_bytes(nimrod("mm/hr*32", codes))
    (tmp_path / "b.dat.gz").write_bytes(gzip.compress(nimrod("mm/hr*32", codes)))
    for name in ("a.dat", "b.dat.gz"):
        with open_dataset(tmp_path / name) as dataset:
            expected = [[0.0, 1.0, 2.0], [np.nan, np.nan, 0.25]]
            np.testing.assert_array_equal(dataset.rainfall_rate[0], expected)
            np.testing.assert_array_equal(dataset.y, [900e3, 899e3])
            lon, lat = pyproj.Proj(pyproj.CRS.from_cf(dataset.crs.attrs))(530e3, 180e3, inverse=True)
            assert (round(lon, 2), round(lat, 2)) == (-0.13, 51.5)  # TQ 30 80 is Trafalgar Square
    with pytest.warns(UserWarning, match="the fields are forecasts, 120 min ahead"):
        dataset = open_dataset(raw / "nimrod" / "u1096_ng_bsr05_precip_accum60_2km")
    np.testing.assert_array_equal(dataset.rainfall_amount[0], np.array([[2, 2, 1], [2, 3, 3], [1, 3, 3]]) / 32)
    (tmp_path / "c.dat").write_bytes(nimrod("K", codes))
    with pytest.raises(ValueError, match="holds fields in K; expected mm/hr, mm or dBZ"):
        open_dataset(tmp_path / "c.dat")
    (tmp_path / "c.dat").write_bytes(nimrod("mm/hr*32", codes, origin=1))
    np.testing.assert_array_equal(open_dataset(tmp_path / "c.dat").y, [900e3, 901e3])
    (tmp_path / "c.dat").write_bytes(nimrod("mm/hr*32", codes, origin=2))
    with pytest.raises(ValueError, match="has its first cell at the right"):
        open_dataset(tmp_path / "c.dat")
    (tmp_path / "d.dat").write_bytes(nimrod("mm/hr*32", codes)[:-3])
    with pytest.raises(ValueError, match="is truncated or damaged at byte"):
        open_dataset(tmp_path / "d.dat")


def test_nimrod_field_with_values_is_selected(raw, tmp_path):
    nothing, echo = np.full((2, 3), -32767), np.full((2, 3), 2000)
    fields = [nimrod("K", echo), nimrod("dBZ*100", nothing), nimrod("mm/hr*32", echo), nimrod("dBZ*100", echo)]
    (tmp_path / "levels").write_bytes(b"".join(fields))
    with pytest.warns(UserWarning, match=r"Nimrod: of 4 fields in a file number 4 is taken, rain rate \(dBZ\*100\)"):
        np.testing.assert_array_equal(open_dataset(tmp_path / "levels").reflectivity, np.full((1, 2, 3), 20.0))
    (tmp_path / "none").write_bytes(b"".join([fields[1], fields[2]]))
    with pytest.warns(UserWarning, match="of 2 fields in a file number 1 is taken"):
        assert np.isnan(open_dataset(tmp_path / "none").reflectivity).all()
    with pytest.warns(UserWarning, match="of 15 fields in a file number 2 is taken, 3dreflectivity"):
        found = open_dataset(raw / "nimrod" / "u1096_ng_ek00_refl_2km")
    assert found.reflectivity.values.tolist() == [[[-32.0] * 3] * 3]


def odim(path, start, end, nominal="120000", quantity="RATE", kind="COMP", **changes):
    """Write a composite of 2 x 3 pixels of 2 km around 10 E, 55 N."""
    proj = "+proj=laea +lat_0=55 +lon_0=10 +units=m +ellps=WGS84"
    lon, lat = pyproj.Proj(proj)(-3000.0, -2000.0, inverse=True)
    where = {"projdef": proj, "xsize": 3, "ysize": 2, "xscale": 2e3, "yscale": 2e3, "LL_lon": lon, "LL_lat": lat}
    with h5py.File(path, "w") as file:
        file.create_group("what").attrs.update(object=kind, date="20240601", time=nominal, source="ORG:1")
        file.create_group("where").attrs.update({k: v for k, v in (where | changes).items() if v is not None})
        what = {"quantity": quantity, "gain": 0.5, "offset": 1.0, "nodata": 255.0, "undetect": 0.0}
        times = {"startdate": "20240601", "starttime": start, "enddate": "20240601", "endtime": end}
        file.create_group("dataset1/what").attrs.update(what | times)
        file["dataset1/data1/data"] = np.array([[0, 2, 255], [4, 0, 1]], "u1")
    return path


def test_odim(tmp_path):
    with open_dataset(odim(tmp_path / "a.h5", "115500", "120000")) as dataset:
        np.testing.assert_array_equal(dataset.rainfall_rate[0], [[0.0, 2.0, np.nan], [3.0, 0.0, 1.5]])
        np.testing.assert_allclose(dataset.x, [-2000.0, 0.0, 2000.0], atol=0.01)
        np.testing.assert_allclose(dataset.y, [1000.0, -1000.0], atol=0.01)
    with open_dataset(odim(tmp_path / "b.h5", "115500", "120000", quantity="DBZH")) as dataset:
        assert dataset.reflectivity.values[0, 0, 0] == dataset.reflectivity.attrs["no_echo_value"] == -32.0
    for changes, message in (
        ({"kind": "PVOL"}, r"holds polar data \(ODIM PVOL\); grid them first, with xradar and wradlib"),
        ({"quantity": "VRAD"}, "holds the quantities VRAD; expected DBZH"),
        ({"xscale": None}, "has no georeference: xscale missing"),
        ({"projdef": "+proj=nothing"}, "projection|Invalid"),
    ):
        with pytest.raises(Exception, match=message):
            open_dataset(odim(tmp_path / "c.h5", "115500", "120000", **changes))


def test_forecasts_are_rejected_as_observations(tmp_path):
    odim(tmp_path / "a.h5", "115500", "120000", quantity="ACRR")
    odim(tmp_path / "b.h5", "120000", "120500", quantity="ACRR")
    odim(tmp_path / "c.h5", "120500", "121000", quantity="ACRR")
    with pytest.warns(UserWarning, match="2 forecasts, 5 to 10 min ahead, are left out"):
        dataset = open_dataset(tmp_path / "*.h5")
    assert [str(time)[11:16] for time in dataset.time.values] == ["12:00"]
    with pytest.warns(UserWarning, match="the fields are forecasts, 10 min ahead, and no observations"):
        assert str(open_dataset(tmp_path / "c.h5").time.values[0])[11:16] == "12:10"
    with pytest.raises(ValueError, match="nothing but forecasts, 5 to 10 min ahead"):
        open_dataset([tmp_path / "b.h5", tmp_path / "c.h5"])


@pytest.mark.parametrize("as_given", ["folder", "pattern", "list"])
def test_files_of_one_time_each_are_joined(raw, tmp_path, as_given):
    for path in sorted((raw / "fmi").iterdir()):
        shutil.copy(path, tmp_path)
    (tmp_path / "README.md").write_text("from FMI")
    given = {"folder": tmp_path, "pattern": str(tmp_path / "*.gz"), "list": sorted(tmp_path.glob("*.gz"))[::-1]}
    with open_dataset(given[as_given]) as dataset:
        assert [str(time)[11:16] for time in dataset.time.values] == ["15:00", "15:05"]
        first = open_dataset(raw / FMI)
        np.testing.assert_array_equal(dataset.reflectivity[0], first.reflectivity[0])
        assert dataset.crs.attrs["grid_mapping_name"] == "polar_stereographic"
        assert to_reflectivity(dataset).shape == (2, 1226, 760)


@pytest.fixture
def halves(tmp_path):
    """Return an event and a folder with each half in a file."""
    event, folder = synthetic_event(1, frames=6, shape=(32, 40)), tmp_path / "files"
    folder.mkdir()
    for name, part in (("b", slice(3, 6)), ("a", slice(0, 3))):
        save_dataset(event.isel(time=part), folder / f"{name}.nc")
    return event, folder


@pytest.mark.parametrize("dask", [True, False])
def test_netcdf_files_are_joined(halves, dask, monkeypatch):
    event, folder = halves
    if dask:
        pytest.importorskip("dask", reason="lazy joining needs dask")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with open_dataset(folder) as dataset:
        assert (dataset.reflectivity.chunks is not None) == dask
        assert not dask or len(dataset.reflectivity.data.dask.layers) == 1  # what a read looks at, however many files
        xr.testing.assert_identical(dataset.load(), event)
    with open_dataset([folder / "b.nc", folder / "a.nc"]) as dataset:
        np.testing.assert_array_equal(dataset.time, event.time)


def test_times_are_chosen(halves):
    event, folder = halves
    times = [str(time)[:19] for time in event.time.values]
    with open_dataset(folder / "*.nc", start=times[1], stop=times[4]) as dataset:
        np.testing.assert_array_equal(dataset.time, event.time[1:5])
    with open_dataset(folder / "a.nc", stop=times[1]) as dataset:
        assert dataset.sizes["time"] == 2
    for limits in ({"start": "2030-01-01"}, {"stop": "1999-01-01"}, {"start": "2030-01-01", "stop": "2031-01-01"}):
        message = " and ".join(f"{name} {date}" for name, date in limits.items())
        with pytest.raises(ValueError, match=f"no time fits {message}; the fields reach from {times[0]} to {times[2]}"):
            open_dataset(folder / "a.nc", **limits)
    ahead = str(event.time.values[1] + np.timedelta64(2, "h"))[:19] + "+02:00"
    with open_dataset(folder / "*.nc", start=ahead, stop=times[4][:16] + "Z") as dataset:
        np.testing.assert_array_equal(dataset.time, event.time[1:5])
    for date in ("soon", "02:00", "06.01.2024", "2024-06-31"):
        with pytest.raises(ValueError, match=f"stop must be a date and time such as 2024-06-01T12:00, got '{date}'"):
            open_dataset(folder / "a.nc", stop=date)


def test_times_of_other_calendars_are_chosen_and_joined(halves):
    """30 February is a date of models whose months have 30 days."""
    event, folder = halves
    times = xr.date_range("2020-02-30", periods=6, freq="5min", calendar="360_day", use_cftime=True)
    other = event.isel(time=slice(0, 6)).assign_coords(time=times)
    for name, part in (("x.nc", other.isel(time=slice(3, 6))), ("y.nc", other.isel(time=slice(0, 3)))):
        save_dataset(part, folder / name)
    with open_dataset(folder / "[xy].nc", start="2020-02-30T00:05", stop="2020-02-30") as dataset:
        assert [str(time) for time in dataset.time.values[[0, -1]]] == ["2020-02-30 00:05:00", "2020-02-30 00:25:00"]


def test_incompatible_files_are_not_joined(halves, raw, tmp_path):
    event, folder = halves
    shutil.copy(raw / FMI, folder / "c.pgm.gz")
    with pytest.raises(ValueError, match="holds files of the formats FMI PGM, NetCDF-4; a pattern or a list takes"):
        open_dataset(folder)
    (folder / "c.pgm.gz").write_bytes(b"no fields at all")
    with pytest.warns(UserWarning, match="no fields are in c.pgm.gz"):
        open_dataset(folder).close()
    with pytest.raises(ValueError, match="c.pgm.gz is in no format that is known"):
        open_dataset(folder / "*")
    (folder / "c.pgm.gz").unlink()
    save_dataset(event.isel(x=slice(0, 30)), folder / "c.nc")
    with pytest.raises(ValueError, match=r"a\.nc and .*c\.nc are on different grids: x differs"):
        open_dataset(folder)
    save_dataset(event.rename(reflectivity="z"), folder / "c.nc")
    with pytest.raises(
        ValueError, match=r"a\.nc has the variables .*reflectivity.*, .*c\.nc has .*z.*; a pattern or a list"
    ):
        open_dataset(folder)
    with pytest.raises(FileNotFoundError, match="the list of files is empty"):
        open_dataset([])
    with pytest.raises(FileNotFoundError, match="no such file: .*none.nc"):
        open_dataset([folder / "a.nc", folder / "none.nc"])


def scaled(event):
    return event.assign(reflectivity=(event.reflectivity / 10).assign_attrs(event.reflectivity.attrs, units="mm h-1"))


def otherwise_dry(event):
    return event.assign(reflectivity=event.reflectivity.assign_attrs(no_echo_value=-10.0))


def with_other_projection(event):
    return event.assign(crs=event.crs.assign_attrs(longitude_of_projection_origin=99.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            scaled,
            r"units of reflectivity: dBZ in .*a\.nc, mm h-1 in .*c\.nc; a pattern or a list takes files of one kind",
        ),
        (otherwise_dry, r"no_echo_value of reflectivity: -32\S* in .*a\.nc, -10.0 in .*c\.nc; a pattern"),
        (
            with_other_projection,
            r"a\.nc and .*c\.nc are on different grids: longitude_of_projection_origin is \S+ and 99",
        ),
    ],
)
def test_files_with_changed_grid_are_not_joined(halves, change, message):
    event, folder = halves
    save_dataset(change(event.isel(time=slice(0, 3))), folder / "c.nc")
    with pytest.raises(ValueError, match=message):
        open_dataset([folder / "a.nc", folder / "c.nc"])


def test_files_with_moved_curvilinear_grid_are_not_joined(halves, tmp_path):
    event, folder = halves
    curved = event[["reflectivity"]].isel(time=slice(0, 3)).drop_vars(["x", "y"])
    lat = xr.DataArray(np.add.outer(np.arange(event.sizes["y"]), 0.1 * np.arange(event.sizes["x"])), dims=("y", "x"))
    for name, move in (("p.nc", 0.0), ("q.nc", 0.5)):
        place = {"lat": (lat + move).assign_attrs(units="degrees_north"), "lon": lat.assign_attrs(units="degrees_east")}
        save_dataset(curved.assign_coords(place), tmp_path / name)
    with pytest.raises(ValueError, match=r"p\.nc and .*q\.nc are on different grids: lat differs"):
        open_dataset(tmp_path)


def test_grib_with_several_kinds_of_levels(raw):
    pytest.importorskip("cfgrib", reason="GRIB files need the package cfgrib")
    with open_dataset(raw / "grib" / "nam.t00z.awp21100.tm00.grib2") as dataset:
        assert dataset["r_isobaricInhPa"].shape == (19, 65, 93) or dataset["r_isobaricInhPa"].ndim == 3
        assert dataset["t2m"].attrs["level"] == "heightAboveGround 2"
        assert str(dataset.time.values)[:13] == "2018-09-17T00"
        assert float(dataset["latitude"].min()) == pytest.approx(12.19, abs=0.01)


def test_every_raw_file_is_recognised(raw):
    """Only the index files of cfgrib and a file of coordinates have no format."""
    files = [path for path in sorted(raw.glob("*/*")) if path.suffix != ".idx"]
    unknown = [path.name for path in files if detect_format(FileProbe(path)) is None]
    assert unknown == ["radar_coords_NW.npz"]


@pytest.mark.parametrize("name", [FMI, KNMI, OPERA, MCH, DX, "radolan/raa01-rx_10000-1408102050-dwd---bin.gz"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_raw_files_are_refused(raw, tmp_path, name, share):
    """The error is one line; a truncated GIF raises an OSError of its library."""
    data = (raw / name).read_bytes()
    path = tmp_path / name.split("/")[1]
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises((ValueError, OSError)) as caught:
        open_dataset(path).load()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_commands_accept_a_folder(halves):
    """The output equals that of a single file, including the time step that spans two files."""
    event, folder = halves
    save_dataset(event, folder.parent / "whole.nc")
    results = []
    for source in (str(folder), str(folder / "*.nc"), str(folder.parent / "whole.nc")):
        out = folder.parent / "out.nc"
        assert main(["downscale", source, str(out), "--model=trilinear"]) == 0
        with open_dataset(out) as dataset:
            results.append(dataset.reflectivity.load())
    xr.testing.assert_identical(results[0], results[2])
    xr.testing.assert_identical(results[1], results[2])
    assert results[0].sizes["time"] == 11


def test_output_among_the_inputs_is_rejected(halves, capsys):
    _, folder = halves
    assert main(["downscale", str(folder / "*.nc"), str(folder / "b.nc"), "--model=trilinear"]) == 2
    assert "the output must be another file than the input" in capsys.readouterr().err
