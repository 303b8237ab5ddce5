# SPDX-License-Identifier: Apache-2.0
"""The public verbs downscale, nowcast, predict, query and evaluate: the model's card says which task does it."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from torch import nn

from fastds import models
from fastds._argument_types import annotations_of, check_types
from fastds.data.grid.grids import latitude_longitude
from fastds.data.grid.variables import is_dbz, named_reflectivity, rain_kind
from fastds.data.reading import Data, Reading, are_paths, opened
from fastds.tasks.fields.places import MEMBER
from fastds.tasks.nowcast.forecasts import is_forecast

if TYPE_CHECKING:
    import xarray as xr

    from fastds.tasks.common.scoring import Elsewhere
    from fastds.tasks.fields.scores import FieldTable
    from fastds.tasks.nowcast.scores import NowcastTable
    from fastds.tasks.radar.scores import EvaluationTable

Model = nn.Module | str | os.PathLike | None

DOWNSCALING = ("radar", "fields", "humidity")
# Options that choose the task where no model does.
_OF_FIELDS = ("scale", "grid", "like")
READING = tuple(Reading.__annotations__)


class UnknownOptionError(TypeError, ValueError):
    """An option that the task of the model does not take."""


def downscale(model: Model, data: Data, **options: Any) -> xr.Dataset:
    """Make radar frames, gridded fields or humidity finer.

    Args:
        model: as fastds.load gives it, a shipped name or a weights file. None: the shipped weights for reflectivity,
            with scale, grid or like those for fields: inr-small where it takes them, else inr-any.
        data: a Dataset, a DataArray or a file.
        options: those of fastds.tasks.radar.run.downscale (var, z_r, tile, halo, threads, precision, device,
            time_factor, static, dynamics, coarsened, members, seed, smooth, progress),
            fastds.tasks.fields.run.downscale (scale, grid, like, var, static, threads, precision, device, coarsened,
            progress) or fastds.tasks.humidity.run.downscale (members, seed, var, level, threads, precision, device,
            progress), as the model's card says; and missing, units, start and stop, see fastds.data.reading.

    Returns: a new Dataset with the settings in its attributes, in memory; lazy for a Dataset whose fields dask holds.

    Raises: UnknownOptionError for an option that the model's task does not take and ArgumentTypeError for one of
        another type (both are a TypeError and a ValueError);
        ValueError for a model that does not downscale, and what those functions raise.
    """
    _check_given(model, data)
    task = downscaling_task(model, options)
    run = task_function(task, "downscale")
    reading = _reading(options, *READING)
    check_options(run, task, options)
    with opened(data, **reading) as dataset:
        out = run(model, dataset, **options)
        return out.load() if are_paths(data) else out  # files are closed behind it


def nowcast(model: Model, data: Data, **options: Any) -> xr.Dataset:
    """Forecast the next radar fields.

    Args:
        model: as fastds.load gives it, a shipped name, a weights file or a baseline such as "extrapolation"; None: the
            shipped nowcaster.
        data: a Dataset, a DataArray or a file of the last radar fields.
        options: progress and those of fastds.tasks.nowcast.run.Options (steps, lead, start, every, quantity, ...);
            missing, units and stop as in downscale (start is that of the forecast).

    Returns: a new Dataset in memory with the settings in its attributes.

    Raises: UnknownOptionError for another option; what fastds.tasks.nowcast.run.nowcast raises.
    """
    _check_given(model, data)
    run = task_function("nowcast", "nowcast")
    known = annotations_of(importlib.import_module("fastds.tasks.nowcast.run").Options) | {"progress": bool}
    reading = _reading(options, "missing", "units", "stop")
    _check(options, known.keys(), "nowcast")
    check_types(known, options)
    with opened(data, **reading) as dataset:
        out = run(model, dataset, **options)
        return out.load() if are_paths(data) else out


def predict(model: Model, data: Data, **options: Any) -> xr.Dataset:
    """nowcast with a model that forecasts, downscale with any other.

    model: as in these, but None, which does not tell. data, options: as in the one that it is. Returns and raises: what
    that does.
    """
    from fastds.tasks.nowcast.methods import BASELINES

    if model is None:
        raise ValueError("model must be given: a loaded model, a shipped name, a weights file or a method, got None")
    _check_given(model, data)
    if isinstance(model, str) and model in BASELINES:
        return nowcast(model, data, **options)
    card = _card_of(model)
    verb = nowcast if card is not None and card.task == "nowcast" else downscale
    return verb(model, data, **options)


def query(
    model: Model,
    data: Data,
    points: str | os.PathLike | Mapping[str, Sequence] | Sequence[tuple[float, float]],
    **options: Any,
) -> list[dict]:
    """Values of gridded fields at points, by the model and by bilinear interpolation.

    Args:
        model: an arbitrary-scale model, a shipped name or a weights file; None: inr-small where it takes the data, else
            inr-any.
        data: a Dataset, a DataArray or a file of the model's variables, for inr-any of any.
        points: pairs (latitude, longitude), columns lat and lon by name, or a CSV file of them.
        options: outside, var, static, threads, precision and device of fastds.tasks.fields.run.query; missing, units,
            start and stop as in downscale.

    Returns: one row for each field and point, a dict.

    Raises: UnknownOptionError for another option; what fastds.tasks.fields.run.query raises.
    """
    _check_given(model, data)
    run = task_function("fields", "query")
    reading = _reading(options, *READING)
    check_options(run, "query", options)
    with opened(data, **reading) as dataset:
        return run(model, dataset, points, **options)


def evaluate(prediction: Data, truth: Data, **options: Any) -> EvaluationTable | FieldTable | NowcastTable:
    """Errors of downscaled fields, ensembles or nowcasts, and of the simple methods, against the truth.

    Args:
        prediction: what downscale or nowcast made, or another method, a Dataset or a file; evaluating_task tells what
            it is.
        truth: fine fields on the same grid and times; for nowcasts the fields that came.
        options: input (a Dataset or a file): what the prediction was made of; default: of radar fields truth averaged
            2 x 2 at every second time, of other fields truth as coarse as the attributes of the prediction tell, of
            nowcasts truth. The others are those of fastds.tasks.radar.evaluation.evaluate (var, z_r, progress; report,
            an HTML page to write, and model, whose card it tells), fastds.tasks.fields.evaluation.evaluate (the same
            but z_r) or fastds.tasks.nowcast.evaluation.evaluate (and baselines); missing, units, start and stop of
            truth and input as in downscale.

    Returns: a table with rows, print(), to_csv(path) and to_html(path). Many files: also
        fastds.archive.evaluation.evaluate_archive, by several processes.

    Raises: UnknownOptionError for another option; what those functions raise.
    """
    return evaluated(prediction, truth, None, **options)


def evaluated(
    prediction: Data, truth: Data, elsewhere: Callable[[str], Elsewhere] | None, **options: Any
) -> EvaluationTable | FieldTable | NowcastTable:
    """evaluate; elsewhere: what makes the scores, of the task; None: this process."""
    given, reading = options.pop("input", None), _reading(options, *READING)
    files = {"prediction": prediction, "truth": truth, "input": given}
    check_types({"prediction": Data, "truth": Data, "input": Data | None}, files)
    with opened(prediction) as p, opened(truth, **reading) as t, opened(given, **reading) as source:
        task = evaluating_task(p, options.get("var"))
        run, name = task_function(task, "evaluate"), given_name(task)
        check_options(run, task, options, {"input", "model"}, {name, "elsewhere"})
        return run(p, t, **{name: source}, elsewhere=elsewhere and elsewhere(task), **options)


def given_name(task: str) -> str:
    """What evaluate of a task calls the input."""
    return "observed" if task == "nowcast" else "coarse"


def evaluating_task(prediction: xr.Dataset, var: str | None = None) -> str:
    """The task that evaluates a prediction: "nowcast" forecasts by start and lead; else what its attribute fastds_task
    tells; else ensembles, fields over latitude and longitude, but reflectivity, and fields of other quantities than
    rain are "fields", all others "radar". var: the variable that is meant."""
    told = prediction.attrs.get("fastds_task")
    if is_forecast(prediction):
        return "nowcast"
    if MEMBER in prediction.dims and told != "radar":
        return "fields"
    if told in DOWNSCALING:
        return "radar" if told == "radar" else "fields"
    fields = {name: field for name, field in prediction.data_vars.items() if field.ndim >= 2}
    chosen = [fields[var]] if var in fields else list(fields.values())
    latitudes = (latitude_longitude(field)[0] for field in chosen)
    gridded = any(latitude is not None and latitude.ndim == 1 for latitude in latitudes)
    if any(is_dbz(field.attrs.get("units")) for field in chosen):
        return "radar"
    return "fields" if gridded or _of_no_rain(chosen) else "radar"


def _of_no_rain(fields: list[xr.DataArray]) -> bool:
    """Whether fields, on whatever grid, are known to be of other quantities than rain, which are no radar fields."""
    known = [field for field in fields if field.attrs.get("units") and field.ndim >= 3]
    return bool(known) and not any(named_reflectivity(f) or rain_kind(f, named=True) for f in known)


def task_function(task: str, verb: str) -> Callable:
    """The function of a verb in a task; the task is imported here."""
    module = {"evaluate": "evaluation", "report": "report"}.get(verb.partition("_")[0], "run")
    return getattr(importlib.import_module(f"fastds.tasks.{task}.{module}"), verb)


def downscaling_task(model: Model, options: Mapping) -> str:
    """The task that downscales with a model; where its card does not tell: fields with one of the options scale, grid
    and like, else radar. Raises ValueError for a nowcaster, and what fastds.models.load_card raises."""
    card = _card_of(model)
    task = "" if card is None else card.task
    if task == "nowcast":
        raise ValueError(f"model {card.name} forecasts and does not downscale; use nowcast")
    return task or ("fields" if any(options.get(name) is not None for name in _OF_FIELDS) else "radar")


def _card_of(model: Model) -> models.ModelCard | None:
    """The card of a model, None of what has none. Raises: what fastds.models.load_card raises."""
    if isinstance(model, nn.Module) or model is None:
        return getattr(model, "card", None)
    return None if model in _without_weights() else models.load_card(model)


def _without_weights() -> set[str]:
    """Methods of radar and of fields that need no weights."""
    from fastds.models.baselines.interpolation import METHODS
    from fastds.tasks.radar.methods import BASELINES

    return {*METHODS, *BASELINES}


def check_options(
    run: Callable, task: str, options: Mapping, further: set[str] = frozenset(), without: set[str] = frozenset()
) -> None:
    """Raise UnknownOptionError for an option that is neither a keyword argument of `run` nor in `further`, or is in
    `without`, and ArgumentTypeError for one of another type than `run` says."""
    parameters = inspect.signature(run).parameters.values()
    known = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "model"}
    _check(options, (known | further) - without, task)
    check_types(annotations_of(run), options)


def _check_given(model: Model, data: Data) -> None:
    """ArgumentTypeError for a model or data of another type."""
    check_types({"model": Model, "data": Data}, {"model": model, "data": data})


_TOLD_BY_OTHERS = {"progress", "origin"}  # the command gives origin, by --to and what that needs


def _check(options: Mapping, known: Set[str], task: str) -> None:
    for name in options:
        if name not in known:
            takes = f"takes the arguments {', '.join(sorted(known - _TOLD_BY_OTHERS))}"
            raise UnknownOptionError(f"{name} is no argument for {task}, which {takes}")


def _reading(options: dict, *names: str) -> dict:
    """Those of the named options of fastds.data.reading that were given, taken out of options, and var;
    ArgumentTypeError for one of another type."""
    reading = {name: options.pop(name) for name in names if name in options} | {"var": options.get("var")}
    check_types(Reading.__annotations__ | {"var": str | None}, reading)
    return reading
