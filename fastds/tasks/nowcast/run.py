# SPDX-License-Identifier: Apache-2.0
"""Nowcast radar fields: the last fields in, the next ones out, for datasets and files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import xarray as xr
from torch import nn

from fastds.data import (
    ReflectivityInput,
    to_reflectivity,
)
from fastds.data.grid.times import text_of
from fastds.data.io.mlcast import Origin
from fastds.tasks.common.inference import (
    Report,
    check_target,
    check_truth_file,
    file_to_file,
)
from fastds.tasks.common.pieces import is_lazy, lazy
from fastds.tasks.nowcast.forecasts import by_valid_time, check_by_valid_time
from fastds.tasks.nowcast.job import NowcastJob, Options


def nowcast(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, *, progress: bool = False, **options
) -> xr.Dataset:
    """Return forecasts of a dataset's radar field from its last fields before a start.

    A pixel that is missing in the last known field is missing in the forecast; elsewhere the method takes missing
    pixels by its own rule (networks of the DB-RNN family: as dry). Grids of any size are padded and cut back by the
    network. Times are those of the file's labels: the rate made of an amount stands for the interval that its label
    stands for in the file.

    Args:
        model: a network with .forecast and a card, as fastds.load gives it; its name or file; a name of
            fastds.tasks.nowcast.methods.BASELINES; None: the shipped nowcaster, else extrapolation.
        dataset: a field (time, y, x) of reflectivity, rain rates or rain amounts.
        progress: show a progress bar. options: see fastds.tasks.nowcast.run.Options.

    Returns: a new Dataset over (time, y, x), or with every over (forecast_reference_time, forecast_period, y, x), with
        members over (realization, ...), with probability over (threshold, ...), with the settings in its attributes;
        several forecasts are lazy where dask holds the dataset's field. Deterministic
        for given settings.

    Raises: ValueError for data, settings or models that do not fit, too few fields, and gaps before the start;
        TypeError for an option that is not there. Warns (UserWarning) where grid spacing, interval or statistics of
        motion lie outside the ranges in the model's card.
    """
    return _run(model, dataset, Options(**options), progress, folder=None)[0]


def nowcast_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    picture: str | os.PathLike | None = None,
    truth: str | os.PathLike | None = None,
    progress: bool = False,
    missing: float | None = None,
    units: str | None = None,
    stop: str | None = None,
    dtype: str = "input",
    origin: Origin | None = None,
    **options,
) -> Report:
    """Nowcast the file source into another, see `nowcast`; `target` appears only when it is complete.

    model, progress, options: as nowcast. picture: PNG of the first forecast: observed fields where the file has them,
    forecast and difference. truth: the file that the forecasts will be compared with; whether it fits is checked before
    they are made. Forecasts above 256 MB wait in an unnamed file beside the target. missing, units: of both files, see
    fastds.data.reading. stop: the last time that is read of source. dtype: of the fields in target, "input" (integers
    where the input has packed ones of the same units) or "float32". origin: of an archive in MLCast's form, as which
    target is written then; it has one field a time, so hindcasts have one step. Raises FileNotFoundError, ValueError.
    """
    if picture is not None:
        if origin is not None:
            raise ValueError("picture needs the start of the forecast, which is left out in MLCast's form")
        check_target(source, Path(picture))
    chosen = Options(**options)
    if origin is not None and chosen.drawn:
        raise ValueError("MLCast's form has one field a time: leave out the arguments members and probability")
    if chosen.probability is not None and (picture is not None or truth is not None):
        raise ValueError(
            "the arguments picture and truth do not work with the argument probability; use the argument members"
        )

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        out, report = _run(model, dataset, chosen, progress, folder, check)
        return out if origin is None else by_valid_time(out), report

    def check(source: ReflectivityInput, starts: list, leads: np.ndarray) -> None:
        if origin is not None:
            check_by_valid_time(len(starts), len(leads))
        if truth is not None:
            check_fits(source, starts, leads)

    def check_fits(*forecasts) -> None:
        from fastds.tasks.nowcast.evaluation import check_truth

        def fits(file: xr.Dataset) -> None:
            check_truth(file, *forecasts, var=chosen.var, z_r=chosen.z_r)

        check_truth_file(truth, fits, chosen.var, missing=missing, units=units)

    def draw(dataset: xr.Dataset, out: xr.Dataset) -> str:
        from fastds.tasks.nowcast.picture import write_picture

        write_picture(Path(picture), out, dataset, chosen.var, chosen.z_r)
        return f"wrote {picture}"

    then = None if picture is None else draw
    reading = {"missing": missing, "units": units, "stop": stop}
    return file_to_file(source, target, make, then, var=chosen.var, dtype=dtype, origin=origin, **reading)


def plan(source: ReflectivityInput, model: str | os.PathLike | None = None) -> str:
    """What `nowcast` would make of a radar field by weights, None: the default method, for the user.

    Raises: ValueError where no forecast can start."""
    job = NowcastJob(model, source, Options())
    leads, start = job.leads, text_of(job.starts[0].time)
    steps = f"{len(leads)} fields every {leads[0] / 60:g} min from {start}"
    told = steps, job.note, job.settings.get("fastds_resolution"), job.domain.text()
    return "; ".join(filter(None, told))


def _run(model, dataset: xr.Dataset, options: Options, progress: bool, folder, check=None):
    """The forecasts and the report; folder: where large ones are kept in a file, None: in memory; check: called with
    the source, the starts and the leads before anything is computed. Several forecasts from fields of dask stay
    lazy."""
    job = NowcastJob(model, to_reflectivity(dataset, options.var, z_r=options.z_r), options)
    if check is not None:
        check(job.source, [start.time for start in job.starts], np.array(job.leads))
    out = lazy(job) if folder is None and job.dim and is_lazy(dataset) else job.at_once(progress, folder)
    return out, job.report()
