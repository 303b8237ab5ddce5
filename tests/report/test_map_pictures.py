# SPDX-License-Identifier: Apache-2.0
"""Tests of maps of any field: colours by quantity, selection of times, leads and members, files and animations."""

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import fastds
from fastds.plot import choose_style, draw_field, draw_map, save_figure
from fastds.plot.field_styles import make_difference
from fastds.plot.location import Location
from fastds.plot.panels import MapPanels, MapRow
from fastds.plot.saving import check_picture
from fastds.plot.selection import format_map_time, select_equally, select_leads
from fastds.report import choose_field_style
from fastds.report.maps import encode_png

RAIN = {"units": "mm h-1", "standard_name": "rainfall_rate"}
START = np.datetime64("2024-06-01T12:00", "ns")


def make_forecast(members=4, leads=12, size=24):
    """Return rain rates of members by lead time; the rate of member k (from 0) is k mm/h, at some cells missing."""
    values = np.broadcast_to(np.arange(members, dtype="f4")[:, None, None, None], (members, leads, size, size)).copy()
    values[..., 0, 0] = np.nan
    period = 300 * np.arange(1, leads + 1)
    coords = {
        "time": ("time", START + period * np.timedelta64(1, "s")),
        "forecast_period": ("time", period, {"units": "s", "standard_name": "forecast_period"}),
        "forecast_reference_time": START,
        "lat": ("lat", np.linspace(54, 50, size), {"units": "degrees_north"}),
        "lon": ("lon", np.linspace(2, 8, size), {"units": "degrees_east"}),
    }
    rain = (("realization", "time", "lat", "lon"), values, RAIN)
    mask = (("time", "lat", "lon"), np.zeros((leads, size, size), "f4"), {"flag_values": [0, 1]})
    return xr.Dataset({"rain": rain, "from_outside": mask}, coords, {"fastds_model": "persistence"})


def find_maps(figure):
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


def read_colour(axes, row=5, column=5):
    image = axes.collections[0]
    return to_hex(image.to_rgba(image.get_array())[row, column])


def test_maps_of_a_forecast_have_round_leads_the_mean_and_coasts():
    figure = draw_map(make_forecast())
    maps = find_maps(figure)
    assert [axes.get_title() for axes in maps] == [f"+{lead} min" for lead in (10, 20, 30, 40, 50, 60)]
    title = "rainfall rate with persistence, from 2024-06-01 12:00 UTC, mean of 4 members"
    assert figure.get_suptitle().replace("\n", " ") == title
    assert {c.get_label() for c in maps[0].collections} >= {"coasts", "borders", "graticule"}
    assert maps[0].texts and not draw_map(make_forecast(), outlines=False).axes[0].texts
    assert read_colour(maps[0]) == to_hex(choose_style(RAIN).colour_map.colors[3]), "1.5 mm/h"
    assert figure.axes[-1].get_xlabel() == "rain rate (mm/h); grey: missing"
    assert draw_map(make_forecast().isel(lat=slice(1, None))).axes[-1].get_xlabel() == "rain rate (mm/h)"


def test_members_leads_and_times_are_selected():
    forecast = make_forecast()
    maps = find_maps(draw_map(forecast, member=[1, 4], lead=["15min", "1h"]))
    expected = [f"member {k} of 4, +{lead} min" for k in (1, 4) for lead in (15, 60)]
    assert [axes.get_title() for axes in maps] == expected
    colours = choose_style(RAIN).colour_map.colors
    assert [read_colour(axes) for axes in maps[::2]] == ["#ffffff", to_hex(colours[4])], "0 and 3 mm/h"
    only = forecast.fastds.plot("rain", time="2024-06-01T12:30", member=2)
    assert [axes.get_title() for axes in find_maps(only)] == ["+30 min"]
    assert only.get_suptitle().replace("\n", " ").endswith("member 2 of 4")
    observed = forecast.drop_vars("forecast_period").isel(realization=0, time=slice(7))
    assert find_maps(draw_map(observed.rain))[1].get_title() == "2024-06-01 12:15 UTC"


def test_hindcasts_and_thresholds():
    one = (
        make_forecast(members=2, leads=3)
        .swap_dims(time="forecast_period")
        .drop_vars(["time", "forecast_reference_time"])
    )
    hindcasts = xr.concat([one, one + 30], xr.Variable("forecast_reference_time", START + np.array([0, 3600]) * 10**9))
    hindcasts.rain.attrs = RAIN
    figure = draw_map(hindcasts, var="rain", time="2024-06-01T13:00", lead="10min")
    assert (
        figure.get_suptitle().replace("\n", " ").startswith("rainfall rate with persistence, from 2024-06-01 13:00 UTC")
    )
    assert read_colour(figure.axes[0]) == to_hex(choose_style(RAIN).colour_map.colors[7]), "30.5 mm/h"
    field = one.rain.rename(realization="threshold").assign_coords(
        threshold=("threshold", [1.0, 5.0], {"units": "mm h-1"})
    )
    shares = (field / 2).assign_attrs(units="1").rename("probability_of_rainfall_rate_above_threshold")
    titles = [axes.get_title() for axes in find_maps(draw_map(shares))]
    assert titles == [f"at least {rate} mm/h, +{lead} min" for rate in (1, 5) for lead in (5, 10, 15)]


def test_one_map_on_given_axes():
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    assert make_forecast().fastds.plot(lead="5min", axes=axes, title="now") is figure
    assert axes.get_title() == "now, +5 min" and len(figure.axes) == 2
    with pytest.raises(ValueError, match=r"axes are for a single map, got 1 x 6"):
        draw_map(make_forecast(), axes=axes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"member": 5}, "member must be from 1 to 4, got 5"),
        ({"lead": "7min"}, "lead must be among 5min, 10min, .*, got '7min'"),
        ({"lead": "7"}, "must be a duration with its unit"),
        ({"time": "2030-01-01T00:00"}, "time must be among the times of the field, .*, got '2030"),
        ({"var": "snow"}, "var must be one of rain, got 'snow'"),
        ({"save": "map.bmp"}, r"must end in .png, .svg, .pdf, .gif or .mp4, got 'map.bmp'"),
    ],
)
def test_unknown_selections_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_map(make_forecast(), **arguments)


def test_further_dimensions_and_several_fields_are_refused():
    levels = make_forecast().rain.rename(realization="level")
    with pytest.raises(ValueError, match=r"select one value, data.isel\(level=0\)"):
        draw_map(levels)
    with pytest.raises(ValueError, match="var must name one of the fields of the dataset: rain, other"):
        draw_map(make_forecast().assign(other=make_forecast().rain))
    with pytest.raises(ValueError, match="must have the dimensions y and x"):
        draw_map(make_forecast().rain[0, :, 0, 0])


@pytest.mark.parametrize(
    ("attrs", "name", "value", "label", "index"),
    [
        ({"units": "dBZ"}, "z", 22.0, "reflectivity (dBZ)", 3),
        ({"units": "kg m-2 s-1", "standard_name": "precipitation_flux"}, "pr", 3 / 3600, "rain rate (mm/h)", 4),
        ({"units": "m"}, "tp", 0.0015, "precipitation amount (mm)", 2),
        ({"units": "%", "standard_name": "relative_humidity"}, "r", 55.0, "relative humidity (%)", 4),
        ({"units": "1"}, "probability_of_rain", 7 / 10, "probability (%)", 7),
    ],
)
def test_quantities_have_their_table_and_unit_on_maps_and_in_reports(attrs, name, value, label, index):
    style = choose_style(attrs, name, 0.0, 1.0)
    assert style.label == label
    colour = to_hex(style.colour_map(style.norm(style.convert(value))))
    assert colour == to_hex(style.colour_map.colors[index])
    report = choose_field_style(xr.DataArray([0.0], attrs=attrs, name=name), 0.0, 1.0)
    assert report.colours[np.digitize(value, report.edges)] == colour and report.label == label
    assert encode_png(np.full((2, 2), value), report).startswith("data:image/png")


def test_height_of_the_terrain_is_no_rain():
    assert choose_style({"units": "m"}, "terrain", 0.0, 900.0).label == "terrain (m)"
    assert choose_style({"units": "%", "long_name": "chance of rain"}, "rain", 0.0, 9.0).label == "chance of rain (%)"


def test_large_fields_are_thinned_without_a_shift():
    field = np.zeros((3, 5000))
    field[:, 2500:] = 60
    image = draw_field(Figure().subplots(), field, np.arange(5000.0), np.arange(3.0))
    values, edges = image.get_array()[0], image.get_coordinates()[0, :, 0]
    assert len(values) <= 2000 and edges[[0, -1]].tolist() == [-0.5, 4999.5]
    assert edges[int(np.argmax(values > 0))] == pytest.approx(2499.5, abs=3)


def test_temperatures_have_one_colour_each():
    warm = choose_style({"units": "K", "standard_name": "air_temperature"}, "t", 280.0, 300.0)
    cold = choose_style({"units": "degC", "standard_name": "air_temperature"}, "t", -20.0, 30.0)
    assert warm.levels[0] <= 6.85 and warm.levels[-1] >= 26.85 and warm.label == "air temperature (°C)"
    assert warm.convert([273.15]).tolist() == [0.0] and cold.convert([0.0]).tolist() == [0.0]
    middles = [np.array(to_rgb) for to_rgb in (warm.colour_map(warm.norm(13.0)), cold.colour_map(cold.norm(13.0)))]
    assert np.abs(middles[0] - middles[1]).max() < 0.25


def test_other_quantities_cover_their_range_and_differences_are_centred():
    style = choose_style({"units": "m s-1", "long_name": "wind"}, "u", -3.0, 11.0)
    assert style.label == "wind (m s-1)" and style.levels[0] <= -3 and style.levels[-1] >= 11
    difference = make_difference("error (K)", 2.0)
    assert difference.extend == "both" and sum(difference.levels) == pytest.approx(0)


def test_rows_without_fields_are_left_out_and_colour_bars_shared():
    rain, wind = choose_style(RAIN), choose_style({"units": "m s-1"}, "u")
    field, place = np.ones((6, 8)), Location()
    rows = [MapRow("a", [field, None], rain, place), MapRow("empty", [None, None], rain, place)]
    rows += [MapRow("b", [field, field], rain, place), MapRow("c", [None, field], wind, place)]
    figure = MapPanels(rows, ["1", "2"], "title").figure
    assert [axes.get_title() for axes in find_maps(figure)] == ["a, 1", "b, 1", "b, 2", "c, 2"]
    assert len(figure.axes) == 6 + 2
    with pytest.raises(ValueError, match="row 'a' must have 3 fields, got 2"):
        MapPanels(rows, ["1", "2", "3"])
    with pytest.raises(ValueError, match="there is no field to draw"):
        MapPanels(rows[1:2], ["1", "2"])


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_figures_are_written_by_the_ending(suffix, start, tmp_path):
    save_figure(Figure(figsize=(1, 1)), tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"path must end in .png, .svg or .pdf, got"):
        save_figure(Figure(), tmp_path / "a.gif")


def test_gif_has_one_frame_for_each_time(tmp_path):
    forecast = make_forecast(members=1, leads=3)
    forecast["rain"] = forecast.rain * 0 + xr.DataArray([0.0, 3.0, 30.0], dims="time")
    forecast.rain.attrs = RAIN
    forecast.fastds.plot(save=tmp_path / "a.gif")
    colours = choose_style(RAIN).colour_map.colors
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == 3
        for frame, colour in enumerate(("#ffffff", *(to_hex(colours[k]) for k in (4, 7)))):
            file.seek(frame)
            pixels = np.asarray(file.convert("RGB")).reshape(-1, 3).astype(int)
            rgb = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
            assert (np.abs(pixels - rgb).max(axis=1) < 8).mean() > 0.3, frame
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_mp4_has_one_frame_for_each_time(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    draw_map(make_forecast(members=1, leads=3), save=tmp_path / "a.mp4", lead=["5min", "15min"])
    frames = imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4"))
    assert next(frames)["fps"] == 2.5 and len(list(frames)) == 2


def test_mp4_without_its_package_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"as .gif needs no further package.*pip install imageio-ffmpeg"):
        check_picture(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(4, 6, [0, 1, 2, 3]), (13, 4, [0, 4, 8, 12]), (25, 6, [0, 6, 12, 18, 24]), (12, 6, [0, 2, 4, 6, 8, 10])],
)
def test_times_are_selected_at_equal_intervals(count, most, expected):
    assert select_equally(count, most) == expected


def test_leads_are_round_and_include_the_last():
    leads = 300 * np.arange(1, 13)
    assert (leads[select_leads(leads, 4)] / 60).tolist() == [15, 30, 45, 60]
    assert (leads[select_leads(leads, 6)] / 60).tolist() == [10, 20, 30, 40, 50, 60]
    assert format_map_time(np.datetime64("2024-06-01T12:05:30")) == "2024-06-01 12:05:30 UTC"


def test_importing_fastds_does_not_import_matplotlib():
    code = "import sys, xarray, fastds; xarray.DataArray([1.0]).fastds; assert 'matplotlib' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert fastds.plot.draw_map is draw_map
