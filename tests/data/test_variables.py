# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import xarray as xr

from fastds.data import rate_to_reflectivity, reflectivity_to_rate, synthetic_event, to_reflectivity
from fastds.data.grid.variables import classify_rain, is_dbz, parse_interval, parse_rain_units


@pytest.fixture
def event():
    return synthetic_event(1, frames=3, shape=(32, 40)).drop_vars(["eastward_wind", "northward_wind"])


def with_units(event, units, standard_name="rainfall_rate", name="rain", value=10.0, **attrs):
    """Replace the reflectivity of an event by rain that is `value` where there is echo and 0 elsewhere."""
    rain = event["reflectivity"].copy(data=np.where(event["reflectivity"] > -32, np.float32(value), np.float32(0.0)))
    rain.attrs = {"standard_name": standard_name, **({} if units is None else {"units": units}), **attrs}
    return event.drop_vars("reflectivity").assign({name: rain})


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("mm h-1", (1.0, 3600.0)),
        ("mm/h", (1.0, 3600.0)),
        ("mm hr^-1", (1.0, 3600.0)),
        ("kg m-2 s-1", (1.0, 1.0)),
        ("kg/m2/s", (1.0, 1.0)),
        ("kg m**-2 s**-1", (1.0, 1.0)),
        ("kg.m-2.s-1", (1.0, 1.0)),
        ("m s-1", (1000.0, 1.0)),
        ("mm/day", (1.0, 86400.0)),
        ("mm/5min", (1.0, 300.0)),
        ("mm / 15 min", (1.0, 900.0)),
        ("mm (10 min)-1", (1.0, 600.0)),
        ("kg m-2 (5 min)-1", (1.0, 300.0)),
        ("mm 5min", None),
        ("kg m-2", (1.0, None)),
        ("mm", (1.0, None)),
        ("m", (1000.0, None)),
        ("K", None),
        ("m2 s-2", None),
        ("mm h", None),
        ("mm h-1 s-1", None),
        ("kg m-3", None),
        ("%", None),
        ("", None),
        (None, None),
    ],
)
def test_rain_units(units, expected):
    assert parse_rain_units(units) == expected


def test_dbz_and_intervals():
    assert is_dbz("dBZ") and is_dbz("DBZ ") and not is_dbz("dB") and not is_dbz(None)
    assert parse_interval("5 min") == 300.0 and parse_interval("1 hour") == 3600.0
    assert parse_interval("often") is None and parse_interval("5 parsecs") is None


def test_reflectivity_by_standard_name_and_units_is_named(event):
    source = to_reflectivity(event.rename(reflectivity="abc"))
    assert source.kind == "reflectivity" and source.source_name == "abc" and source.z_r is None
    assert "variable abc was chosen: the only one whose standard_name and units (dBZ)" in source.notes[0]
    np.testing.assert_array_equal(source.field, event["reflectivity"])
    assert source.field.dims == ("time", "y", "x") and source.field.dtype == np.float32


def test_reflectivity_by_name_without_a_standard_name(event):
    del event["reflectivity"].attrs["standard_name"]
    source = to_reflectivity(event.rename(reflectivity="DBZH"))
    assert source.source_name == "DBZH" and "name and units" in source.notes[0]


def test_reflectivity_wins_over_rain_in_the_same_file(data_dir):
    from fastds.data import open_dataset

    with open_dataset(data_dir / "radar_knmi_20100826_5min.nc") as dataset:
        assert to_reflectivity(dataset).source_name == "reflectivity"


def test_several_candidates_are_listed(event):
    two = event.assign(other=event["reflectivity"])
    with pytest.raises(ValueError, match=r"2 variables hold reflectivity: reflectivity \(time, y, x\) \[dBZ\], other"):
        to_reflectivity(two)
    assert to_reflectivity(two, "other").source_name == "other"


def test_unknown_name_lists_the_candidates(event):
    with pytest.raises(
        ValueError, match=r"no variable 'dbz' in the file; candidates: reflectivity \(time, y, x\) \[dBZ\]"
    ):
        to_reflectivity(event, "dbz")


def test_missing_reflectivity_error_explains_rain_input(event):
    rain = with_units(event, "mm h-1").assign(t=event.reflectivity.assign_attrs(units="K", standard_name="t"))
    with pytest.raises(
        ValueError, match=r"no variable of reflectivity was found; candidates: rain .*\[mm h-1\].*; rain is conv"
    ):
        to_reflectivity(rain)
    assert to_reflectivity(rain, "rain").kind == "rate"
    assert to_reflectivity(rain, z_r=(200.0, 1.6)).kind == "rate"


def test_single_rain_field_is_converted_with_a_note(event):
    rain = with_units(event, "mm h-1")
    source = to_reflectivity(rain.assign(quality=0.5 + 0 * rain.rain.assign_attrs(units="1")))
    assert source.kind == "rate" and source.z_r == (200.0, 1.6)
    assert "rain (mm h-1) is converted by Z = 200 R^1.6 (the default)" in source.notes


def test_a_file_without_fields(event):
    with pytest.raises(ValueError, match=r"the file holds no field over \(time, y, x\)"):
        to_reflectivity(event[["crs"]])


@pytest.mark.parametrize("units", ["K", "dB", "1", None])
@pytest.mark.parametrize("var", [None, "reflectivity"])
def test_wrong_units_are_refused_by_name(event, units, var):
    if units is None:
        del event["reflectivity"].attrs["units"]
    else:
        event["reflectivity"].attrs["units"] = units
    message = "has no units" if units is None else f"has units '{units}'"
    with pytest.raises(ValueError, match=f"variable reflectivity {message}; expected dBZ, a rain rate such as mm h-1"):
        to_reflectivity(event, var)


def test_coordinates_are_not_fields(event):
    with pytest.raises(ValueError, match=r"variable x \(x\) is no field of numbers"):
        to_reflectivity(event, "x")


@pytest.mark.parametrize(
    ("units", "factor"),
    [
        ("mm h-1", 1.0),
        ("kg m-2 s-1", 3600.0),
        ("m s-1", 3.6e6),
        ("mm day-1", 1.0 / 24.0),
        ("mm min-1", 60.0),
        ("mm/5min", 12.0),
    ],
)
def test_rates_become_reflectivity(event, units, factor):
    mm_per_hour = 10.0
    source = to_reflectivity(with_units(event, units, value=mm_per_hour / factor), "rain")
    z = source.frames(slice(None))
    wet = event["reflectivity"].values > -32
    np.testing.assert_allclose(z[wet], 10 * np.log10(200 * mm_per_hour**1.6), rtol=1e-5)
    assert np.all(z[~wet] == source.no_echo)
    assert source.z_r == (200.0, 1.6) and source.z_r_origin == "the default"
    assert any("is converted by Z = 200 R^1.6 (the default)" in note for note in source.notes)


def test_z_r_of_the_file_and_of_the_caller(event):
    rain = with_units(event, "mm h-1").assign_attrs(zr_a=223.0, zr_b=1.53)
    assert to_reflectivity(rain, "rain").z_r == (223.0, 1.53)
    assert to_reflectivity(rain, "rain", z_r=(316, 1.5)).z_r == (316.0, 1.5)
    assert to_reflectivity(rain, "rain", z_r=(316, 1.5)).z_r_origin == "given"
    for bad in ((200.0,), (0.0, 1.6), (float("nan"), 1.6)):
        with pytest.raises(ValueError, match="z_r must be two positive numbers"):
            to_reflectivity(rain, "rain", z_r=bad)


def test_opera_rates_agree_with_the_reflectivity_in_the_file(data_dir):
    from fastds.data import open_dataset

    with open_dataset(data_dir / "radar_opera_20180824_15min.nc") as dataset:
        frames = to_reflectivity(dataset, "rainfall_rate").frames(slice(0, 2))
        truth = to_reflectivity(dataset).frames(slice(0, 2))
    wet = truth > -30
    assert np.abs(frames - truth)[wet].max() <= 0.26  # the file's reflectivity is rounded to 0.5 dBZ


def test_z_r_conversions_are_inverse():
    rate = np.array([0.0, 0.1, 1.0, 50.0, np.nan], dtype=np.float32)
    z = rate_to_reflectivity(rate)
    np.testing.assert_allclose(z[1:4], 23.0103 + 16 * np.log10(rate[1:4]), rtol=1e-5)
    assert z[0] == -32.0 and np.isnan(z[4])
    np.testing.assert_allclose(reflectivity_to_rate(z), rate, rtol=1e-4)
    assert rate_to_reflectivity(np.float32(-1.0)) == -32.0 and rate_to_reflectivity(np.float32(1e-9)) == -32.0


@pytest.mark.parametrize("name", ["no_echo_value", "undetect", "_Undetect"])
def test_no_echo_flag_value_is_replaced(event, name):
    z = event["reflectivity"]
    del z.attrs["no_echo_value"]
    flagged = event.assign(reflectivity=z.where(z > -32, -8888000.0).assign_attrs(z.attrs | {name: -8888000.0}))
    source = to_reflectivity(flagged)
    assert source.no_echo == -32.0
    np.testing.assert_array_equal(source.frames(slice(None)), z)


def test_no_echo_value_of_the_product_is_preserved(event):
    z = event["reflectivity"]
    source = to_reflectivity(
        event.assign(reflectivity=z.where(z > -32, -19.5).assign_attrs(z.attrs | {"no_echo_value": -19.5}))
    )
    assert source.no_echo == -19.5 and source.frames(0).min() == -19.5


def test_flag_values_with_meanings(event):
    values = event["reflectivity"].values.copy()
    values[0, 0, 0], values[0, 0, 1] = -100.0, -200.0
    event["reflectivity"].values = values
    event["reflectivity"].attrs |= {"flag_values": [-100.0, -200.0], "flag_meanings": "no_echo no_data"}
    frame = to_reflectivity(event).frames(0)
    assert frame[0, 0] == -32.0 and np.isnan(frame[0, 1])


def test_infinities(event):
    event["reflectivity"][0, 0, :2] = [-np.inf, np.inf]
    frame = to_reflectivity(event).frames(0)
    assert frame[0, 0] == -32.0 and np.isnan(frame[0, 1])


def test_missing_values_stay_missing(event):
    event["reflectivity"][1, 4:9, 5] = np.nan
    frames = to_reflectivity(event).frames(slice(None))
    assert np.isnan(frames).sum() == 5 and np.isnan(frames[1, 4:9, 5]).all()
    rain = with_units(event, "mm h-1")
    rain["rain"][1, 4:9, 5] = np.nan
    assert np.isnan(to_reflectivity(rain, "rain").frames(1)[4:9, 5]).all()


def test_other_orders_and_names_of_dimensions(event):
    transposed = event.transpose("x", "time", "y").rename(x="lon", y="lat", time="valid_time")
    source = to_reflectivity(transposed)
    assert source.dims == ("valid_time", "lat", "lon") and source.shape == (3, 32, 40)


def test_dimensions_without_coordinates_or_known_names(event):
    source = to_reflectivity(event.drop_vars(["x", "y"]).rename(x="dim_b", y="dim_a"))
    assert source.dims == ("time", "dim_a", "dim_b")


def test_singleton_dimension_is_dropped_with_a_warning(event):
    source = to_reflectivity(event.assign(reflectivity=event["reflectivity"].expand_dims(level=[2000.0], axis=1)))
    assert source.shape == (3, 32, 40) and "dimension level of length 1 was dropped" in source.notes
    assert float(source.raw["level"]) == 2000.0


def test_a_long_extra_dimension_is_refused_by_name(event):
    stacked = event.assign(reflectivity=event["reflectivity"].expand_dims(level=[1.0, 2.0]))
    with pytest.raises(
        ValueError, match=r"has the dimension level of length 2 in addition to \(time, y, x\); select one"
    ):
        to_reflectivity(stacked)


def test_no_time_dimension(event):
    with pytest.raises(ValueError, match=r"variable reflectivity .* has no time dimension; expected \(time, y, x\)"):
        to_reflectivity(event.isel(time=0))


@pytest.mark.parametrize("dim", ["x", "y"])
def test_unsorted_grid_is_refused_by_name(event, dim):
    order = np.arange(event.sizes[dim])
    order[[3, 4]] = order[[4, 3]]
    with pytest.raises(ValueError, match=f"coordinate {dim} is neither ascending nor descending; sort it first"):
        to_reflectivity(event.isel({dim: order}))


def test_non_finite_grid_is_refused_by_name(event):
    with pytest.raises(ValueError, match="coordinate x must be finite numbers"):
        to_reflectivity(event.assign_coords(x=event["x"].where(event["x"] > 0)))


@pytest.mark.parametrize("dim", ["x", "y"])
def test_ascending_and_descending_axes(event, dim):
    flipped = event.isel({dim: slice(None, None, -1)})
    np.testing.assert_array_equal(to_reflectivity(flipped).field, flipped["reflectivity"])


def test_frames_are_read_one_at_a_time(event, tmp_path):
    from fastds.data import open_dataset, save_dataset

    with open_dataset(save_dataset(event, tmp_path / "event.nc")) as dataset:
        source = to_reflectivity(dataset)
        np.testing.assert_array_equal(source.frames(1), event["reflectivity"][1])
        np.testing.assert_array_equal(source.frames([0, 2]), event["reflectivity"][[0, 2]])
        assert not source.raw.variable._in_memory


def test_flags_in_the_packed_numbers_of_the_file(event, tmp_path):
    from fastds.data import open_dataset, save_dataset

    z = event["reflectivity"]
    values = np.where(z.values > -32, np.round(z.values * 2) / 2, -32.0)
    values[0, 0, :2] = -31.5  # code 1: not observed, by its meaning
    attrs = {k: v for k, v in z.attrs.items() if k != "no_echo_value"}
    packed = event.assign(reflectivity=z.copy(data=values).assign_attrs(attrs))
    flags = {"_Undetect": np.uint8(0), "flag_values": np.uint8([1]), "flag_meanings": "not_observed"}
    packed["reflectivity"].attrs |= flags
    packed["reflectivity"].encoding = {"dtype": "uint8", "scale_factor": 0.5, "add_offset": -32.0, "_FillValue": 255}
    with open_dataset(save_dataset(packed, tmp_path / "packed.nc")) as dataset:
        source = to_reflectivity(dataset)
        assert source.no_echo == -32.0
        assert np.isnan(source.frames(0)[0, :2]).all() and np.isfinite(source.frames(0)[1:]).all()


def test_attributes_that_are_no_numbers(event):
    event["reflectivity"].attrs["no_echo_value"] = "-32 dBZ"
    with pytest.raises(ValueError, match="attribute no_echo_value of reflectivity must hold numbers, got '-32 dBZ'"):
        to_reflectivity(event)
    event["reflectivity"].attrs["no_echo_value"] = np.array([-32.0])
    assert to_reflectivity(event).no_echo == -32.0
    with pytest.raises(ValueError, match="z_r must be two positive numbers .* got .*from the file's attributes"):
        to_reflectivity(with_units(event, "mm h-1").assign_attrs(zr_a="high", zr_b=1.6), "rain")


@pytest.mark.parametrize("size", [0, 1])
def test_a_grid_of_one_row_is_refused_before_anything_is_computed(event, size):
    with pytest.raises(ValueError, match=f"variable reflectivity has the length {size} along y; expected 2 or more"):
        to_reflectivity(event.isel(y=slice(0, size)))


def test_named_rain_rate_may_have_any_standard_name(event):
    for name, standard in (("RATE1", "x"), ("dbzh", "equivalent_reflectivity_factor")):
        rain = with_units(event, "mm/h", standard_name=standard, name=name)
        with pytest.raises(ValueError, match="no variable of refl|name it with the argument var"):
            to_reflectivity(rain)
        assert to_reflectivity(rain, name).kind == "rate"
    for units in ("m", "m s-1"):
        with pytest.raises(ValueError, match=f"variable u has units '{units}'; expected dBZ"):
            to_reflectivity(with_units(event, units, standard_name="x", name="u"), "u")


def test_the_only_field_in_dbz_is_taken(event):
    del event["reflectivity"].attrs["standard_name"]
    assert to_reflectivity(event.rename(reflectivity="paramId_0")).source_name == "paramId_0"


def test_an_uneven_grid_is_refused_with_its_spacings(event):
    uneven = event.assign_coords(x=("x", np.cumsum(np.linspace(600.0, 6000.0, event.sizes["x"])), event.x.attrs))
    with pytest.raises(ValueError, match="x is unevenly spaced, by 738.462 to 6000 m, 3369.23 in the median"):
        to_reflectivity(uneven)
    rounded = event.assign_coords(x=("x", 1000.0 * np.arange(40) + np.tile([0.0, 20.0], 20), event.x.attrs))
    to_reflectivity(rounded)
    mercator = np.rad2deg(np.arcsin(np.tanh(np.linspace(0.7, 1.4, 32))))
    attrs = {"standard_name": "latitude", "units": "degrees_north"}
    to_reflectivity(event.rename(y="lat").assign_coords(lat=("lat", mercator, attrs)))


@pytest.mark.parametrize(
    ("name", "units", "kind"),
    [
        ("terrain", "m", None), ("drainage", "mm", None), ("strain_rate", "mm h-1", None), ("error", "mm", None),
        ("httpd", "mm", None), ("convective_rain", "mm", "amount"), ("RR", "mm h-1", "rate"), ("tp", "m", "amount"),
        ("rainfall", "mm h-1", "rate"), ("surfrain", "mm", "amount"), ("rr24", "mm", "amount"),
    ],
)  # fmt: skip
def test_rain_is_matched_as_a_whole_word(name, units, kind):
    variable = xr.DataArray(np.zeros((2, 2), "f4"), name=name, attrs={"units": units})
    assert classify_rain(variable) == kind
