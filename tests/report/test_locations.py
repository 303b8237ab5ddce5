# SPDX-License-Identifier: Apache-2.0
"""Tests of locations of maps: positions against pyproj, coasts, date line, poles, graticule, cities."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from fastds.plot import Location, draw_field
from fastds.plot.graticule import find_graticule, select_degrees
from fastds.plot.location import find_edges
from fastds.plot.maps import finish_map
from fastds.plot.outlines import find_outlines, load_cities, load_lines
from fastds.report import MapGrid
from fastds.report.grid import SIDE

AMSTERDAM = 52.37, 4.90
KNMI = "+proj=stere +lat_0=90 +lon_0=0 +lat_ts=60 +a=6378140 +b=6356750 +x_0=0 +y_0=0 +units=m"
NORTH = {"units": "degrees_north", "standard_name": "latitude"}
EAST = {"units": "degrees_east", "standard_name": "longitude"}


def make_projected(proj4, x, y, field=None):
    """Return a dataset on a projected grid with a grid mapping, and the projection."""
    pyproj = pytest.importorskip("pyproj")
    crs = pyproj.CRS(proj4)
    values = np.zeros((len(y), len(x)), "f4") if field is None else field
    attrs = {"units": "dBZ", "grid_mapping": "crs", "standard_name": "equivalent_reflectivity_factor"}
    coords = {"y": ("y", y, {"units": "m"}), "x": ("x", x, {"units": "m"})}
    dataset = xr.Dataset({"z": (("y", "x"), values, attrs), "crs": ((), 0, crs.to_cf())}, coords)
    return dataset, pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)


def make_degrees(latitude, longitude):
    coords = {"latitude": ("latitude", latitude, NORTH), "longitude": ("longitude", longitude, EAST)}
    return xr.DataArray(np.zeros((len(latitude), len(longitude)), "f4"), coords, ("latitude", "longitude"))


@pytest.fixture(scope="module")
def knmi():
    x, y = 500 + 1e3 * np.arange(700), -3.65e6 - 1e3 * np.arange(765)
    return make_projected(KNMI, x, y)


def test_marked_place_of_a_projected_grid_is_where_the_map_draws_it(knmi):
    """A cell is marked by pyproj; the drawn city and the cell have the same position on the figure."""
    dataset, project = knmi
    x, y = project.transform(AMSTERDAM[1], AMSTERDAM[0])
    row, column = (int(np.abs(dataset[dim].values - at).argmin()) for dim, at in (("y", y), ("x", x)))
    field = np.zeros((765, 700))
    field[row, column] = 60
    location = Location.of(dataset.z, dataset)
    axes = Figure(figsize=(6, 6)).subplots()
    image = draw_field(axes, field, location.x, location.y)
    finish_map(axes, "", location, True, True, size=(6.0, 6.0))
    corners = image.get_coordinates()[row : row + 2, column : column + 2].reshape(-1, 2)
    name = next(text for text in axes.texts if text.get_text() == "Amsterdam")
    assert np.all(corners.min(axis=0) - 4 < name.xy) and np.all(name.xy < corners.max(axis=0) + 4), "within 4 km"
    drawn = location.project(*(np.array([part]) for part in AMSTERDAM))
    assert np.abs(corners.min(axis=0) - np.concatenate(drawn)).max() <= 1


@pytest.mark.parametrize(
    ("proj4", "centre", "span"),
    [
        (KNMI, (52.0, 5.0), 700e3),
        ("EPSG:2056", (46.8, 8.2), 600e3),
        ("EPSG:3035", (50.0, 10.0), 3800e3),
        ("+proj=laea +lat_0=-20 +lon_0=179 +units=m", (-18.0, -179.5), 900e3),
        ("EPSG:3413", (89.9, 0.0), 9000e3),
    ],
)
def test_positions_agree_with_pyproj(proj4, centre, span):
    rng, pyproj = np.random.default_rng(1), pytest.importorskip("pyproj")
    middle = pyproj.Transformer.from_crs("EPSG:4326", proj4, always_xy=True).transform(*centre[::-1])
    x, y = (at + np.linspace(-span / 2, span / 2, 301) for at in middle)
    dataset, project = make_projected(proj4, x, y[::-1])
    location = Location.of(dataset.z, dataset)
    at = np.stack([rng.uniform(axis.min(), axis.max(), 300) for axis in (x, y)])
    longitude, latitude = project.transform(*at, direction="INVERSE")
    found = 1e3 * np.stack(location.project(latitude, longitude))
    assert not np.isnan(found).any() and np.abs(found - at).max() < span / 2000, "a fifth of a pixel of a picture"
    beyond = project.transform(x[-1] + span / 50, y[150], direction="INVERSE")
    assert np.isnan(location.project(np.array([beyond[1]]), np.array([beyond[0]]))[0][0])


def test_coasts_of_a_projected_grid_are_the_lines_of_natural_earth(knmi):
    dataset, project = knmi
    location = Location.of(dataset.z, dataset)
    drawn = np.concatenate(find_outlines(location)["coasts"][0])
    known = np.concatenate([line for line in load_lines("fine", "coasts") if np.ptp(line, axis=0).max() > 0.1])
    known = known[(np.abs(known[:, 0] - 4) < 1) & (np.abs(known[:, 1] - 52) < 1)]
    expected = np.stack(project.transform(*known.T), axis=1) / 1e3
    distance = np.abs(drawn[None] - expected[:, None]).max(-1).min(axis=1)
    assert len(known) > 50 and distance.max() < 0.2, "km"


def test_grid_without_pyproj_has_km(knmi, monkeypatch):
    def refuse(*args):
        raise ImportError

    monkeypatch.setattr("fastds.plot.location.compute_latitude_longitude", refuse)
    location = Location.of(knmi[0].z, knmi[0])
    assert location.unit == "km" and not location.is_known
    axes = Figure().subplots()
    finish_map(axes, "title", location, True, True)
    assert axes.get_xlabel() == "x (km)" and not axes.texts


@pytest.mark.parametrize("rows", [slice(None), slice(None, None, -1)])
@pytest.mark.parametrize("columns", [slice(None), slice(None, None, -1)])
def test_curvilinear_grid_has_north_up_and_east_right(rows, columns):
    latitude, longitude = np.meshgrid(np.linspace(50, 55, 40)[rows], np.linspace(2, 8, 50)[columns], indexing="ij")
    places = {"lat": (("j", "i"), latitude, NORTH), "lon": (("j", "i"), longitude, EAST)}
    location = Location.of(xr.DataArray(np.zeros((40, 50)), places, ("j", "i")))
    x, y = location.project(np.array([50.5, 54.5]), np.array([2.5, 7.5]))
    assert location.unit == "pixels" and x[1] > x[0] + 30 and y[1] > y[0] + 25
    row, column = (int(np.abs(axis - at).argmin()) for axis, at in ((location.y, y[0]), (location.x, x[0])))
    assert latitude[row, column] == pytest.approx(50.5, abs=0.1) and longitude[row, column] == pytest.approx(
        2.5, abs=0.1
    )


def test_rotated_pole_without_latitudes():
    """The pole of COSMO: at rotated coordinates (0, 0) lies 50.75 N 18 E, and Vienna lies at (-1.07, -2.54)."""
    pytest.importorskip("pyproj")
    pole = {"grid_north_pole_latitude": 39.25, "grid_north_pole_longitude": -162.0}
    mapping = {"grid_mapping_name": "rotated_latitude_longitude", **pole}
    attrs = [{"units": "degrees", "standard_name": f"grid_{name}"} for name in ("latitude", "longitude")]
    coords = {
        "rlat": ("rlat", np.linspace(-10, 10, 81), attrs[0]),
        "rlon": ("rlon", np.linspace(-10, 10, 81), attrs[1]),
    }
    field = (("rlat", "rlon"), np.zeros((81, 81), "f4"), {"units": "K", "grid_mapping": "pole"})
    dataset = xr.Dataset({"t": field, "pole": ((), 0, mapping)}, coords)
    location = Location.of(dataset.t, dataset)
    x, y = location.project(np.array([50.75, 48.2]), np.array([18.0, 16.4]))
    assert x == pytest.approx([40.5, 40.5 - 4 * 1.067], abs=0.1) and y == pytest.approx(
        [40.5, 40.5 - 4 * 2.538], abs=0.1
    )


def test_missing_positions_leave_out_their_cells():
    latitude, longitude = np.meshgrid(np.linspace(50, 55, 60), np.linspace(2, 8, 60), indexing="ij")
    latitude[30:] = np.nan
    places = {"lat": (("j", "i"), latitude, NORTH), "lon": (("j", "i"), longitude, EAST)}
    location = Location.of(xr.DataArray(np.zeros((60, 60)), places, ("j", "i")))
    x, _ = location.project(np.array([51.0, 54.0]), np.array([5.0, 5.0]))
    assert not np.isnan(x[0]) and np.isnan(x[1])


@pytest.mark.parametrize("longitudes", [np.arange(0, 360, 2.0), np.arange(-180, 180, 2.0), np.arange(100, 300, 2.0)])
def test_coasts_follow_the_longitudes_of_the_grid(longitudes):
    location = Location.of(make_degrees(np.arange(90, -91, -2.0), longitudes))
    points = np.concatenate(find_outlines(location)["coasts"][0])
    inside = (points[:, 0] > longitudes[0]) & (points[:, 0] < longitudes[-1])
    assert inside.mean() > 0.95
    sydney = np.hypot(*(points - [151.2, -33.9]).T) if longitudes[-1] > 151 else np.zeros(1)
    assert sydney.min() < 0.5
    assert location.project(np.array([-41.3]), np.array([174.8]))[0][0] == pytest.approx(174.8)
    # no line crosses the map from one side to the other
    for piece in find_outlines(location)["coasts"][0]:
        assert np.abs(np.diff(piece[:, 0])).max() < 1


def test_coasts_of_a_map_across_the_date_line():
    location = Location.of(make_degrees(np.arange(-10, -50, -1.0), np.arange(165, 196, 1.0)))
    assert location.project(np.array([-18.1, -13.8]), np.array([178.4, -171.8]))[0] == pytest.approx([178.4, 188.2])
    points = np.concatenate(find_outlines(location)["coasts"][0])
    assert (points[:, 0] > 180).any() and (points[:, 0] < 180).any()


def test_map_with_a_pole_covers_all_longitudes():
    axis = np.linspace(-3e6, 3e6, 101)
    dataset, _ = make_projected("EPSG:3413", axis, -axis)
    location = Location.of(dataset.z, dataset)
    box = location.bounds
    assert (box.north, box.west, box.east) == (90, -180, 180) and 40 < box.south < 55
    graticule = find_graticule(location)
    assert len({mark.label for mark in graticule.bottom}) == len(graticule.bottom) > 0
    greenland = location.project(np.array([72.0]), np.array([-40.0]))
    assert np.hypot(*np.concatenate(greenland)) == pytest.approx(1957, rel=0.02)


def test_round_degrees_are_selected():
    assert select_degrees(-90, 90).tolist() == [-90, -45, 0, 45, 90]
    assert select_degrees(50.13, 54.9).tolist() == [51, 52, 53, 54]
    assert select_degrees(-0.01, 359.99, 7).tolist() == [0, 60, 120, 180, 240, 300]


def test_cities_do_not_overlap_and_depend_on_the_size(knmi):
    location = Location.of(knmi[0].z, knmi[0])
    counts = []
    for side in (2.0, 5.0):
        axes = Figure(figsize=(side + 1, side + 1)).subplots()
        draw_field(axes, np.zeros((765, 700)), location.x, location.y)
        finish_map(axes, "", location, True, True, size=(side, side))
        counts.append(len(axes.texts))
        limits = axes.get_xlim(), axes.get_ylim()
        assert limits == ((0, 700), (-4414.5, -3649.5)), "lines beyond the map do not widen it"
    assert 0 < counts[0] < counts[1] <= 12
    assert load_cities()[0].name == "Tokyo" and load_cities()[0].population > 10_000_000


def test_edges_lie_between_uneven_centres():
    assert find_edges([1.0, 2.0, 4.0], 3).tolist() == [0.5, 1.5, 3.0, 5.0]
    with pytest.raises(ValueError, match="must ascend or descend"):
        find_edges([0.0, 10.0, -10.0], 3)


def test_report_has_coasts_and_parallels_of_the_grid(knmi):
    grid = MapGrid.of(knmi[0].z, knmi[0])
    assert {label for _, label in grid.ticks()[0]} == {"0°", "5°E"} and grid.unit == "km"
    points = np.array([p.split() for p in grid.outlines.paths["coasts"].replace("M", "L").split("L")[1:]], float)
    assert np.all(np.abs(points - SIDE / 2) < 0.56 * SIDE)
    known = np.concatenate([line for line in load_lines("fine", "coasts") if np.ptp(line, axis=0).max() > 0.1])
    known = known[(np.abs(known[:, 0] - 4) < 1) & (np.abs(known[:, 1] - 52) < 1)]
    x, y = knmi[1].transform(*known.T)
    expected = np.stack([np.array(x) / 700e3, (-3649.5e3 - np.array(y)) / 765e3], axis=1) * SIDE
    assert np.abs(points[None] - expected[:, None]).max(-1).min(axis=1).max() < 1.5, "units of the square"
    assert MapGrid.of(knmi[0].z.drop_attrs()).outlines is None, "km without a grid mapping"
