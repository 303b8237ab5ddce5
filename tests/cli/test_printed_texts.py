# SPDX-License-Identifier: Apache-2.0
"""Tests of printed texts: the version, model descriptions and pictures of nowcasts."""

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds._suggestions import add_article
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.tasks.nowcast import picture
from tests.support.small_models import TEMPERATURE, gridded


def test_version_equals_the_changelog():
    changelog = Path(__file__).parents[2] / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("no checkout")
    newest = re.search(r"^## (\d+\.\d+)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    assert fastds.__version__.startswith(f"{newest[1]}.")


def test_articles_in_messages():
    assert [add_article(name) for name in ("ErrorModel", "Tensor", "int")] == ["an ErrorModel", "a Tensor", "an int"]
    with pytest.raises(ValueError, match="model is an ErrorModel, expected an INRDownscaler"):
        fastds.downscale(fastds.load("nowcast-errors"), gridded(TEMPERATURE), scale=2)


@pytest.mark.parametrize("scale", [3, 2.5])
def test_message_names_the_requested_factor(scale):
    data = gridded(TEMPERATURE)
    data["longitude"] = data.longitude.copy(data=10.1 + 0.3 * np.arange(10))  # whose steps are not exact in binary
    assert fastds.downscale("bicubic", data, scale=scale).attrs["fastds_scale"] == scale


def test_message_about_longitudes_across_the_seam(tmp_path, capsys):
    data = gridded(TEMPERATURE)
    longitude = np.concatenate([np.arange(0, 20.25, 0.25), np.arange(350, 360, 0.25)])
    values = np.full((1, data.sizes["latitude"], longitude.size), 280.0, "f4")
    wide = xr.Dataset(
        {"t": (("time", "latitude", "longitude"), values, TEMPERATURE)},
        {"time": data.time[:1], "latitude": data.latitude, "longitude": ("longitude", longitude, data.longitude.attrs)},
    )
    save_dataset(wide, tmp_path / "in.nc")
    assert main(["downscale", f"{tmp_path}/in.nc", f"{tmp_path}/o.nc", "--scale=2"]) == 2
    stderr = capsys.readouterr().err
    assert "longitude has a gap from 20 to 350: the region crosses the seam of the longitudes" in stderr
    assert "(longitude + 180) % 360 - 180, sorted" in stderr and "unsorted" not in stderr
    mended = wide.assign_coords(longitude=(wide.longitude + 180) % 360 - 180).sortby("longitude")
    mended.longitude.attrs = data.longitude.attrs
    assert fastds.downscale("bicubic", mended, scale=2).sizes["longitude"] == 2 * longitude.size


@pytest.mark.parametrize(
    ("words", "leads", "title"),
    [
        (["--steps=12"], ["start", "+15 min", "+30 min", "+45 min", "+60 min"], "with extrapolation"),
        (["--steps=3", "--members=2"], ["start", "+5 min", "+10 min", "+15 min"], "extrapolation, mean of 2 members"),
    ],
)
def test_nowcast_picture_options(tmp_path, monkeypatch, words, leads, title):
    drawn = []

    def strip(observed, forecast, times, **options):
        drawn.append((times, options))
        return picture_of(observed, forecast, times, **options)

    picture_of = picture.forecast_strip
    monkeypatch.setattr(picture, "forecast_strip", strip)
    event = synthetic_event(5, 4, (64, 64))[["reflectivity"]]
    degrees = (
        {"units": "degrees_east", "standard_name": "longitude"},
        {"units": "degrees_north", "standard_name": "latitude"},
    )
    event = event.assign_coords(
        x=("x", 10 + 0.01 * np.arange(64), degrees[0]), y=("y", 50 - 0.01 * np.arange(64), degrees[1])
    )
    save_dataset(event, tmp_path / "in.nc")
    command = [
        "nowcast",
        f"{tmp_path}/in.nc",
        f"{tmp_path}/o.nc",
        "--model=extrapolation",
        f"--picture={tmp_path}/p.png",
    ]
    assert main([*command, *words]) == 0
    ((times, options),) = drawn
    assert times == leads and options["title"].endswith(title)
    assert options["location"].unit == "degrees" and options["location"].x[0] == pytest.approx(10, abs=0.1)
