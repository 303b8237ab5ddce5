# SPDX-License-Identifier: Apache-2.0
"""Tests with the real Earth2Studio, which .ci/run installs after the other tests."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
import xarray as xr

import fastds

pytest.importorskip("earth2studio", reason="earth2studio is not installed (optional peer)")
from earth2studio import run
from earth2studio.io import XarrayBackend
from earth2studio.models.dx.base import DiagnosticModel
from earth2studio.models.px import Persistence

from fastds.tasks.fields.earth2studio import Downscaling

NAMES = ["r", "t", "u", "z"]
UNITS = ["%", "K", "m s-1", "m2 s-2"]
LATITUDE, LONGITUDE = np.linspace(60, 41, 20), np.linspace(0, 23, 24)


@pytest.fixture(scope="module")
def fields():
    """Return fields (time, lead_time, variable, lat, lon)."""
    rng = np.random.default_rng(1)
    noise = rng.random((2, 3, 4, 1, 1)) + np.sin(LATITUDE / 5)[:, None] * np.cos(LONGITUDE / 6)
    scale, offset = np.array([20, 5, 9, 500])[:, None, None], np.array([50, 255, 5, 54000])[:, None, None]
    return torch.from_numpy((noise * scale + offset).astype(np.float32))


def coords_of(model, fields):
    input_coords = model.input_coords()
    lead = {"time": np.array(["2020-01-01", "2020-01-02"], "datetime64[ns]"), "lead_time": np.arange(3)}
    return OrderedDict(lead | {name: input_coords[name] for name in ("variable", "lat", "lon")})


def test_earth2studio_equals_downscale(fields):
    model = Downscaling(LATITUDE, LONGITUDE, scale=2)
    assert isinstance(model, DiagnosticModel)
    assert model.input_coords()["variable"].tolist() == ["r500", "t500", "u500", "z500"]
    y, coords = model(fields, coords_of(model, fields))
    assert list(coords) == ["time", "lead_time", "variable", "lat", "lon"]
    assert y.shape == tuple(len(axis) for axis in coords.values()) == (2, 3, 4, 40, 48)
    one = {n: (("lat", "lon"), fields[1, 2, k].numpy(), {"units": UNITS[k]}) for k, n in enumerate(NAMES)}
    axes = {"lat": ("lat", LATITUDE, {"units": "degrees_north"}), "lon": ("lon", LONGITUDE, {"units": "degrees_east"})}
    expected = fastds.downscale("inr-small", xr.Dataset(one, axes), scale=2)
    for k, name in enumerate(NAMES):  # all times run in one batch, which rounds differently from a single time
        np.testing.assert_allclose(y[1, 2, k], expected[name], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(coords["lat"], expected.lat)
    np.testing.assert_array_equal(coords["lon"], expected.lon)


def test_a_spacing_and_missing_values(fields):
    model = Downscaling(LATITUDE, LONGITUDE, level=500, grid=0.5)
    x = fields[0, 0].clone()
    x[1, 3, 4] = torch.nan
    y, coords = model(x, OrderedDict(list(coords_of(model, fields).items())[2:]))
    assert y.shape == (4, 39, 47) and np.allclose(np.diff(coords["lat"]), -0.5)
    assert y[:, 6, 8].isnan().all() and y[:, 20:, 30:].isfinite().all()


def test_earth2studio_pipeline(fields):
    """Downscale forecasts by persistence."""
    model = Downscaling(LATITUDE, LONGITUDE, scale=2)
    axes = OrderedDict(lat=LATITUDE, lon=LONGITUDE)

    def source(time, variable):
        return xr.DataArray(fields[:1, 0].numpy(), {"time": time, "variable": variable} | axes)

    io, cpu = XarrayBackend(), torch.device("cpu")
    run.diagnostic(["2020-01-01"], 1, Persistence(model.variables, axes), model, source, io, device=cpu, verbose=False)
    assert io.root.t500.dims == ("time", "lead_time", "lat", "lon") and io.root.t500.shape == (1, 2, 40, 48)
    assert np.isfinite(io.root.t500).all()


@pytest.mark.parametrize(
    ("name", "change"), [("lat", lambda v: v[::-1]), ("variable", lambda v: v[::-1]), ("lon", lambda v: v + 1)]
)
def test_earth2studio_rejects_other_coordinates(fields, name, change):
    model = Downscaling(LATITUDE, LONGITUDE, scale=2)
    coords = coords_of(model, fields)
    coords[name] = change(coords[name])
    with pytest.raises(ValueError, match=name):
        model(fields, coords)


def test_earth2studio_arguments():
    with pytest.raises(ValueError, match="expected an INRDownscaler of named variables such as inr-small"):
        Downscaling(LATITUDE, LONGITUDE, scale=2, model="nowcast-small")
    with pytest.raises(ValueError, match="model is an INRDownscaler inr-any, expected"):
        Downscaling(LATITUDE, LONGITUDE, scale=2, model="inr-any")
    with pytest.raises(ValueError, match="exactly one of the arguments scale, grid"):
        Downscaling(LATITUDE, LONGITUDE)
