# SPDX-License-Identifier: Apache-2.0
"""Nowcasting of radar fields: functions of datasets and of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
from torch import nn

from fastds._options import OptionError, spell_argument
from fastds.data import (
    ReflectivityInput,
    to_reflectivity,
)
from fastds.data.grid.times import format_time
from fastds.data.io.mlcast import ArchiveMetadata
from fastds.data.reading import InputFiles
from fastds.inference.chunking import compute_lazily, is_lazy
from fastds.inference.files import (
    RunSummary,
    check_target,
    check_truth_file,
    process_file,
)
from fastds.tasks.nowcast.forecasts import check_by_valid_time, to_valid_time
from fastds.tasks.nowcast.pipeline import NowcastPipeline, Options


def nowcast(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, *, progress: bool = False, **options
) -> xr.Dataset:
    """Forecast radar fields from the last frames before an initialization time.

    A pixel that is missing in the last frame is missing in the forecast; other missing pixels are treated by the method
    (networks of the DB-RNN family: as dry). Networks pad grids to the size that they need. The times of the forecast
    continue the time labels of the file.

    Args:
        model: network with .forecast and a card, shipped name, weights file, or name in
            fastds.tasks.nowcast.methods.BASELINES; None: the shipped nowcasting network, else extrapolation.
        dataset: field (time, y, x) of reflectivity, rain rate or rain amount.
        progress: show a progress bar.
        options: see fastds.tasks.nowcast.pipeline.Options.

    Returns:
        A new Dataset over (time, y, x), with the settings in its attributes. Several forecasts (option `every`) have
        the dimensions (forecast_reference_time, forecast_period, y, x), and are lazy if the variable is a dask array.
        The option `members` adds a first dimension realization, the option `probability` a first dimension threshold.
        The result is deterministic.

    Raises:
        ValueError: data, options or models that do not fit, too few frames, or gaps before the initialization time.
        TypeError: an unknown option.
        FileNotFoundError: there are no such weights.

    A UserWarning is issued if grid spacing, interval or motion statistics are outside the ranges in the model card.
    """
    return _nowcast(model, dataset, Options(**options), progress, folder=None)[0]


def nowcast_file(
    source: InputFiles,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    picture: str | os.PathLike | None = None,
    truth: str | os.PathLike | None = None,
    progress: bool = False,
    missing: float | None = None,
    units: str | None = None,
    array: str | None = None,
    stop: str | None = None,
    dtype: str = "input",
    origin: ArchiveMetadata | None = None,
    **options,
) -> RunSummary:
    """Nowcast a file and write the result atomically.

    Forecasts above 256 MiB are stored in an unnamed temporary file in the folder of the target.

    Args:
        source: input file, folder, pattern or list of files.
        target: output file, NetCDF or Zarr.
        model: see nowcast.
        picture: PNG, SVG or PDF file to write, with observed fields, first forecast and difference, or the
            probabilities of the first forecast, or GIF or MP4 with one frame for each lead time; None: no picture.
        truth: file with which the forecasts will be compared; it is checked before the computation.
        progress: show a progress bar.
        missing: value that marks missing data in source and truth, see fastds.data.reading.
        units: units of the variable in source and truth, see fastds.data.reading.
        array: layout of raw binary files, see fastds.data.open_array.
        stop: last time of source to use.
        dtype: type of the fields in target: "input" (packed integers if the input is packed in the same units) or
            "float32".
        origin: metadata of an MLCast archive, the format of target then; hindcasts must have one step. None: CF output.
        options: see nowcast.

    Returns:
        Summary of the run.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: data or options that do not fit.
    """
    if picture is not None:
        if origin is not None:
            raise OptionError("picture", "needs the start of the forecast, which is left out in MLCast's form")
        check_target(source, Path(picture))
        from fastds.plot.saving import check_picture  # imports matplotlib

        check_picture(picture)
    chosen = Options(**options)
    if origin is not None and chosen.n_members:
        raise ValueError(f"MLCast's form has one field a time: leave out {spell_argument('members', 'probability')}")

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, RunSummary]:
        out, report = _nowcast(model, dataset, chosen, progress, folder, check)
        return out if origin is None else to_valid_time(out), report

    def check(source: ReflectivityInput, starts: list, leads: np.ndarray) -> None:
        if origin is not None:
            check_by_valid_time(len(starts), len(leads))
        if truth is not None:
            check_fits(source, starts, leads)

    def check_fits(*forecasts) -> None:
        from fastds.tasks.nowcast.evaluation import check_truth

        # probabilities are compared with climatology, which needs no observed fields before the forecasts
        baselines: list[str] | None = None if chosen.probability is None else []

        def fits(file: xr.Dataset) -> None:
            check_truth(file, *forecasts, var=chosen.var, z_r=chosen.z_r, baselines=baselines)

        check_truth_file(cast(str, truth), fits, chosen.var, missing=missing, units=units, array=array)

    def draw(dataset: xr.Dataset, out: xr.Dataset) -> str:
        if chosen.probability is not None:
            from fastds.tasks.probability.picture import write_picture as write_probabilities

            return write_probabilities(cast(str, picture), out)
        from fastds.tasks.nowcast.picture import write_picture

        write_picture(Path(cast(str, picture)), out, dataset, chosen.var, chosen.z_r)
        return f"wrote {picture}"

    then = None if picture is None else draw
    reading: dict[str, Any] = {"missing": missing, "units": units, "stop": stop, "array": array}
    return process_file(source, target, make, then, var=chosen.var, dtype=dtype, origin=origin, **reading)


def plan(source: ReflectivityInput, model: str | os.PathLike | None = None) -> str:
    """Describe how `nowcast` would process radar fields.

    Args:
        source: radar fields.
        model: weights; None: the default model.

    Raises:
        ValueError: there is no possible initialization time.
    """
    pipeline = NowcastPipeline(model, source, Options())
    leads, start = pipeline.leads, format_time(pipeline.starts[0].time)
    steps = f"{len(leads)} fields every {leads[0] / 60:g} min from {start}"
    parts = steps, pipeline.note, pipeline.settings.get("fastds_resolution"), pipeline.ood.text()
    return "; ".join(filter(None, parts))


def _nowcast(model, dataset: xr.Dataset, options: Options, progress: bool, folder, check=None):
    """Nowcast a dataset.

    Args:
        model: see nowcast.
        dataset: see nowcast; several forecasts from dask arrays stay lazy if `folder` is None.
        options: options of the nowcast.
        progress: show a progress bar.
        folder: folder for memory-mapped files of large fields; None: in memory.
        check: function of the source, the initialization times and the lead times that is called before the
            computation; None: no function.

    Returns:
        The forecasts and the summary of the run.
    """
    pipeline = NowcastPipeline(model, to_reflectivity(dataset, options.var, z_r=options.z_r), options)
    if check is not None:
        check(pipeline.source, [start.time for start in pipeline.starts], np.array(pipeline.leads))
    out = (
        compute_lazily(pipeline)
        if folder is None and pipeline.dim and is_lazy(dataset)
        else pipeline.compute_all(progress, folder)
    )
    return out, pipeline.make_summary()
