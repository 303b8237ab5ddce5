# SPDX-License-Identifier: Apache-2.0
"""Tests that results do not depend on the order of rows and columns in a file."""

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.data import coarsen_dataset, synthetic_event
from fastds.data.grid.axes import get_north_up_index
from tests.support.small_models import nowcaster, radar_model

FLIPS = ({"y": slice(None, None, -1)}, {"x": slice(None, None, -1)}, dict.fromkeys("yx", slice(None, None, -1)))


@pytest.fixture(scope="module")
def event():
    event = synthetic_event(4, 8, (66, 98))[["reflectivity", "crs"]]
    event["reflectivity"][:, 3:9, 5:20] = np.nan
    return event


def same(make, given, turns, rtol=0.0):
    xr.testing.assert_allclose(make(given.isel(turns)).isel(turns), make(given), rtol=rtol, atol=0.0)


@pytest.mark.parametrize("turns", FLIPS)
@pytest.mark.parametrize("method", ["network", "advection"])
def test_downscale_in_any_axis_order(event, turns, method):
    model = radar_model() if method == "network" else method
    same(lambda d: fastds.downscale(model, d), coarsen_dataset(event), turns)


def test_downscale_rain_in_tiles_in_any_axis_order(event):
    rain = coarsen_dataset(event)
    rain["reflectivity"] = (rain.reflectivity.clip(0) / 20).assign_attrs(units="kg m-2", cell_methods="time: sum")
    same(lambda d: fastds.downscale("advection", d, var="reflectivity", tile=16, halo=16), rain, FLIPS[2], rtol=1e-6)


@pytest.mark.parametrize("turns", FLIPS)
@pytest.mark.parametrize(
    "options", [{}, {"members": 2}, {"coarsen": 4, "quantity": "reflectivity"}, {"probability": [0.5, 2.0]}]
)
def test_nowcast_in_any_axis_order(event, turns, options):
    event = event.isel(y=slice(0, 64), x=slice(0, 96))  # blocks of cells begin at the first ones of a file
    rtol = 1e-5 if "coarsen" in options else 0.0  # sums of blocks are rounded in another order: 3e-7 measured
    same(lambda d: fastds.nowcast("extrapolation", d, steps=2, **options), event, turns, rtol)


def test_network_nowcast_in_any_axis_order(event):
    same(lambda d: fastds.nowcast(nowcaster(), d, steps=2), event, FLIPS[2])


def test_evaluate_in_any_axis_order(event):
    """The scores of the prediction and of the baselines are the same for reversed axes."""
    fine, turns = fastds.downscale("advection", coarsen_dataset(event)), FLIPS[2]
    rain = fastds.nowcast("persistence", event, start=str(event.time.values[5]), steps=2)
    for prediction, options in ((fine, {}), (rain, {"baselines": ["extrapolation"]})):
        here, there = (fastds.evaluate(prediction.isel(t), event.isel(t), **options).rows for t in ({}, turns))
        for method, scores in here.items():
            for name, value in scores.items():
                np.testing.assert_allclose(there[method][name], value, rtol=1e-5, err_msg=f"{method} {name}")


def test_north_up_orientation(event):
    field = event.reflectivity
    assert get_north_up_index(field) == (..., slice(None, None, 1), slice(None, None, 1))
    assert get_north_up_index(field.isel(FLIPS[2])) == (..., slice(None, None, -1), slice(None, None, -1))
    assert get_north_up_index(field.drop_vars(["x", "y"]).isel(FLIPS[2])) == get_north_up_index(field)
    across = field.isel(x=slice(0, 4)).assign_coords(x=("x", [358.0, 359.0, 0.0, 1.0], {"units": "degrees_east"}))
    assert get_north_up_index(across) == get_north_up_index(field)
