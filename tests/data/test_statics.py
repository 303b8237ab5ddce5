# SPDX-License-Identifier: Apache-2.0
"""Tests of static maps: selection of variables, regridding and error messages."""

import numpy as np
import pytest
import xarray as xr

from fastds.data import open_dataset, save_dataset, static_maps

Y, X = {"standard_name": "projection_y_coordinate", "units": "m"}, {"standard_name": "projection_x_coordinate"}
LAT, LON = {"units": "degrees_north"}, {"units": "degrees_east"}


def on_angles(lat, lon, function, name="z", **attrs):
    """Return function(latitude, longitude) as a map."""
    lat, lon = np.asarray(lat, float), np.asarray(lon, float)
    data = {name: (("latitude", "longitude"), function(lat[:, None], lon[None]).astype("float32"), attrs)}
    return xr.Dataset(data, {"latitude": ("latitude", lat, LAT), "longitude": ("longitude", lon, LON)})


def field_of(dataset):
    return dataset["z"].expand_dims(time=2)


def maps(source, onto, **options):
    return static_maps(source, field_of(onto), onto, **options).values[0]


def ramp(lat, lon):
    return 3.0 * lat + 0.5 * np.cos(np.deg2rad(lon))


def test_statics_on_the_same_grid_are_unchanged():
    here = on_angles(np.arange(50, 40, -0.5), np.arange(5, 15, 0.5), lambda a, b: np.sin(99 * a + b))
    np.testing.assert_array_equal(maps(here, here), here.z)
    transposed = here.transpose("longitude", "latitude")
    np.testing.assert_array_equal(maps(transposed, here), here.z)


@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("west", [-180.0, 0.0])
def test_a_coarse_map_is_interpolated_and_a_fine_one_averaged(ascending, west):
    onto = on_angles(np.arange(60.5, 50, -1.0), np.arange(-9.5, 10, 1.0), ramp)
    for step in (2.0, 0.25):
        lat = np.arange(-90, 90 + step / 2, step)[:: 1 if ascending else -1]
        world = on_angles(lat, np.arange(west, west + 360, step), ramp)
        np.testing.assert_allclose(maps(world, onto), onto.z, atol=2e-3)
    checker = on_angles(
        np.arange(70, 40, -0.125) - 0.0625, np.arange(-20, 20, 0.125) + 0.0625,
        lambda a, b: np.sign(np.sin(8 * np.pi * a)) * np.sign(np.sin(8 * np.pi * b)),
    )  # fmt: skip
    assert np.abs(checker.z).min() == 1 and np.abs(maps(checker, onto)).max() < 0.01  # its means, not its points


def test_statics_sampling_matches_the_finer_cells():
    onto = on_angles(np.arange(1.75, -2, -0.25), np.arange(0, 4, 0.25), lambda a, b: 0 * (a + b))
    world = on_angles(np.arange(-3, 3, 1 / 7), np.arange(-1, 5, 1 / 7), lambda a, b: a**2 + 0 * b)
    assert np.abs(maps(world, onto) - onto.latitude.values[:, None] ** 2).min() > 0.003  # (1/16)^2


def projected(mapping=True, units="m"):
    """Return a polar stereographic grid around the North Sea."""
    y, x = -4.3e6 + 2e3 * np.arange(20), -1e5 + 2e3 * np.arange(30)
    crs = {
        "grid_mapping_name": "polar_stereographic", "latitude_of_projection_origin": 90.0, "standard_parallel": 60.0,
        "straight_vertical_longitude_from_pole": 10.0, "false_easting": 0.0, "false_northing": 0.0,
        "earth_radius": 6370040.0,
    }  # fmt: skip
    z = xr.Variable(("y", "x"), np.zeros((20, 30), np.float32), {"grid_mapping": "crs"} if mapping else {})
    coords = {"y": ("y", y, Y | {"units": units}), "x": ("x", x, X | {"units": units})}
    return xr.Dataset({"z": z} | ({"crs": ((), 0, crs)} if mapping else {}), coords)


def test_a_projected_field_reads_a_map_over_latitudes_and_longitudes():
    pytest.importorskip("pyproj")
    onto = projected()
    lat = maps(on_angles(np.arange(45, 56, 0.1), np.arange(0, 20, 0.1), lambda a, b: a + 0 * b), onto)
    lon = maps(on_angles(np.arange(45, 56, 0.1), np.arange(0, 20, 0.1), lambda a, b: b + 0 * a), onto)
    radius, x, y = 6370.04 * (1 + np.sin(np.deg2rad(60))), onto.x.values / 1e3, onto.y.values[:, None] / 1e3
    np.testing.assert_allclose(lat, 90 - 2 * np.rad2deg(np.arctan(np.hypot(x, y) / radius)), atol=1e-4)
    np.testing.assert_allclose(lon, 10 + np.rad2deg(np.arctan2(x, -y)), atol=1e-4)
    degrees = {"lat": (("y", "x"), lat.astype(float), LAT), "lon": (("y", "x"), lon.astype(float), LON)}
    there = projected(mapping=False).assign_coords(degrees)
    world = on_angles(np.arange(45, 56, 0.1), np.arange(0, 20, 0.1), ramp)
    np.testing.assert_allclose(maps(world, there), ramp(lat, lon), atol=1e-3)


def test_projected_maps_need_the_same_projection():
    onto = projected()
    fine = onto.interp(y=np.arange(-4.302e6, -4.26e6, 500), x=np.arange(-1.02e5, -4e4, 500), kwargs=EXTRAPOLATED)
    fine = fine.assign(z=fine.z * 0 + fine.x.astype("float32")).assign_coords(
        y=fine.y.assign_attrs(onto.y.attrs), x=fine.x.assign_attrs(onto.x.attrs)
    )
    fine.z.attrs["grid_mapping"] = "crs"
    np.testing.assert_allclose(maps(fine, onto), np.broadcast_to(onto.x, onto.z.shape), atol=1.0)
    fine.crs.attrs["straight_vertical_longitude_from_pole"] = 0.0
    with pytest.raises(ValueError, match="another projection than the field: .*straight_vertical_longitude_from_pole"):
        maps(fine, onto)
    fine.x.attrs["units"] = "km"
    with pytest.raises(ValueError, match="does not have in the same units"):
        maps(fine, onto)


EXTRAPOLATED = {"fill_value": "extrapolate"}


def test_statics_follow_the_order_of_the_model_card(tmp_path):
    grid = np.arange(50, 40, -0.5), np.arange(5, 15, 0.5)
    relief = on_angles(*grid, lambda a, b: a + b, "orog", units="m", standard_name="surface_altitude")
    both = relief.merge(on_angles(*grid, lambda a, b: 0 * a + (b > 10), "lsm", units="(0 - 1)"))
    save_dataset(both, tmp_path / "both.nc"), save_dataset(relief, tmp_path / "12:00.nc")
    onto = on_angles(*grid, ramp)
    expected = [
        {"name": "lsm", "units": "1"}, {"name": "height", "standard_name": "surface_altitude", "units": "m"},
    ]  # fmt: skip
    for sources in ([f"{tmp_path}/both.nc"], [f"{tmp_path}/both.nc:orog", f"{tmp_path}/both.nc:lsm"], both):
        found = static_maps(sources, field_of(onto), onto, expected)
        assert [v["name"] for v in found.variables] == ["lsm", "orog"] and found.values.shape == (2, 20, 20)
    assert found.origin == "static maps: lsm, orog" and found.values.dtype == np.float32
    assert static_maps(f"{tmp_path}/12:00.nc", field_of(onto), onto).origin == "static maps: orog of 12:00.nc"


@pytest.mark.parametrize(
    "change,card_statics,message",
    [
        (lambda d: d.assign(z=d.z.where(d.z > d.z.min())), None, "z has 1 missing values on the grid"),
        (lambda d: d.isel(latitude=slice(5, None)), None, "z does not cover the field: its latitude goes from 40.5 to"),
        (lambda d: d.expand_dims(time=3), None, "no map over .y, x. was found, which holds z"),
        (lambda d: d.drop_vars("latitude"), None, "no coordinate along latitude and is not on the grid of the field"),
        (lambda d: d, [{"name": "z", "units": "m"}, {"name": "lsm"}], "reads 2 static maps, .*; 1 were given: z"),
        (lambda d: d, [{"name": "z", "units": "m"}], "z is in 'm2 s-2', the model was trained with z in 'm'"),
        (lambda d: d, [{"name": "lsm"}], "no lsm over .y, x. was found, which holds z"),
    ],
)
def test_statics_reject_unsuitable_fields(change, card_statics, message):
    grid = np.arange(50, 40, -0.5), np.arange(5, 15, 0.5)
    onto = on_angles(*grid, ramp, units="m2 s-2")
    with pytest.raises(ValueError, match=message):
        static_maps(change(onto), field_of(onto), onto, card_statics)


def test_missing_files_and_variables_are_named(tmp_path):
    onto = on_angles(np.arange(50, 40, -0.5), np.arange(5, 15, 0.5), ramp)
    save_dataset(onto, tmp_path / "a.nc")
    with pytest.raises(ValueError, match="no variable 'height' in .*a.nc, which has z"):
        static_maps([f"{tmp_path}/a.nc:height"], field_of(onto), onto)
    with pytest.raises(FileNotFoundError, match="no such file: .*b.nc"):
        static_maps([f"{tmp_path}/b.nc"], field_of(onto), onto)


def test_real_orography_on_a_real_radar_grid(data_dir):
    pytest.importorskip("pyproj")
    with open_dataset(data_dir / "radar_mch_20160711_5min.nc") as radar:
        found = static_maps([f"{data_dir}/era5_static_025deg_global.nc"], radar.reflectivity, radar)
    assert [v["name"] for v in found.variables] == ["z", "lsm"]
    height = found.values[0] / 9.80665
    assert 1500 < height.max() < 3500 and height.min() > -50 and found.values[1].max() == 1
