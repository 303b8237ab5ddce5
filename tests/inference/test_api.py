# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.downscale, nowcast, query and evaluate, which select the task by the model card."""

import inspect

import numpy as np
import pytest
import xarray as xr

import fastds
from fastds import _accessor, _mixins, models
from fastds.data import coarsen_dataset, save_dataset, synthetic_event
from fastds.tasks import api, fields, humidity, nowcast, radar  # noqa: F401
from fastds.tasks.api import UnknownOptionError, get_task_function
from fastds.tasks.fields import run as fields_run
from fastds.tasks.humidity import run as humidity_run
from fastds.tasks.nowcast import run as nowcast_run
from fastds.tasks.radar import evaluation as radar_evaluation
from fastds.tasks.radar import run as radar_run
from fastds.tasks.radar.pipeline import RadarPipeline
from tests.support import forked
from tests.support.small_models import HUMIDITY, TEMPERATURE, field_model, generator, gridded, nowcaster, radar_model


@pytest.fixture(scope="module")
def event():
    return synthetic_event(5, 5, (64, 64))[["reflectivity", "crs"]]


CASES = {
    "radar": (radar_model, lambda event: coarsen_dataset(event), radar_run.downscale, {"tile": 32, "halo": 16}),
    "fields": (field_model, lambda event: gridded(TEMPERATURE), fields_run.downscale, {"scale": 2.5}),
    "humidity": (generator, lambda event: gridded(HUMIDITY), humidity_run.downscale, {"members": 2, "seed": 3}),
}


def test_model_cards_name_their_task():
    made = {"radar": radar_model, "fields": field_model, "humidity": generator, "nowcast": nowcaster}
    assert {task: make().card.task for task, make in made.items()} == {task: task for task in made}
    assert models.ModelCard().task == ""
    shipped = {name: models.load_card(name).task for name in models.available(pretrained=True)}
    expected = {"fczsm": "radar", "inr": "fields", "wgan": "humidity", "nowcast": "nowcast"}
    laws = {"nowcast-errors": "", "downscaling-errors": ""}  # no networks that run by themselves
    assert {name: shipped.pop(name) for name in laws} == laws
    assert shipped == {name: expected[name.split("-")[0]] for name in shipped} and "nowcast-small" in shipped


@pytest.mark.parametrize("task", CASES)
def test_downscale_dispatches_by_task(event, tmp_path, task):
    """Call downscale with a model, a file of weights and a method, and with a Dataset, a file and a DataArray."""
    make, data_of, function, options = CASES[task]
    model, data = make(), data_of(event)
    expected = function(model, data, **options)
    name = next(iter(expected.data_vars))
    models.save(model, tmp_path / "m.safetensors")
    save_dataset(data, tmp_path / "in.nc")
    found = [
        fastds.downscale(model, data, **options),
        fastds.downscale(str(tmp_path / "m.safetensors"), data, **options),
        fastds.downscale(model, tmp_path / "in.nc", **options),
        fastds.load(tmp_path / "m.safetensors").downscale(data, **options),
    ]
    if task != "radar":  # whose grid mapping is another variable
        found.append(fastds.downscale(model, data[name], **options))
    for out in found:
        assert out[name].dims == expected[name].dims
        np.testing.assert_allclose(out[name], expected[name], atol=1e-4)


def test_downscale_without_a_model_takes_the_shipped_ones(event, monkeypatch):
    seen = []
    monkeypatch.setattr(RadarPipeline, "compute_all", lambda job, *a: seen.append(job.model.card.name) or xr.Dataset())
    monkeypatch.setattr(fields_run, "_downscale", lambda model, *a, **k: (seen.append(model), (xr.Dataset(), 0))[1])
    fastds.downscale(None, coarsen_dataset(event))
    fastds.downscale(None, gridded(TEMPERATURE), grid=0.5)
    assert seen == ["fczsm-small", None]  # which fields.methods.pick_method takes for inr-small, or inr-any


def test_error_names_options_of_another_task(event):
    refusals = [
        (generator(), gridded(HUMIDITY), {"tile": 32}, "tile is no argument for humidity, .* members, precision, seed"),
        (field_model(), gridded(TEMPERATURE), {"scale": 2, "members": 2}, "members is no argument for fields"),
        (
            radar_model(),
            event,
            {"scale": 2},
            "scale is no argument for radar, which takes the arguments coarsened, device, ",
        ),
    ]
    for model, data, options, sentence in refusals:
        for kind in (TypeError, ValueError, UnknownOptionError):
            with pytest.raises(kind, match=sentence):
                fastds.downscale(model, data, **options)
    with pytest.raises(
        UnknownOptionError, match="baselines is no argument for radar, .* input, model, report, var, z_r"
    ):
        fastds.evaluate(event, event, baselines=["persistence"])
    with pytest.raises(UnknownOptionError, match="scale is no argument for nowcast, .* every, graph, interval, lead"):
        fastds.predict("extrapolation", event, scale=2)


def test_arguments_that_no_task_takes_are_refused_by_python(event):
    calls = {
        "tyle": lambda **wrong: fastds.downscale(radar_model(), event, **wrong),
        "leads": lambda **wrong: fastds.nowcast(None, event, **wrong),
        "scale": lambda **wrong: fastds.query(field_model(), gridded(TEMPERATURE), [(45.0, 110.0)], **wrong),
        "coarse": lambda **wrong: fastds.evaluate(event, event, **wrong),
    }
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            call(**{name: 2})


def test_task_functions_have_explicit_signatures():
    """Methods of models and of the accessor have the keyword arguments and texts of the functions."""

    def keywords(function):
        parameters = inspect.signature(function).parameters.values()
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters)
        return [(p.name, p.default, p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY]

    def words(function):  # of all arguments, without line breaks
        return " ".join(inspect.getdoc(function).partition("Args:")[2].partition("Returns:")[0].split())

    methods = [
        *(
            (getattr(_accessor.Accessor, name), getattr(fastds, name))
            for name in ("downscale", "nowcast", "query", "evaluate")
        ),
        (_mixins.DownscaleMixin.downscale, fastds.downscale),
        (_mixins.NowcastMixin.nowcast, fastds.nowcast),
    ]
    for method, function in methods:
        assert keywords(method) == keywords(function)
        first = keywords(function)[0][0]
        assert words(method).partition(f" {first}: ")[2] == words(function).partition(f" {first}: ")[2]
    both = {*keywords(fastds.downscale), *keywords(fastds.nowcast)}
    assert set(keywords(fastds.predict)) == both
    of_tasks = {*api.READ_OPTIONS}
    for task in ("radar", "fields", "humidity"):
        run = inspect.signature(get_task_function(task, "downscale")).parameters
        of_tasks |= {p.name for p in run.values() if p.kind is p.KEYWORD_ONLY}
    assert {name for name, *_ in keywords(fastds.downscale)} == of_tasks
    options = inspect.signature(nowcast_run.Options).parameters
    further = {"missing", "units", "array", "stop", "progress"}
    assert {name for name, *_ in keywords(fastds.nowcast)} == {*options, *further}


def test_models_and_data_of_another_kind_are_refused(event):
    with pytest.raises(ValueError, match="forecasts and does not downscale; use nowcast"):
        fastds.downscale(nowcaster(), event)
    with pytest.raises(ValueError, match="exactly one of the arguments scale, grid and like"):
        fastds.downscale(field_model(), gridded(TEMPERATURE))
    with pytest.raises(ValueError, match="does not forecast"):
        fastds.nowcast(radar_model(), event)
    with pytest.raises(ValueError, match="expected an INRDownscaler"):
        fastds.query(radar_model(), gridded(TEMPERATURE), [(45.0, 110.0)])
    with pytest.raises(TypeError, match=r"a DataArray, a path or a list of paths, got \[1, 2\]"):
        fastds.downscale(radar_model(), [1, 2])
    with pytest.raises(FileNotFoundError, match="no such file"):
        fastds.nowcast("extrapolation", "none.nc")


def test_nowcast_dispatch(event, tmp_path):
    model = nowcaster()
    save_dataset(event, tmp_path / "in.nc")
    models.save(model, tmp_path / "m.safetensors")
    for chosen in (model, str(tmp_path / "m.safetensors"), "persistence"):
        expected = nowcast_run.nowcast(chosen, event, steps=2)
        for data in (event, tmp_path / "in.nc"):
            np.testing.assert_allclose(fastds.nowcast(chosen, data, steps=2).rainfall_rate, expected.rainfall_rate)
    again = fastds.load(tmp_path / "m.safetensors").nowcast(event["reflectivity"], steps=2)
    np.testing.assert_allclose(again.rainfall_rate, nowcast_run.nowcast(model, event, steps=2).rainfall_rate)


def test_predict_dispatches_by_task(event, tmp_path):
    coarse = coarsen_dataset(event)
    models.save(nowcaster(), tmp_path / "nowcaster.safetensors")
    for model in (nowcaster(), tmp_path / "nowcaster.safetensors", "extrapolation"):
        xr.testing.assert_equal(fastds.predict(model, event, steps=2), fastds.nowcast(model, event, steps=2))
    for model, options in ((radar_model(), {"tile": 32, "halo": 16}), ("trilinear", {})):
        finer = fastds.downscale(model, coarse, **options)
        xr.testing.assert_equal(fastds.predict(model, coarse, **options), finer)
    with pytest.raises(ValueError, match="model must be given"):
        fastds.predict(None, event)
    with pytest.raises(FileNotFoundError, match="'absent' is neither a file nor"):
        fastds.predict("absent", event)


def test_query_of_pairs_columns_and_a_file(tmp_path):
    model, data = field_model(), gridded(TEMPERATURE)
    (tmp_path / "p.csv").write_text("name,lat,lon\nA,45.0,110.0\nB,40.0,120.5\n")
    pairs = fastds.query(model, data, [(45.0, 110.0), (40.0, 120.5)])
    columns = fastds.query(model, data, {"Lat": [45.0, 40.0], "Lon": [110.0, 120.5]}, threads=1)
    rows = fastds.query(model, data, tmp_path / "p.csv", outside="nan")
    assert [row["t"] for row in pairs] == [row["t"] for row in columns] == [row["t"] for row in rows]
    assert len(pairs) == 4 and rows[0]["name"] == "A" and set(pairs[0]) == {"lat", "lon", "time", "t", "t_bilinear"}
    with pytest.raises(ValueError, match="points: expected the columns lat and lon, found x, y"):
        fastds.query(model, data, {"x": [1.0], "y": [2.0]})


def test_evaluate_distinguishes_forecasts(event, tmp_path):
    coarse = coarsen_dataset(event)
    fine = fastds.downscale(radar_model(), coarse)
    expected = radar_evaluation.evaluate(fine, event, coarse=coarse).rows["tiny"]
    save_dataset(fine, tmp_path / "fine.nc")
    for prediction, given in ((fine, {"input": coarse}), (tmp_path / "fine.nc", {"input": coarse})):
        rows = fastds.evaluate(prediction, event, **given).rows
        assert rows["tiny"]["mse_total_15"] == pytest.approx(expected["mse_total_15"], rel=1e-3)
        assert {"trilinear", "bicubic", "advection"} < set(rows)
    start = str(event.time.values[2])[:19]
    forecast = fastds.nowcast("persistence", event, start=start, steps=2)
    table = fastds.evaluate(forecast, event, baselines=["persistence"])
    assert set(table.rows) == {"persistence", "persistence (PRED)"} and table.starts == 1


def test_task_functions_are_imported_lazily_without_lightning():
    code = (
        "import sys, fastds\n"
        "assert not [m for m in sys.modules if m.startswith('fastds.tasks')], 'imported with fastds'\n"
        "sys.modules['lightning'] = None\n"
        "for verb in ('downscale', 'nowcast', 'query', 'evaluate'):\n"
        "    assert verb in dir(fastds) and callable(getattr(fastds, verb))\n"
        "import fastds.tasks.radar.run, fastds.tasks.fields.run, fastds.tasks.humidity.run, fastds.tasks.nowcast.run\n"
        "import fastds.tasks.radar.evaluation, fastds.tasks.nowcast.evaluation, fastds.tasks.fields.evaluation\n"
        "import fastds.tasks.humidity.evaluation, fastds.studies.radar, fastds.studies.nowcast\n"
        "for task in ('radar', 'fields', 'humidity', 'nowcast'):\n"
        "    __import__(f'fastds.tasks.{task}.config')\n"
        "    try: __import__(f'fastds.tasks.{task}.training')\n"
        "    except ImportError as error: assert \"install '.[train]' in a clone\" in str(error)\n"
        "    else: raise AssertionError(task)\n"
    )
    done = forked.run(code, imports=forked.TORCH)
    assert done.returncode == 0, done.stderr[-2000:]
