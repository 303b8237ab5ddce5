# SPDX-License-Identifier: Apache-2.0
"""Tests of accumulated fields: how they are detected, and that no increment is negative."""

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.inference import chunking
from fastds.tasks.fields.pipeline import FieldsPipeline
from fastds.tasks.fields.totals import RunningTotal, find_running_axis

METHODS = ["inr-any", "bicubic", "lanczos"]


def hourly(times=12, seed=0):
    """Return precipitation in mm of each hour, (times, 20, 24), with one shower at a random place."""
    y, x = np.mgrid[:20, :24]
    made = np.zeros((times, 20, 24), np.float32)
    for k, (row, column) in enumerate(np.random.default_rng(seed).uniform(2, 18, (times, 2))):
        made[k] = (6 - ((y - row) ** 2 + (x - column) ** 2) / 3).clip(0)
    return made


def dataset(values, units="mm", name="tp", dim="time", step="h", **attrs):
    """Return a dataset of fields over dates, or over lead times if `dim` is "step"."""
    steps = np.arange(len(values)) * np.timedelta64(1, step)
    labels = steps.astype("timedelta64[ns]") if dim == "step" else np.datetime64("2024-06-01", "ns") + steps
    coords = {
        dim: (dim, labels),
        "lat": ("lat", 50 - 0.5 * np.arange(20), {"units": "degrees_north"}),
        "lon": ("lon", 0.5 * np.arange(24), {"units": "degrees_east"}),
    }
    attrs = {"units": units, "long_name": "total precipitation"} | attrs
    return xr.Dataset({name: ((dim, "lat", "lon"), values.astype(np.float32), attrs)}, coords)


def axis(data, name="tp"):
    """Return the dimension along which a variable is accumulated."""
    return find_running_axis(data[name], [d for d in data[name].dims if d not in ("lat", "lon")])


def test_running_totals_are_detected_by_growth_and_names():
    rain = hourly()
    total = rain.cumsum(0)
    assert axis(dataset(total)) == "time" and axis(dataset(total, dim="step")) == "step"
    assert axis(dataset(rain)) is None and axis(dataset(rain, cell_methods="time: sum")) is None
    assert axis(dataset(total[:2])) is None, "two fields tell too little"
    assert axis(dataset(total[:2], long_name="total precipitation since 00 UTC")) == "time"
    assert axis(dataset(total[:2], cell_methods="time: sum")) == "time"
    assert axis(dataset(total, "K", "t", long_name="air temperature"), "t") is None
    energy = {"long_name": "solar radiation downwards"}
    assert axis(dataset(total, "J m**-2", "ssrd", **energy), "ssrd") == "time"
    assert axis(dataset(total, "W m-2", "ssrd", **energy), "ssrd") is None
    assert axis(dataset(total[::-1])) is None and axis(dataset(0 * total)) is None
    again = np.concatenate([total, total])
    assert axis(dataset(again)) == "time", "begins anew"
    noisy = total + np.random.default_rng(1).normal(0, 1e-3, total.shape)
    assert axis(dataset(noisy)) == "time", "what packing leaves"


@pytest.mark.parametrize("model", METHODS)
def test_no_step_of_a_fine_total_is_negative(model):
    total = hourly().cumsum(0)
    fine = fastds.downscale(model, dataset(total), scale=2)
    steps = np.diff(fine.tp.values, axis=0)
    assert steps.min() >= 0 and fine.attrs["fastds_running_totals"] == "tp"
    expected = fastds.downscale(model, dataset(hourly()), scale=2)
    assert "fastds_running_totals" not in expected.attrs
    np.testing.assert_allclose(steps, expected.tp.values[1:], atol=2e-3)
    np.testing.assert_allclose(fine.tp.values[0], expected.tp.values[0], atol=2e-3)


@pytest.mark.parametrize("model", METHODS)
def test_reset_of_a_total_is_preserved(model):
    day = hourly().cumsum(0)
    fine = fastds.downscale(model, dataset(np.concatenate([day, day])), scale=2).tp.values
    np.testing.assert_array_equal(fine[12:], fine[:12])
    assert np.diff(fine[:12], axis=0).min() >= 0 and fine[12].max() < 0.5 * fine[11].max()


def test_totals_do_not_accumulate_noise_or_gaps():
    total, counter = np.full((3, 3), 5.0, np.float32), RunningTotal()
    rng = np.random.default_rng(0)
    for _ in range(100):
        fine = counter.to_increment(total + rng.normal(0, 1e-3, (3, 3)).astype(np.float32))
        counter.add(fine)
        assert np.abs(fine - 5).max() < 5e-3
    counter = RunningTotal()
    for value, expected in ((1.0, 1.0), (np.nan, np.nan), (4.0, 4.0), (5.0, 5.0), (0.5, 0.5)):
        fine = counter.to_increment(np.full((3, 3), value, np.float32))
        counter.add(fine)
        np.testing.assert_array_equal(fine, np.float32(expected))


def test_totals_in_chunks_are_identical(monkeypatch):
    day = hourly(7).cumsum(0)
    data = dataset(np.concatenate([day, day]))
    expected = fastds.downscale("bicubic", data, scale=2)
    job = FieldsPipeline("bicubic", data, scale=2)
    parts = [job.compute(piece)["tp"] for piece in job.make_chunks(3)]
    assert [len(part) for part in parts] == [3, 3, 3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(parts), expected.tp.values)
    monkeypatch.setattr(chunking, "choose_chunk_steps", lambda job: 3)
    found = fastds.downscale("bicubic", data.chunk(time=3), scale=2)
    assert found.attrs["fastds_running_totals"] == "tp"
    np.testing.assert_array_equal(found.tp.values, expected.tp.values)


def test_totals_at_stations_do_not_decrease():
    total = hourly().cumsum(0)
    places = [(47.3, 4.1), (44.9, 7.7), (43.2, 5.4)]
    rows = fastds.query("inr-any", dataset(total), places, threads=1)
    values = np.array([row["tp"] for row in rows]).reshape(12, 3)
    assert np.diff(values, axis=0).min() >= 0 and values[-1].max() > 1
    plain = np.array([row["tp_bilinear"] for row in rows]).reshape(12, 3)
    np.testing.assert_allclose(values, plain, atol=1.0)


def test_totals_of_members_are_separate():
    first, second = (dataset(hourly(8, seed).cumsum(0), dim="step") for seed in (1, 2))
    both = xr.concat([first, second], "number", combine_attrs="override").transpose("step", "number", "lat", "lon")
    both["lat"].attrs, both["lon"].attrs = first.lat.attrs, first.lon.attrs
    fine = fastds.downscale("bicubic", both, scale=2)
    for k, one in enumerate((first, second)):
        np.testing.assert_array_equal(fine.tp.isel(number=k), fastds.downscale("bicubic", one, scale=2).tp)
