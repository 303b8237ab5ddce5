# SPDX-License-Identifier: Apache-2.0
"""Tests that functions refuse arguments of a wrong type."""

import inspect

import numpy as np
import pytest

import fastds.models
from fastds._argument_types import check_types, get_annotations
from fastds.data import coarsen_dataset, open_dataset, save_dataset, synthetic_event
from fastds.tasks.api import READ_OPTIONS, get_task_function
from fastds.tasks.nowcast.run import Options

TRUTH = synthetic_event(seed=1, frames=5, shape=(32, 32))
COARSE = coarsen_dataset(TRUTH)
EXCLUDED = ("model", "progress", "elsewhere", "origin", "coarse")


def downscale(model):
    return lambda **options: fastds.downscale(model, COARSE, **options)


def keywords(task, verb):
    parameters = inspect.signature(get_task_function(task, verb)).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in EXCLUDED]
    return [*names, *READ_OPTIONS]


VERBS = {
    "radar": (downscale("fczsm-small"), keywords("radar", "downscale")),
    "fields": (downscale("inr-any"), keywords("fields", "downscale")),
    "humidity": (downscale("wgan-gp-small-x2"), keywords("humidity", "downscale")),
    "nowcast": (
        lambda **options: fastds.nowcast("extrapolation", TRUTH, **options),
        [*get_annotations(Options), "missing", "units", "array", "stop"],
    ),
    "query": (lambda points=[(1, 2)], **options: fastds.query("inr-any", COARSE, points, **options),
              ["points", *keywords("fields", "query")]),
    "evaluate": (lambda **options: fastds.evaluate(TRUTH, TRUTH, **options), ["input", *keywords("radar", "evaluate")]),
    "data": (lambda model="fczsm-small", data=COARSE: fastds.downscale(model, data), ["model", "data"]),
}  # fmt: skip


@pytest.mark.parametrize(
    "value", [object(), [object()], {}, b"x", np.array([[1.0]])], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, (_, names) in VERBS.items() for name in names])
def test_wrong_type_is_named(verb, name, value):
    if name == "dynamics" and isinstance(value, dict):
        return  # a mapping of no variables
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b") as refused:
        VERBS[verb][0](**{name: value})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


@pytest.mark.parametrize("name", ["steps", "members", "seed", "threads", "tile"])
@pytest.mark.parametrize("value", ["3", float("nan"), float("inf"), 1.5, True, 1e30, -1])
def test_non_integer_is_rejected(name, value):
    verb = "radar" if name == "tile" else "nowcast"
    if (name, value) in (("tile", 1e30), ("seed", 1e30)):
        return  # larger than any field, and as good as another
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        VERBS[verb][0](**{name: value} | ({"members": 2} if name == "seed" else {}))


FUNCTIONS = {
    synthetic_event: {},
    coarsen_dataset: {"dataset": TRUTH},
    open_dataset: {"path": "none.nc"},
    save_dataset: {"dataset": TRUTH, "path": "none/out.nc"},
    fastds.models.load: {"name_or_path": "none"},
    fastds.models.load_card: {"name_or_path": "none"},
}


@pytest.mark.parametrize(
    ("function", "name"), [(function, name) for function in FUNCTIONS for name in get_annotations(function)]
)
@pytest.mark.parametrize("value", [object(), {}, float("nan"), -1, np.array([1, 2])], ids=lambda v: type(v).__name__)
def test_file_functions_name_the_rejected_argument(function, name, value):
    if isinstance(value, float | int) and name in ("floor", "stratiform_dbz"):
        return  # dBZ
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        function(**FUNCTIONS[function] | {name: value})


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int | None", [None, 3, 2.0, np.int64(1)], [True, "3", 1.5, [1]]),
        (float, [1, 0.5, np.float32(2)], [None, True, "1"]),
        ("bool", [True, np.bool_(False)], [1, None, "yes"]),
        ("tuple[float, float] | None", [(1, 2), [200, 1.6], np.array([1.0, 2.0])], [(1,), (1, 2, 3), ("1", 2), "ab"]),
        ("Sequence[float] | None", [[1], (1, 5.0)], [["1"], 1, [[1]]]),
        ("str | os.PathLike | None", ["x", None], [1, b"x"]),
        ("Something", [1, None, object()], []),
    ],
)
def test_annotations(annotation, good, bad):
    for value in good:
        check_types({"it": annotation}, {"it": value})
    for value in bad:
        with pytest.raises(TypeError, match="it must be "):
            check_types({"it": annotation}, {"it": value})


def test_array_is_rejected_as_dataset():
    for call in (lambda: coarsen_dataset(TRUTH.reflectivity), lambda: save_dataset(TRUTH.reflectivity, "out.nc")):
        with pytest.raises(TypeError, match="dataset must be an xarray Dataset, got a DataArray"):
            call()
    fine = fastds.downscale("fczsm-small", COARSE.reflectivity)
    assert fine.sizes["y"] == 2 * COARSE.sizes["y"]


def test_columns_of_points_have_one_length():
    with pytest.raises(TypeError, match="points must be a CSV file, columns lat and lon of one length"):
        fastds.query("inr-any", COARSE, {"lat": [1, 2], "lon": [3]}, var="reflectivity")


def test_coarsening_to_zero_size_is_rejected():
    assert dict(coarsen_dataset(TRUTH, 32).sizes) == {"time": 3, "y": 1, "x": 1}
    for factor in (33, 1e30):
        with pytest.raises(ValueError, match="factor must be at most 32, the fewest pixels of a side, got"):
            coarsen_dataset(TRUTH, factor)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ([1], {}, r"name must be a string, got \[1\]"),
        ("srcnn", {"channels": "one"}, "channels must be a whole number, got 'one'"),
        ("srcnn", {"channels": -1}, "SRCNN cannot be built from the configuration .*'channels': -1"),
        ("simvp", {"groups": 0}, "SimVP cannot be built from the configuration .*'groups': 0"),
    ],
)
def test_zero_sized_networks_are_rejected(name, options, message):
    with pytest.raises(ValueError, match=message):
        fastds.models.create(name, **options)


def test_excessive_lead_time_is_rejected():
    with pytest.raises(ValueError, match="lead must be at most 10000 steps of 300 s, got '1000000min': 200000 steps"):
        fastds.nowcast("extrapolation", TRUTH, lead="1000000min")
