# SPDX-License-Identifier: Apache-2.0
"""Downscale radar fields: every 10 minutes in, every 5 minutes at twice the resolution out, for datasets and files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Unpack

import xarray as xr
from torch import nn

from fastds.data import (
    ReflectivityInput,
    output_shape,
)
from fastds.data.grid.variables import field_names
from fastds.data.io.mlcast import Origin
from fastds.data.reading import Reading
from fastds.tasks.common.inference import (
    Report,
    check_truth_file,
    file_to_file,
)
from fastds.tasks.common.pieces import is_lazy, lazy
from fastds.tasks.common.tables import counted
from fastds.tasks.radar.dynamics import Dynamics, find_channels, listed, missing_in
from fastds.tasks.radar.evaluation import check_truth
from fastds.tasks.radar.job import RadarJob, check_model, one_time, radar_domain, time_factor_of
from fastds.tasks.radar.methods import pick_model


def downscale(
    model: nn.Module | str | os.PathLike | None,
    dataset: xr.Dataset,
    *,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    tile: int | None = None,
    halo: int | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    time_factor: int = 2,
    static: xr.Dataset | list[str] | None = None,
    dynamics: Dynamics | None = None,
    coarsened: str | None = None,
    members: int | None = None,
    seed: int | None = None,
    smooth: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Return the dataset's radar field at the model's finer grid and at time_factor times the cadence.

    A fine pixel takes the model's reflectivity where that is above the model's floor and echo is near; weaker echo
    keeps the interpolated value; cells without echo stay without echo; missing cells stay missing. Nothing is
    interpolated across gaps in time; a single time becomes finer in space alone. Rates and amounts are converted by Z-R
    and back; amounts keep the amount of each cell and interval.

    model: with a card that holds floor, ceiling and factors, as fastds.load gives it; a shipped name or the path of a
    weights file; None: the shipped weights for reflectivity, see pick_model. dataset: a field (time, y, x).
    var: its variable, where the attributes do not tell. z_r: (a, b) of Z = a R^b, mm6 m-3 and mm/h.
    tile, halo: pixels of the input, multiples of 16; None: one tile where the working memory allows, the network's
    reach.
    threads: CPU threads; None: torch's. device, precision: see fastds.tasks.common.settings.settle.
    time_factor: 2, or 4 by recursion. static: maps for a model that reads some: a Dataset, or files, FILE.nc or
    FILE.nc:VARIABLE, on any grid.
    dynamics: variables that a model reads beside the reflectivity, at the times and on the grid of that, where its card
    names others: by the card's name that of the dataset, {"probability": "prob"}, or the ends of its range in the
    dataset's units, {"probability": [0, 1]}; or all by their names in the dataset with their ranges, in the order of
    the model's channels, as a training's data.dynamics. Text is read as the option of the command line. The ends of a
    range become 0 and 1, values beyond are cut, and missing ones are 0.
    coarsened: how the dataset averages finer cells, where that is known: "linear_z", "dbz" or "plain_dbz", see
    fastds.data.coarsen; the result, or what members are drawn around, then agrees with it, see agreement.py.
    members: so many fields in place of each, along a new first dimension `realization`, with detail and errors as
    truth has them, see members.py; None: one smooth field of least squared error. seed: of the members; None: 0.
    smooth: keep the fields of least squared error between input times, which have less detail and less heavy rain than
    those at input times, so that a series pulses; by default they have the detail and intensities of those, see steady.
    progress: show a progress bar. Returns a new Dataset, with the settings in its attributes, in memory, or lazy where
    dask holds the dataset's field.
    Deterministic for given settings. Raises ValueError for data, settings or models that do not fit.
    Warns (UserWarning) where grid spacing, cadence or statistics of motion lie outside the ranges in the model's card.
    """
    options = {"var": var, "z_r": z_r, "tile": tile, "halo": halo, "time_factor": time_factor, "static": static}
    options |= {"threads": threads, "precision": precision, "device": device, "coarsened": coarsened}
    options |= {"members": members, "seed": seed, "smooth": smooth, "dynamics": dynamics}
    return _run(model, dataset, progress=progress, **options)[0]


def downscale_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    tile: int | None = None,
    halo: int | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    time_factor: int = 2,
    static: xr.Dataset | list[str] | None = None,
    dynamics: Dynamics | None = None,
    coarsened: str | None = None,
    members: int | None = None,
    seed: int | None = None,
    smooth: bool = False,
    progress: bool = False,
    truth: str | os.PathLike | None = None,
    dtype: str = "input",
    origin: Origin | None = None,
    **reading: Unpack[Reading],
) -> Report:
    """Downscale the file source into another, arguments as in `downscale`; `target` appears only when it is complete.

    model: None: the only shipped weights whose input variable has the standard name and units of the data. Fine fields
    above 256 MB wait in an unnamed file beside the target, so that memory does not grow with the length of the series.
    truth: the file that the result will be compared with; whether it fits is checked before it is computed.
    reading: see fastds.data.reading. dtype: of the fields in target, "input" (integers where the input has packed ones)
    or "float32". origin: of an archive in MLCast's form, as which target is written then. Raises FileNotFoundError,
    ValueError."""
    options = {"var": var, "z_r": z_r, "tile": tile, "halo": halo, "time_factor": time_factor, "static": static}
    options |= {"threads": threads, "precision": precision, "device": device, "coarsened": coarsened}
    options |= {"members": members, "seed": seed, "smooth": smooth, "dynamics": dynamics}

    if origin is not None and members is not None:
        raise ValueError(f"MLCast's form has one field a time: leave out the argument members, got {members}")

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        def check(source: ReflectivityInput) -> None:
            fits = functools.partial(check_truth, source=source, var=var, z_r=z_r, time_factor=time_factor)
            check_truth_file(truth, fits, var, **reading)

        return _run(model, dataset, progress=progress, folder=folder, check=None if truth is None else check, **options)

    return file_to_file(source, target, make, var=var, dtype=dtype, origin=origin, **reading)


def plan(source: ReflectivityInput, model: str | os.PathLike | None = None) -> str:
    """What `downscale` would make of a radar field by weights, None: the shipped ones, for the user; warns outside
    their range. Raises: ValueError for weights that do not fit."""
    model, note = pick_model(model)
    check_model(model)
    channels = find_channels(model, source.dataset)
    if missing_in(channels, source.dataset):
        needs = f"variable{'s' * (len(channels) > 1)} {listed([channel.variable for channel in channels])}"
        raise ValueError(f"needs {needs}; this file has {listed(field_names(source.dataset))}")
    read = listed([source.source_name, *(channel.variable for channel in channels)])
    frames, height, width = output_shape(source, model.config.get("scale", 2), time_factor_of(source))
    made = f"{read} to {counted(frames, 'field')} of {height} x {width}"
    maps = [f"{w['name']} ({w.get('units', 'no units')})" for w in model.card.static_variables]
    beside = [f"with the argument static for {listed(maps)}"] * bool(maps)
    told = made, *beside, *one_time(source), note, radar_domain(model.card, source).text()
    return "; ".join(filter(None, told))


def _run(model, dataset, *, progress=False, folder=None, check=None, **options):
    """The fine dataset and the report; options: of RadarJob; folder: where large fields are kept in a file, None: in
    memory; check: called with the field before anything is computed. Fields of dask stay lazy."""
    job = RadarJob(model, dataset, **options)
    if check is not None:
        check(job.source)
    out = lazy(job) if folder is None and is_lazy(dataset) else job.at_once(progress, folder)
    return out, job.report()
