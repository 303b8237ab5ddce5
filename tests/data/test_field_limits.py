# SPDX-License-Identifier: Apache-2.0
"""Tests of limits of variables and of infinite or extreme values."""

import warnings

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.data import save_dataset
from fastds.tasks.fields.run import downscale_file

METHODS = ["inr-any", "bilinear", "bicubic", "lanczos"]
FAR = {"lat": slice(24, None), "lon": slice(36, None)}  # of the fine field from cell 5, 5


def wave(change=lambda w: w, units="Pa s-1", standard_name=None, cell=None):
    """Return a field of 24 x 36 cells.

    Args:
        change: function of the values, which are in [-1, 1].
        units: units of the variable.
        standard_name: standard name of the variable, or None.
        cell: value of one cell, or None.
    """
    y, x = np.mgrid[:24, :36]
    w = change(np.sin(x / 4) * np.cos(y / 3)).astype(np.float32)
    if cell is not None:
        w[5, 5] = cell
    attrs = {"units": units} | ({"standard_name": standard_name} if standard_name else {})
    coords = {
        "time": ("time", [np.datetime64("2024-06-01", "ns")]),
        "lat": ("lat", 50 - 0.5 * np.arange(24), {"units": "degrees_north"}),
        "lon": ("lon", 0.5 * np.arange(36), {"units": "degrees_east"}),
    }
    return xr.Dataset({"w": (("time", "lat", "lon"), w[None], attrs)}, coords)


def fine(data, model, **options):
    """Downscale the field by a factor of 2."""
    return fastds.downscale(model, data, scale=2, **options).w.isel(time=0)


@pytest.mark.parametrize("model", METHODS)
@pytest.mark.parametrize(
    "value, change, units",
    [
        (np.inf, lambda w: w, "Pa s-1"),
        (-np.inf, lambda w: w, "Pa s-1"),
        (-np.inf, lambda w: w + 5, "1"),
        (np.inf, lambda w: w + 5, "1"),
        (-np.inf, lambda w: 150 + 20 * w, "%"),
        (-np.inf, lambda w: w.clip(0, None), "m"),
    ],
)
def test_infinite_cell_is_missing_and_isolated(model, value, change, units):
    data = wave(change, units, cell=value)
    with pytest.warns(UserWarning, match="^1 infinite value of variable w is taken as missing$") as caught:
        out = fine(data, model)
    assert len(caught) == 1
    hole = fine(data.where(np.isfinite(data)), model)
    xr.testing.assert_equal(out, hole)
    assert np.isnan(out.isel(lat=slice(10, 12), lon=slice(10, 12))).all() and np.isnan(out).sum() == 4
    np.testing.assert_allclose(out.isel(FAR), fine(wave(change, units), model).isel(FAR), atol=0.02)


@pytest.mark.parametrize("model", METHODS)
@pytest.mark.parametrize("value", [1e6, 3e38])
def test_extreme_cell_does_not_affect_others(model, value):
    out, plain = (fine(wave(cell=cell), model).isel(FAR) for cell in (value, None))
    assert out.min() < -0.9
    if model != "inr-any":  # which normalises by the field's own scale
        np.testing.assert_array_equal(out, plain)
    rain = wave(lambda w: 0.01 * (10 * w - 3).clip(0, None), "mm", cell=value)
    assert fine(rain, model).isel(FAR).min() == 0


def test_dry_cells_of_log_rain_are_missing_and_set_no_limit():
    data = wave(lambda w: np.where(2 * w < -1, -np.inf, 2 * w), "1")
    count = int(np.isinf(data.w).sum())
    with pytest.warns(UserWarning, match=f"^{count} infinite values of variable w are taken as missing$"):
        out = fine(data, "inr-any")
    assert 1.9 < out.max() < 2.1 and np.isnan(out).sum() == 4 * count


@pytest.mark.parametrize("model", METHODS)
@pytest.mark.parametrize("units, whole", [("%", 100.0), ("1", 1.0)])
def test_relative_humidity_ends_where_the_input_does(model, units, whole):
    data = wave(lambda w: whole * (0.72 + 0.72 * w), units, "relative_humidity")
    most = float(data.w.max())
    out = fine(data, model)
    assert 1.38 * whole < out.max() <= np.float32(most) and 0 <= out.min() < 0.02 * whole
    dry = fine(wave(lambda w: whole * (0.5 + 0.49 * w), units, "relative_humidity"), model)
    assert dry.max() <= whole


def test_clipped_values_are_counted_and_reported(tmp_path):
    steps = wave(lambda w: np.where(w > 0.2, 10.0, 0.0), "mm")
    out = fastds.downscale("lanczos", steps, scale=3)
    free = fastds.downscale("lanczos", steps - 100, scale=3) + 100  # which has no limits
    share = float((free.w < -1e-3).mean())
    assert share > 0.01 and out.attrs["fastds_clipped_share"] == pytest.approx(share, rel=0.02)
    assert fastds.downscale("bilinear", steps, scale=3).attrs["fastds_clipped_share"] == 0
    save_dataset(steps, tmp_path / "in.nc")
    report = downscale_file(tmp_path / "in.nc", tmp_path / "out.nc", model="lanczos", scale=3)
    assert f"{share:.1%} of the values were cut at the limits of their variable" in report.notes
    report = downscale_file(tmp_path / "in.nc", tmp_path / "out.nc", model="bilinear", scale=3)
    assert not any("were cut" in note for note in report.notes)


def test_infinite_values_are_left_out_of_scores():
    truth, prediction = wave(cell=np.inf), wave(lambda w: w + 0.1)
    with pytest.warns(UserWarning, match="1 infinite value of variable w of TRUTH is taken as missing"):
        table = fastds.evaluate(prediction, truth)
    row = table.rows["w"]["prediction"]
    assert row["rmse"] == pytest.approx(0.1, rel=1e-3) and table.left_out == 1
    with pytest.warns(UserWarning, match="1 infinite value of variable w of PRED is taken as missing"):
        assert fastds.evaluate(wave(cell=-np.inf), wave()).rows["w"]["prediction"]["rmse"] == 0


def test_infinite_reflectivity_is_missing_and_counted():
    event = fastds.data.synthetic_event(3, frames=3, shape=(48, 48))
    event.reflectivity.values[1, 20:22, 20:22] = np.inf
    with pytest.warns(UserWarning, match="^4 infinite values of variable reflectivity are taken as missing$"):
        out = fastds.downscale("trilinear", event)
    assert np.isnan(out.reflectivity.values[2, 40:44, 40:44]).all()
    event.reflectivity.values[1, 20:22, 20:22] = -np.inf  # the logarithm of no rain
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fastds.downscale("trilinear", event)
