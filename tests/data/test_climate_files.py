# SPDX-License-Identifier: Apache-2.0
"""Tests of files as climate models write them: units, bounds, packed rain, calendars and grids."""

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.cli import main
from fastds.data import open_dataset, save_dataset
from fastds.data.grid.variables import is_same_unit, list_fields
from fastds.data.samples.fields import choose_field
from tests.support.field_cases import region


@pytest.mark.parametrize(
    "spellings",
    [
        ("m/s", "m s-1", "m s**-1", "m.s^-1"),
        ("m2/s2", "m**2 s**-2", "m2 s-2"),
        ("degC", "Celsius", "degrees_C", "degree_Celsius", "°C"),
        ("K", "kelvin", "degrees K"),
        ("%", "percent"),
        ("1", "", "(0 - 1)", "kg kg-1", "kg/kg", "fraction"),
    ],
)
def test_unit_spellings_are_equivalent(spellings):
    assert all(is_same_unit(one, other) for one in spellings for other in spellings)


@pytest.mark.parametrize("pair", [("K", "degC"), ("g kg-1", "kg kg-1"), ("Pa", "hPa"), ("m s-1", "s m-1"), ("m", "1")])
def test_different_units_are_distinguished(pair):
    assert not is_same_unit(*pair)


def test_units_of_other_dimensions_are_distinguished_without_pint(monkeypatch):
    monkeypatch.setattr("fastds.data.grid.variables.parse_unit", None)
    for pair in (("K", "J m-2"), ("m s-1", "Pa"), ("degC", "%"), ("W m-2", "J m-2"), ("mm h-1", "kg m-2")):
        assert not is_same_unit(*pair) and not is_same_unit(*reversed(pair))


def test_joules_are_recognised_in_another_spelling():
    assert is_same_unit("W s m-2", "J m-2") and is_same_unit("N m-2", "Pa") and not is_same_unit("kJ m-2", "J m-2")


@pytest.mark.parametrize(("units", "by"), [("Celsius", 0.0), ("degrees_C", 0.0), ("kelvin", -273.15)])
def test_temperature_units_are_recognised(units, by):
    field = region()
    field["t2m"] = (field.t2m + by).assign_attrs(field.t2m.attrs | {"units": units})
    with pytest.raises(ValueError, match=f"{units}, outside the plausible"):
        fastds.downscale("bicubic", field, scale=2)


def shower(rows=20, columns=24):
    values = np.zeros((rows, columns))
    values[6:9, 5:12] = 12.0
    rain = region(values, rows, columns).rename(t2m="pr")
    rain.pr.attrs = {"units": "kg m-2 s-1", "standard_name": "precipitation_flux"}
    return rain


@pytest.mark.parametrize("method", ["bicubic", "inr-any"])
@pytest.mark.parametrize("zero", [-1e-6, 1e-6])
def test_packed_zeros_are_zero(method, zero):
    """Packed precipitation, or a difference of accumulated values, has tiny values of either sign where it is dry."""
    rain = shower()
    rain["pr"] = rain.pr.where(rain.pr > 0, zero).assign_attrs(rain.pr.attrs)
    fine = fastds.downscale(method, rain, scale=4).pr
    assert float(fine.min()) >= 0.0 and float(fine.max()) > 10.0
    assert float(fine[56:].max()) < 2e-6


@pytest.mark.parametrize(("units", "whole"), [("1", 1.0), ("%", 100.0)])
def test_fraction_is_preserved(units, whole):
    rain = shower()
    cover = (rain.pr / 12.0 * whole).assign_attrs(units=units, standard_name="cloud_area_fraction").to_dataset(name="c")
    fine = fastds.downscale("bicubic", cover, scale=4).c
    assert (float(fine.min()), float(fine.max())) == (0.0, whole)
    cover["c"] = (1.1 * cover.c).assign_attrs(cover.c.attrs)  # of what goes beyond, nothing is cut
    assert float(fastds.downscale("bicubic", cover, scale=4).c.max()) > 1.1 * whole


def test_fractional_relative_humidity_is_clipped_at_saturation():
    humid = region(np.where(np.indices((12, 15)).sum(0) % 5 < 2, 1.0, 0.02)).rename(t2m="hur")
    humid.hur.attrs = {"units": "1", "standard_name": "relative_humidity"}
    fine = fastds.downscale("bicubic", humid, scale=3).hur
    assert float(fine.min()) >= 0.0 and float(fine.max()) == 1.0


def test_bounds_variables_are_not_fields():
    field = region().expand_dims(time=3)
    edges = np.stack([field.latitude - 1, field.latitude + 1], 1)
    field = field.assign(lat_bnds=(("latitude", "bnds"), edges))
    field.latitude.attrs["bounds"] = "lat_bnds"
    assert list_fields(field) == ["t2m"] and choose_field(field).name == "t2m"


def test_units_option_ignores_bounds(tmp_path, capsys):
    field = region()
    field = field.assign(lat_bnds=(("latitude", "bnds"), np.stack([field.latitude - 1, field.latitude + 1], 1)))
    field.latitude.attrs["bounds"] = "lat_bnds"
    field["t2m"] = (field.t2m - 273.15).assign_attrs(field.t2m.attrs)
    save_dataset(field, tmp_path / "t.nc")
    command = ["downscale", str(tmp_path / "t.nc"), str(tmp_path / "o.nc"), "--scale=2", "--model=bicubic"]
    assert main(command) == 2 and "outside the plausible 150 to 350 K" in capsys.readouterr().err
    assert main([*command, "--units=degC"]) == 0


def test_several_fields_error_names_the_option():
    with pytest.raises(ValueError, match="name one of a, b with the argument var"):
        choose_field(xr.Dataset({name: region().t2m.expand_dims(time=2) for name in "ab"}))


def test_axis_names_are_case_insensitive():
    plain = region().drop_attrs()
    fine = fastds.downscale("bicubic", plain.rename(latitude="LAT", longitude="LON"), scale=2)
    np.testing.assert_array_equal(fine.t2m, fastds.downscale("bicubic", plain, scale=2).t2m)


def curved(field):
    return (
        field.drop_vars(field.coords)
        .rename(latitude="y", longitude="x")
        .assign_coords(
            lat=(("y", "x"), np.add.outer(field.latitude.values, 0.1 * field.longitude.values), field.latitude.attrs)
        )
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.isel(latitude=[3]), "latitude has a single value, and a field has two rows"),
        (lambda d: d.isel(longitude=3), "longitude has a single value"),
        (
            curved,
            r"no regular or Gaussian latitude-longitude grid \(it has lat over y and x\), bring them onto one first",
        ),
        (
            lambda d: d.assign_coords(latitude=d.latitude + 0.05 * np.sin(np.arange(12))),
            r"equally spaced, steps vary from .*; the fields are on no regular .* bring them onto one first",
        ),
        (
            lambda d: d.assign_coords(longitude=(d.longitude - 110) % 360).sortby("longitude"),
            r"is contiguous as \(longitude \+ 180\) % 360 - 180, sorted",
        ),
        (
            lambda d: d.assign_coords(longitude=(d.longitude + 250) % 360 - 180).sortby("longitude"),
            "is contiguous as longitude % 360, sorted",
        ),
        (
            lambda d: d.assign_coords(longitude=(d.longitude - 110) % 360).sortby("longitude", ascending=False),
            r"longitude has a gap from .* contiguous as \(longitude \+ 180\) % 360 - 180, sorted",
        ),
    ],
)
def test_unsuitable_grid_error_suggests_a_remedy(change, message):
    field = region()
    field = change(field.assign_coords({n: field[n].assign_attrs(standard_name=n) for n in field.coords}))
    with pytest.raises(ValueError, match=message):
        fastds.downscale("bicubic", field, scale=2)


def waves(latitude, longitude):
    return 280 + 5 * np.cos(np.radians(3 * latitude))[:, None] * np.cos(np.radians(4 * longitude))


def gaussian(rows, part=slice(None)):
    """Return a global Gaussian grid, or some of its rows."""
    latitude = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(rows)[0]))[::-1][part]
    longitude = np.arange(2 * rows) * 180 / rows
    coordinates = {
        "lat": ("lat", latitude, {"units": "degrees_north"}),
        "lon": ("lon", longitude, {"units": "degrees_east"}),
    }
    field = ("lat", "lon"), waves(latitude, longitude), {"units": "K", "standard_name": "air_temperature"}
    return xr.Dataset({"tas": field}, coordinates)


@pytest.mark.parametrize("model", ["bicubic", "inr-any"])
def test_a_gaussian_grid(model):
    """A result on a Gaussian grid is as accurate as on an evenly spaced grid."""
    given = gaussian(48)
    fine = fastds.downscale(model, given, scale=2)
    assert fine.sizes == {"lat": 96, "lon": 192} and fine.attrs["fastds_scale"] == 2
    assert float(fine.lat[0]) == pytest.approx(float(given.lat[0] - (given.lat[1] - given.lat[0]) / 4))
    np.testing.assert_allclose(fine.lat.values.reshape(48, 2).mean(1)[1:-1], given.lat[1:-1], atol=3e-3)
    np.testing.assert_allclose(fine.tas[4:-4], waves(fine.lat.values, fine.lon.values)[4:-4], atol=0.08)
    mirrored = fastds.downscale(model, gaussian(48, slice(None, None, -1)), scale=2)
    np.testing.assert_array_equal(mirrored.tas[::-1], fine.tas)
    even = fastds.downscale(model, given, grid=3.0)
    np.testing.assert_allclose(even.lat.diff("lat"), -3.0)
    np.testing.assert_allclose(even.tas[4:-4], waves(even.lat.values, even.lon.values)[4:-4], atol=0.08)
    like = fastds.downscale(model, given, like=gaussian(96))
    np.testing.assert_array_equal(like.lat, gaussian(96).lat)
    scores = fastds.evaluate(like, gaussian(96), input=given).rows["tas"]
    assert model != "bicubic" or scores["bicubic (PRED)"] == scores["bicubic"]
    assert scores["bicubic"]["rmse"] < 0.02


def test_stations_near_the_poles_of_a_gaussian_grid():
    places = [(89.9, 10.0), (-89.5, 3.0), (2.0, 359.9)]
    rows = fastds.query("inr-any", gaussian(48), places)
    truth = [float(waves(np.array([a]), np.array([o]))[0, 0]) for a, o in places]
    assert [row["tas"] for row in rows] == pytest.approx(truth, abs=1.0) and abs(rows[2]["tas"] - truth[2]) < 0.06
    with pytest.raises(ValueError, match="outside the domain"):
        fastds.query("inr-any", gaussian(48, slice(10, 30)), [(85.0, 3.0)])


@pytest.fixture
def months(tmp_path):
    """Return a function that writes a file with times in "months since" in a calendar."""

    def write(calendar):
        field = region().expand_dims(time=3).assign_coords(time=("time", np.arange(3)))
        field.time.attrs = {"units": "months since 2000-01-01", "standard_name": "time"}
        field.time.attrs |= {"calendar": calendar} if calendar else {}
        save_dataset(field, tmp_path / "m.nc")
        return str(tmp_path / "m.nc")

    return write


def test_months_of_thirty_days_are_written(months, tmp_path, capsys):
    output = str(tmp_path / "o.nc")
    assert main(["downscale", months("360_day"), output, "--scale=2", "--model=bicubic"]) == 0
    with open_dataset(output) as fine, open_dataset(str(tmp_path / "m.nc")) as given:
        assert list(fine.time.values) == list(given.time.values) and fine.time.values[1].month == 2
    assert main(["check", output]) == 0 and "monthly" in capsys.readouterr().out


def test_months_of_other_calendars_error_suggests_a_remedy(months):
    with pytest.raises(ValueError, match=r"'the default calendar'\); give them units such as days since") as caught:
        open_dataset(months(""))
    assert "decode_times" not in str(caught.value)


def test_non_date_times_have_no_interval(tmp_path, capsys):
    save_dataset(region().expand_dims(time=3).assign_coords(time=[200001.0, 200002.0, 200003.0]), tmp_path / "t.nc")
    assert main(["check", str(tmp_path / "t.nc")]) == 0
    assert "200001.0 to 200003.0, which are no dates\n" in capsys.readouterr().out


def test_ensemble_dimension_is_named_in_the_error():
    members = region().expand_dims(member=["r1", "r2"])
    with pytest.raises(ValueError, match="has no dimension member, .* must have the name realization"):
        fastds.evaluate(members, region())


@pytest.fixture
def humid():
    """Return relative humidity in the layout of the Climate Data Store: valid_time, one level, expver."""
    values = 50 + 40 * np.sin(np.add.outer(np.arange(4), np.add.outer(np.arange(12) ** 1.5, 0.7 * np.arange(15))))
    field = xr.concat([region(v) for v in values], "valid_time").rename(t2m="r")
    field.r.attrs = {"units": "%", "standard_name": "relative_humidity"}
    times = np.datetime64("2016-01-01", "ns") + np.arange(4) * np.timedelta64(6, "h")
    field = field.expand_dims(pressure_level=[500.0], axis=1)
    field.pressure_level.attrs["units"] = "hPa"
    return field.assign_coords(valid_time=times, expver=("valid_time", ["0001"] * 4))


def test_times_by_another_name(humid, tmp_path, capsys):
    """The time coordinate keeps its name in the output of the commands."""
    (tmp_path / "in").mkdir()
    for k in range(2):
        save_dataset(humid.isel(valid_time=slice(2 * k, 2 * k + 2)), tmp_path / "in" / f"{k}.nc")
    save_dataset(humid, tmp_path / "h.nc")
    output = str(tmp_path / "o.nc")
    for source in ("h.nc", "in"):
        for options in (["--scale=2", "--model=bicubic"], ["--model=wgan-gp-small-x2", "--members=2"]):
            assert main(["downscale", str(tmp_path / source), output, "--start=2016-01-01T06:00", *options]) == 0
            with open_dataset(output) as fine:
                assert fine.r.sizes["valid_time"] == 3 and "time" not in fine.variables
                np.testing.assert_array_equal(fine.valid_time, humid.valid_time[1:])
                assert fine.expver.dims == ("valid_time",) and (fine.expver == "0001").all()
    capsys.readouterr()
    assert main(["check", str(tmp_path / "h.nc")]) == 0
    printed = capsys.readouterr().out
    assert "times      4, 2016-01-01T00:00:00 to 2016-01-01T18:00:00, every 360 min" in printed
    assert "can        downscale --model wgan-gp-small-x2: r at 2 times" in printed


@pytest.mark.parametrize("members", [None, 2])
def test_humidity_in_any_order_of_axes(humid, members):
    def made(field):
        return fastds.downscale("wgan-gp-small-x2", field, members=members).r

    expected, flipped = made(humid), humid.isel(latitude=slice(None, None, -1), longitude=slice(None, None, -1))
    xr.testing.assert_equal(made(flipped).sortby("latitude").sortby("longitude"), expected)
    other = made(humid.transpose("longitude", "latitude", ...))
    assert other.dims == expected.dims and other.equals(expected)


def test_mismatch_error_names_both_grids():
    with pytest.raises(ValueError, match="^like: expected one latitude coordinate .* lat over y and x"):
        fastds.downscale("bicubic", region(), like=curved(region()))


def test_duplicate_meridian_is_reported(recwarn):
    """Plotting programs add the first meridian again at the end, which makes the result wider than the globe."""
    globe = region(250.0 + np.zeros((12, 181)), columns=181).assign_coords(longitude=np.arange(-180.0, 181.0, 2.0))
    globe.longitude.attrs["units"] = "degrees_east"
    assert fastds.downscale("bicubic", globe.isel(longitude=slice(0, -1)), scale=2).sizes["longitude"] == 360
    assert not recwarn
    with pytest.warns(UserWarning, match="the meridian -180 is there twice, .*; leave out the last column"):
        fastds.downscale("bicubic", globe, scale=2)
