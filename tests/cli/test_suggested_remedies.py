# SPDX-License-Identifier: Apache-2.0
"""Tests that the remedies in error messages work."""

import dataclasses
import re

import numpy as np
import pytest
import xarray as xr

from fastds.cli import main
from fastds.data import save_dataset
from fastds.studies.common.config import PaperConfig
from fastds.studies.common.plan import Costs, make_plan
from tests.support.small_models import TEMPERATURE, gridded


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    """Return a function that writes a file of relative humidity of a given size."""

    def made(height, width, times=24):
        path = tmp_path_factory.mktemp("region") / "g.nc"
        values = np.random.default_rng(0).normal(size=(times, height, width)).cumsum(1).cumsum(2) / 20
        dims, attrs = ("time", "latitude", "longitude"), {"units": "%", "standard_name": "relative_humidity"}
        coords = {
            "time": np.datetime64("2020-01-01", "ns") + np.arange(times) * np.timedelta64(6, "h"),
            "latitude": ("latitude", 60 - 0.25 * np.arange(height), {"units": "degrees_north"}),
            "longitude": ("longitude", 0.25 * np.arange(width), {"units": "degrees_east"}),
        }
        fields = {"r": (dims, np.clip(50 + values, 0, 100).astype("f4"), attrs)}
        xr.Dataset(fields, coords).to_netcdf(path, engine="h5netcdf")
        return str(path)

    return made


def train(task, path, output, *words):
    """Return the command line of a training of one step."""
    pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")
    command = ["train", task, f"--data.path={path}", f"--output={output}", "--max-steps=1", *words]
    return [*command, "--data.batch-size=2", "--data.epoch-samples=2", "--progress=false", "--threads=1"]


FIELDS = ("fields", "--data.variables=[r]")
HUMIDITY = ("humidity", "--model=wgan-gp-small", "--data.validation-samples=2")


@pytest.mark.parametrize(
    ("height", "width", "words", "option"),
    [
        (53, 50, FIELDS, "--data.split=time"),
        (61, 121, (*HUMIDITY, "--data.crop=32"), r"--data.crop=\d+(?= fits)"),
        (53, 80, (*HUMIDITY, "--data.crop=64"), r"--data.crop=\d+(?= fits)"),
        (53, 80, (*FIELDS, "--data.crop=60"), None),
    ],
)
def test_error_suggests_options_for_a_region(region, tmp_path, capsys, height, width, words, option):
    task, *words = words
    command = train(task, region(height, width), tmp_path / "o", *words)
    assert main(command) == 2
    message = capsys.readouterr().err
    if option is None:
        found = re.search(r"at most (\d+) fits", message)
        remedy = f"--data.crop={found and found[1]}"
    else:
        found = re.search(option, message)
        remedy = found and found[0]
    assert found, "no way out is named"
    assert main([*command, remedy]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("height", "width", "words", "printed"),
    [
        (61, 121, FIELDS, "121 columns: the first 87 are for training, and the last 28 for validation"),
        (53, 60, FIELDS, "--data.crop=21, the largest that fits"),
        (61, 121, HUMIDITY, "--data.crop=24, the largest that fits"),
    ],
)
def test_small_region_is_trained_without_further_options(region, tmp_path, capsys, height, width, words, printed):
    task, *words = words
    assert main(train(task, region(height, width), tmp_path / "o", *words)) == 0
    assert printed in capsys.readouterr().out


def test_error_suggests_options_for_a_small_region(region, tmp_path, capsys):
    command = train("fields", region(53, 50), tmp_path / "o", "--model=inr-any", '--data.each=["*"]')
    assert main(command) == 2
    stderr = capsys.readouterr().err
    assert "take fields of 140 columns, or one variable by --data.variables with --data.split=time" in stderr


def test_short_budget_error_names_affordable_methods():
    costs = Costs({"slow": 20.0, "quick": 0.5, "quicker": 0.1}, 30.0)
    config = PaperConfig(budget="2min")
    with pytest.raises(ValueError, match=r"must be at least 9min .*; 2min is enough for run=\[quick,quicker\]"):
        make_plan(config, list(costs.step_seconds), 90, lambda names: costs)
    fitting = Costs({name: costs.step_seconds[name] for name in ("quick", "quicker")}, 20.0)
    assert make_plan(config, list(fitting.step_seconds), 90, lambda names: fitting)["steps"] >= 20
    with pytest.raises(ValueError, match="max_steps sets the steps without a budget"):
        make_plan(dataclasses.replace(config, budget="5s"), list(costs.step_seconds), 90, lambda names: costs)


@pytest.mark.parametrize("model", [None, "inr-small", "inr-any"])
@pytest.mark.parametrize("verb", ["downscale", "query"])
def test_error_about_unused_statics(tmp_path, capsys, model, verb):
    """The message is about the static maps, not about missing humidity."""
    save_dataset(gridded(TEMPERATURE), tmp_path / "t.nc")
    (tmp_path / "p.csv").write_text("lat,lon\n45,110\n")
    words = {
        "downscale": [f"{tmp_path}/o.nc", "--scale=2"],
        "query": [f"--points={tmp_path}/p.csv", f"--output={tmp_path}/o.csv"],
    }[verb]
    named = [] if model is None else [f"--model={model}"]
    assert main([verb, f"{tmp_path}/t.nc", *words, *named, f"--static={tmp_path}/relief.nc:h"]) == 2
    stderr = capsys.readouterr().err
    assert "humidity" not in stderr and "leave out --static" in stderr
    assert (f"model {model} reads no static maps" if model else "no shipped network reads static maps") in stderr


@pytest.mark.parametrize("column", ["t", "t_bilinear", "time", "fastds_out_of_domain"])
def test_error_about_reserved_station_columns(tmp_path, capsys, monkeypatch, column):
    save_dataset(gridded(TEMPERATURE), tmp_path / "t.nc")
    (tmp_path / "p.csv").write_text(f"lat,lon,{column},name\n45,110,99.5,A\n")
    command = ["query", f"{tmp_path}/t.nc", f"--points={tmp_path}/p.csv", f"--output={tmp_path}/o.csv"]
    assert main(command) == 2
    message = (
        f"the points have a column {column}, as the result has, whose values would be lost: rename it in the points"
    )
    assert f"{message}, such as {column}_observed" in capsys.readouterr().err and not (tmp_path / "o.csv").exists()
    (tmp_path / "p.csv").write_text(f"lat,lon,{column}_observed,latitude\n45,110,99.5,north\n")
    assert main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "o.csv").read_text().splitlines()[1].startswith("45,110,99.5,north,")
