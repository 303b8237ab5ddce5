# SPDX-License-Identifier: Apache-2.0
"""The commands that `fastds check` tries on a dataset, and their descriptions of what they would do. Imports torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import xarray as xr

from fastds.data import ReflectivityInput, to_reflectivity
from fastds.data.grid.variables import find_only_rain_field, list_fields
from fastds.data.io.mlcast import check_mlcast
from fastds.models import available, load_card
from fastds.tasks.api import DOWNSCALING, get_task_function, select_evaluation_task

_MAX_LISTED = 8  # maximum number of variables in the description of an evaluation


def list_commands(
    dataset: xr.Dataset, var: str | None, weights: Sequence[str]
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield each command with a function that describes how the command would process the dataset.

    The function raises ValueError with the reason if the command does not accept the dataset.

    Args:
        dataset: contents of a file.
        var: name of the variable; None: the only one that fits.
        weights: names or files of weights that are tried in addition to the shipped weights.
    """
    radar = functools.cache(lambda: _read_radar(dataset, var))
    yield "downscale", lambda: get_task_function("radar", "plan")(radar())
    yield "nowcast", lambda: get_task_function("nowcast", "plan")(_require_several_times(radar, dataset, var))
    yield "downscale --scale 2", lambda: get_task_function("fields", "plan")(None, dataset, var)
    for name in available(pretrained=True):
        task = load_card(name).task
        if task in DOWNSCALING and task not in ("radar", "fields"):
            yield (
                f"downscale --model {name}",
                functools.partial(_plan_without_warnings, task, name, dataset, var),
            )
    for name in weights:
        yield _make_weights_command(name, dataset, var, radar)
    yield "query", lambda: get_task_function("fields", "plan_query")(dataset, var)
    yield "evaluate", lambda: _plan_evaluation(dataset, var, radar)
    yield "convert", lambda: _plan_conversion(dataset)
    yield "convert --to mlcast", lambda: _plan_mlcast(dataset, var)


def _make_weights_command(
    name: str, dataset: xr.Dataset, var: str | None, radar: Callable[[], ReflectivityInput]
) -> tuple[str, Callable[[], str]]:
    """Return the command for weights and a function that describes how the command would process the dataset."""
    try:
        task = load_card(name).task or "radar"  # the plan of the task "radar" reports missing card fields
    except (ValueError, OSError) as error:
        return f"downscale --model {name}", functools.partial(_raise, error)
    if task == "nowcast":
        return f"nowcast --model {name}", lambda: _plan_without_warnings(
            task, _require_several_times(radar, dataset, var), name
        )
    if task == "radar":
        return f"downscale --model {name}", lambda: _plan_without_warnings(task, radar(), name)
    scale = " --scale 2" if task == "fields" else ""
    return f"downscale --model {name}{scale}", lambda: _plan_without_warnings(task, name, dataset, var)


def _raise(error: Exception) -> str:
    raise error


def _plan_without_warnings(task: str, *given: object) -> str:
    """Describe how a task would process a dataset, without warnings of out-of-distribution inputs.

    The plan mentions these inputs already, and the user did not choose the model.

    Args:
        task: name of the task.
        given: arguments of the function `plan` of the task.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* outside the ranges? that ", UserWarning)
        return get_task_function(task, "plan")(*given)


def _read_radar(dataset: xr.Dataset, var: str | None) -> ReflectivityInput:
    """Return the radar fields after checking that the values are plausible, which reads all values."""
    source = to_reflectivity(dataset, var, least=1)
    source.check(stacklevel=3)
    return source


def _require_several_times(
    radar: Callable[[], ReflectivityInput], dataset: xr.Dataset, var: str | None
) -> ReflectivityInput:
    """Return the radar fields; raise ValueError if there is only one time."""
    to_reflectivity(dataset, var)  # raises ValueError for a single time; reads no values
    return radar()


def _plan_evaluation(dataset: xr.Dataset, var: str | None, radar: Callable[[], ReflectivityInput]) -> str:
    """Describe the dataset as an input of `fastds evaluate`."""
    task = select_evaluation_task(dataset, var)
    if task == "nowcast":
        return "forecasts, as PRED"
    if task == "radar":
        return f"{_require_several_times(radar, dataset, var).source_name}, as PRED or TRUTH of radar fields"
    names = get_task_function(task, "plan_evaluate")(dataset, var)
    listed = ", ".join(names[:_MAX_LISTED]) + f" and {len(names) - _MAX_LISTED} more" * (len(names) > _MAX_LISTED)
    return f"{listed}, as PRED or TRUTH of gridded fields"


def _plan_conversion(dataset: xr.Dataset) -> str:
    if not list_fields(dataset):
        raise ValueError("there is no field")
    return "to CF, OUT.nc, or OUT.zarr with --to cf"


def _plan_mlcast(dataset: xr.Dataset, var: str | None) -> str:
    chosen = var or find_only_rain_field(dataset)
    check_mlcast(dataset, "OUT.zarr", chosen)
    return "to an archive in MLCast's form"
