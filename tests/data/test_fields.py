# SPDX-License-Identifier: Apache-2.0
"""Tests of gridded training fields: variables, levels, checks, coarsening, days and splits."""

import numpy as np
import pytest
import torch
import xarray as xr

from fastds.data.formats.opening import open_dataset
from fastds.data.samples import fields as ff


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


def every(hours):
    return dataset()["r"].assign_coords(time=np.datetime64("2019-01-01") + np.asarray(hours) * np.timedelta64(1, "h"))


def test_choose_field_by_variable_and_level():
    assert ff.choose_field(dataset()).name == "r"
    two = dataset(t="air_temperature", r="relative_humidity")
    assert ff.choose_field(two).name == "r" and ff.choose_field(two, "t").name == "t"
    stacked = dataset(levels=[1000.0, 850.0])
    picked = ff.choose_field(stacked, "r", 850)
    assert picked.shape == (8, 16, 24) and np.array_equal(picked, stacked["r"].sel(level=850))
    assert ff.choose_field(dataset(levels=[850.0])).shape == (8, 16, 24)
    assert ff.choose_field(dataset().isel(time=0, drop=True)).shape == (1, 16, 24)
    assert np.array_equal(ff.choose_field(dataset().isel(time=slice(None, None, -1))), dataset()["r"]), "times ascend"


def test_error_messages():
    both = dataset(r="relative_humidity", rh2="relative_humidity")
    for message, call in [
        ("the variable is ambiguous, name one of r, rh2", lambda: ff.choose_field(both)),
        ("ambiguous, name one of t, u", lambda: ff.choose_field(dataset(t="a", u="b"))),
        ("there is no variable 'q' in the file; there are: r", lambda: ff.choose_field(dataset(), "q")),
        (r"2 levels, name one of \[1000.0, 850.0\]", lambda: ff.choose_field(dataset(levels=[1000.0, 850.0]))),
        ("no level 700; there are", lambda: ff.choose_field(dataset(levels=[1000.0, 850.0]), "r", 700)),
        ("level 850 was requested, but variable 'r' has no vertical", lambda: ff.choose_field(dataset(), "r", 850)),
        ("holds no field", lambda: ff.choose_field(xr.Dataset())),
        ("3 missing or infinite values", lambda: ff.check_values(np.array([1.0, np.nan, np.inf, -np.inf]))),
        (r"2 values outside \[0, 105\] %", lambda: ff.check_values(np.array([-1.0, 50, 106]), humidity=True)),
        ("15 x 16 points, expected multiples of 2", lambda: ff.coarsen_fields(np.zeros((15, 16)), 2)),
        ("method must be one of", lambda: ff.coarsen_fields(np.zeros((16, 16)), 2, "median")),
        ("7 times, fewer than a sequence of 8", lambda: ff.split_into_days(dataset()["r"][:7], 8)),
        ("not equally spaced", lambda: ff.split_into_days(every([0, 3, 6, 9, 12, 15, 18, 24]), 8)),
        (
            "the time step is 5 h, .* the 3 h between 8 fields of a day",
            lambda: ff.split_into_days(every(range(0, 40, 5)), 8),
        ),
        (
            "the time step is 6 h, .* with data.steps=4 a day has all",
            lambda: ff.split_into_days(every(range(0, 48, 6)), 8),
        ),
        ("validation must lie between 1 and 9", lambda: ff.split_validation_days(10, 10)),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_humidity_slightly_above_saturation_is_accepted():
    ff.check_values(np.array([0.0, 100.1, 105.0]), humidity=True)


def test_coarsening_of_arrays_and_tensors():
    x = np.arange(64.0).reshape(1, 8, 8)
    assert np.array_equal(ff.coarsen_fields(x, 4, "decimate"), x[:, ::4, ::4])
    assert np.array_equal(ff.coarsen_fields(x, 4)[0, 0, 0], x[0, :4, :4].mean())
    assert torch.equal(ff.coarsen_fields(torch.from_numpy(x), 2), torch.from_numpy(ff.coarsen_fields(x, 2)))


def test_daily_samples_span_24_hours():
    eight = dataset()["r"]
    one, four = ff.split_into_days(eight, 8), ff.split_into_days(eight, 4)
    assert len(one) == len(four) == 1 and np.array_equal(one[0], eight) and np.array_equal(four[0], eight[::2])
    parts = ff.split_into_days(eight.drop_vars("time"), 3)
    assert [p.sizes["time"] for p in parts] == [3, 3] and np.array_equal(parts[1], eight[3:6])


def test_dataset_splits_equal_the_paper():
    train, validation = ff.split_validation_days(731)
    assert len(train) == 365 and len(validation) == 366 and not set(train) & set(validation)
    assert (
        np.array_equal(validation, ff.split_validation_days(731)[1])
        and len(ff.split_validation_days(731, overlap=True)[0]) == 731
    )


def test_read_humidity_of_a_file(data_dir):
    with open_dataset(data_dir / "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc") as opened:
        assert ff.choose_field(opened).shape == (8, 181, 360)


def test_read_fields_of_grib(data_dir):
    with open_dataset(data_dir / "era5_t2m_025deg_uk_201903_1h.grib") as opened:
        field = ff.choose_field(opened)
        assert field.shape == (744, 33, 49) and abs(float(field.mean()) - 280.774) < 1e-3
        assert float(field.latitude[0]) == 58 and float(field.longitude[-1]) == 2
    with open_dataset(data_dir / "raw/meteonet/arpege_2m_NW_20180501000000.grib") as opened:
        humidity = ff.choose_field(opened)
        assert humidity.name == "r" and humidity.dims == ("time", "latitude", "longitude")
        assert np.array_equal(np.diff(humidity.time) / np.timedelta64(1, "h"), np.ones(24)), "times of validity"
