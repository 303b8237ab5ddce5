# SPDX-License-Identifier: Apache-2.0
"""Tests of downscaling humidity files to ensembles of finer fields."""

import itertools
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds import cli, models
from fastds.tasks.humidity import pipeline
from fastds.tasks.humidity.run import downscale, downscale_file


def generator(scale=2, coarsening="mean"):
    model = models.create(
        "wgan-gp-small", scale=scale, width=8, post_width=8, pre_blocks=1, post_blocks=1, reduction=4
    ).eval()
    model.head.weight.data.normal_()
    model.card.offset, model.card.range, model.card.coarsening = 0.0, 100.0, coarsening
    model.card.input_variables = [{"name": "r", "standard_name": "relative_humidity", "units": "%"}]
    return model


def coarse(times=3):
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {"r": (("time", "latitude", "longitude"), 100 * rng.random((times, 6, 8)),
               {"standard_name": "relative_humidity", "units": "%"})},
        coords={
            "time": np.datetime64("2019-01-01") + np.arange(times) * np.timedelta64(3, "h"),
            "latitude": ("latitude", 52.0 - 2.0 * np.arange(6), {"units": "degrees_north"}),
            "longitude": ("longitude", 105.0 + 2.0 * np.arange(8), {"units": "degrees_east"}),
        },
    )  # fmt: skip


def test_members_and_grid():
    out = downscale(generator(), coarse(), members=3, seed=5)
    assert out["r"].dims == ("realization", "time", "latitude", "longitude") and out["r"].shape == (3, 3, 12, 16)
    assert np.allclose(out["latitude"][:3], [52.5, 51.5, 50.5]) and np.allclose(out["longitude"][:2], [104.5, 105.5])
    assert np.array_equal(out["time"], coarse()["time"]) and out.attrs["fastds_seed"] == 5


def test_level_is_preserved_and_recorded():
    levels = [coarse().expand_dims({"pressure_level": [level]}, 1) for level in (500.0, 850.0)]
    data = xr.concat(levels, "pressure_level")
    data["pressure_level"].attrs = {"units": "hPa"}
    out = downscale(generator(), data, level=850.0)
    assert out.pressure_level.item() == 850.0 and out.pressure_level.attrs == {"units": "hPa"}
    assert out.attrs["fastds_level"] == 850.0
    again = downscale(generator(), data.isel(pressure_level=0))
    assert again.pressure_level.item() == 500.0 and "fastds_level" not in again.attrs


def test_seeds():
    model = generator()
    three = downscale(model, coarse(), members=3, seed=5)["r"]
    assert np.array_equal(three[:2], downscale(model, coarse(), members=2, seed=5)["r"])
    assert np.array_equal(three[1], downscale(model, coarse(), members=1, seed=6)["r"][0])
    assert not np.array_equal(three[0], three[1])
    plain = downscale(model, coarse())["r"]
    assert plain.dims == ("time", "latitude", "longitude")
    assert np.array_equal(plain, downscale(model, coarse())["r"])


@pytest.mark.parametrize("times", [1, 8, 11])
def test_any_number_of_times(times):
    out = downscale(generator(), coarse(times), members=2)
    assert out["r"].shape == (2, times, 12, 16) and np.isfinite(out["r"]).all()


def test_sequences_are_independent_with_separate_noise():
    """The series has 19 times, which are computed in sequences of 8, 8 and 3 times with the same fields."""
    model, eight = generator(), coarse(8)
    long = coarse(19).assign(r=eight["r"].isel(time=[*range(8), *range(8), 0, 1, 2]).drop_vars("time"))
    plain, short = downscale(model, long)["r"].values, downscale(model, eight.isel(time=slice(0, 3)))["r"].values
    np.testing.assert_allclose(plain[:8], downscale(model, eight)["r"], atol=1e-4)
    np.testing.assert_allclose(plain[8:16], plain[:8], atol=1e-4)
    np.testing.assert_allclose(plain[16:], short, atol=1e-4)
    noisy = downscale(model, long, members=1)["r"].values[0]
    parts = [noisy[:3], noisy[8:11], noisy[16:]]
    assert all(np.abs(a - b).mean() > 0.01 for a, b in ((parts[0], parts[1]), (parts[1], parts[2])))


@pytest.mark.parametrize("dates", ["datetime64", "cftime"])
def test_noise_depends_on_the_time_and_not_on_its_place_in_the_file(dates):
    model, whole = generator(), coarse(16)
    if dates == "cftime":
        pytest.importorskip("cftime", reason="dates of other calendars are cftime's")
        whole = whole.convert_calendar("noleap")
    first, later = (downscale(model, whole.isel(time=part), members=2)["r"] for part in (slice(16), slice(8, 16)))
    assert np.array_equal(first[:, 8:], later)
    moved = whole.assign_coords(time=whole.time.values + (whole.time.values[1] - whole.time.values[0]))
    assert not np.isclose(first, downscale(model, moved, members=2)["r"]).all((0, 2, 3)).any()


def test_decimated_points_are_preserved():
    out = downscale(generator(4, "decimate"), coarse(), members=1)
    assert np.allclose(out["latitude"][::4], coarse()["latitude"]) and np.allclose(np.diff(out["longitude"]), 0.5)


def test_values_are_cut_to_the_valid_range():
    model = generator()
    free = downscale(model, coarse(), members=2)
    assert float(free["r"].min()) < 20 and float(free["r"].max()) > 80 and "fastds_valid_range" not in free.attrs
    model.card.valid_range = (20.0, 80.0)
    cut = downscale(model, coarse(), members=2)
    assert np.array_equal(cut["r"], np.clip(free["r"], 20, 80)) and cut.attrs["fastds_valid_range"] == [20.0, 80.0]
    again = downscale(model, cut.isel(realization=0), members=1)
    assert again["r"].shape == (1, 3, 24, 32), "a result is accepted as input"


def write_zarr(path):
    pytest.importorskip("zarr", reason="Zarr stores need the package zarr")
    coarse().to_zarr(path)


def write_grib(path):
    """Write two levels in GRIB edition 2 with ecCodes."""
    pytest.importorskip("pyproj", reason="is to be loaded before ecCodes, see data/files.py")
    eccodes = pytest.importorskip("eccodes", reason="the file is written with ecCodes")
    pytest.importorskip("cfgrib", reason="GRIB edition 2 is read by cfgrib")
    field = coarse()["r"]
    with open(path, "wb") as file:
        for level, time in itertools.product((500, 850), range(field.sizes["time"])):
            message = eccodes.codes_grib_new_from_samples("regular_ll_pl_grib2")
            stamp = str(field.time.values[time].astype("datetime64[m]"))
            rows, columns = field.latitude.values, field.longitude.values
            for key, value in {
                "shortName": "r", "level": level, "bitsPerValue": 24,
                "dataDate": int(stamp[:10].replace("-", "")), "dataTime": int(stamp[11:].replace(":", "")),
                "Ni": len(columns), "Nj": len(rows), "iDirectionIncrementInDegrees": 2.0,
                "jDirectionIncrementInDegrees": 2.0, "latitudeOfFirstGridPointInDegrees": rows[0],
                "latitudeOfLastGridPointInDegrees": rows[-1], "longitudeOfFirstGridPointInDegrees": columns[0],
                "longitudeOfLastGridPointInDegrees": columns[-1],
            }.items():  # fmt: skip
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, field.values[time].astype("float64").ravel())
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)


@pytest.mark.parametrize("name,write,options", [
    ("in.zarr", write_zarr, {}), ("in.grib", write_grib, {"level": 850.0})
], ids=["Zarr", "GRIB"])  # fmt: skip
def test_other_formats(tmp_path, name, write, options):
    write(tmp_path / name)
    model = generator()
    downscale_file(tmp_path / name, tmp_path / "out.nc", model=model, **options)
    expected = downscale(model, coarse())
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as out:
        assert np.allclose(out["r"], expected["r"], atol=1e-2) and out["r"].dims == expected["r"].dims
        assert np.array_equal(out["time"], expected["time"]) and np.allclose(out["latitude"], expected["latitude"])
    if name == "in.grib":
        with pytest.raises(ValueError, match="2 levels, name one of"):
            downscale_file(tmp_path / name, tmp_path / "out.nc", model=model)


@pytest.mark.parametrize("name,package", [("in.zarr", "zarr"), ("in.grib", "cfgrib")])
def test_missing_packages_are_named(tmp_path, monkeypatch, capsys, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (tmp_path / name).mkdir() if package == "zarr" else (tmp_path / name).write_bytes(b"GRIB" + bytes(3) + b"\x02")
    command = ["downscale", str(tmp_path / name), str(tmp_path / "out.nc"), "--model", "wgan-gp-small-x2"]
    assert cli.main(command) == 2
    assert f"python -m pip install {package}" in capsys.readouterr().err


def test_humidity_command(tmp_path, capsys):
    model = generator()
    models.save(model, tmp_path / "g.safetensors")
    coarse().to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    command = [
        "downscale",
        str(tmp_path / "in.nc"),
        str(tmp_path / "out.nc"),
        "--model",
        str(tmp_path / "g.safetensors"),
    ]
    assert cli.main([*command, "--members", "2", "--seed", "3"]) == 0
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as out:
        expected = downscale(model, coarse(), members=2, seed=3)
        assert np.allclose(out["r"], expected["r"], atol=1e-4)
    assert cli.main(command) == 0, "without members: one field"
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as out:
        assert out["r"].dims == ("time", "latitude", "longitude")
    assert cli.main([*command, "--members", "0"]) == 2
    assert "members must be a whole number from 1 to 10000, got 0" in capsys.readouterr().err
    assert cli.main([*command, "--tile", "32"]) == 2
    message = "--tile is no option for humidity, which takes --array, --device, --dtype, --graph, --level, --members, "
    assert message in capsys.readouterr().err


def changed(values=None, **attrs):
    dataset = coarse()
    if values is not None:
        dataset["r"][0, 0, 0] = values
    dataset["r"].attrs.update(attrs)
    return dataset


def test_humidity_error_messages(tmp_path):
    model = generator()
    bare = generator()
    bare.card.range = None
    for message, call in [
        ("variable r has 1 missing or infinite values", lambda: downscale(model, changed(np.nan))),
        ("1 of 144 values of variable r are 300 %, outside the plausible", lambda: downscale(model, changed(300.0))),
        ("1 of 144 values of variable r are -50 %, outside the plausible", lambda: downscale(model, changed(-50.0))),
        ("units '1', expected relative humidity in %", lambda: downscale(model, changed(units="1"))),
        ("level 850 was requested", lambda: downscale(model, coarse(), level=850)),
        ("ambiguous", lambda: downscale(model, coarse().assign(q=coarse()["r"]))),
        ("no offset, range and coarsening", lambda: downscale(bare, coarse())),
        ("expected a HumidityGenerator", lambda: downscale(models.create("fczsm-small"), coarse())),
        ("must be another file", lambda: downscale_file(tmp_path, tmp_path, model=model)),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_humidity_beyond_what_the_network_takes_reaches_the_result():
    model = generator()
    at_end = downscale(model, changed(105.0))
    for value in (109.0, 150.0):
        with pytest.warns(UserWarning, match=f"1 of 144 values of r, .* to {value:g} %, are beyond the 0..105 % that"):
            out = downscale(model, changed(value))
        excess = (out - at_end)["r"]
        assert float(excess.max()) > 0.5 * (value - 105) and float(excess.min()) == 0
        assert excess.sum() == pytest.approx(4 * (value - 105), rel=1e-3), "the mean of the input's cell is preserved"
        assert out.attrs["fastds_cut_input_share"] == pytest.approx(1 / 144, rel=1e-2)
    assert at_end.attrs["fastds_cut_input_share"] == 0
    with pytest.warns(UserWarning, match="1 of 144 values of r"):
        below = downscale(model, changed(-3.0))
    assert np.array_equal(below["r"], downscale(model, changed(0.0))["r"])


def globe(times=3, columns=40, start=0.0):
    rng = np.random.default_rng(1)
    longitude = start + 360.0 / columns * np.arange(columns)
    fine = np.stack([rng.random((times, 6, columns)) for _ in range(3)]).mean(0)
    return xr.Dataset(
        {"r": (("time", "latitude", "longitude"), 100 * fine, {"standard_name": "relative_humidity", "units": "%"})},
        coords={
            "time": np.datetime64("2019-01-01") + np.arange(times) * np.timedelta64(3, "h"),
            "latitude": ("latitude", 30.0 - 9.0 * np.arange(6), {"units": "degrees_north"}),
            "longitude": ("longitude", longitude, {"units": "degrees_east"}),
        },
    )


def rolled(dataset, columns):
    return dataset.copy(data={"r": np.roll(dataset["r"].values, columns, -1)})


@pytest.mark.parametrize("name", ["wgan-gp-small-x2", "wgan-gp-small-x8"])
def test_a_field_round_the_globe_has_no_seam(name):
    """Rolling the input in longitude rolls the output, and differences at the seam are not larger than elsewhere."""
    model, data = models.load(name).eval(), globe()
    scale = model.config["scale"]
    plain, shifted = (downscale(model, d)["r"].values for d in (data, rolled(data, 13)))
    assert plain.shape == (3, 6 * scale, 40 * scale)
    error = np.roll(plain, 13 * scale, -1) - shifted  # 2 to 3 where nothing is wrapped; channel gates see all columns
    assert np.sqrt(np.square(error).mean()) < 0.1 and np.abs(error).max() < 1.0
    fields = downscale(model, data, members=6)["r"].values
    steps = np.abs(fields - np.roll(fields, 1, -1)).mean((0, 1, 2)).reshape(40, scale)[:, 0]  # between coarse columns
    assert abs(steps[0] - steps[1:].mean()) < 3 * steps[1:].std(), (steps[0], steps[1:].mean(), steps[1:].std())


def poles(field):
    """Return a global field with rows at both poles."""
    rows = ("latitude", 90.0 - 45.0 * np.arange(5), {"units": "degrees_north"})
    return field.isel(latitude=slice(5)).assign_coords(latitude=rows)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("kind", "expected"), [("mean", np.arange(84.375, -90, -11.25)), ("decimate", None)])
def test_no_row_beyond_the_poles(kind, expected, order):
    """Fine rows beyond the poles are omitted, because only half of a cell at a pole is on the globe."""
    model, data = generator(4, kind), poles(globe()).isel(latitude=slice(None, None, order))
    region = data.assign_coords(latitude=data.latitude * 0.5)
    out, whole = (downscale(model, field, members=2) for field in (data, region))
    expected = 90.0 - 11.25 * np.arange(17) if expected is None else expected
    np.testing.assert_allclose(out.latitude, expected[::order], atol=1e-9)
    rows = slice(None, 17) if kind == "decimate" else slice(2, 18)
    assert out.r.shape == (2, 3, len(expected), 160) and np.isfinite(out.r).all()
    np.testing.assert_allclose(out.r, whole.r[:, :, rows], atol=1e-3)


def test_a_globe_with_both_poles_is_scored(capsys):
    data = poles(globe())
    made = downscale(generator(), data, members=2)
    fastds.evaluate(made, made.isel(realization=0, drop=True), input=data).print()
    assert "bicubic" in capsys.readouterr().out


def test_noise_is_periodic_in_longitude():
    model = generator()
    model.config["noise_std"] = 5.0
    part = torch.from_numpy(globe()["r"].values / 100).float()[None, :, None]
    fine = downscale(model, globe(), members=1, seed=4)["r"].values[0]
    whole = torch.arange(-16, 56) % 40
    numbers = [step[0] for step in pipeline._make_seeds(globe()["r"], 0, 1, 4)]
    with torch.no_grad():
        y = model(part[..., whole], noise=pipeline._draw_noise(model, part, numbers)[..., whole])[0, :, 0, :, 32:-32]
    np.testing.assert_allclose(fine, model.card.denormalise(y).clamp(0, 105), atol=0.05)


def test_a_regional_field_is_not_wrapped():
    model, data = generator(), globe().isel(longitude=slice(0, 39))
    part = torch.from_numpy(data["r"].values / 100).float()[None, :, None]
    with torch.no_grad():
        expected = model.card.denormalise(model(part, noise="zero")[0, :, 0]).clamp(0, 105)
    np.testing.assert_allclose(downscale(model, data)["r"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("value", "attrs", "pressure"),
    [
        (300.0, {"units": "hPa"}, "300 hPa"),
        (85000.0, {"units": "Pa"}, "850 hPa"),
        (300, {"units": "millibars"}, "300 hPa"),
        (500.0, {"units": "hPa"}, None),
        (50000.0, {"units": "Pa"}, None),
        (12, {"units": "1"}, None),
        (12, {}, None),
    ],
)
def test_a_field_at_another_level_is_named(value, attrs, pressure):
    model = generator()
    model.card.name = "small"
    model.card.input_variables[0]["levels_hPa"] = [500.0]
    scalar = coarse().assign_coords(plev=((), value, attrs))
    levels = coarse().expand_dims({"plev": [value, value + 1]}, 1)
    levels["plev"].attrs = attrs
    for data, options in ((scalar, {}), (levels, {"level": value})):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            downscale(model, data, **options)
        found = [str(w.message) for w in seen if "pressure" in str(w.message)]
        expected = f"the pressure of {pressure} is outside the range that small was trained for, 500 hPa: expect"
        assert found == ([f"{expected} larger errors"] if pressure else [])


@pytest.mark.parametrize("name", ["wgan-gp-small-x2", "wgan-gp-small-x8"])
def test_the_shipped_weights_name_their_levels(name):
    assert models.load_card(name).input_variables[0]["levels_hPa"] == [500.0]


@pytest.mark.parametrize(("members", "total"), [(None, 2), (3, 6)])
def test_progress_counts_sequences_of_all_members(bars_of, members, total):
    """Each sequence has eight times."""
    bars, done = bars_of(pipeline)
    downscale(generator(), coarse(9), members=members, progress=True)
    assert bars == [(True, total, "downscaling", "sequences")] and len(done) == total
