# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds downscale --model conservative`."""

import itertools

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds import cli
from fastds.tasks.fields.conservative import compute_overlaps
from tests.support.field_cases import region


def field(latitude, longitude, seed=0, **attrs):
    """Return random temperatures at two times."""
    values = 250 + 50 * np.random.default_rng(seed).random((2, len(latitude), len(longitude)))
    return xr.Dataset(
        {"t": (("time", "latitude", "longitude"), values.astype("f4"), {"units": "K"} | attrs)},
        coords={
            "time": np.datetime64("2020-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h"),
            "latitude": ("latitude", latitude, {"units": "degrees_north"}),
            "longitude": ("longitude", longitude, {"units": "degrees_east"}),
        },
    )


def globe(step, west=0.0):
    return field(np.arange(90 - step / 2, -90, -step), west + np.arange(0, 360, step))


def make_edges(axis):
    """Return the limits between cells, without code of fastds."""
    axis = np.asarray(axis, np.float64)
    middles = (axis[1:] + axis[:-1]) / 2
    return np.concatenate([[2 * axis[0] - middles[0]], middles, [2 * axis[-1] - middles[-1]]])


def compute_areas(dataset):
    lat = np.sin(np.deg2rad(make_edges(dataset.latitude).clip(-90, 90)))
    return np.abs(np.diff(lat))[:, None] * np.abs(np.diff(np.deg2rad(make_edges(dataset.longitude))))


def remap_by_loops(dataset, target):
    """Return means over target cells and the covered share of their areas, by loops over all pairs of cells."""
    (rows, columns), (new_rows, new_columns) = (
        [[sorted(pair) for pair in itertools.pairwise(e)] for e in map(make_edges, axes)]
        for axes in ((dataset.latitude, dataset.longitude), (target.latitude, target.longitude))
    )
    values = dataset.t.transpose("time", "latitude", "longitude").values.astype(np.float64)
    total = np.zeros((2, len(new_rows), len(new_columns)))
    covered = np.zeros_like(total)
    for i, (south, north) in enumerate(new_rows):
        for j, (west, east) in enumerate(new_columns):
            for k, row in enumerate(rows):
                low, high = max(south, row[0]), min(north, row[1])
                if low >= high:
                    continue
                height = np.sin(np.deg2rad(high)) - np.sin(np.deg2rad(low))
                for m, column in enumerate(columns):
                    for shift in (-360.0, 0.0, 360.0):
                        width = min(east, column[1] + shift) - max(west, column[0] + shift)
                        known = np.isfinite(values[:, k, m])
                        area = known * max(width, 0.0) * height
                        total[:, i, j] += area * np.where(known, values[:, k, m], 0.0)
                        covered[:, i, j] += area
    cells = np.diff(np.sin(np.deg2rad(np.array(new_rows))), axis=1) * np.diff(np.array(new_columns), axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        return total / covered, covered / cells


def test_overlaps_of_intervals_in_any_order():
    source = np.array([[2.0, 3.0], [0.0, 1.0], [1.0, 2.0]])
    target = np.array([[0.5, 2.25], [3.0, 4.0], [-1.0, 0.0], [-5.0, 5.0]])
    assert compute_overlaps(target, source).toarray().tolist() == [[0.25, 0.5, 1], [0, 0, 0], [0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("coarser", [{"grid": 30.0}, {"scale": 0.5}, {"scale": 0.37}, {"scale": 1.7}])
def test_global_totals_are_preserved(coarser):
    fine = globe(10.0)
    out = fastds.downscale("conservative", fine, **coarser)
    totals = [(d.t.values.astype(np.float64) * compute_areas(d)).sum((1, 2)) for d in (fine, out)]
    if "scale" in coarser:  # the outer rows of a given spacing do not end at the poles
        np.testing.assert_allclose(totals[1], totals[0], rtol=1e-6)
    assert out.t.attrs["cell_methods"] == "area: mean" and out.attrs["fastds_minimum_valid_fraction"] == 0.5
    assert out.latitude.attrs["bounds"] == "latitude_bnds" and out.latitude_bnds.shape == (out.sizes["latitude"], 2)


@pytest.mark.parametrize("west", [0.0, -180.0, 3.0])
def test_values_are_those_of_loops_over_all_cells(west):
    fine = globe(15.0, west)
    fine["t"][:, 2:5, 3:8] = np.nan
    like = field(np.arange(-80, 81, 20.0), np.arange(-170, 190, 20.0))
    out = fastds.downscale("conservative", fine, like=like)
    expected, covered = remap_by_loops(fine, like)
    np.testing.assert_array_equal(out.t.isnull(), covered < 0.5 - 1e-9)
    np.testing.assert_allclose(out.t, np.where(covered < 0.5 - 1e-9, np.nan, expected), rtol=1e-6)


def test_order_of_the_axes_does_not_matter():
    fine = field(np.arange(40, 60, 1.0), np.arange(0, 30, 1.5))
    like = field(np.arange(42, 58, 2.5), np.arange(2, 27, 4.0))
    straight = fastds.downscale("conservative", fine, like=like).t
    flipped = fine.isel(latitude=slice(None, None, -1), longitude=slice(None, None, -1))
    turned = fastds.downscale("conservative", flipped.transpose("longitude", "time", ...), like=like).t
    np.testing.assert_allclose(turned.transpose(*straight.dims), straight, rtol=1e-6)
    back = fastds.downscale("conservative", fine, like=like.isel(latitude=slice(None, None, -1))).t
    np.testing.assert_allclose(back[:, ::-1], straight, rtol=1e-6)
    np.testing.assert_allclose(straight, remap_by_loops(fine, like)[0], rtol=1e-6)


def test_partly_covered_cells_have_the_mean_of_the_covered_part_or_are_missing():
    fine = field(np.arange(0.5, 10, 1.0), np.arange(0.5, 10, 1.0))
    like = field(np.array([0.6, 4.6, 8.6]), np.array([-0.5, 4.5, 9.5]))  # covered to 0.65, 1, 0.85 and 0.4, 1, 0.6
    out = fastds.downscale("conservative", fine, like=like).t
    expected, covered = remap_by_loops(fine, like)
    assert out.isnull().values.tolist() == (covered < 0.5).tolist() and 0 < int((covered < 0.5).sum()) < 9
    np.testing.assert_allclose(out.where(covered >= 0.5), np.where(covered >= 0.5, expected, np.nan), rtol=1e-6)


def test_rows_at_the_poles_are_half_cells():
    fine = field(np.arange(90, -91, -10.0), np.arange(0, 360, 10.0))
    fine["t"][:, 0] = 1000.0
    out = fastds.downscale("conservative", fine, scale=0.5)
    areas = [(d.t.values.astype(np.float64) * compute_areas(d)).sum() for d in (fine, out)]
    assert areas[1] == pytest.approx(areas[0], rel=1e-6)


def test_bounds_of_both_files_are_the_cells(tmp_path):
    fine, like = field(np.array([10.0, 20.0, 40.0]), np.arange(0, 40, 10.0)), field([20.0, 35.0], [10.0, 25.0])
    fine = fine.isel(latitude=[0, 1]).assign(lat_b=(("latitude", "n"), [[0.0, 12.0], [12.0, 30.0]]))
    fine.latitude.attrs["bounds"] = "lat_b"
    like["edges"] = ("longitude", "n"), [[365.0, 375.0], [15.0, 35.0]]
    like["rows"] = ("latitude", "n"), [[6.0, 18.0], [18.0, 20.0]]
    like = like.assign_coords(latitude=("latitude", [10.0, 19.0], {"units": "degrees_north", "bounds": "rows"}))
    like.longitude.attrs["bounds"] = "edges"
    like.to_netcdf(tmp_path / "like.nc", engine="h5netcdf")
    out = fastds.downscale("conservative", fine, like=tmp_path / "like.nc")
    low, middle, high = (np.sin(np.deg2rad(at)) for at in (6.0, 12.0, 18.0))
    t = fine.t.values.astype(np.float64)
    expected = ((middle - low) * t[:, 0, 1] + (high - middle) * t[:, 1, 1]) / (high - low)
    np.testing.assert_allclose(out.t[:, 0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(out.t[:, 1, 1], (t[:, 1, 2] + t[:, 1, 3]) / 2, rtol=1e-6)
    assert out.lat_b.values.tolist() == [[6, 18], [18, 20]] and out.longitude_bnds.values.tolist() == [
        [5, 15],
        [15, 35],
    ]
    fine["lat_b"] = fine.lat_b + 30
    with pytest.raises(ValueError, match="bounds lat_b do not enclose their coordinate"):
        fastds.downscale("conservative", fine, scale=2)


def test_projected_fields_and_their_projection():
    t = field(np.arange(6.0), np.arange(8.0))
    plane = t.rename(latitude="y", longitude="x").assign(crs=((), 0, {"grid_mapping_name": "stereographic", "a": 1.0}))
    for name in ("y", "x"):
        plane[name] = (name, 1000.0 * plane[name].values, {"units": "m"})
    plane["t"].attrs["grid_mapping"] = "crs"
    out = fastds.downscale("conservative", plane, scale=0.5)
    np.testing.assert_allclose(out.t, plane.t.coarsen(y=2, x=2).mean(), rtol=1e-6)
    other = out[["t", "crs"]].assign(crs=((), 0, {"grid_mapping_name": "stereographic", "a": 2.0}))
    for model in ("conservative", "bilinear"):
        with pytest.raises(
            ValueError, match="like: the input and the new grid are on different grids: a is 1.0 and 2.0"
        ):
            fastds.downscale(model, plane, like=other)


def test_large_fields_are_computed_in_blocks(monkeypatch):
    fine = globe(10.0)
    whole = fastds.downscale("conservative", fine, scale=1.5)
    monkeypatch.setattr("fastds.tasks.fields.conservative._BLOCK_POINTS", 200)
    xr.testing.assert_identical(fastds.downscale("conservative", fine, scale=1.5).t, whole.t)


def test_command_writes_means_without_a_warning(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("in.nc", "out.nc", "like.nc")]
    globe(10.0).to_netcdf(paths[0], engine="h5netcdf")
    globe(30.0).to_netcdf(paths[2], engine="h5netcdf")
    assert cli.main(["downscale", *paths[:2], "--model", "conservative", "--like", paths[2]]) == 0
    printed = capsys.readouterr()
    assert "method conservative, which needs no weights: t on 6 x 12 points" in printed.out and not printed.err
    with xr.open_dataset(paths[1]) as out:
        np.testing.assert_allclose(out.t, remap_by_loops(globe(10.0), globe(30.0))[0], rtol=1e-6)
    assert cli.main(["downscale", *paths[:2], "--model", "bilinear", "--like", paths[2]]) == 0
    assert "not means of its cells, which the method conservative computes" in capsys.readouterr().err


REFUSED = {
    "coarsened": ({"scale": 2, "coarsened": "mean"}, "coarsened is for other methods"),
    "elsewhere": ({"like": field([0.0, 1.0], [200.0, 201.0])}, "does not overlap the fields, latitudes .* longitudes"),
    "one row": ({"scale": 0.05}, "needs two rows and columns"),
    "static maps": ({"scale": 2, "static": ["a.nc"]}, "method conservative reads no static maps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_do_not_fit_are_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        fastds.downscale("conservative", region(), **options)


def test_cells_that_overlap_are_refused():
    twice = field(np.arange(-80, 81, 20.0), np.arange(0, 361, 20.0))
    with pytest.raises(ValueError, match="needs cells that do not overlap, and those along longitude do"):
        fastds.downscale("conservative", twice, scale=0.5)
