# SPDX-License-Identifier: Apache-2.0
"""Tests of downscaling and evaluating fields on projected coordinates."""

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds.cli import main
from fastds.data import save_dataset
from fastds.data.grid.grids import find_latitude_longitude

FIRST = np.datetime64("2020-01-01", "ns")


def slope(y, x):
    return 280.0 + 1e-4 * y[:, None] + 2e-4 * x


def projected(rows=20, columns=24, step=3e3, units="m", name="projection_{}_coordinate"):
    """Return two temperature fields that are planes, from north to south, on cells of `step` metres."""
    per = 1e3 if units == "km" else 1.0
    y, x = 60e3 - step * (np.arange(rows) + 0.5), step * (np.arange(columns) + 0.5)
    t = (slope(y, x) + np.array([0.0, 1.0])[:, None, None]).astype(np.float32)
    axes = {n: (n, v / per, {"standard_name": name.format(n), "units": units}) for n, v in (("y", y), ("x", x))}
    attrs = {"standard_name": "air_temperature", "units": "K", "grid_mapping": "crs"}
    times = FIRST + np.arange(2) * np.timedelta64(1, "h")
    dataset = xr.Dataset({"t2m": (("time", "y", "x"), t, attrs)}, {"time": times, **axes})
    return dataset.assign(crs=((), 0, {"grid_mapping_name": "polar_stereographic", "standard_parallel": 60.0}))


@pytest.mark.parametrize("model", [None, "bicubic", "bilinear", "lanczos"])
def test_downscale_of_one_projected_variable(tmp_path, capsys, model):
    save_dataset(projected(), tmp_path / "t.nc")
    words = ["downscale", str(tmp_path / "t.nc"), str(tmp_path / "o.nc"), "--scale=2"]
    assert main([*words, *([f"--model={model}"] if model else [])]) == 0
    printed = capsys.readouterr().out
    assert "t2m on 40 x 48 points" in printed and ("model inr-any (any variable)" in printed) == (model is None)
    expected = projected(40, 48, 1.5e3)
    with xr.open_dataset(tmp_path / "o.nc") as out:
        np.testing.assert_allclose(out.y, expected.y)
        np.testing.assert_allclose(out.x, expected.x)
        assert out.y.attrs == expected.y.attrs and out.crs.attrs == expected.crs.attrs
        inside = (slice(None), slice(6, -6), slice(6, -6))
        np.testing.assert_allclose(out.t2m[inside], expected.t2m[inside], atol=0.05)


def test_rotated_and_flipped_projected_grids():
    data = projected().drop_vars("crs")
    flipped = data.isel(y=slice(None, None, -1), x=slice(None, None, -1))
    rotated = data.rename(y="rlat", x="rlon").assign_coords(
        rlat=("rlat", 10 - 0.5 * np.arange(20), {"standard_name": "grid_latitude", "units": "degrees"}),
        rlon=("rlon", 15.0 * np.arange(24), {"standard_name": "grid_longitude", "units": "degrees"}),
    )
    for method in ("bicubic", "inr-any"):
        fine = fastds.downscale(method, data, scale=2).t2m
        assert fine.equals(fastds.downscale(method, flipped, scale=2).t2m.sortby("y", ascending=False).sortby("x"))
        np.testing.assert_array_equal(fine, fastds.downscale(method, rotated, scale=2).t2m)


def test_result_has_latitudes_and_longitudes():
    """Latitudes and longitudes are interpolated linearly, and extrapolated beyond the outer points."""
    data = projected()
    lat, lon = np.broadcast_arrays(60 + data.y.values[:, None] / 111e3, 179.5 + data.x.values / 60e3)
    places = {"lat": (("y", "x"), lat, {"units": "degrees_north"}), "lon": (("y", "x"), lon, {"units": "degrees_east"})}
    fine = fastds.downscale("bilinear", data.assign_coords(places), scale=2)
    found = find_latitude_longitude(fine.t2m)
    expected = projected(40, 48, 1.5e3)
    np.testing.assert_allclose(found[0], (60 + expected.y.values / 111e3)[:, None] + np.zeros(48), atol=2e-4)
    np.testing.assert_allclose(found[1], 179.5 + expected.x.values / 60e3 + np.zeros((40, 1)), atol=2e-4)


def curvilinear():
    """Return a grid with only 2-D latitudes and longitudes."""
    data = projected().drop_vars("crs")
    lat, lon = np.broadcast_arrays(60 + data.y.values[:, None] / 111e3, 20 + data.x.values / 60e3)
    places = {"lat": (("y", "x"), lat, {"units": "degrees_north"}), "lon": (("y", "x"), lon, {"units": "degrees_east"})}
    return data.assign_coords(places).drop_vars(["y", "x"])


@pytest.mark.parametrize("model", ["bicubic", "inr-any"])
def test_a_curvilinear_grid_becomes_finer_among_its_points(model):
    data = curvilinear()
    fine = fastds.downscale(model, data, scale=2)
    assert set(fine.coords) == {"time", "lat", "lon"}
    np.testing.assert_allclose(fine.t2m, fastds.downscale(model, projected(), scale=2).t2m, atol=1e-3)
    np.testing.assert_allclose(fine.lat[:, 0], 60 + projected(40, 48, 1.5e3).y.values / 111e3, atol=1e-3)
    flipped = fastds.downscale(model, data.isel(y=slice(None, None, -1), x=slice(None, None, -1)), scale=2)
    np.testing.assert_array_equal(flipped.t2m[:, ::-1, ::-1], fine.t2m)
    np.testing.assert_allclose(flipped.lat[::-1, ::-1], fine.lat, atol=1e-9)
    other = fastds.downscale(model, data.transpose("x", "y", "time"), scale=2)
    np.testing.assert_array_equal(other.t2m.transpose("time", "y", "x"), fine.t2m)
    np.testing.assert_allclose(other.lat.transpose("y", "x"), fine.lat, atol=1e-9)


def test_curvilinear_grid_errors():
    data = curvilinear()
    with pytest.raises(ValueError, match="grid needs coordinates along rows and columns, .* a curvilinear grid over y"):
        fastds.downscale("bicubic", data, grid=0.5)
    with pytest.raises(ValueError, match="like: its grid is of a curvilinear grid over y and x, and that of"):
        fastds.downscale("bicubic", data, like=data)
    with pytest.raises(ValueError, match="points need coordinates along rows and columns"):
        fastds.query("inr-any", data, [(60.0, 20.0)])
    assert fastds.evaluate(data, data).rows["t2m"]["prediction"]["rmse"] == 0
    with pytest.raises(
        ValueError, match="the grids differ: PRED and TRUTH are on curvilinear grids with different points"
    ):
        fastds.evaluate(data, data.assign_coords(lat=data.lat + 0.1))
    with pytest.raises(ValueError, match="COARSE is on a curvilinear grid"):
        fastds.evaluate(data, data, input=data)


def test_targets_by_spacing_and_like():
    data = projected()
    by = fastds.downscale("bicubic", data, grid=1000.0)
    assert by.sizes["x"] == 70 and float(by.x[1] - by.x[0]) == 1000.0
    like = projected(40, 48, 1.5e3)
    fine = fastds.downscale("bicubic", data, like=like)
    np.testing.assert_array_equal(fine.x, like.x)
    with pytest.raises(ValueError, match=r"like: its grid is of y \[km\] and x \[km\], and that .* of y \[m\] and x"):
        fastds.downscale("bicubic", data, like=projected(units="km"))
    with pytest.raises(ValueError, match="the new grid, y .* and x .*, reaches beyond the fields, y .* half a cell"):
        fastds.downscale("bicubic", data, like=projected(24, 24))
    with pytest.raises(ValueError, match="grid must be a spacing in the units of x and y, got -1"):
        fastds.downscale("bicubic", data, grid=-1.0)
    assert fastds.downscale("bicubic", projected(units="km"), grid=1.0).sizes["x"] == 70


def test_all_cells_count_alike_in_scores(tmp_path, capsys):
    """The files have no attributes of fastds. Latitude weights are not used without a latitude axis."""
    truth, made = projected(), projected()
    made.t2m[:, :10] += 1.0
    save_dataset(truth, tmp_path / "truth.nc")
    save_dataset(made, tmp_path / "made.nc")
    assert (
        main(["evaluate", str(tmp_path / "made.nc"), str(tmp_path / "truth.nc"), "--report", str(tmp_path / "r.html")])
        == 0
    )
    assert "all cells count alike" in capsys.readouterr().out
    table = fastds.evaluate(made, truth)
    assert table.rows["t2m"]["prediction"]["bias"] == pytest.approx(0.5, abs=1e-4)
    fine = fastds.downscale("bicubic", projected(10, 12, 6e3), scale=2)
    table = fastds.evaluate(fine, truth, input=projected(10, 12, 6e3))
    assert table.rows["t2m"]["bicubic (PRED)"]["rmse"] == table.rows["t2m"]["bicubic"]["rmse"]
    with pytest.raises(ValueError, match="the grids differ: PRED has 20 values of y from .* TRUTH has 18 values of y"):
        fastds.evaluate(made, truth.isel(y=slice(2, None)))


def staggered(data):
    return data.assign(u=data.t2m.rename(x="xc").assign_coords(xc=data.x.values + 1500.0))


def test_grid_is_selected_by_variable():
    data = staggered(projected()).isel(y=slice(None, None, -1))
    for model in ("bicubic", "inr-any"):
        fine = fastds.downscale(model, data, scale=2, var="u")
        assert fine.u.dims == ("time", "y", "xc") and set(fine.data_vars) == {"u", "crs"}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d.drop_vars(["y", "x"]), {}, "expected one latitude coordinate along a dimension"),
        (lambda d: d.isel(x=[0, 1, 3]), {}, "x must be equally spaced, .*; the fields are on no regular grid, bring"),
        (staggered, {}, "expected fields on one grid, found y, x and y, xc; name the variable with the argument var"),
        (lambda d: d, {"model": "inr-small"}, "model inr-small is for latitude-longitude grids, and this one is of y"),
    ],
)
def test_unsupported_grids_are_rejected(change, options, message):
    with pytest.raises(ValueError, match=message):
        fastds.downscale(options.get("model", "bicubic"), change(projected()), scale=2)


@pytest.mark.parametrize("units", ["m", "km"])
def test_points_lie_where_the_projection_says(units):
    """Temperature is a plane, evaluated at the coordinates of some cells."""
    pyproj = pytest.importorskip("pyproj", reason="projections need the package pyproj")
    crs = pyproj.CRS.from_epsg(3067)
    data = projected(units=units).assign_coords()
    per = 1e3 if units == "km" else 1.0
    data = data.assign_coords(
        y=("y", data.y.values + 67e5 / per, data.y.attrs), x=("x", data.x.values + 4e5 / per, data.x.attrs)
    )
    data["crs"] = ((), 0, crs.to_cf())
    rows, columns = np.array([5, 9, 12]), np.array([4, 10, 17])
    lon, lat = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
        data.x.values[columns] * per, data.y.values[rows] * per
    )
    found = fastds.query("inr-any", data.isel(time=[0]), {"lat": lat, "lon": lon})
    expected = data.t2m.values[0, rows, columns]
    np.testing.assert_allclose([row["t2m_bilinear"] for row in found], expected, atol=1e-3)
    np.testing.assert_allclose([row["t2m"] for row in found], expected, atol=0.1)
    with pytest.raises(ValueError, match="points lie outside the domain"):
        fastds.query("inr-any", data, [(50.0, 20.0)])
    with pytest.raises(ValueError, match=r"on y \[k?m\] and x \[k?m\] without a grid mapping that tells"):
        fastds.query("inr-any", data.drop_vars("crs"), [(60.0, 20.0)])


def test_points_on_a_rotated_pole():
    pyproj = pytest.importorskip("pyproj", reason="projections need the package pyproj")
    axes = {n: (n, v, {"standard_name": f"grid_{word}", "units": "degrees"}) for n, v, word in (
        ("rlat", 5 - 0.25 * np.arange(20), "latitude"), ("rlon", -3 + 0.25 * np.arange(24), "longitude"))}  # fmt: skip
    data = projected().rename(y="rlat", x="rlon").assign_coords(axes)
    mapping = {"grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 40.0,
               "grid_north_pole_longitude": -170.0}  # fmt: skip
    data["crs"] = ((), 0, mapping)
    to_degrees = pyproj.Transformer.from_crs(pyproj.CRS.from_cf(mapping), "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(data.rlon.values[7], data.rlat.values[9])
    (row,) = fastds.query("inr-any", data.isel(time=[0]), [(lat, lon)])
    assert row["t2m_bilinear"] == pytest.approx(float(data.t2m[0, 9, 7]), abs=1e-3)


def test_error_lists_the_options_of_fields(tmp_path, capsys):
    save_dataset(projected(), tmp_path / "t.nc")
    assert main(["downscale", str(tmp_path / "t.nc"), str(tmp_path / "o.nc"), "--model=bicubic"]) == 2
    assert "other fields take one of --scale, --grid and --like" in capsys.readouterr().err
