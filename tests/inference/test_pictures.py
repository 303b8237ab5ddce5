# SPDX-License-Identifier: Apache-2.0
"""Tests of the option --picture of `fastds downscale` and `fastds nowcast`: contents, formats and errors."""

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from fastds.cli import main
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from fastds.plot.panels import MapPanels
from fastds.tasks import downscale_picture

NORTH = {"units": "degrees_north", "standard_name": "latitude"}
EAST = {"units": "degrees_east", "standard_name": "longitude"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with IN.nc (radar, over the Netherlands) and FIELDS.nc (three variables at one time)."""
    monkeypatch.chdir(tmp_path)
    event = coarsen_dataset(synthetic_event(seed=4, frames=9, shape=(64, 64)))[["reflectivity"]]
    places = {
        "y": ("y", 53 - 0.05 * np.arange(32), NORTH),
        "x": ("x", 4 + 0.08 * np.arange(32), EAST),
    }
    save_dataset(event.assign_coords(places), "IN.nc")
    latitude, longitude = ("latitude", np.arange(60.0, 40, -1), NORTH), ("longitude", np.arange(350.0, 380) % 360, EAST)
    values = np.add.outer(np.arange(20.0), np.arange(30.0)).astype("f4")[None]
    temperature = {"units": "K", "standard_name": "air_temperature"}
    variables = {
        name: (("time", "latitude", "longitude"), values + shift, attrs)
        for name, shift, attrs in (("t", 260, temperature), ("u", 0, {"units": "m s-1"}), ("v", 0, {"units": "m s-1"}))
    }
    time = np.array(["2024-06-01"], "M8[ns]")
    save_dataset(xr.Dataset(variables, {"time": time, "latitude": latitude, "longitude": longitude}), "FIELDS.nc")
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of MapPanels that are made."""
    made = []

    class Recorded(MapPanels):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(downscale_picture, "MapPanels", Recorded)
    return made


def find_titles(panels):
    return [axes.get_title() for axes in panels.figure.axes if axes.get_title()]


def test_downscale_draws_input_and_output_at_times_of_the_input(folder, drawn, capsys):
    assert main(["downscale", "IN.nc", "OUT.nc", "--model=trilinear", "--picture=OUT.png"]) == 0
    assert "wrote OUT.png" in capsys.readouterr().out
    (panels,) = drawn
    titles = find_titles(panels)
    times = [f"2024-06-01 12:{minute:02d} UTC" for minute in (0, 20, 40)]
    assert titles == [f"{name}, {time}" for name in ("input", "downscaled") for time in times]
    assert panels.figure.get_suptitle() == "Downscaled fields with trilinear"
    fine, coarse = xr.open_dataset("OUT.nc"), xr.open_dataset("IN.nc")
    for row, dataset in enumerate((coarse, fine)):
        image = panels.figure.axes[3 * row + 1].collections[0]
        expected = dataset.reflectivity.sel(time="2024-06-01T12:20").values
        np.testing.assert_allclose(image.get_array().filled(np.nan), expected, atol=1e-5)
        assert {"coasts", "graticule"} <= {c.get_label() for c in panels.figure.axes[row].collections}


def test_downscale_draws_member_and_mean(folder, drawn):
    given = xr.open_dataset("IN.nc")
    members = xr.concat([given, given + 10], "realization")
    members.reflectivity.attrs = given.reflectivity.attrs
    text = downscale_picture.write_picture("OUT.png", given, members)
    assert text == "wrote OUT.png"
    titles = find_titles(drawn[0])
    assert [title.partition(",")[0] for title in titles[::3]] == ["input", "member 1", "mean of 2 members"]
    first, mean = (drawn[0].figure.axes[3 * row].collections[0].get_array() for row in (1, 2))
    np.testing.assert_allclose(mean - first, 5, atol=1e-4)


def test_amounts_of_different_intervals_are_drawn_as_rates(folder, drawn):
    given = xr.open_dataset("IN.nc").isel(time=slice(3))
    attrs = {"units": "kg m-2", "standard_name": "rainfall_amount"}
    amounts = xr.zeros_like(given).rename(reflectivity="rain") + 0.5
    times = amounts.time.values[0] + np.arange(5) * np.timedelta64(5, "m")
    fine = amounts.reindex(time=times, method="nearest") / 2
    for dataset in (amounts, fine):
        dataset.rain.attrs = attrs
    downscale_picture.write_picture("OUT.png", amounts, fine)
    maps = [axes for axes in drawn[0].figure.axes if axes.get_title()]
    values = [float(axes.collections[0].get_array()[0, 0]) for axes in maps]
    assert values == pytest.approx([3.0] * 6), "0.5 mm in 10 min and 0.25 mm in 5 min"
    assert "rain rate (mm/h)" in [axes.get_xlabel() for axes in drawn[0].figure.axes]


def test_downscale_draws_variables_of_one_time_next_to_their_input(folder, drawn, capsys):
    options = ["--model=bicubic", "--scale=2", "--picture=OUT.png"]
    assert main(["downscale", "FIELDS.nc", "OUT.nc", *options]) == 0
    titles = find_titles(drawn[0])
    time = "2024-06-01 00:00 UTC"
    assert titles == [f"{name}, {time}, {kind}" for name in "tuv" for kind in ("input", "downscaled")]
    assert "air temperature (°C)" in [axes.get_xlabel() for axes in drawn[0].figure.axes]


def test_animations_have_one_frame_for_each_time(folder):
    assert main(["downscale", "IN.nc", "OUT.nc", "--model=trilinear", "--picture=OUT.gif"]) == 0
    assert main(["nowcast", "IN.nc", "N.nc", "--model", "persistence", "--steps", "2", "--picture", "N.gif"]) == 0
    words = "nowcast IN.nc P.nc --model extrapolation --steps 2 --members 2 --probability 1,5 --picture P.gif"
    assert main(words.split()) == 0
    frames = {}
    for name in ("OUT", "N", "P"):
        with Image.open(f"{name}.gif") as file:
            frames[name] = file.n_frames
    assert frames == {"OUT": xr.open_dataset("OUT.nc").sizes["time"], "N": 3, "P": 2}


@pytest.mark.parametrize("command", ["downscale IN.nc OUT.nc --model trilinear", "nowcast IN.nc OUT.nc --steps 2"])
@pytest.mark.parametrize("name", ["map.bmp", "map"])
def test_unknown_format_of_a_picture_is_refused_before_the_computation(folder, capsys, command, name):
    assert main([*command.split(), "--picture", name]) == 2
    error = capsys.readouterr().err
    assert f"--picture must end in .png, .svg, .pdf, .gif or .mp4, got '{name}'" in error
    assert sorted(path.name for path in folder.iterdir()) == ["FIELDS.nc", "IN.nc"]


def test_picture_is_not_for_archives(folder, capsys):
    assert main(["downscale", "IN.nc", "OUT.zarr", "--model=trilinear", "--workers=1", "--picture=p.png"]) == 2
    assert "--picture is for results that are made at once" in capsys.readouterr().err
