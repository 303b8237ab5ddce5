# SPDX-License-Identifier: Apache-2.0
"""The public verbs downscale, nowcast, predict, query and evaluate: the model's card says which task does it."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from fastds import models
from fastds._argument_types import annotations_of, check_types
from fastds._verbs import PredictOptions
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


def downscale(
    model: Model,
    data: Data,
    *,
    var: str | None = None,
    scale: float | None = None,
    grid: float | None = None,
    like: xr.Dataset | str | os.PathLike | None = None,
    time_factor: int | None = None,
    static: xr.Dataset | list[str] | None = None,
    dynamics: Mapping[str, Any] | str | None = None,
    coarsened: str | None = None,
    level: float | None = None,
    members: int | None = None,
    seed: int | None = None,
    smooth: bool = False,
    z_r: tuple[float, float] | None = None,
    tile: int | None = None,
    halo: int | None = None,
    missing: float | None = None,
    units: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Downscale radar frames, gridded fields or humidity.

    The model's card names the task, radar, fields or humidity; an argument of another task is refused.

    Args:
        model: a loaded model, a shipped name or a weights file. None: the shipped weights for reflectivity; with scale,
            grid or like those for fields, inr-small where it takes the data, else inr-any.
        data: a Dataset, a DataArray, a file, or several files of one series.
        var: name of the variable; None: the only one that fits.
        scale: fields: factor of both axes.
        grid: fields: spacing of the output in degrees, or in the unit of a projected grid.
        like: fields: a Dataset or file whose grid is the output's.
        time_factor: radar: 2 or 4, output frames for each input frame; None: 2.
        static: radar, fields: static maps for a model that reads some: a Dataset, or files, FILE.nc or
            FILE.nc:VARIABLE.
        dynamics: radar: further variables of a model that reads some, where data name or scale them otherwise than the
            model's card: {NAME: VARIABLE}, or {NAME: [low, high]} with the ends of the range in the unit of data; or
            all of them with their ranges, in the order of the model's channels.
        coarsened: radar, fields: how the input averages finer cells, where that is known; the output then agrees with
            it. Radar: "linear_z", "dbz" or "plain_dbz"; fields: "mean".
        level: humidity: value of the vertical coordinate.
        members: radar, humidity: number of ensemble members, along a new dimension realization; None: of radar one
            field, of humidity one member.
        seed: radar, humidity: of the members; None: 0.
        smooth: radar: frames between input times are those of least squared error, which have less detail than those at
            input times.
        z_r: radar: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h, for input that is a rain rate.
        tile: radar: side of the tiles in input pixels that the network computes one by one.
        halo: radar: input pixels around a tile that the network also sees.
        missing: a value that counts as missing.
        units: of the variable, where the data do not declare them.
        start: first time that is used, a date such as "2020-06-01T12:00".
        stop: last time that is used.
        threads: CPU threads; None: torch's.
        precision: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
        progress: show a progress bar.

    Returns: a new Dataset with the settings in its attributes; lazy for a Dataset whose fields dask holds.

    Raises:
        UnknownOptionError: an argument that the model's task does not take.
        ArgumentTypeError: an argument of another type; this and the former are a TypeError and a ValueError.
        ValueError: a model that does not downscale, or data or arguments that do not fit.
    """
    options = _given(downscale, locals())
    _check_given(model, data)
    task = downscaling_task(model, options)
    run = task_function(task, "downscale")
    reading = _reading(options, *READING)
    check_options(run, task, options)
    with opened(data, **reading) as dataset:
        out = run(model, dataset, **options)
        return out.load() if are_paths(data) else out  # files are closed behind it


def nowcast(
    model: Model,
    data: Data,
    *,
    steps: int | None = None,
    lead: str | None = None,
    start: str | None = None,
    every: str | None = None,
    stop: str | None = None,
    quantity: str = "rate",
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    coarsen: int | None = None,
    interval: str | None = None,
    block: int | None = None,
    smooth: bool = False,
    members: int | None = None,
    seed: int | None = None,
    probability: Sequence[float] | None = None,
    missing: float | None = None,
    units: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Forecast the next radar frames.

    Args:
        model: a loaded model, a shipped name, a weights file or a baseline such as "extrapolation"; None: the shipped
            nowcaster.
        data: a Dataset, a DataArray or files of the last radar frames.
        steps: number of forecast frames.
        lead: a duration such as "60min" in place of steps.
        start: initialization time, a date; None: the last time of data.
        every: a duration such as "30min": one forecast after another from start on.
        stop: last time of data that is used.
        quantity: of the output: "rate" in mm/h or "reflectivity" in dBZ.
        var: name of the variable; None: the only one that fits.
        z_r: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h.
        coarsen: factor by which the grid is averaged first; None: as the model's card says.
        interval: duration between frames; None: that of data, or as the card says.
        block: frames after which the network starts anew from its own forecasts; None: it goes on with its states.
        smooth: keep the forecast of least squared error, whose wet area grows with the lead time.
        members: number of ensemble members, along a new dimension realization; None: one field.
        seed: of the members; None: 0.
        probability: rain rates in mm/h whose probabilities of exceedance are the output.
        missing: a value that counts as missing.
        units: of the variable, where the data do not declare them.
        threads: CPU threads; None: torch's.
        precision: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".
        progress: show a progress bar.

    Returns: a new Dataset in memory with the settings in its attributes.

    Raises:
        ArgumentTypeError: an argument of another type, a TypeError and a ValueError.
        ValueError: a model that does not forecast, too few frames before the start, or data or arguments that do not
            fit.
    """
    options = _given(nowcast, locals())
    _check_given(model, data)
    run = task_function("nowcast", "nowcast")
    known = annotations_of(importlib.import_module("fastds.tasks.nowcast.run").Options) | {"progress": bool}
    reading = _reading(options, "missing", "units", "stop")
    check_types(known, options)
    with opened(data, **reading) as dataset:
        out = run(model, dataset, **options)
        return out.load() if are_paths(data) else out


def predict(model: Model, data: Data, **options: Unpack[PredictOptions]) -> xr.Dataset:
    """Forecast with a model that nowcasts, downscale with any other.

    Args:
        model: a loaded model, a shipped name, a weights file or a method; not None, which names no task.
        data: see nowcast and downscale.
        options: the arguments of nowcast or of downscale.

    Returns: what nowcast or downscale returns.

    Raises: what these raise; UnknownOptionError for an argument that is none of theirs.
    """
    from fastds.tasks.nowcast.methods import BASELINES

    if model is None:
        raise ValueError("model must be given: a loaded model, a shipped name, a weights file or a method, got None")
    _check_given(model, data)
    if isinstance(model, str) and model in BASELINES:
        verb = nowcast
    else:
        card = _card_of(model)
        verb = nowcast if card is not None and card.task == "nowcast" else downscale
    keywords = [p.name for p in inspect.signature(verb).parameters.values() if p.kind is p.KEYWORD_ONLY]
    _check(options, set(keywords), verb.__name__)
    return verb(model, data, **options)


def query(
    model: Model,
    data: Data,
    points: str | os.PathLike | Mapping[str, Sequence] | Sequence[tuple[float, float]],
    *,
    outside: str = "error",
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    missing: float | None = None,
    units: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
) -> list[dict]:
    """Interpolate gridded fields to points, by a model and bilinearly.

    Args:
        model: an arbitrary-scale model, a shipped name or a weights file; None: inr-small where it takes the data, else
            inr-any.
        data: a Dataset, a DataArray or files of the model's variables, of inr-any of any.
        points: pairs (latitude, longitude) in degrees, columns lat and lon by name, or a CSV file of them.
        outside: of points outside of the fields: "error", or "missing", which gives NaN.
        var: name of the variable; None: all that fit.
        static: static maps for a model that reads some: a Dataset, or files, FILE.nc or FILE.nc:VARIABLE.
        missing: a value that counts as missing.
        units: of the variable, where the data do not declare them.
        start: first time that is used, a date.
        stop: last time that is used.
        threads: CPU threads; None: torch's.
        precision: "fp32" or "bf16".
        device: "auto", "cpu" or "cuda".

    Returns: one dict for each field and point.

    Raises:
        ArgumentTypeError: an argument of another type, a TypeError and a ValueError.
        ValueError: a model, data or points that do not fit.
    """
    options = _given(query, locals())
    _check_given(model, data)
    run = task_function("fields", "query")
    reading = _reading(options, *READING)
    check_options(run, "query", options)
    with opened(data, **reading) as dataset:
        return run(model, dataset, points, **options)


def evaluate(
    prediction: Data,
    truth: Data,
    *,
    input: Data | None = None,  # noqa: A002  the name of the option of the command, too
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    baselines: Sequence[str] | None = None,
    model: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
    missing: float | None = None,
    units: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    progress: bool = False,
) -> EvaluationTable | FieldTable | NowcastTable:
    """Verify downscaled fields, ensembles or nowcasts, and the baselines, against the truth.

    Args:
        prediction: what downscale or nowcast returned, or another method; a Dataset, a DataArray or files.
        truth: fine fields on the same grid and times; of nowcasts the fields that were observed.
        input: what the prediction was made of; None: of radar fields truth averaged over 2 x 2 pixels at every second
            time, of other fields truth as coarse as the attributes of the prediction say, of nowcasts truth.
        var: name of the variable; None: the only one that fits.
        z_r: radar, nowcasts: a and b of Z = a R^b.
        baselines: nowcasts: the methods that are compared; None: all.
        model: weights whose card the HTML report shows.
        report: HTML file to write.
        missing: a value of truth and input that counts as missing.
        units: of their variable, where they do not declare them.
        start: first time of truth and input that is used, a date.
        stop: last such time.
        progress: show a progress bar.

    Returns: a table with rows, print(), to_csv(path) and to_html(path). For archives see
        fastds.archive.evaluation.evaluate_archive.

    Raises:
        UnknownOptionError: an argument that is not of the prediction's task.
        ArgumentTypeError: an argument of another type; this and the former are a TypeError and a ValueError.
        ValueError: grids, times or arguments that do not fit.
    """
    return evaluated(prediction, truth, None, **_given(evaluate, locals()))


def _given(verb: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a verb that are not its defaults; values: its locals()."""
    parameters = inspect.signature(verb).parameters.values()
    return {p.name: values[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and values[p.name] is not p.default}


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
