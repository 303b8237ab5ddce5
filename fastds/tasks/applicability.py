# SPDX-License-Identifier: Apache-2.0
"""The functions that take a dataset, as far as its variables and coordinates show; no values are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import xarray as xr

from fastds.data import to_reflectivity
from fastds.data.grid.variables import list_fields
from fastds.data.reading import open_input
from fastds.inference.tables import format_count
from fastds.models import load_card
from fastds.tasks.api import select_evaluation_task
from fastds.tasks.fields.geometry import find_geometry
from fastds.tasks.fields.stations import find_projection
from fastds.tasks.fields.variables import select_main_fields
from fastds.tasks.nowcast.methods import DEFAULT_MODEL as NOWCASTER

_MAX_LISTED = 6  # number of variables whose names are written
_EVALUATED = {
    "nowcast": "forecasts",
    "probability": "exceedance probabilities",
    "radar": "radar fields",
    "fields": "gridded fields",
}


class Applicability(NamedTuple):
    """Whether a function takes a dataset.

    Attributes:
        function: call of the function, such as "nowcast()".
        applies: whether it takes the dataset.
        text: what it would compute, or the reason why it does not take the dataset.
    """

    function: str
    applies: bool
    text: str


def list_applicable(data: xr.Dataset | xr.DataArray) -> list[Applicability]:
    """Return for each function of the accessor whether it takes a dataset.

    Values and models are not read, so that a function may still find values, or a model options, that do not fit.
    No exception is raised, whatever the dataset is.

    Args:
        data: Dataset or DataArray.
    """
    try:
        with warnings.catch_warnings(), open_input(data) as dataset:
            warnings.simplefilter("ignore")
            return [_try_function(name, describe) for name, describe in _list_functions(dataset)]
    except Exception as error:  # objects that a user made may raise any exception
        return [Applicability("all functions", False, _format_error(error))]


def _try_function(name: str, describe: Callable[[], str]) -> Applicability:
    try:
        return Applicability(name, True, describe())
    except Exception as error:
        return Applicability(name, False, _format_error(error))


def _format_error(error: Exception) -> str:
    return str(error).partition("; candidates: ")[0] or type(error).__name__


def _list_functions(dataset: xr.Dataset) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the call of each function, and a function that describes it or raises an exception with the reason."""
    yield "downscale()", lambda: _describe_radar(dataset)
    yield "downscale(scale=...)", lambda: f"{_list_main_fields(dataset)} on a finer grid"
    yield "nowcast()", lambda: _describe_nowcast(dataset)
    yield "query(points)", lambda: f"{_list_main_fields(dataset, at_points=True)} at latitudes and longitudes"
    yield "evaluate(truth)", lambda: _describe_evaluation(dataset)
    yield "plot()", lambda: f"maps of {_join_names(_require_fields(dataset))}"


def _describe_radar(dataset: xr.Dataset) -> str:
    source = to_reflectivity(dataset, least=1)
    finer = "at twice the resolution in space and time" if source.shape[0] > 1 else "at twice the resolution in space"
    return f"{source.source_name} {finer}"


def _describe_nowcast(dataset: xr.Dataset) -> str:
    source, known = to_reflectivity(dataset), load_card(NOWCASTER).input_steps or 1
    longest = max(segment.stop - segment.start for segment in source.segments)
    text = f"{source.source_name} after the last time"
    if longest < known:
        times = format_count(longest, "time")
        return f"{text} by model='persistence' or 'extrapolation'; {NOWCASTER} needs {known} times, found {times}"
    return text


def _list_main_fields(dataset: xr.Dataset, at_points: bool = False) -> str:
    grid = find_geometry(dataset)
    names, _ = select_main_fields(dataset, grid)
    if at_points:
        find_projection(dataset, grid)
    return _join_names(names)


def _describe_evaluation(dataset: xr.Dataset) -> str:
    _require_fields(dataset)
    return f"{_EVALUATED[select_evaluation_task(dataset)]} against the truth"


def _require_fields(dataset: xr.Dataset) -> list:
    fields = [name for name in list_fields(dataset) if dataset[name].ndim >= 2]
    if not fields:
        raise ValueError("there is no field")
    return fields


def _join_names(names: list) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(map(str, names[:_MAX_LISTED])) + f" and {more} more" * (more > 0)
