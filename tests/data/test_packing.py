# SPDX-License-Identifier: Apache-2.0
"""Tests of outputs that are packed as their inputs."""

import numpy as np
import pytest
import xarray as xr

from fastds.cli import main
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event
from fastds.data.io.packing import pack_like


def fields(values, packing=None, **attrs):
    variable = xr.Variable(("time", "y", "x"), np.asarray(values, np.float32).reshape(1, 2, -1), attrs, packing)
    return xr.Dataset({"v": variable})


def read(packed):
    return xr.decode_cf(packed)["v"].values.ravel()


BYTES = {"dtype": np.dtype("uint8"), "scale_factor": 0.5, "add_offset": -32.0}


@pytest.mark.parametrize(
    "values,packing,attrs,dtype",
    [
        ([-32.5, 3.03, np.nan, 57.11], BYTES, {"units": "dBZ", "no_echo_value": -32.5}, np.int16),
        ([0.0, 0.013, 0.3, 40.0], BYTES | {"scale_factor": 0.01, "add_offset": 0.004}, {"units": "mm h-1"}, np.int16),
        ([0.0, 0.013, np.nan, 400.0], BYTES | {"scale_factor": 0.01}, {"units": "mm h-1"}, np.int32),
        ([281.3, 300.1, 250.0, 270.2], BYTES | {"scale_factor": 0.002, "add_offset": 275.0}, {"units": "K"}, np.int32),
        ([np.nan] * 4, BYTES, {"units": "dBZ"}, np.int16),
    ],
)
def test_packed_values_round_trip(values, packing, attrs, dtype):
    fine = fields(values, **attrs)
    packed = pack_like(fine, fields([0.0] * 4, packing, **attrs))
    back, values = read(packed), np.float32(values)
    assert packed["v"].dtype == dtype
    np.testing.assert_allclose(back, values, rtol=3e-7, atol=packing["scale_factor"] / 16)
    lowest = attrs.get("no_echo_value", 0.0)
    assert np.array_equal(back == lowest, values == lowest)


def test_packing_uses_the_stored_scale_and_offset():
    """The packing parameters of ERA5 are not float32 numbers, and rounding them would change the values."""
    packing = {"dtype": np.dtype("int16"), "scale_factor": 0.000769426, "add_offset": 251.23456789}
    values = np.float32(np.linspace(226.3, 276.4, 40))
    back = read(pack_like(fields(values, units="K"), fields([0.0] * 4, packing, units="K")))
    assert np.abs(back.astype(np.float64) - values).max() <= 0.000769426 / 16 * 1.001


@pytest.mark.parametrize(
    "source,values",
    [
        (fields([0.0] * 4, units="dBZ"), [1.0, 2.0, 3.0, 4.0]),
        (fields([0.0] * 4, {"dtype": np.dtype("int16")}, units="dBZ"), [1.0, 2.0, 3.0, 4.0]),
        (fields([0.0] * 4, BYTES, units="mm h-1"), [1.0, 2.0, 3.0, 4.0]),
        (fields([0.0] * 4, BYTES | {"scale_factor": 1e-8}, units="dBZ"), [1.0, 2.0, 3.0, 400.0]),
    ],
)
def test_other_variables_are_not_packed(source, values):
    fine = fields(values, units="dBZ")
    assert pack_like(fine, source).identical(fine)


def test_command_packs_like_the_input(tmp_path, capsys):
    event = coarsen_dataset(synthetic_event(seed=2, frames=5, shape=(64, 64)))
    z = event["reflectivity"]
    z.encoding = {"dtype": "uint8", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": 255}
    z.attrs["no_echo_value"], event["reflectivity"] = -32.0, z.where(z > 0, -32.0).assign_attrs(no_echo_value=-32.0)
    event["reflectivity"].encoding = z.encoding
    save_dataset(event, tmp_path / "in.nc")
    for name, options in (("packed.nc", []), ("plain.nc", ["--dtype", "float32"])):
        command = ["downscale", str(tmp_path / "in.nc"), str(tmp_path / name), "--model", "fczsm-small", *options]
        assert main(command) == 0, capsys.readouterr().err
    with open_dataset(tmp_path / "packed.nc") as packed, open_dataset(tmp_path / "plain.nc") as plain:
        packed, plain = packed["reflectivity"], plain["reflectivity"]
        assert packed.encoding["dtype"] == np.int16 and plain.encoding["dtype"] == np.float32
        assert np.array_equal(packed.isnull(), plain.isnull())
        assert np.array_equal(packed == -32.0, plain == -32.0) and (packed == -32.0).any()
        np.testing.assert_allclose(packed, plain, atol=0.5 / 16 + 1e-5)
    assert (tmp_path / "packed.nc").stat().st_size < 0.7 * (tmp_path / "plain.nc").stat().st_size
