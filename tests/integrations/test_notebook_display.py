# SPDX-License-Identifier: Apache-2.0
"""Tests of what a notebook and an editor show: tables, model cards, models, and the accessor of a dataset."""

import dataclasses
import inspect
import re
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import fastds
from fastds import models
from fastds._accessor import Accessor
from fastds.data import synthetic_event
from fastds.tasks.applicability import list_applicable

FUNCTIONS = ("downscale", "nowcast", "query", "evaluate", "plot", "check")
ENTRIES = ["downscale()", "downscale(scale=...)", "nowcast()", "query(points)", "evaluate(truth)", "plot()"]


@pytest.fixture(scope="module")
def event():
    return synthetic_event(4, 6, (32, 48))


@pytest.fixture
def fields():
    axes = {"latitude": np.linspace(60.0, 50.0, 11), "longitude": np.linspace(0.0, 10.0, 11)}
    coordinates = {
        name: (name, values, {"units": f"degrees_{way}"})
        for (name, values), way in zip(axes.items(), ("north", "east"), strict=True)
    }
    values = np.full((11, 11), 280.0, np.float32)
    return xr.Dataset({"t2m": (list(axes), values, {"units": "K", "standard_name": "air_temperature"})}, coordinates)


def get_applying(data):
    return [one.function for one in list_applicable(data) if one.applies]


def check_fragment(text):
    """Check that HTML loads nothing, runs nothing and sets no colours of its own, and that its tags are balanced."""
    assert not re.search(r"<(script|link|img|style|iframe)|https?://|background|[^-]color:", text)
    for tag in ("div", "table", "tr", "td", "th", "details"):
        assert len(re.findall(rf"<{tag}\b", text)) == text.count(f"</{tag}>"), tag


def test_accessor_shows_the_functions_for_radar_fields(event):
    assert get_applying(event) == ENTRIES
    without_mapping = [name for name in ENTRIES if name != "query(points)"]  # a DataArray has no grid mapping
    assert get_applying(event.reflectivity) == without_mapping
    text = event.fastds._repr_html_()
    check_fragment(text)
    assert all(name in text for name in ENTRIES) and "reflectivity at twice the resolution in space and time" in text
    assert repr(event.fastds) == f"<fastds functions of a Dataset: {', '.join(FUNCTIONS)}>"


def test_accessor_shows_the_functions_for_gridded_fields(fields):
    assert get_applying(fields) == ["downscale(scale=...)", "query(points)", "evaluate(truth)", "plot()"]
    reasons = {one.function: one.text for one in list_applicable(fields) if not one.applies}
    assert reasons["nowcast()"].startswith("no variable of reflectivity was found")


def test_accessor_shows_how_many_times_a_nowcast_lacks(event):
    shown = {one.function: one.text for one in list_applicable(event.isel(time=slice(3)))}
    assert "nowcast-small needs 5 times, found 3 times" in shown["nowcast()"]
    single = event.isel(time=[0])
    assert "nowcast()" not in get_applying(single)
    assert list_applicable(single)[0].text == "reflectivity at twice the resolution in space"


@pytest.mark.parametrize(
    "data",
    [
        xr.Dataset(), xr.DataArray(1.0), xr.DataArray(["<b>"], dims="<script>", name="<i>"),
        xr.Dataset({"a": (("y", "x"), np.empty((0, 3)))}), xr.Dataset({1: ("x", [1, 2])}, {"x": [None, "a"]}),
        xr.DataArray(np.zeros((2, 2), object), dims=("lat", "lon"), attrs={"units": 3, "standard_name": None}),
    ],
)  # fmt: skip
def test_accessor_display_raises_no_exception(data):
    text = data.fastds._repr_html_()
    check_fragment(text)
    assert not re.search("<(b|i)>", text) and set(get_applying(data)) <= {"evaluate(truth)", "plot()"}


def test_accessor_display_raises_no_exception_for_errors_of_any_kind(event, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("<defect>")

    monkeypatch.setattr("fastds.tasks.applicability.to_reflectivity", fail)
    assert "&lt;defect&gt;" in event.fastds._repr_html_()
    monkeypatch.setattr("fastds.tasks.applicability.open_input", fail)
    assert get_applying(event) == []


def test_accessor_display_reads_no_values(event):
    def fail(block):
        raise AssertionError("values were read")

    lazy = da.map_blocks(fail, da.zeros((6, 32, 48)), dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    data = event.assign(reflectivity=event.reflectivity.copy(data=lazy))
    assert get_applying(data) == ENTRIES


def test_accessor_needs_neither_torch_nor_matplotlib():
    code = (
        "import sys, xarray, fastds\n"
        "found = xarray.Dataset().fastds, xarray.DataArray([1.0]).fastds; repr(found); dir(found[0])\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FUNCTIONS)
def test_accessor_arguments_are_visible(event, name):
    assert name in dir(event.fastds)
    signature = inspect.signature(getattr(event.fastds, name))
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert signature.parameters and not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    documentation = inspect.getdoc(getattr(Accessor, name))
    assert all(f"{parameter}: " in documentation for parameter in signature.parameters)


def test_accessor_check_prints_the_commands(fields, capsys):
    assert fields.fastds.check() is True
    printed = capsys.readouterr().out
    assert printed.startswith("Dataset in memory\n") and "can        downscale --scale 2: t2m" in printed
    assert "format" not in printed and "variable   t2m [K] latitude 11, longitude 11" in printed
    assert xr.DataArray(1.0).fastds.check() is False
    assert capsys.readouterr().out.startswith("DataArray in memory\n")


def test_score_table_is_shown_with_its_notes(event):
    table = event.fastds.evaluate(event)
    text = table._repr_html_()
    check_fragment(text)
    assert "Errors above" in text and "<td" in text and "print(all_scores=True) shows all scores" not in text
    assert all(note in text for note in ("2 pairs of input frames", "FSS in windows of")) and "trilinear" in text
    assert len(repr(table)) < 300 and repr(table).startswith("<EvaluationTable Errors of downscaled radar fields")
    named = dataclasses.replace(table, rows={**table.rows, "<b>mine</b>": table.rows["trilinear"]})
    assert "&lt;b&gt;mine&lt;/b&gt;" in named._repr_html_() and "<b>mine" not in named._repr_html_()


def test_main_scores_of_a_forecast_are_shown(event):
    rain = fastds.nowcast("persistence", event.isel(time=slice(4)), steps=2)
    table = fastds.evaluate(rain, event, baselines=["persistence"])
    text = table._repr_html_()
    check_fragment(text)
    assert "Main scores" in text and "print(all_scores=True) shows all scores" in text and len(repr(table)) < 300


def test_model_card_is_shown():
    card = models.load_card("fczsm-small")
    text = card._repr_html_()
    check_fragment(text)
    assert "fczsm-small (radar)" in text and "2000.0 to 8000.0" in text and "<details>" in text and "None" not in text
    assert repr(card) == "<ModelCard 'fczsm-small', task 'radar'>"
    own = models.ModelCard(name="<b>", description="<i>", limits=["<u>"], metrics={"<s>": {"<p>": 1.0}})
    assert not re.search(r"<[biusp]>", own._repr_html_())
    check_fragment(models.ModelCard()._repr_html_())


def test_loaded_model_is_shown_with_its_card():
    model = fastds.load("fczsm-small")
    text = model._repr_html_()
    assert re.search(r"FCZSM with [\d,]+ parameters", text) and models.load_card("fczsm-small")._repr_html_() in text
    assert repr(model).startswith("FCZSM(")
