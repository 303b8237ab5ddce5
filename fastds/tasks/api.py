# SPDX-License-Identifier: Apache-2.0
"""Public functions downscale, nowcast, predict, query and evaluate, which select a task and call its functions."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

from torch import nn

from fastds import models
from fastds._argument_types import check_types, get_annotations
from fastds._options import OptionError, get_argument_word, spell_name
from fastds.data.grid.grids import find_latitude_longitude
from fastds.data.grid.variables import classify_rain, is_dbz, is_named_reflectivity, split_names
from fastds.data.reading import InputData, ReadOptions, is_path_like, open_input
from fastds.tasks.fields.alignment import MEMBER
from fastds.tasks.nowcast.forecasts import is_forecast
from fastds.tasks.probability.forecasts import is_probability

if TYPE_CHECKING:
    import xarray as xr

    from fastds.inference.scoring import ScoreItems
    from fastds.tasks.fields.scores import FieldTable
    from fastds.tasks.nowcast.scores import NowcastTable
    from fastds.tasks.probability.scores import ProbabilityTable
    from fastds.tasks.radar.scores import EvaluationTable

Model = nn.Module | str | os.PathLike | None

DOWNSCALING = ("radar", "fields", "humidity")
# options that select the task "fields" if the model does not determine the task
_FIELD_OPTIONS = ("scale", "grid", "like")
READ_OPTIONS = tuple(ReadOptions.__annotations__)


class UnknownOptionError(OptionError, TypeError):
    """An option that the task of the model does not have.

    Args:
        name: name of the option.
        task: name of the task or function.
        known: names of the options of the task.
    """

    def __init__(self, name: str, task: str, known: Set[str]):
        ValueError.__init__(self, name, task, known)
        self.name, self.task, self.known = name, task, known

    @property
    def message(self) -> str:  # type: ignore[override]  # computed when the names of the user are known
        word, names = get_argument_word(), ", ".join(map(spell_name, sorted(self.known)))
        return f"is no {word} for {self.task}, which takes {'' if word == 'option' else 'the arguments '}{names}"


def downscale(
    model: Model,
    data: InputData,
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
    array: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    graph: str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Downscale radar frames, gridded fields or humidity.

    The model card names the task: radar, fields or humidity. In the list below, an argument that only some tasks accept
    begins with the names of these tasks.

    Args:
        model: loaded model, shipped name, weights file or baseline ("trilinear", "bicubic" or "advection" for radar;
            "bilinear", "bicubic", "lanczos" or "conservative" for fields). None: the default network. Without scale,
            grid and like, this is fczsm-small (radar); with one of them, it is inr-small if it takes the data, else
            inr-any.
        data: Dataset, DataArray, file, or several files of one series.
        var: name of the variable; fields: also several names separated by commas, or "all" for all fields. Default: the
            only one that fits; fields: those of the model, or those with the most dimensions.
        scale: fields: scale factor along both axes, greater than 0. Exactly one of scale, grid and like is required.
        grid: fields: spacing of the output grid in degrees, or in the units of the projected coordinates.
        like: fields: Dataset or file with the output grid.
        time_factor: radar: ratio of the time resolution of output and input, 2 or 4. Default: 2.
        static: radar, fields: static maps for models that read static maps: a Dataset, or a list of files FILE.nc or
            FILE.nc:VARIABLE. Default: none.
        dynamics: radar: additional input variables of models that read some, if their names or units in the data differ
            from the model card: {NAME: VARIABLE}, or {NAME: [low, high]} with the range in the units of the data, or
            {VARIABLE: [low, high]} for all variables in the order of the model's channels. Default: as in the model
            card.
        coarsened: radar, fields: how the input averages finer cells; the output is then corrected so that the same
            average nearly gives the input. Radar: "linear_z", "dbz", "plain_dbz", "auto" (estimated from the
            values) or "unknown" (no correction); fields: "mean" or "unknown". Default: "auto" for radar, "unknown"
            for fields.
        level: humidity: value of the vertical coordinate. Default: the only level.
        members: radar, humidity: number of ensemble members, along a new dimension realization. Default: a single
            field.
        seed: radar, humidity: random seed of the ensemble. Default: 0.
        smooth: radar: between input times, keep the smooth frames of least squared error. Default: False, their
            detail is adjusted to that at the input times.
        z_r: radar: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h, for data in rain rates. Default: zr_a and zr_b
            of the data, else (200, 1.6).
        tile: radar: side of a tile in input pixels, a multiple of 16. Default: depends on the available memory.
        halo: radar: width of the margin around a tile in input pixels, a multiple of 16. Default: the receptive field
            of the network.
        missing: value that marks missing data, if the data do not declare it.
        units: units of the variable, if the data do not declare them.
        array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default: none.
        start: first time to use, such as "2020-06-01T12:00". Default: the first time.
        stop: last time to use. Default: the last time.
        threads: number of CPU threads. Default: torch's setting.
        precision: "fp32" or "bf16". Default: bf16 on a GPU, else fp32.
        device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: the device of the model.
        graph: "auto" (replay forwards of repeated shapes from graphs, see fastds.compile_graph) or "never".
            Default: "auto".
        progress: show a progress bar. Default: False.

    Returns:
        A new Dataset with the settings in its attributes. It is lazy if `data` is a Dataset of dask arrays.

    Raises:
        UnknownOptionError: an argument that the task does not have. It is a TypeError and a ValueError.
        ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
        ValueError: a model that does not downscale, or data or arguments that do not fit.
    """
    options = _collect_options(downscale, locals())
    _check_model_and_data(model, data)
    task = select_downscaling_task(model, options)
    run = get_task_function(task, "downscale")
    reading = _pop_read_options(options, *READ_OPTIONS)
    check_options(run, task, options)
    with open_input(data, **reading) as dataset:
        out = run(model, dataset, **options)
        return out.load() if is_path_like(data) else out  # loaded before the files are closed


def nowcast(
    model: Model,
    data: InputData,
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
    array: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    graph: str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Forecast radar frames.

    Args:
        model: loaded model, shipped name, weights file, or baseline: "persistence", "blurred-persistence",
            "extrapolation" or "pysteps". None: the shipped nowcasting network.
        data: Dataset, DataArray or files with the last radar frames.
        steps: number of forecast frames. Default: 12.
        lead: lead time of the last frame, such as "60min", in place of steps.
        start: initialization time, a date. Default: the last time of the data.
        every: interval of hindcasts, such as "30min", from start (or the first possible time) on. Default: a single
            forecast.
        stop: last time of the data to use. Default: the last time.
        quantity: quantity of the output: "rate" in mm/h or "reflectivity" in dBZ. Default: "rate".
        var: name of the variable. Default: the only one that fits.
        z_r: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h. Default: zr_a and zr_b of the data, else (200, 1.6).
        coarsen: number of cells along each axis over which the output quantity is averaged before the forecast.
            Default: depends on the grid spacing in the model card.
        interval: time between frames, such as "10min". Default: the shortest multiple of the data's interval in the
            range of the model card.
        block: number of frames after which the network restarts from its own forecasts. Default: it continues with its
            states.
        smooth: keep the smooth forecast of least squared error, for rain rates the expected rain rate. Default:
            False, its intensities are matched to those of the last frame.
        members: number of ensemble members, along a new dimension realization. Default: a single forecast.
        seed: random seed of the ensemble. Default: 0.
        probability: rain rates in mm/h; the output has their exceedance probabilities in an ensemble in place of the
            forecast. Default: none.
        missing: value that marks missing data, if the data do not declare it.
        units: units of the variable, if the data do not declare them.
        array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default: none.
        threads: number of CPU threads. Default: torch's setting.
        precision: "fp32" or "bf16". Default: bf16 on a GPU, else fp32.
        device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: the device of the model.
        graph: "auto" (replay forwards of repeated shapes from graphs, see fastds.compile_graph) or "never".
            Default: "auto".
        progress: show a progress bar. Default: False.

    Returns:
        A new Dataset with the settings in its attributes. It is lazy if `data` is a Dataset of dask arrays.

    Raises:
        ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
        ValueError: a model that does not forecast, too few frames before the initialization time, or data or arguments
            that do not fit.
    """
    options = _collect_options(nowcast, locals())
    _check_model_and_data(model, data)
    run = get_task_function("nowcast", "nowcast")
    known = get_annotations(importlib.import_module("fastds.tasks.nowcast.run").Options) | {"progress": bool}
    reading = _pop_read_options(options, "missing", "units", "stop", "array")
    check_types(known, options)
    with open_input(data, **reading) as dataset:
        out = run(model, dataset, **options)
        return out.load() if is_path_like(data) else out


def predict(
    model: Model,
    data: InputData,
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
    array: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    graph: str | None = None,
    progress: bool = False,
    steps: int | None = None,
    lead: str | None = None,
    every: str | None = None,
    quantity: str = "rate",
    coarsen: int | None = None,
    interval: str | None = None,
    block: int | None = None,
    probability: Sequence[float] | None = None,
) -> xr.Dataset:
    """Forecast with a nowcasting model, downscale with any other model.

    Where the description of an argument begins with names of tasks, the argument is only allowed for models of these
    tasks.

    Args:
        model: loaded model, shipped name, weights file or baseline. None is not allowed, because it does not determine
            a task.
        data: Dataset, DataArray, file, or several files of one series.
        var: name of the variable; fields: also several names separated by commas, or "all" for all fields. Default: the
            only one that fits; fields: those of the model, or those with the most dimensions.
        scale: fields: scale factor along both axes, greater than 0. Exactly one of scale, grid and like is required.
        grid: fields: spacing of the output grid in degrees, or in the units of the projected coordinates.
        like: fields: Dataset or file with the output grid.
        time_factor: radar: ratio of the time resolution of output and input, 2 or 4. Default: 2.
        static: radar, fields: static maps for models that read static maps: a Dataset, or a list of files FILE.nc or
            FILE.nc:VARIABLE. Default: none.
        dynamics: radar: additional input variables of models that read some, if their names or units in the data differ
            from the model card: {NAME: VARIABLE}, or {NAME: [low, high]} with the range in the units of the data, or
            {VARIABLE: [low, high]} for all variables in the order of the model's channels. Default: as in the model
            card.
        coarsened: radar, fields: how the input averages finer cells; the output is then corrected so that the same
            average nearly gives the input. Radar: "linear_z", "dbz", "plain_dbz", "auto" (estimated from the
            values) or "unknown" (no correction); fields: "mean" or "unknown". Default: "auto" for radar, "unknown"
            for fields.
        level: humidity: value of the vertical coordinate. Default: the only level.
        members: radar, humidity, nowcasts: number of ensemble members, along a new dimension realization. Default: a
            single field.
        seed: radar, humidity, nowcasts: random seed of the ensemble. Default: 0.
        smooth: radar, nowcasts: keep the smooth fields of least squared error. Default: False, see downscale and
            nowcast.
        z_r: radar, nowcasts: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h. Default: zr_a and zr_b of the data,
            else (200, 1.6).
        tile: radar: side of a tile in input pixels, a multiple of 16. Default: depends on the available memory.
        halo: radar: width of the margin around a tile in input pixels, a multiple of 16. Default: the receptive field
            of the network.
        missing: value that marks missing data, if the data do not declare it.
        units: units of the variable, if the data do not declare them.
        array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default: none.
        start: downscaling: first time to use, such as "2020-06-01T12:00". Nowcasts: initialization time. Default: the
            first time; nowcasts: the last.
        stop: last time of the data to use. Default: the last time.
        threads: number of CPU threads. Default: torch's setting.
        precision: "fp32" or "bf16". Default: bf16 on a GPU, else fp32.
        device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: the device of the model.
        graph: "auto" (replay forwards of repeated shapes from graphs, see fastds.compile_graph) or "never".
            Default: "auto".
        progress: show a progress bar. Default: False.
        steps: nowcasts: number of forecast frames. Default: 12.
        lead: nowcasts: lead time of the last frame, such as "60min", in place of steps.
        every: nowcasts: interval of hindcasts, such as "30min", from start (or the first possible time) on. Default: a
            single forecast.
        quantity: nowcasts: quantity of the output: "rate" in mm/h or "reflectivity" in dBZ. Default: "rate".
        coarsen: nowcasts: number of cells along each axis that are averaged before the forecast. Default: depends on
            the grid spacing in the model card.
        interval: nowcasts: time between frames, such as "10min". Default: the shortest multiple of the data's interval
            in the range of the model card.
        block: nowcasts: number of frames after which the network restarts from its own forecasts. Default: it continues
            with its states.
        probability: nowcasts: rain rates in mm/h; the output has their exceedance probabilities in an ensemble in place
            of the forecast. Default: none.

    Returns:
        A new Dataset with the settings in its attributes. It is lazy if `data` is a Dataset of dask arrays.

    Raises:
        UnknownOptionError: an argument that the task does not have. It is a TypeError and a ValueError.
        ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
        ValueError: model is None, or model, data or arguments do not fit.
    """
    from fastds.tasks.nowcast.methods import BASELINES

    options = _collect_options(predict, locals())
    if model is None:
        raise OptionError(
            "model", "must be given: a loaded model, a shipped name, a weights file or a method, got None"
        )
    _check_model_and_data(model, data)
    if isinstance(model, str) and model in BASELINES:
        verb: Callable = nowcast
    else:
        card = _find_card(model)
        verb = nowcast if card is not None and card.task == "nowcast" else downscale
    keywords = [p.name for p in inspect.signature(verb).parameters.values() if p.kind is p.KEYWORD_ONLY]
    _check_names(options, set(keywords), verb.__name__)
    return verb(model, data, **options)


def query(
    model: Model,
    data: InputData,
    points: str | os.PathLike | Mapping[str, Sequence] | Sequence[tuple[float, float]],
    *,
    outside: str = "error",
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    height: str | None = None,
    lapse_rate: float | str | None = None,
    missing: float | None = None,
    units: str | None = None,
    array: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    graph: str | None = None,
) -> list[dict]:
    """Interpolate gridded fields to points, with a model and bilinearly.

    Args:
        model: arbitrary-scale model, shipped name or weights file. None: inr-small if it takes the data, else inr-any.
        data: Dataset, DataArray or files with the variables of the model (for inr-any: any variables).
        points: pairs (latitude, longitude) in degrees, a mapping of columns that include lat and lon, or a CSV file of
            such columns.
        outside: points outside the fields: "error" raises an exception, "nan" gives NaN, "clamp" moves the points to
            the edge. Default: "error".
        var: name of the variable, several names separated by commas, or "all". Default: all that fit.
        static: static maps for models that read static maps, and the orography for height: a Dataset, or a list of
            files FILE.nc or FILE.nc:VARIABLE. Default: none; the orography is a variable of the data.
        height: column of the points with their heights in metres; temperatures near the surface are then corrected for
            the height of the model surface. Default: no correction.
        lapse_rate: with height: decrease of temperature with height in K/km, or "levels" or "neighbourhood", fitted to
            the pressure levels or to the cells around each point. Default: 6.5.
        missing: value that marks missing data, if the data do not declare it.
        units: units of the variable, if the data do not declare them.
        array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default: none.
        start: first time to use, a date. Default: the first time.
        stop: last time to use. Default: the last time.
        threads: number of CPU threads. Default: torch's setting.
        precision: "fp32" or "bf16". Default: bf16 on a GPU, else fp32.
        device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: the device of the model.
        graph: "auto" (replay forwards of repeated shapes from graphs, see fastds.compile_graph) or "never".
            Default: "auto".

    Returns:
        One dict for each field and point: the columns of the point, the leading coordinates, NAME (value of the model)
        and NAME_bilinear for each variable; with height further columns of the correction.

    Raises:
        ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
        ValueError: a model, data or points that do not fit.
    """
    options = _collect_options(query, locals())
    _check_model_and_data(model, data)
    run = get_task_function("fields", "query")
    reading = _pop_read_options(options, *READ_OPTIONS)
    check_options(run, "query", options)
    with open_input(data, **reading) as dataset:
        return run(model, dataset, points, **options)


def evaluate(
    prediction: InputData,
    truth: InputData,
    *,
    input: InputData | None = None,  # named like the option of the command
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    baselines: Sequence[str] | None = None,
    model: str | os.PathLike | None = None,
    report: str | os.PathLike | None = None,
    missing: float | None = None,
    units: str | None = None,
    array: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    progress: bool = False,
) -> EvaluationTable | FieldTable | NowcastTable | ProbabilityTable:
    """Verify downscaled fields, ensembles, nowcasts or exceedance probabilities, and baselines, against the truth.

    Args:
        prediction: output of downscale, nowcast or another method: a Dataset, DataArray or files.
        truth: true fields on the same grid and at the same times; for nowcasts the observed fields.
        input: input of the prediction. Default: radar: truth averaged over 2 x 2 pixels at every second time; fields:
            truth coarsened according to the attributes of the prediction; nowcasts: truth.
        var: name of the variable; fields: also several names separated by commas. Default: the only one that fits;
            fields: all.
        z_r: radar, nowcasts: a and b of Z = a R^b, Z in mm^6 m^-3 and R in mm/h. Default: zr_a and zr_b of the data,
            else (200, 1.6).
        baselines: nowcasts: names of the baselines to compare. Default: all.
        model: name or file of the weights whose card is in the report. Default: the model named by the prediction.
        report: HTML file to write. Default: no report.
        missing: value that marks missing data in truth and input, if they do not declare it.
        units: units of the variable in truth and input, if they do not declare them.
        array: layout of raw binary files, such as "shape=500,500 dtype=<f4", see fastds.data.open_array. Default: none.
        start: first time of truth and input to use, a date. Default: the first time.
        stop: last time of truth and input to use. Default: the last time.
        progress: show a progress bar. Default: False.

    Returns:
        A table with rows, print(all_scores=...), to_csv(path) and to_html(path). For archives see
        fastds.archive.evaluation.evaluate_archive.

    Raises:
        UnknownOptionError: an argument that the task of the prediction does not have. It is a TypeError and a
            ValueError.
        ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
        ValueError: grids, times or arguments that do not fit.
    """
    return evaluate_in_processes(prediction, truth, None, **_collect_options(evaluate, locals()))


def _collect_options(verb: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that differ from their defaults.

    Args:
        verb: function.
        values: locals() of the function.
    """
    parameters = inspect.signature(verb).parameters.values()
    return {p.name: values[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and values[p.name] is not p.default}


def evaluate_in_processes(
    prediction: InputData, truth: InputData, score_items: Callable[[str], ScoreItems] | None, **options: Any
) -> EvaluationTable | FieldTable | NowcastTable | ProbabilityTable:
    """Evaluate a prediction, optionally in other processes.

    Args:
        prediction: see evaluate.
        truth: see evaluate.
        score_items: function of the task that returns the function that computes the scores, see
            fastds.inference.scoring; None: this process computes them.
        options: keyword arguments of evaluate.

    Returns:
        See evaluate.
    """
    source, reading = options.pop("input", None), _pop_read_options(options, *READ_OPTIONS)
    files = {"prediction": prediction, "truth": truth, "input": source}
    check_types({"prediction": InputData, "truth": InputData, "input": InputData | None}, files)
    array = reading.get("array")
    with (
        open_input(prediction, array=array) as p,
        open_input(truth, **reading) as t,
        open_input(source, **reading) as source,
    ):
        task = select_evaluation_task(p, options.get("var"))
        run, name = get_task_function(task, "evaluate"), get_input_name(task)
        check_options(run, task, options, {"input", "model"}, {name, "score_items"})
        return run(p, t, **{name: source}, score_items=score_items and score_items(task), **options)


def get_input_name(task: str) -> str:
    """Return the name of the argument of a task's evaluate that takes the input."""
    return "observed" if task in ("nowcast", "probability") else "coarse"


def select_evaluation_task(prediction: xr.Dataset, var: str | None = None) -> str:
    """Return the task that evaluates a prediction.

    Exceedance probabilities are "probability", other forecasts by initialization and lead time are "nowcast". Otherwise
    the attribute fastds_task decides. Without this attribute, the result is "fields" for ensembles, for fields over
    latitude and longitude (except reflectivity) and for quantities other than precipitation; "radar" for all others.

    Args:
        prediction: dataset.
        var: name of the variable to evaluate; None: all.
    """
    declared = prediction.attrs.get("fastds_task")
    if is_probability(prediction):
        return "probability"
    if is_forecast(prediction):
        return "nowcast"
    if MEMBER in prediction.dims and declared != "radar":
        return "fields"
    if declared in DOWNSCALING:
        return "radar" if declared == "radar" else "fields"
    fields = {name: field for name, field in prediction.data_vars.items() if field.ndim >= 2}
    requested = split_names(var, fields)
    named = requested is not None and set(requested) <= set(fields)
    chosen = [fields[name] for name in requested] if named and requested else list(fields.values())
    latitudes = (find_latitude_longitude(field)[0] for field in chosen)
    gridded = any(latitude is not None and latitude.ndim == 1 for latitude in latitudes)
    if any(is_dbz(field.attrs.get("units")) for field in chosen):
        return "radar"
    return "fields" if gridded or _is_not_precipitation(chosen) else "radar"


def _is_not_precipitation(fields: list[xr.DataArray]) -> bool:
    """Return whether fields are known to be quantities other than precipitation, and thus not radar fields."""
    known = [field for field in fields if field.attrs.get("units") and field.ndim >= 3]
    return bool(known) and not any(is_named_reflectivity(f) or classify_rain(f, named=True) for f in known)


def get_task_function(task: str, verb: str) -> Callable:
    """Import a task and return one of its functions."""
    module = {
        "evaluate": "evaluation",
        "plan": "evaluation" if verb == "plan_evaluate" else "run",
        "report": "report",
    }.get(verb.partition("_")[0], "run")
    return getattr(importlib.import_module(f"fastds.tasks.{task}.{module}"), verb)


def select_downscaling_task(model: Model, options: Mapping) -> str:
    """Return the task that downscales with a model.

    If the model has no card or its card names no task, the task is "fields" if one of the options scale, grid and like
    is given, else "radar".

    Args:
        model: see downscale.
        options: keyword arguments of downscale.

    Raises:
        ValueError: the model forecasts, or the file is no weights file, see fastds.models.load_card.
        FileNotFoundError: the model is neither the name of shipped weights nor a file.
    """
    card = _find_card(model)
    task = "" if card is None else card.task
    if task == "nowcast":
        assert card is not None  # it has the task
        raise ValueError(f"model {card.name} forecasts and does not downscale; use nowcast")
    return task or ("fields" if any(options.get(name) is not None for name in _FIELD_OPTIONS) else "radar")


def _find_card(model: Model) -> models.ModelCard | None:
    """Return the card of a model, or None if there is no card. Raises exceptions as fastds.models.load_card."""
    if isinstance(model, nn.Module) or model is None:
        return getattr(model, "card", None)
    return None if model in list_weightless_methods() else models.load_card(model)


def list_weightless_methods() -> set[str]:
    """Return the names of the baselines of the tasks radar and fields, which need no weights."""
    from fastds.tasks.fields.methods import WEIGHTLESS_METHODS
    from fastds.tasks.radar.methods import BASELINES

    return {*WEIGHTLESS_METHODS, *BASELINES}


def check_options(
    run: Callable, task: str, options: Mapping, further: Set[str] = frozenset(), without: Set[str] = frozenset()
) -> None:
    """Check the keyword arguments for a task.

    Args:
        run: function of the task.
        task: name for the error message.
        options: keyword arguments.
        further: names that are allowed in addition to the keyword arguments of `run`.
        without: names that are not allowed.

    Raises:
        UnknownOptionError: a name that is not allowed.
        ArgumentTypeError: a value of the wrong type.
    """
    parameters = inspect.signature(run).parameters.values()
    known = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "model"}
    _check_names(options, (known | further) - without, task)
    check_types(get_annotations(run), options)


def _check_model_and_data(model: Model, data: InputData) -> None:
    """Raise ArgumentTypeError if model or data have the wrong type."""
    check_types({"model": Model, "data": InputData}, {"model": model, "data": data})


_INTERNAL_OPTIONS = {"progress", "origin"}  # set by the commands, not by users


def _check_names(options: Mapping, known: Set[str], task: str) -> None:
    for name in options:
        if name not in known:
            raise UnknownOptionError(name, task, known - _INTERNAL_OPTIONS)


def _pop_read_options(options: dict, *names: str) -> dict:
    """Remove the options for reading files from `options` and return them together with var.

    Args:
        options: keyword arguments, changed in place.
        names: names of the options for reading.

    Raises:
        ArgumentTypeError: a value of the wrong type.
    """
    reading = {name: options.pop(name) for name in names if name in options} | {"var": options.get("var")}
    check_types(ReadOptions.__annotations__ | {"var": str | None}, reading)
    return reading
