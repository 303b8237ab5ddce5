# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds methods in pysteps, with its units and metadata."""

import importlib.metadata
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fastds
from fastds.data import synthetic_event
from fastds.inference.pysteps_fields import make_dataset
from fastds.tasks.nowcast.pysteps import forecast, register
from fastds.tasks.radar.pysteps_diagnostic import diagnostic_fastds

pytest.importorskip("pysteps", reason="pysteps is not installed (optional peer)")
conversion = pytest.importorskip("pysteps.utils.conversion", reason="pysteps is not installed (optional peer)")
transformation = pytest.importorskip("pysteps.utils.transformation", reason="pysteps is not installed (optional peer)")

SIZE, Z_R = 64, (316.0, 1.5)
METADATA = {
    "unit": "mm/h", "transform": None, "accutime": 5.0, "threshold": 0.1, "zerovalue": 0.0,
    "zr_a": Z_R[0], "zr_b": Z_R[1],
    "x1": 0.0, "x2": 128e3, "xpixelsize": 2e3, "y1": 0.0, "y2": 128e3, "ypixelsize": 2e3, "yorigin": "upper",
    "cartesian_unit": "m",
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:.*trained")


@pytest.fixture(scope="module")
def rain():
    """Return six fields in mm/h, in order of time."""
    z = synthetic_event(7, frames=6, shape=(SIZE, SIZE)).reflectivity.values.astype(float)
    return np.where(z > 5.0, (10 ** (z / 10) / Z_R[0]) ** (1 / Z_R[1]), 0.0)


FORMS = {
    "mm/h": lambda rain: (rain, METADATA),
    "dBR": lambda rain: transformation.dB_transform(rain, METADATA, threshold=0.1, zerovalue=-15.0),
    "mm": lambda rain: conversion.to_raindepth(rain, METADATA),
    "dBZ": lambda rain: conversion.to_reflectivity(rain, METADATA),
}


def in_rates(values, metadata):
    return conversion.to_rainrate(values, metadata)[0]


@pytest.mark.parametrize("form", FORMS)
def test_pysteps_nowcast_equals_fastds(rain, form, monkeypatch):
    from pysteps import nowcasts

    monkeypatch.setattr(nowcasts.interface, "_nowcast_methods", dict(nowcasts.interface._nowcast_methods))
    register()
    given, metadata = FORMS[form](rain)
    made = nowcasts.get_method("fastds")(given, np.zeros((2, SIZE, SIZE)), 3, metadata, model="extrapolation")
    assert made.shape == (3, SIZE, SIZE)
    expected = fastds.nowcast("extrapolation", make_dataset(in_rates(given, metadata), METADATA, 5.0), steps=3)
    expected = expected.rainfall_rate.values
    found = in_rates(made, metadata)
    least = 0.0 if form in ("mm/h", "mm") else 0.1  # in dB what is weaker has the zero value
    np.testing.assert_allclose(found[expected > least + 1e-3], expected[expected > least + 1e-3], rtol=1e-4, atol=1e-5)
    if metadata["transform"] == "dB":
        assert made.min() == metadata["zerovalue"] and (found[expected < 0.099] == 0).all()


def test_chosen_steps_members_and_time(rain):
    three = forecast(rain, None, 3, METADATA, model="extrapolation")
    some, seconds = forecast(rain, None, [1, 3], METADATA, model="extrapolation", measure_time=True)
    np.testing.assert_array_equal(some, three[[0, 2]])
    assert seconds > 0
    members = forecast(rain, None, 2, METADATA, model="extrapolation", n_ens_members=3, seed=1)
    assert members.shape == (3, 2, SIZE, SIZE) and not np.array_equal(members[0], members[1])
    np.testing.assert_array_equal(
        members[:1], forecast(rain, None, 2, METADATA, model="extrapolation", n_ens_members=1, seed=1)
    )
    assert forecast(rain, None, 1, METADATA).shape == (1, SIZE, SIZE)


def test_pysteps_grid_with_southern_first_row(rain):
    """A network gives different results for a mirrored field, so the orientation must be respected."""
    expected = forecast(rain, None, 2, METADATA)
    flipped = forecast(rain[:, ::-1], None, 2, METADATA | {"yorigin": "lower"})
    np.testing.assert_array_equal(flipped[:, ::-1], expected)


@pytest.mark.parametrize("form", FORMS)
def test_pysteps_downscaling_equals_fastds(rain, form):
    given, metadata = FORMS[form](rain)
    fine, new_metadata = diagnostic_fastds(given[:3], metadata, model="bicubic")
    assert fine.shape == (6 if form == "mm" else 5, 2 * SIZE, 2 * SIZE)
    assert new_metadata["xpixelsize"] == new_metadata["ypixelsize"] == 1e3 and new_metadata["accutime"] == 2.5
    assert new_metadata["unit"] == metadata["unit"] and new_metadata["transform"] == metadata["transform"]
    if form == "mm":
        mean = fine.reshape(3, 2, SIZE, 2, SIZE, 2).sum(1).mean((2, 4))
        np.testing.assert_allclose(mean, given[:3], rtol=1e-4, atol=1e-5)
        return
    expected = fastds.downscale("bicubic", make_dataset(in_rates(given[:3], metadata), METADATA, 5.0))
    expected = expected.rainfall_rate.values
    strong = expected > 0.11
    np.testing.assert_allclose(in_rates(fine, new_metadata)[strong], expected[strong], rtol=1e-4)


def test_one_field_and_members(rain):
    one, new_metadata = diagnostic_fastds(rain[0], METADATA, model="bicubic")
    assert one.shape == (2 * SIZE, 2 * SIZE) and new_metadata["accutime"] == 5.0
    members = np.stack([rain[:2], rain[2:4]])
    fine, _ = diagnostic_fastds(members, METADATA, model="bicubic")
    assert fine.shape == (2, 3, 2 * SIZE, 2 * SIZE)
    np.testing.assert_array_equal(fine[1], diagnostic_fastds(rain[2:4], METADATA, model="bicubic")[0])


def test_pysteps_finds_the_entry_point(monkeypatch):
    """The entry points are those that pyproject.toml declares."""
    from pysteps import postprocessing
    from pysteps.postprocessing import diagnostics, interface

    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]
    ((group, entries),) = declared.items()
    found = [importlib.metadata.EntryPoint(name, value, group) for name, value in entries.items()]
    monkeypatch.setattr(interface, "entry_points", lambda group: [e for e in found if e.group == group])
    monkeypatch.setattr(interface, "_diagnostics_methods", {})
    monkeypatch.delattr(diagnostics, "diagnostic_fastds", raising=False)
    interface.discover_postprocessors()
    assert postprocessing.get_method("diagnostic_fastds", "diagnostics") is diagnostic_fastds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": None}, "metadata must be those that pysteps' importers give, it lacks unit, transform, accutime"),
        ({"metadata": METADATA | {"transform": "sqrt"}}, "metadata must have the transform None or 'dB', got 'sqrt'"),
        ({"precip": np.zeros((8, 9))}, r"precip must be fields \(t, m, n\), got the shape \(8, 9\)"),
        ({"velocity": np.zeros((2, 8, 9))}, r"velocity must have the shape \(2, 64, 64\), got \(2, 8, 9\)"),
        ({"timesteps": [2, 1]}, r"timesteps must be a number or ascending whole numbers >= 1, got \[2, 1\]"),
        ({"timesteps": [0.5, 1]}, "timesteps must be a number or ascending whole numbers"),
        ({"timesteps": 0}, "timesteps must be a number or ascending whole numbers"),
        ({"precip": np.zeros((4, 64, 64))}, "5 fields every 300 s are needed"),
    ],
)
def test_pysteps_errors(rain, change, message):
    given = {"precip": rain, "velocity": None, "timesteps": 2, "metadata": METADATA} | change
    with pytest.raises(ValueError, match=message):
        forecast(**given)
    if "metadata" in change:
        with pytest.raises(ValueError, match=message):
            diagnostic_fastds(given["precip"], given["metadata"])


def test_pysteps_downscaling_rejects_other_shapes():
    with pytest.raises(
        ValueError, match=r"precip must be \(m, n\), \(t, m, n\) or \(members, t, m, n\), got the shape"
    ):
        diagnostic_fastds(np.zeros(5), METADATA)
