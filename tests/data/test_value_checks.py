# SPDX-License-Identifier: Apache-2.0
"""Tests of implausible values: counting, masking, refusing, and the options --missing and --units."""

import re

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds.cli import main
from fastds.data import apply_metadata, coarsen_dataset, save_dataset, synthetic_event
from fastds.data.grid.value_checks import (
    PLAUSIBLE_RANGES,
    check_plausible,
    compute_plausible_rain_range,
    find_plausible_range,
    mask_fill_values,
)
from tests.support.small_models import HUMIDITY, TEMPERATURE, field_model, generator, gridded, radar_model


@pytest.fixture(scope="module")
def event():
    return coarsen_dataset(synthetic_event(5, 9, (64, 64))[["reflectivity", "crs"]])


def spoilt(event, value, share, **attrs):
    """Replace a fraction of the columns by a value."""
    event = event.copy(deep=True)
    event["reflectivity"].values[..., : round(share * event.sizes["x"])] = value
    event["reflectivity"].attrs.update(attrs)
    return event


def test_value_limits_table():
    for name, units, low, high in PLAUSIBLE_RANGES:
        assert low < high and find_plausible_range(name, units) == (low, high)
    assert find_plausible_range("air_temperature", "m") is None and find_plausible_range("age_of_sea_ice", "s") is None
    assert find_plausible_range("geopotential", "m**2 s**-2") == find_plausible_range("geopotential", "m2 s-2")
    percent, kelvin = find_plausible_range("relative_humidity", "%"), find_plausible_range("air_temperature", "K")
    np.testing.assert_allclose(find_plausible_range("relative_humidity", "1"), np.array(percent) / 100)
    np.testing.assert_allclose(find_plausible_range("air_temperature", "degC"), np.array(kelvin) - 273)
    np.testing.assert_allclose(compute_plausible_rain_range("m s-1"), np.array([-0.5, 2000]) / 3.6e6)
    np.testing.assert_allclose(compute_plausible_rain_range("m"), [-0.0005, 2.0])


def test_missing_code_does_not_mask_neighbouring_values():
    values = np.float32([0.0, 1e-7, -9.96921e36, 9.96921e36])
    assert np.isnan(mask_fill_values(values, {"missing_value": 0.0})).tolist() == [True, False, False, False]
    assert np.isnan(mask_fill_values(values, {"missing_value": -9.969209968e36})).tolist() == [
        False,
        False,
        True,
        False,
    ]
    both = mask_fill_values(values, {"missing_value": [0.0, 9.96921e36]})
    assert np.isnan(both).tolist() == [True, False, False, True]
    unpacked = np.float32([np.nextafter(np.float32(-327.68), np.float32(0)), -327.67])
    assert np.isnan(mask_fill_values(unpacked, {"missing_value": -327.68})).tolist() == [True, False]


def test_just_half_of_the_values_may_be_implausible():
    """Half of the values may be outside the limits, and values equal to a limit are plausible."""
    form = ("z", [np.float32([-60.0, 90.0]), np.float32([91.0, -61.0])], (-60.0, 90.0), "dBZ")
    with pytest.warns(UserWarning, match="2 of 4 values of variable z are -61 to 91 dBZ, outside the plausible -60 to"):
        check_plausible(*form)
    form[1].append(np.float32([91.0, np.nan]))
    with pytest.raises(ValueError, match="3 of 5 values"):
        check_plausible(*form)


@pytest.mark.parametrize("value", [300.0, 999.0, 1e30, -9999.0, np.inf])
@pytest.mark.parametrize("verb", ["downscale", "nowcast"])
def test_some_implausible_echo_is_counted_and_missing(event, value, verb):
    options = {"tile": 32, "halo": 0} if verb == "downscale" else {"steps": 1}
    model = radar_model() if verb == "downscale" else "persistence"
    run = getattr(fastds, verb)
    if np.isinf(value):
        out = run(model, spoilt(event, value, 0.25), **options)
    else:
        message = re.escape(f" values of variable reflectivity are {value:g} dBZ, outside the plausible")
        with pytest.warns(UserWarning, match=message):
            out = run(model, spoilt(event, value, 0.25), **options)
    field = out["reflectivity" if verb == "downscale" else "rainfall_rate"]
    assert np.isnan(field[-1, :, 0]).all() and not np.isnan(field[-1, :, -1]).any()


@pytest.mark.parametrize("verb", ["downscale", "nowcast"])
def test_mostly_implausible_values_error_suggests_a_remedy(event, verb):
    model = radar_model() if verb == "downscale" else "persistence"
    with pytest.raises(ValueError, match="outside the plausible -60 to 90 dBZ; .* the arguments missing and units"):
        getattr(fastds, verb)(model, spoilt(event, -9999.0, 0.75))
    out = getattr(fastds, verb)(model, spoilt(event, -9999.0, 0.75), missing=-9999.0)
    field = out["reflectivity" if verb == "downscale" else "rainfall_rate"]
    assert np.isnan(field[-1, :, 0]).all() and not np.isnan(field[-1, :, -1]).any()


def test_evaluate_reads_with_the_same_rules(event):
    truth = synthetic_event(5, 9, (64, 64))[["reflectivity", "crs"]]
    with pytest.raises(ValueError, match="TRUTH: .* outside the plausible"):
        fastds.evaluate(truth, spoilt(truth, -9999.0, 0.75))
    table = fastds.evaluate(truth, spoilt(truth, -9999.0, 0.5), missing=-9999.0)
    assert table.pixels < 64 * 64 / 2


def test_packed_missing_codes(event, tmp_path):
    codes = event.copy(deep=True)
    values = np.where(event["reflectivity"] > 0, 2 * event["reflectivity"] + 64, 0).astype("uint8")
    codes["reflectivity"] = event["reflectivity"].copy(data=values)
    assert codes["reflectivity"].max() > 90
    with pytest.raises(ValueError, match="whole numbers without a scale_factor"):
        fastds.nowcast("persistence", codes)
    codes["reflectivity"].encoding = {"_FillValue": np.uint8(255)}
    save_dataset(codes, tmp_path / "codes.nc")
    with pytest.raises(ValueError, match="whole numbers without a scale_factor"):
        fastds.nowcast("persistence", tmp_path / "codes.nc")


@pytest.mark.parametrize(("scale", "sentence"), [(0.0, "packed with scale_factor 0"), (1e30, "outside the plausible")])
def test_lossy_packing_is_detected(event, tmp_path, scale, sentence):
    import h5py

    event = event.copy(deep=True)
    event["reflectivity"].encoding = {"dtype": "int16", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": -1}
    save_dataset(event, tmp_path / "in.nc")
    with h5py.File(tmp_path / "in.nc", "r+") as file:
        file["reflectivity"].attrs["scale_factor"] = scale
    with pytest.raises(ValueError, match=sentence):
        fastds.nowcast("persistence", tmp_path / "in.nc")


@pytest.mark.parametrize(("value", "word"), [(-5.0, "-5 K"), (1e32, "1e\\+32 K"), (-9998.0, "-9998 K")])
def test_temperatures(value, word):
    model, data = field_model(), gridded(TEMPERATURE)
    data["t"][0, 0, 0] = value
    with pytest.warns(UserWarning, match=f"1 of 160 values of variable t are {word}, outside the plausible 150 to 350"):
        out = fastds.downscale(model, data, scale=2.0)
    assert np.isnan(out["t"][0, 0, 0]) and np.isfinite(out["t"][1]).all()
    with pytest.warns(UserWarning, match="outside the plausible"):
        fastds.query(model, data, [(40.0, 110.0)])
    data["t"][:, :6] = value
    with pytest.raises(ValueError, match="the arguments missing and units"):
        fastds.query(model, data, [(40.0, 110.0)])
    rows = fastds.query(model, data, [(40.0, 122.0)], missing=value)
    assert np.isfinite(rows[0]["t_bilinear"])


def test_all_missing_input_is_reported_by_every_function(event):
    missing, cold = spoilt(event, np.nan, 1.0), gridded(TEMPERATURE)
    cold["t"][:] = np.nan
    for run in (
        lambda: fastds.downscale(radar_model(), missing),
        lambda: fastds.nowcast("persistence", missing),
        lambda: fastds.nowcast("extrapolation", last_missing(event)),
        lambda: fastds.downscale(field_model(), cold, scale=2.0),
        lambda: fastds.query(field_model(), cold, [(45.0, 110.0)]),
    ):
        with pytest.warns(UserWarning, match="is missing, and so is the "):
            run()
    truth = synthetic_event(5, 9, (64, 64))[["reflectivity", "crs"]]
    with pytest.warns(UserWarning, match="every pixel of TRUTH is missing"):
        fastds.evaluate(truth, spoilt(truth, np.nan, 1.0))


def last_missing(event):
    event = event.copy(deep=True)
    event["reflectivity"].values[-1] = np.nan
    return event


def test_relative_humidity_leaves_between_0_and_105():
    model, data = field_model(), gridded(HUMIDITY)
    model.card.input_variables = model.card.output_variables = [HUMIDITY]
    torch.nn.init.constant_(model.mean, 0.0), torch.nn.init.constant_(model.std, 400.0)
    data["r"][:] = np.random.default_rng(0).choice([0.0, 100.0], data["r"].shape)
    out = fastds.downscale(model, data, scale=2.0)["r"]
    assert out.min() == 0 and out.max() <= 105
    wild = generator()
    wild.card.range = 1000.0
    out = fastds.downscale(wild, gridded(HUMIDITY))["r"]
    assert out.min() >= 0 and out.max() <= 105


def test_declared_metadata_is_applied():
    data = xr.Dataset(
        {"a": (("y", "x"), np.ones((2, 2), "f4")), "b": (("y", "x"), np.ones((2, 2), "f4"), {"units": "m"})}
    )
    out = apply_metadata(data, missing=1.0)
    assert out["a"].attrs == {"missing_value": 1.0} and not data["a"].attrs
    assert apply_metadata(data, units="dBZ", var="b")["b"].attrs["units"] == "dBZ" and data["b"].attrs["units"] == "m"
    for options, sentence in (
        ({"units": "K"}, "name it with the argument var: a, b"),
        ({"missing": np.nan}, "missing must be a finite number"),
        ({"missing": 1.0, "var": "c"}, "no variable 'c' in the file, which has a, b"),
    ):
        with pytest.raises(ValueError, match=sentence):
            apply_metadata(data, **options)


def test_units_option_of_the_command(event, tmp_path, capsys):
    """The file is like those of MRMS: no standard name, unknown units, and -999 for missing values."""
    data = spoilt(event, -999.0, 0.7).rename(reflectivity="paramId_0")
    data["paramId_0"].attrs = {"units": "unknown", "no_echo_value": -32.0}
    save_dataset(data, tmp_path / "in.nc")
    run = ["nowcast", f"{tmp_path}/in.nc", f"{tmp_path}/out.nc", "--model", "persistence", "--steps", "1"]
    assert main([*run, "--var", "paramId_0"]) == 2
    assert "give the right ones with --units" in capsys.readouterr().err
    assert main([*run, "--var", "paramId_0", "--units", "dBZ"]) == 2
    assert "with --missing and --units" in capsys.readouterr().err
    assert main([*run, "--var", "paramId_0", "--units", "dBZ", "--missing", "-999"]) == 0
    assert "plausible" not in capsys.readouterr().err
    assert main([*run, "--units", "dBZ", "--missing", "-999"]) == 0  # the only field


@pytest.mark.parametrize("task", ["fields", "humidity"])
@pytest.mark.parametrize(
    ("value", "attrs", "sentence"),
    [
        (-9999.0, {"units": "%"}, "1 of 2880 values of variable r of .*grid.nc are -9999 %, outside .*; mend the file"),
        (1e32, {"units": "%"}, "1 of 2880 values of variable r .* are 1e.32 %"),
        (-9999.0, {"units": "%", "missing_value": -9999.0}, "missing"),
        (50.0, {"units": "%", "scale_factor": 0.0}, "packed with scale_factor 0"),
    ],
    ids=["code", "huge", "declared", "packed"],
)
def test_implausible_values_are_not_trained_on(tmp_path, capsys, task, value, attrs, sentence):
    values = np.random.default_rng(0).uniform(20, 80, (2, 24, 60)).astype("float32")
    values[0, 3, 4] = value
    field = (("time", "latitude", "longitude"), values, {"standard_name": "relative_humidity"} | attrs)
    xr.Dataset({"r": field}).to_netcdf(tmp_path / "grid.nc", engine="h5netcdf")
    command = ["train", task, f"--data.path={tmp_path}/grid.nc", f"--output={tmp_path}/o", "--max-steps=1"]
    assert (
        main([*command, *(["--data.variables=[r]"] if task == "fields" else ["--data.steps=2", "--data.crop=16"])]) == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert re.search(sentence, lines[-1]) and lines[-1].startswith("fastds train: "), lines
    assert not (tmp_path / "o").exists()
