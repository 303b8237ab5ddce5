# SPDX-License-Identifier: Apache-2.0
"""Gridded fields: choice of variable and level, checks, coarsening, days and splits."""

import numpy as np
import pytest
import torch
import xarray as xr

from fastds.data import fields as ff
from fastds.data.grib1 import open_grib1


def dataset(levels=None, **variables):
    rng = np.random.default_rng(0)
    shape, dims = (8, 16, 24), ["time", "latitude", "longitude"]
    if levels:
        shape, dims = (8, len(levels), 16, 24), ["time", "level", "latitude", "longitude"]
    time = np.datetime64("2019-01-01") + np.arange(8) * np.timedelta64(3, "h")
    coords = {"time": time, "latitude": np.arange(16.0), "longitude": np.arange(24.0)}
    if levels:
        coords["level"] = levels
    names = variables or {"r": "relative_humidity"}
    return xr.Dataset(
        {n: (dims, 100 * rng.random(shape), {"standard_name": s}) for n, s in names.items()}, coords=coords
    )


def test_variable_and_level():
    assert ff.choose_field(dataset()).name == "r"
    two = dataset(t="air_temperature", r="relative_humidity")
    assert ff.choose_field(two).name == "r" and ff.choose_field(two, "t").name == "t"
    stacked = dataset(levels=[1000.0, 850.0])
    picked = ff.choose_field(stacked, "r", 850)
    assert picked.shape == (8, 16, 24) and np.array_equal(picked, stacked["r"].sel(level=850))
    assert ff.choose_field(dataset(levels=[850.0])).shape == (8, 16, 24)
    assert ff.choose_field(dataset().isel(time=0, drop=True)).shape == (1, 16, 24)
    assert np.array_equal(ff.choose_field(dataset().isel(time=slice(None, None, -1))), dataset()["r"]), "times ascend"


def test_messages():
    both = dataset(r="relative_humidity", rh2="relative_humidity")
    for message, call in [
        ("the variable is ambiguous, name one of r, rh2", lambda: ff.choose_field(both)),
        ("ambiguous, name one of t, u", lambda: ff.choose_field(dataset(t="a", u="b"))),
        ("there is no variable 'q' in the file; there are: r", lambda: ff.choose_field(dataset(), "q")),
        (r"2 levels, name one of \[1000.0, 850.0\]", lambda: ff.choose_field(dataset(levels=[1000.0, 850.0]))),
        ("no level 700; there are", lambda: ff.choose_field(dataset(levels=[1000.0, 850.0]), "r", 700)),
        ("level 850 was asked for, but variable 'r' has no vertical", lambda: ff.choose_field(dataset(), "r", 850)),
        ("holds no field", lambda: ff.choose_field(xr.Dataset())),
        ("3 missing or infinite values", lambda: ff.check_values(np.array([1.0, np.nan, np.inf, -np.inf]))),
        (r"2 values outside \[0, 105\] %", lambda: ff.check_values(np.array([-1.0, 50, 106]), humidity=True)),
        ("15 x 16 points, expected multiples of 2", lambda: ff.coarsen_fields(np.zeros((15, 16)), 2)),
        ("method must be one of", lambda: ff.coarsen_fields(np.zeros((16, 16)), 2, "median")),
        ("8 times, fewer than a sequence of 9", lambda: ff.days(dataset()["r"], 9)),
        ("not equally spaced", lambda: ff.days(dataset()["r"].isel(time=[0, 1, 3]), 3)),
        ("validation must lie between 1 and 9", lambda: ff.split_days(10, 10)),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_humidity_a_little_beyond_saturation_is_fine():
    ff.check_values(np.array([0.0, 100.1, 105.0]), humidity=True)


def test_coarsening_of_arrays_and_tensors():
    x = np.arange(64.0).reshape(1, 8, 8)
    assert np.array_equal(ff.coarsen_fields(x, 4, "decimate"), x[:, ::4, ::4])
    assert np.array_equal(ff.coarsen_fields(x, 4)[0, 0, 0], x[0, :4, :4].mean())
    assert torch.equal(ff.coarsen_fields(torch.from_numpy(x), 2), torch.from_numpy(ff.coarsen_fields(x, 2)))


def test_days_of_any_cadence():
    parts = ff.days(dataset()["r"], 3)
    assert [p.sizes["time"] for p in parts] == [3, 3] and np.array_equal(parts[1], dataset()["r"][3:6])


def test_splits_of_the_paper():
    train, validation = ff.split_days(731)
    assert len(train) == 365 and len(validation) == 366 and not set(train) & set(validation)
    assert np.array_equal(validation, ff.split_days(731)[1]) and len(ff.split_days(731, overlap=True)[0]) == 731


def test_files(tmp_path, data_dir):
    path = tmp_path / "day.nc"
    dataset().to_netcdf(path, engine="h5netcdf")
    with ff.open_gridded(path) as opened:
        assert np.allclose(ff.choose_field(opened), dataset()["r"])
    with ff.open_gridded(data_dir / "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc") as opened:
        assert ff.choose_field(opened).shape == (8, 181, 360)
    with pytest.raises(FileNotFoundError, match="no such file"):
        ff.open_gridded(tmp_path / "other.grib")
    (tmp_path / "a.grib").write_bytes(b"GRIB")
    try:
        import cfgrib  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="needs the package cfgrib"):
            ff.open_gridded(tmp_path / "a.grib")


def message(values, decimal=1, bits=12, time=(119, 3, 31, 23, 0), level=(1, 0, 0), part=None):
    """GRIB1 of (rows, columns): latitude 10 N to 10 S, longitude 20 W to 20 E; part = (offset, byte) to spoil it."""
    scaled = np.asarray(values, float) * 10**decimal
    step = int(np.ceil(np.log2(np.ptp(scaled) / (2**bits - 1))))
    reference = int(np.floor(scaled.min()))
    x = np.round((scaled - reference) / 2.0**step).astype(np.uint64).ravel()
    data = np.packbits((x[:, None] >> np.arange(bits, dtype=np.uint64)[::-1] & np.uint64(1)).astype(np.uint8)).tobytes()
    signed = lambda v, n: (abs(v) | (v < 0) << (8 * n - 1)).to_bytes(n, "big")  # noqa: E731
    year, *rest = time
    product = bytes([0, 0, 28, 128, 98, 145, 255, 128, 167, *level, year % 100, *rest, 1, 0, 0, 0, 0, 0, 0])
    product += bytes([20 + year // 100, 0]) + signed(decimal, 2)
    rows, columns = scaled.shape
    grid = bytes([0, 0, 32, 0, 255, 0]) + columns.to_bytes(2, "big") + rows.to_bytes(2, "big")
    grid += signed(10000, 3) + signed(-20000, 3) + bytes([128]) + signed(-10000, 3) + signed(20000, 3) + bytes(9)
    ibm = signed(reference, 4)[0] & 0x80 | 70, *abs(reference).to_bytes(3, "big")  # 16^6 f / 2^24: an integer
    packed = bytes([0]) + signed(step, 2) + bytes(ibm) + bytes([bits]) + data
    body = product + grid + (len(packed) + 3).to_bytes(3, "big") + packed
    body = body if part is None else body[: part[0]] + bytes([part[1]]) + body[part[0] + 1 :]
    return b"GRIB" + (len(body) + 12).to_bytes(3, "big") + bytes([1]) + body + b"7777"


def test_grib1(tmp_path):
    fields = -30 + 60 * np.random.default_rng(0).random((2, 5, 9))
    first, second = message(fields[0], time=(118, 12, 31, 12, 0)), message(fields[1])
    (tmp_path / "a.grib").write_bytes(second + first)
    opened = open_grib1(tmp_path / "a.grib")
    assert np.abs(opened.t2m.values - fields).max() < 0.06 and opened.t2m.attrs["units"] == "K"
    assert np.allclose(opened.latitude, [10, 5, 0, -5, -10]) and np.allclose(opened.longitude, np.arange(-20, 21, 5))
    assert list(opened.time.values.astype("datetime64[h]").astype(str)) == ["2018-12-31T12", "2019-03-31T23"]


@pytest.mark.parametrize(
    "part,expected",
    [((33, 10), "regular latitude-longitude grid"), ((63, 64), "simply packed"), ((55, 128), "scanning mode 128"),
     ((20, 10), "a range of"), ((17, 0), "expected times in hours")],
)  # fmt: skip
def test_grib1_refuses(tmp_path, part, expected):
    (tmp_path / "a.grib").write_bytes(message(np.arange(20.0).reshape(4, 5), part=part))
    with pytest.raises(ValueError, match=expected):
        open_grib1(tmp_path / "a.grib")


def test_grib1_refuses_what_is_not_one_field_a_time(tmp_path):
    one, other = message(np.arange(20.0).reshape(4, 5)), message(np.arange(20.0).reshape(4, 5), level=(100, 1, 244))
    for text, expected in ((one + one, "a time twice"), (one + other, "several levels"), (b"", "no GRIB"),
                           (one[:-4], "whole message")):  # fmt: skip
        (tmp_path / "a.grib").write_bytes(text)
        with pytest.raises(ValueError, match=expected):
            open_grib1(tmp_path / "a.grib")


def test_grib1_of_era5(data_dir):
    opened = open_grib1(data_dir / "era5_t2m_025deg_uk_201903_1h.grib")
    assert opened.t2m.shape == (744, 33, 49) and abs(float(opened.t2m.mean()) - 280.774) < 1e-3
    assert float(opened.latitude[0]) == 58 and float(opened.longitude[-1]) == 2
    world = open_grib1(data_dir / "raw/grib/era5_t2m_20221001T00.grib1")
    assert world.t2m.shape == (1, 721, 1440) and 190 < world.t2m.min() < world.t2m.max() < 320
