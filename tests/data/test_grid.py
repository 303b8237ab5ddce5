# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import xarray as xr

from fastds.data import coarsen_grid, grid_spacing_m, refine_grid, synthetic_event, to_reflectivity
from fastds.data.grid.axes import check_longitudes, is_latitude, is_longitude


def field_on(y, x, y_attrs=None, x_attrs=None, extra=None):
    coords = {
        "y": ("y", np.asarray(y), y_attrs or {"units": "m"}),
        "x": ("x", np.asarray(x), x_attrs or {"units": "m"}),
    }
    array = xr.DataArray(
        np.zeros((2, len(y), len(x)), np.float32), dims=("time", "y", "x"), coords={**coords, **(extra or {})}
    )
    return xr.Dataset({"z": array})


LATITUDE = {"standard_name": "latitude", "units": "degrees_north"}
LONGITUDE = {"standard_name": "longitude", "units": "degrees_east"}


def two_d(lat, lon):
    field = xr.DataArray(
        np.zeros((2, *lat.shape), np.float32),
        dims=("time", "y", "x"),
        coords={"lat": (("y", "x"), lat, LATITUDE), "lon": (("y", "x"), lon, LONGITUDE)},
    )
    return xr.Dataset({"z": field})


@pytest.mark.parametrize("direction", [1.0, -1.0], ids=["ascending", "descending"])
def test_refined_centres_are_offset_by_a_quarter_cell(direction):
    y = direction * np.array([1000.0, 3000.0, 5000.0])
    data = field_on(y, [0.0, 2.0], x_attrs={"units": "km"})
    fine = refine_grid(data, data["z"])
    np.testing.assert_allclose(fine["y"], direction * np.array([500, 1500, 2500, 3500, 4500, 5500]), rtol=0, atol=1e-9)
    np.testing.assert_allclose(fine["x"], [-0.5, 0.5, 1.5, 2.5], rtol=0, atol=1e-12)
    assert fine["x"].attrs == {"units": "km"}


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_means_of_blocks_of_finer_centres_are_the_centres(factor):
    data = field_on(np.array([10.0, 9.0, 8.0]), np.linspace(0.1, 0.5, 5, dtype=np.float32))
    fine = refine_grid(data, data["z"], factor)
    assert fine.sizes["y"] == 3 * factor and fine["y"].dtype == np.float64
    np.testing.assert_allclose(fine["y"].values.reshape(3, factor).mean(1), data["y"], atol=1e-12)
    np.testing.assert_allclose(np.diff(fine["x"].values), 0.1 / factor, rtol=1e-5)
    back = coarsen_grid(
        fine, xr.DataArray(np.zeros((1, 3 * factor, 5 * factor)), dims=("t", "y", "x"), coords=fine.coords), factor
    )
    np.testing.assert_allclose(back["x"], data["x"], atol=1e-7)


def test_uneven_cells_keep_their_centres():
    y = np.array([0.0, 1.0, 3.0, 6.0])
    data = field_on(y, [0.0, 1.0])
    np.testing.assert_allclose(refine_grid(data, data["z"])["y"].values.reshape(4, 2).mean(1), y)


def test_refined_longitudes_wrap():
    lon = np.array([358.0, 359.0, 0.0, 1.0])
    data = field_on([50.0, 51.0], lon, LATITUDE, LONGITUDE)
    expected = [357.75, 358.25, 358.75, 359.25, 359.75, 0.25, 0.75, 1.25]
    np.testing.assert_allclose(refine_grid(data, data["z"])["x"], expected, atol=1e-9)
    lon = np.array([178.0, 179.0, -180.0, -179.0])
    data = field_on([50.0, 51.0], lon, LATITUDE, LONGITUDE)
    np.testing.assert_allclose(refine_grid(data, data["z"])["x"][3:6], [179.25, 179.75, -179.75], atol=1e-9)


def test_global_longitudes_stay_in_order_and_latitudes_on_the_sphere():
    data = field_on(np.arange(90.0, -91.0, -1.0), np.arange(0.0, 360.0), LATITUDE, LONGITUDE)
    fine = refine_grid(data, data["z"])
    assert np.all(np.diff(fine["x"]) > 0) and np.all(np.abs(fine["y"]) <= 90.0) and np.all(np.diff(fine["y"]) < 0)


def test_longitudes_span_at_most_360_degrees():
    """The last longitude may repeat the first meridian; a larger span is an error."""
    check_longitudes("lon", np.arange(0.0, 361.0))
    with pytest.raises(ValueError, match="lon spans 361 degrees, expected 360 at most"):
        check_longitudes("lon", np.arange(0.0, 362.0))


def test_single_row_has_no_cell_width():
    data = field_on([1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="coordinate y has a single value, so its cell width is unknown"):
        refine_grid(data, data["z"])


@pytest.mark.parametrize("factor", [0, 1.5, -2])
def test_bad_factors(factor):
    data = field_on([0.0, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="factor must be a whole number >= 1"):
        refine_grid(data, data["z"], factor)


def test_bounds_are_refined_and_range_attributes_dropped():
    attrs = {"units": "m", "bounds": "y_bnds", "valid_max": 10.0, "long_name": "northing"}
    data = field_on([10.0, 8.0, 6.0], [0.0, 1.0], attrs)
    data["y_bnds"] = (("y", "nv"), np.array([[11.0, 9.0], [9.0, 7.0], [7.0, 5.0]]))
    fine = refine_grid(data, data["z"])
    np.testing.assert_allclose(fine["y_bnds"], [[11, 10], [10, 9], [9, 8], [8, 7], [7, 6], [6, 5]])
    assert fine["y"].attrs == {"units": "m", "bounds": "y_bnds", "long_name": "northing"}
    coarse = coarsen_grid(data, data["z"])
    np.testing.assert_allclose(coarse["y"], [9.0])
    np.testing.assert_allclose(coarse["y_bnds"], [[11.0, 7.0]])


def test_bounds_of_another_shape_are_left_out():
    data = field_on([10.0, 8.0, 6.0], [0.0, 1.0], {"units": "m", "bounds": "y_bnds"})
    data["y_bnds"] = (("y", "nv"), np.zeros((3, 4)))
    for other in (refine_grid, coarsen_grid):
        assert "y_bnds" not in other(data, data["z"])


def test_grid_without_coordinates():
    data = xr.Dataset({"z": (("time", "y", "x"), np.zeros((2, 3, 4)))})
    assert len(refine_grid(data, data["z"]).variables) == 0 and grid_spacing_m(data["z"]) is None


def test_two_dimensional_latitude_and_longitude_lie_on_the_finer_grid():
    # A rotated grid of 0.02 degrees over the date line, and its finer grid computed independently.
    def position(rows, columns):
        rows, columns = np.meshgrid(rows, columns, indexing="ij")
        lat = 60.0 - 0.02 * rows + 0.004 * columns
        lon = 179.9 + 0.04 * columns + 0.006 * rows
        return lat, (lon + 180.0) % 360.0 - 180.0

    data = two_d(*position(np.arange(12.0), np.arange(10.0)))
    fine = refine_grid(data, data["z"])
    lat, lon = position((np.arange(24) + 0.5) / 2 - 0.5, (np.arange(20) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(fine["lat"], lat, atol=2e-6)
    np.testing.assert_allclose((fine["lon"] - lon + 180) % 360 - 180, 0, atol=4e-6)
    assert fine["lon"].max() <= 180.0 and fine["lon"].min() < -179.0
    back = coarsen_grid(
        fine.assign(z=(("t", "y", "x"), np.zeros((1, 24, 20)))),
        fine.assign(z=(("t", "y", "x"), np.zeros((1, 24, 20))))["z"],
    )
    np.testing.assert_allclose(back["lat"], data["lat"], atol=2e-6)


def test_two_dimensional_coordinates_at_the_pole():
    y, x = np.meshgrid(np.linspace(-5e4, 5e4, 11), np.linspace(-5e4, 5e4, 11), indexing="ij")

    def angles(y, x):
        return 90.0 - np.rad2deg(np.hypot(x, y) / 6371000.0), np.rad2deg(np.arctan2(x, -y))

    data = two_d(*angles(y, x))
    fine = refine_grid(data, data["z"])
    centres = np.linspace(-5.25e4, 5.25e4, 22)
    lat, lon = angles(*np.meshgrid(centres, centres, indexing="ij"))
    np.testing.assert_allclose(fine["lat"], lat, atol=1e-4)
    assert np.abs((fine["lon"] - lon + 180) % 360 - 180).values.max() < 0.05


def test_corners_of_two_dimensional_cells():
    lat, lon = np.meshgrid(50.0 - 0.01 * np.arange(6), 10.0 + 0.02 * np.arange(5), indexing="ij")
    data = two_d(lat, lon)
    for name in ("lat", "lon"):
        data[name].attrs["bounds"] = f"{name}_bnds"
        data[f"{name}_bnds"] = (("y", "x", "nv"), np.zeros((6, 5, 4)))
    fine = refine_grid(data, data["z"])
    north, east = fine["lat_bnds"].values, fine["lon_bnds"].values
    np.testing.assert_allclose(north.mean(-1), fine["lat"], atol=1e-6)
    np.testing.assert_allclose(np.ptp(east, axis=-1), 0.01, atol=1e-6)
    area = sum(east[..., i] * north[..., i - 3] - east[..., i - 3] * north[..., i] for i in range(4))
    assert np.all(area > 0)  # anticlockwise


def test_projections_are_preserved(data_dir):
    from fastds.data import open_dataset

    with open_dataset(data_dir / "radar_mch_20160711_5min.nc") as dataset:  # crs_wkt without grid_mapping_name
        fine = refine_grid(dataset, dataset["reflectivity"])
        assert "grid_mapping_name" not in fine["crs"].attrs
        assert fine["crs"].attrs == dataset["crs"].attrs and fine["crs"].attrs["crs_wkt"].startswith("BOUNDCRS")


def test_geotransform_of_the_projection_is_refined():
    data = field_on([3.0, 2.0, 1.0], [0.0, 1.0])
    data["spatial_ref"] = ((), 0, {"crs_wkt": "PROJCRS[...]", "GeoTransform": "-0.5 1.0 0.0 3.5 0.0 -1.0"})
    fine = refine_grid(data, data["z"])["spatial_ref"].attrs["GeoTransform"]
    assert [float(part) for part in fine.split()] == [-0.5, 0.5, 0.0, 3.5, 0.0, -0.5]


def test_auxiliary_coordinates():
    extra = {
        "height": (("y", "x"), np.arange(6.0).reshape(3, 2)),
        "station": ("x", np.array(["a", "b"])),
        "northing_km": ("y", np.array([3.0, 2.0, 1.0]), {"units": "km"}),
        "level": ((), 2.0),
    }
    data = field_on([3000.0, 2000.0, 1000.0], [0.0, 1.0], extra=extra)
    fine = refine_grid(data, data["z"])
    assert set(fine.coords) == {"y", "x", "height", "northing_km"}
    np.testing.assert_allclose(fine["northing_km"], fine["y"] / 1000.0)
    np.testing.assert_allclose(fine["height"].values.reshape(3, 2, 2, 2).mean((1, 3)), extra["height"][1])


def test_grid_spacing(data_dir):
    event = synthetic_event(0, frames=2, shape=(32, 32), spacing_m=500.0)
    np.testing.assert_allclose(grid_spacing_m(event["reflectivity"]), (500.0, 500.0))
    km = field_on([4.0, 2.0], [0.0, 3.0], {"units": "km"}, {"units": "km"})
    np.testing.assert_allclose(grid_spacing_m(km["z"]), (2000.0, 3000.0))
    degrees = field_on([60.01, 60.0, 59.99], [0.0, 0.02], LATITUDE, LONGITUDE)
    np.testing.assert_allclose(grid_spacing_m(degrees["z"]), (1111.9, 1111.9), rtol=1e-3)
    lat, lon = np.meshgrid([60.01, 60.0, 59.99], [0.0, 0.02], indexing="ij")
    np.testing.assert_allclose(grid_spacing_m(two_d(lat, lon)["z"]), (1111.9, 1111.9), rtol=1e-3)
    assert grid_spacing_m(field_on([0.0, 1.0], [0.0, 1.0], {"units": "rad"})["z"]) is None


def test_two_dimensional_coordinates_are_found_by_attributes():
    lat, lon = np.meshgrid(50.0 - 0.01 * np.arange(6), 10.0 + 0.02 * np.arange(5), indexing="ij")
    plain = two_d(lat, lon)
    transposed = plain.assign_coords(lat=plain["lat"].T, lon=plain["lon"].T)
    xr.testing.assert_allclose(refine_grid(transposed, transposed["z"]), refine_grid(plain, plain["z"]))
    time = np.datetime64("2024-01-01", "ns") + np.arange(2) * np.timedelta64(5, "m")
    file = plain.reset_coords().assign_coords(time=time)
    file["z"].attrs = {"standard_name": "equivalent_reflectivity_factor", "units": "dBZ"}
    source = to_reflectivity(file)
    assert set(refine_grid(source.dataset, source.raw).coords) == {"lat", "lon"}


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [
        ({"standard_name": "longitude", "units": "degrees"}, "longitude"),
        ({"units": "degrees_east"}, "longitude"),
        ({"units": "degree_E"}, "longitude"),
        ({"units": "degreesN"}, "latitude"),
        ({"standard_name": "latitude"}, "latitude"),
        ({"standard_name": "grid_longitude", "units": "degrees_east"}, None),
        ({"units": "degrees"}, None),
        ({}, None),
    ],
)
def test_latitude_longitude_detection(attrs, expected):
    assert is_longitude(attrs) == (expected == "longitude") and is_latitude(attrs) == (expected == "latitude")
