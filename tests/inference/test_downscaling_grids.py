# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds downscale --scale`, `--grid`, `--like` and of `fastds query`."""

import csv

import numpy as np
import pytest
import torch
import xarray as xr

from fastds.cli import main
from fastds.models import create, load, save
from fastds.tasks.fields import networks, run
from fastds.tasks.fields.geometry import find_geometry, make_target_by_scale
from fastds.tasks.fields.points import read_points
from fastds.tasks.fields.run import downscale, downscale_file, query

VARIABLES = [
    {"name": "t", "standard_name": "air_temperature", "units": "K"},
    {"name": "u", "standard_name": "eastward_wind", "units": "m s-1"},
]


def model(trained=False, **more):
    torch.manual_seed(1)
    options = {"encoder_options": {"channels": 8, "blocks": 2}, "dpfa_count": 1, **more}
    m = create("inr-small", in_channels=2, **options, decoder_options={"width": 16, "heads": 2, "key_width": 4}).eval()
    m.card.input_variables = m.card.output_variables = VARIABLES
    m.mean.copy_(torch.tensor([280.0, 0.0])), m.std.copy_(torch.tensor([10.0, 5.0]))
    if trained:  # stands for one: every part acts
        with torch.no_grad():
            m.decoder.trunk[-1].weight.normal_(std=0.2)
    return m


def dataset(lat, lon, times=2, seed=0):
    """Return a smooth field on the sphere plus noise that is constant along longitude at the poles."""
    rng = np.random.default_rng(seed)
    phi, lam = np.deg2rad(lat)[:, None], np.deg2rad(lon)[None]
    base = 280 + 10 * np.cos(phi) * np.cos(2 * lam) + 5 * np.sin(phi)
    values = np.stack([base + 0.3 * np.cos(phi) * rng.standard_normal((len(lat), len(lon))) for _ in range(times)])
    dims = ("time", "latitude", "longitude")
    return xr.Dataset(
        {
            "t": (dims, values.astype("float32"), {"standard_name": "air_temperature", "units": "K"}),
            "u": (dims, (values - 280).astype("float32"), {"units": "m s**-1"}),
        },
        coords={
            "time": np.datetime64("2016-01-01", "ns") + np.arange(times) * np.timedelta64(6, "h"),
            "latitude": ("latitude", lat, {"units": "degrees_north"}),
            "longitude": ("longitude", lon, {"units": "degrees_east"}),
        },
    )


def globe(step=10.0):
    return dataset(np.arange(90, -90 - step / 2, -step), np.arange(-180, 180, step))


def region():
    return dataset(np.arange(50, 40, -0.5), np.arange(5, 20, 0.5))


def test_global_field_to_a_factor():
    coarse = globe()
    fine = downscale(model(), coarse, scale=2.5)
    assert fine.t.shape == (2, 46, 90) and fine.t.dims == coarse.t.dims
    assert np.allclose(fine.latitude, np.linspace(90, -90, 46)) and np.allclose(fine.longitude[:2], [-180, -176])
    # Untrained = bilinear: the common points keep their values.
    assert np.allclose(fine.t[:, ::5, ::5], coarse.t[:, ::2, ::2], atol=1e-3)
    assert fine.t.attrs["units"] == "K" and "fastds" in fine.attrs["history"]
    assert set(fine.coords) == set(coarse.coords) and fine.time.equals(coarse.time)
    no_times = downscale(model(), coarse.drop_vars("time"), scale=2.5)
    assert "time" not in no_times.coords and np.array_equal(no_times.t, fine.t)


def test_scalar_coordinates_are_preserved():
    data = globe().assign_coords(pressure_level=((), 500.0, {"units": "hPa"}))
    out = downscale(model(), data, scale=1.5)
    assert out.pressure_level.item() == 500.0 and out.pressure_level.attrs == {"units": "hPa"}


@pytest.mark.parametrize("first", [350.0, 170.0])
def test_a_region_may_cross_the_seam_of_its_longitudes(first):
    """In such a region, the longitudes of the grid jump from 360 to 0 or from 180 to -180 degrees."""
    plain = dataset(np.arange(50, 40, -1.0), first + np.arange(20.0))
    wrapped = plain.longitude.values % 360 if first > 180 else (plain.longitude.values + 180) % 360 - 180
    crossing = plain.assign_coords(longitude=("longitude", wrapped, plain.longitude.attrs))
    expected, got = (downscale(model(trained=True), d, scale=2) for d in (plain, crossing))
    np.testing.assert_array_equal(got.t, expected.t)
    np.testing.assert_allclose((got.longitude - expected.longitude) % 360, 0)
    assert got.longitude.min() >= (-180 if first < 180 else 0) and got.longitude.max() < (180 if first < 180 else 360)
    onto = downscale(model(trained=True), plain, like=crossing)
    np.testing.assert_array_equal(onto.longitude, crossing.longitude)
    rows = [query(model(trained=True), d, [(45.2, first + 12.3)]) for d in (plain, crossing)]
    assert rows[0] == rows[1]


def test_global_seam_is_continuous():
    fine = downscale(model(trained=True), globe(5.0), scale=4).t.values
    step = np.abs(np.diff(fine, axis=2)).mean(axis=(0, 1))
    seam = np.abs(fine[:, :, 0] - fine[:, :, -1]).mean()
    assert seam < 1.5 * step.max() and np.isfinite(fine).all()
    rolled = globe(5.0).roll(longitude=30, roll_coords=False)
    again = downscale(model(trained=True), rolled, scale=4).t.values
    assert np.abs(again - np.roll(fine, 120, axis=2)).max() < 1e-3


def test_poles_are_finite_and_zonally_consistent():
    fine = downscale(model(trained=True), globe(5.0), scale=4).t.values
    assert np.isfinite(fine).all()
    assert fine[:, 0].std(axis=1).max() < fine[:, 8].std(axis=1).max() and fine[:, -1].std(axis=1).max() < 1.0


def test_regional_field_by_spacing_and_like():
    coarse = region()
    fine = downscale(model(), coarse, grid=0.1)
    assert fine.sizes["latitude"] == 96 and np.allclose(fine.latitude[:2], [50, 49.9])
    assert np.allclose(fine.t[:, ::5, ::5], coarse.t, atol=1e-3)
    target = fine.isel(latitude=slice(10, 20), longitude=slice(30, 50))
    part = downscale(model(), coarse, like=target)
    assert np.allclose(part.t, target.t, atol=1e-4) and np.allclose(part.longitude, target.longitude)
    cells = downscale(model(), coarse, scale=2)
    assert np.allclose(cells.latitude[:2], [50.125, 49.875]) and cells.sizes["longitude"] == 60


def test_ascending_latitudes_and_the_other_longitude_convention():
    coarse, m = globe(), model(trained=True)
    fine = downscale(m, coarse, scale=2)
    shifted = coarse.roll(longitude=18, roll_coords=False).assign_coords(longitude=coarse.longitude.values + 180)
    shifted.longitude.attrs["units"] = "degrees_east"
    like = downscale(m, shifted, like=fine)
    assert np.abs(like.t.values - fine.t.values).max() < 1e-3


def test_windowed_query_is_identical(monkeypatch):
    whole = downscale(model(trained=True), region(), scale=2.67)
    monkeypatch.setattr("fastds.tasks.fields.networks.WINDOW_QUERIES", 500)
    assert np.array_equal(downscale(model(trained=True), region(), scale=2.67).t, whole.t)


def test_large_outputs_use_temporary_files(tmp_path, monkeypatch):
    region().to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    whole = downscale(model(trained=True), region(), scale=2.67)
    monkeypatch.setattr("fastds.inference.files.MAPPED_BYTES", 0)
    with xr.open_dataset(tmp_path / "in.nc") as lazy:
        fine, _ = run._downscale(model(trained=True), lazy, scale=2.67, folder=tmp_path)
        assert isinstance(fine.t.variable._data, np.memmap) and np.array_equal(fine.t, whole.t)
        assert not lazy.t.variable._in_memory
    with pytest.raises(FileNotFoundError, match="no such folder"):
        downscale_file(tmp_path / "in.nc", tmp_path / "none" / "out.nc", model=model(), scale=2)


def test_targets_outside_a_region_are_refused():
    for shift, name in ((20.0, "latitude"), (30.0, "longitude")):
        other = region()
        other = other.assign_coords({name: other[name] - shift})
        with pytest.raises(
            ValueError, match="the new grid, latitudes .* reaches beyond the fields, latitudes .*; half a cell"
        ):
            downscale(model(), region(), like=other)


def test_refinement_factor_of_a_grid():
    m = model()
    fields = networks.FieldModel(m, region(), run.find_geometry(region()))
    assert fields.factor(torch.arange(50, 40, -0.125), torch.arange(5, 19, 0.2)) == pytest.approx((4.0, 2.5))
    assert fields.factor(torch.tensor([45.1]), torch.tensor([7.0])) == (m.max_scale, m.max_scale)


def test_stations_are_read_at_the_finest_scale():
    m = model(trained=True)
    m.decoder.trunk[-1].weight.data.mul_(20)
    assert m.max_scale > 1
    latitude, longitude = 45.03 - 0.5 / m.max_scale * np.arange(2), 9.02 + 0.5 / m.max_scale * np.arange(2)
    fine = downscale(m, region(), like=dataset(latitude, longitude))
    rows = query(m, region(), [(y, x) for y in latitude for x in longitude])
    found = np.array([row["t"] for row in rows]).reshape(2, 2, 2)
    np.testing.assert_allclose(found, fine.t, atol=1e-3)
    plain = downscale(m, region(), like=dataset(np.array([45.03, 44.53]), np.array([9.02, 9.52])))
    assert np.abs(plain.t.values[:, 0, 0] - found[:, 0, 0]).max() > 0.02


def test_stations_of_a_network_that_makes_the_second_variable_alone():
    m = model(predicted=[1])
    m.card.output_variables = VARIABLES[1:]
    row, u = query(m, region(), [(45.0, 10.0)])[0], float(region().u[0].sel(latitude=45.0, longitude=10.0))
    assert [row["u"], row["u_bilinear"]] == pytest.approx([u, u], abs=1e-3) and not {"t", "t_bilinear"} & set(row)


def test_stations_outside_a_region():
    """Stations outside the region are refused, missing, or get the value at the nearest point of the region."""
    places = [(45.0, 10.0), (45.0, 40.0), (60.0, 10.0)]
    with pytest.raises(ValueError, match="outside the domain"):
        query(model(), region(), places)
    rows = query(model(), region(), places, outside="nan")
    assert [np.isnan(row["t"]) for row in rows] == [False, True, True] * 2
    rows = query(model(), region(), places, outside="clamp")
    nearest = [(45.0, 10.0), (45.0, 19.5), (50.0, 10.0)]
    expected = [float(z.sel(latitude=y, longitude=x)) for z in region().t for y, x in nearest]
    np.testing.assert_allclose([row["t"] for row in rows], expected, atol=1e-3)
    bare = query(model(), region().drop_vars("time"), places[:1])
    assert [row["time"] for row in bare] == [0, 1] and rows[0]["time"] == str(region().time.values[0])


def test_a_grid_in_the_other_convention_gives_the_same_values():
    """The input has longitudes of -20 to -1 degrees, and the requested grid has 340 to 359 degrees."""
    west = dataset(np.arange(50, 40, -1.0), np.arange(-20.0, 0.0))
    places = np.arange(44.3, 42.0, -0.5), np.arange(-17.7, -4.0, 0.5)
    near, far = (dataset(places[0], places[1] + turn) for turn in (0.0, 360.0))
    a, b = (downscale(model(trained=True), west, like=like) for like in (near, far))
    np.testing.assert_allclose(a.t, b.t, atol=1e-3)
    np.testing.assert_allclose(b.longitude, far.longitude)


def test_points_in_either_convention():
    coarse = globe()
    rows = query(model(), coarse, [(90.0, 0.0), (12.0, -179.0), (-35.5, 355.0)])
    other = query(model(), coarse, {"lat": [90.0, 12.0, -35.5], "lon": [360.0, 181.0, -5.0]})
    assert len(rows) == 6
    for a, b in zip(rows, other, strict=True):
        assert a["time"] == b["time"] and abs(a["t"] - b["t"]) < 1e-3
        assert abs(a["t"] - a["t_bilinear"]) < 1e-3  # untrained
    assert abs(rows[0]["t"] - float(coarse.t[0, 0, 0])) < 1e-3


@pytest.mark.parametrize("rows", [9, 10])
def test_outer_rows_at_the_poles_stay_there(rows):
    """With rows at both poles, n rows become s (n - 1) + 1 rows, where s is the factor."""
    latitude, longitude = np.linspace(90, -90, rows), np.arange(0, 360, 30.0)
    axes = {"latitude": ("latitude", latitude), "longitude": ("longitude", longitude)}
    rows_of, columns_of = make_target_by_scale(find_geometry(xr.Dataset(coords=axes)), 2.0)
    assert rows_of.shape == (2 * (rows - 1) + 1,) and columns_of.shape == (24,)
    np.testing.assert_allclose(rows_of, np.linspace(90, -90, 2 * rows - 1), atol=1e-9)


def test_grid_commands(tmp_path, capsys):
    coarse, weights = tmp_path / "in.nc", tmp_path / "m.safetensors"
    region().to_netcdf(coarse, engine="h5netcdf")
    save(model(), weights)
    out = tmp_path / "out.nc"
    assert main(["downscale", str(coarse), str(out), "--scale", "2.67", "--model", str(weights)]) == 0
    assert xr.open_dataset(out).sizes["latitude"] == 53
    assert main(["downscale", str(coarse), str(tmp_path / "like.nc"), "--like", str(out), "--model", str(weights)]) == 0
    stations = tmp_path / "stations.csv"
    stations.write_text("name,lat,lon\nA,45.2,10.1\nB,42.0,12.5\n")
    table = tmp_path / "values.csv"
    assert main(["query", str(coarse), "--points", str(stations), "--out", str(table), "--model", str(weights)]) == 0
    rows = list(csv.DictReader(table.open()))
    assert [r["name"] for r in rows] == ["A", "B", "A", "B"] and 250 < float(rows[0]["t"]) < 300
    assert load(weights).card.input_variables == VARIABLES
    capsys.readouterr()
    assert main(["downscale", str(coarse), str(out), "--scale", "2"]) == 0
    printed = capsys.readouterr().out
    assert "model inr-any (any variable)" in printed, "the default is inr-small, of other variables"


def refusal(tmp_path, capsys, change=None, arguments=("--scale", "2"), stations=None):
    data = region() if change is None else change(region())
    file, weights = tmp_path / "in.nc", tmp_path / "m.safetensors"
    data.to_netcdf(file, engine="h5netcdf")
    save(model(), weights)
    if stations is None:
        status = main(["downscale", str(file), str(tmp_path / "out.nc"), *arguments, "--model", str(weights)])
    else:
        (tmp_path / "s.csv").write_text(stations)
        points = ["--points", str(tmp_path / "s.csv"), "--out", str(tmp_path / "o.csv")]
        status = main(["query", str(file), *points, "--model", str(weights)])
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "change,arguments,message",
    [
        (None, ("--scale", "0"), "scale must be a positive number"),
        (None, ("--scale", "nan"), "scale"),
        (None, ("--scale", "2", "--grid", "0.1"), "exactly one of --scale, --grid and --like"),
        (None, ("--grid", "-1"), "grid must be a spacing in degrees"),
        (lambda d: d.drop_vars("u"), ("--scale", "2"), "the model needs the variable u"),
        (
            lambda d: d.assign(t=d.t.assign_attrs(units="degC")),
            ("--scale", "2"),
            "t is in 'degC', the model was trained on 'K'",
        ),
        (
            lambda d: d.isel(latitude=[0, 1, 1, 2]),
            ("--scale", "2"),
            "latitude must be strictly ascending or descending",
        ),
        (lambda d: d.isel(longitude=[0, 2, 1]), ("--scale", "2"), "longitude must be strictly ascending or descending"),
        (lambda d: d.isel(longitude=[0, 1, 3]), ("--scale", "2"), "longitude must be equally spaced"),
        (lambda d: d.drop_vars("latitude"), ("--scale", "2"), "expected one latitude coordinate"),
        (lambda d: d.assign_coords(latitude=d.latitude + 100), ("--scale", "2"), "latitude reaches 1"),
        (
            lambda d: d.assign_coords(latitude=d.latitude.assign_attrs(units="radians")),
            ("--scale", "2"),
            "latitude has units 'radians', expected degrees",
        ),
        (
            lambda d: d.assign_coords(longitude=d.longitude + 100).rename(latitude="longitude", longitude="latitude"),
            ("--scale", "2"),
            "expected one latitude coordinate",
        ),
    ],
)
def test_invalid_grids_are_rejected(tmp_path, capsys, change, arguments, message):
    assert message in refusal(tmp_path, capsys, change, arguments)


@pytest.mark.parametrize(
    "stations,message",
    [
        ("lat,lon\n45.0,30.0\n", "outside the domain"),
        ("lat,lon\n120.0,45.0\n", "swapped"),
        ("lat,lon\nfive,45.0\n", "a coordinate is no number"),
        ("lat;lon\n45,2;9,1\n", "a coordinate is no number such as 45.2: could not convert string to float: '45,2'"),
        ("x,y\n1,2\n", "columns lat and lon, found x, y"),
    ],
)
def test_invalid_points_are_rejected(tmp_path, capsys, stations, message):
    assert message in refusal(tmp_path, capsys, stations=stations)


def test_a_radar_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an INRDownscaler"):
        downscale("fczsm-small", region(), scale=2)


def test_command_refuses_before_it_writes(tmp_path, capsys):
    save(model(), tmp_path / "m.safetensors")
    fields = tmp_path / "in.nc"
    dataset(np.arange(40.0, 30.0, -1.0), np.arange(10.0, 22.0)).to_netcdf(fields, engine="h5netcdf")
    before = fields.read_bytes()

    def refusal(output, *options):
        arguments = [str(fields), str(output), "--model", f"{tmp_path}/m.safetensors", "--scale", "2", *options]
        assert main(["downscale", *arguments]) == 2
        return capsys.readouterr().err

    assert "must be another file than the input" in refusal(fields) and fields.read_bytes() == before
    assert f"{tmp_path} is a folder" in refusal(tmp_path)
    assert "no such folder" in refusal(tmp_path / "none" / "o.nc")
    assert "not as .grib" in refusal(tmp_path / "o.grib")
    for option in (
        "--tile=16",
        "--halo=0",
        "--time-factor=2",
        "--members=2",
        "--seed=1",
    ):
        assert f"{option.split('=')[0]} is no option for fields, which takes --" in refusal(tmp_path / "o.nc", option)
    assert "threads must be a whole number" in refusal(tmp_path / "o.nc", "--threads=0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "m.safetensors"]


def test_coarser_grid_warns_that_values_are_not_means():
    with pytest.warns(UserWarning, match="coarser than the input"):
        downscale(model(), dataset(np.arange(40.0, 30.0, -1.0), np.arange(10.0, 22.0)), scale=0.5)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_station_files_may_use_semicolons_or_tabs(tmp_path, mark):
    (tmp_path / "p.csv").write_text("name,lat,lon\nA,45.2,110\nB,10,1e2\n".replace(",", mark))
    rows, latitude, longitude = read_points(tmp_path / "p.csv")
    assert latitude == [45.2, 10.0] and longitude == [110.0, 100.0]
    assert rows[1] == {"name": "B", "lat": "10", "lon": "1e2"}


def test_station_output_is_atomic(tmp_path, monkeypatch, capsys):
    save(model(), tmp_path / "m.safetensors")
    dataset(np.arange(40.0, 30.0, -1.0), np.arange(10.0, 22.0)).to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    points = tmp_path / "p.csv"
    points.write_text("lat,lon\n35,12\n")
    command = ["query", f"{tmp_path}/in.nc", "--points", str(points), "--model", f"{tmp_path}/m.safetensors"]
    assert main([*command, "--out", str(points)]) == 2
    assert "another file than the input" in capsys.readouterr().err and points.read_text() == "lat,lon\n35,12\n"
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([*command, "--out", f"{tmp_path}/o.csv"]) == 130
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nc", "m.safetensors", "p.csv"]
