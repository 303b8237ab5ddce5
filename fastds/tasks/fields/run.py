# SPDX-License-Identifier: Apache-2.0
"""Downscale gridded fields to any grid, or read them at stations, with an arbitrary-scale model."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Unpack

import xarray as xr
from torch import nn

from fastds.data import opened
from fastds.data.reading import Reading
from fastds.models.baselines.interpolation import bilinear_at
from fastds.tasks.common.inference import (
    Report,
    check_target,
    check_truth_file,
    file_to_file,
)
from fastds.tasks.common.pieces import is_lazy, lazy, outline
from fastds.tasks.common.settings import computing, settle
from fastds.tasks.common.tables import write_csv
from fastds.tasks.fields.evaluation import check_truth
from fastds.tasks.fields.geometry import geometry
from fastds.tasks.fields.job import FieldsJob
from fastds.tasks.fields.methods import pick_method, pick_network
from fastds.tasks.fields.networks import FieldModel
from fastds.tasks.fields.points import Points, read_points
from fastds.tasks.fields.stations import on_axes, projection_of
from fastds.tasks.fields.totals import RunningTotals
from fastds.tasks.fields.variables import with_fields


def downscale(
    model: nn.Module | str | os.PathLike | None,
    dataset: xr.Dataset,
    *,
    scale: float | None = None,
    grid: float | None = None,
    like: xr.Dataset | str | os.PathLike | None = None,
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    coarsened: str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """The model's variables of a dataset on a finer grid: exactly one of a factor, a spacing and another grid.

    Args:
        model: INRDownscaler, or the name or path of its weights, or bilinear, bicubic or lanczos; None: inr-small where
            it takes the dataset, else inr-any, which takes every variable by itself.
        dataset: fields (..., latitude, longitude); for inr-any and the methods without weights also over evenly spaced
            y and x, or on a curvilinear grid.
        scale: factor > 0. grid: spacing of the new grid, degrees or units of y and x. like: dataset, or file, whose
            coordinates are taken.
        var: the only field that is read; None: those of the most dimensions, or those that the model names.
        static: maps for a model that reads some: a Dataset, or files, FILE.nc or FILE.nc:VARIABLE, on any grid.
        threads: CPU threads; None: torch's. device, precision: see fastds.tasks.common.settings.settle.
        coarsened: "mean" where every value of the dataset is known to be the mean of the finer cells in its own: the
            result is corrected until its means are these values, see fastds.tasks.fields.agreement. None: not known.
        progress: show a progress bar.

    Returns: a new Dataset, lazy where dask holds the fields of the dataset; memory beyond it is that of one field.

    Raises: ValueError: data, model or target that do not fit, target points outside a regional domain.
    """
    where = {"scale": scale, "grid": grid, "like": like, "var": var}
    computed = {"threads": threads, "precision": precision, "device": device, "coarsened": coarsened}
    return _run(model, dataset, static=static, progress=progress, folder=None, **where, **computed)[0]


def downscale_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    scale: float | None = None,
    grid: float | None = None,
    like: xr.Dataset | str | os.PathLike | None = None,
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    coarsened: str | None = None,
    progress: bool = False,
    truth: str | os.PathLike | None = None,
    dtype: str = "input",
    **reading: Unpack[Reading],
) -> Report:
    """Downscale the file source into another, arguments as in `downscale`; `target` appears only when it is complete.

    Fine variables above 256 MB wait in unnamed files beside the target. truth: the file that the result will be
    compared with; whether it fits is checked before it is computed. reading: see fastds.data.reading. dtype: of the
    fields in target, "input" (integers where the input has packed ones) or "float32"."""
    chosen = {"scale": scale, "grid": grid, "like": like, "var": var, "static": static, "progress": progress}
    chosen |= {"threads": threads, "precision": precision, "device": device, "coarsened": coarsened}

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        def check(output: xr.Dataset) -> None:
            check_truth_file(truth, functools.partial(check_truth, output=output, coarse=dataset), var, **reading)

        return _run(model, dataset, folder=folder, check=None if truth is None else check, **chosen)

    return file_to_file(source, target, make, var=var, dtype=dtype, **reading)


def plan(model: str | None, dataset: xr.Dataset, var: str | None = None) -> str:
    """What `downscale` would make of a dataset by a network or method of this name, None: by its choice, for the user.
    Raises: ValueError where it does not fit."""
    grid = geometry(dataset, var)
    method, note = pick_method(model, with_fields(dataset, grid, var), grid)
    return "; ".join(filter(None, (f"{', '.join(method.names)} at any scale", note, method.domain.text())))


def _run(model, dataset, *, progress=False, folder=None, check=None, **options):
    """The fine dataset and the report; options: of FieldsJob; folder: where large fields are kept in a file, None: in
    memory; check: called with the result's outline before that is computed. Fields of dask stay lazy."""
    job = FieldsJob(model, dataset, **options)
    if check is not None:
        check(outline(job))
    out = lazy(job) if folder is None and job.dim and is_lazy(dataset) else job.at_once(progress, folder)
    return out, job.report()


def query(
    model: nn.Module | str | os.PathLike | None,
    dataset: xr.Dataset,
    points: Points,
    *,
    outside: str = "error",
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
) -> list[dict]:
    """Values of every variable at points, by the model and by bilinear interpolation, one row per field and point.

    Args:
        model, dataset, var, static, threads, precision, device: as in downscale.
        points: pairs (latitude, longitude) in degrees, longitudes in either convention; or columns of equal length with
            the names lat and lon (others are kept); or a CSV file of such columns.
        outside: of a regional domain, "error", "nan" or "clamp".

    Returns: rows {columns of the point, leading coordinates, name: model value, name_bilinear: interpolated value,
        fastds_out_of_domain and, where something is outside, fastds_out_of_domain_by: see fastds.tasks.domain.score}.

    Raises: ValueError: data, model or points that do not fit; points with a column of a name that the rows have.
    """
    options = {"threads": threads, "precision": precision, "device": device}
    return _query(model, dataset, points, outside, var, static, **options)[0]


def query_plan(dataset: xr.Dataset, var: str | None = None) -> str:
    """What `query` would read of a dataset by its choice, for the user. Raises: ValueError where it does not fit."""
    grid = geometry(dataset, var)
    fields, note = pick_network(None, with_fields(dataset, grid, var), grid)
    projection_of(fields.dataset, grid)
    return f"{', '.join(fields.names[c] for c in fields.predicted)} at points; {note}"


def _query(model, dataset, points, outside, var, static, **options) -> tuple[list[dict], str, str]:
    """The rows of query, the name of the model and a sentence about it; options: of settle."""
    stations, latitude, longitude = read_points(points)
    grid = geometry(dataset, var)
    fields, note = pick_network(model, with_fields(dataset, grid, var), grid, static)
    _check_columns(stations, fields)
    grid = fields.grid
    at_rows, at_columns = on_axes(projection_of(fields.dataset, grid), grid, latitude, longitude)
    settings = settle(fields.model, **options)
    with computing(fields.model, settings):
        fields.check(stacklevel=4)
        judged = fields.domain.attributes()
        where = grid.points(at_rows, at_columns, outside=outside)
        factor = (fields.model.max_scale,) * 2
        rows = []
        fields.find_totals()
        totals = RunningTotals(fields.running)
        for label, given in fields.fields():
            x = totals.increments(label, given)
            with settings.autocast():
                y = fields.at(x, where, factor)
            for k, c in enumerate(fields.predicted):
                totals.add(label, c, y[:, k].numpy())
            plain = bilinear_at(given, where, fields.model.edge)[0]
            at = {d: str(dataset[d].values[i]) if d in dataset.coords else i for d, i in label.items()}
            for q, station in enumerate(stations):
                row = station | at
                for k, c in enumerate(fields.predicted):
                    row |= {fields.names[c]: float(y[q, k]), f"{fields.names[c]}_bilinear": float(plain[q, c])}
                rows.append(row | judged)
    return rows, fields.name, note


def _check_columns(stations: list[dict], fields: FieldModel) -> None:
    """Raise ValueError where points have a column of a name that the result needs, whose values it would replace."""
    names = [fields.names[c] for c in fields.predicted]
    made = [
        *fields.lead,
        *names,
        *(f"{name}_bilinear" for name in names),
        "fastds_out_of_domain",
        "fastds_out_of_domain_by",
    ]
    taken = [name for name in made if stations and name in stations[0]]
    if taken:
        one = len(taken) == 1
        raise ValueError(
            f"the points have {'a column' if one else 'columns'} {', '.join(taken)}, as the result has, whose values "
            f"would be lost: rename {'it' if one else 'them'} in the points, such as {taken[0]}_observed"
        )


def query_file(
    source: str | os.PathLike,
    points: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    outside: str = "error",
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    **reading: Unpack[Reading],
) -> Report:
    """Query the file source at the points of a CSV file, arguments as in `query`, and write the rows to another CSV.

    reading: see fastds.data.reading."""
    check_target(source, target)
    check_target(points, target)
    options = {"threads": threads, "precision": precision, "device": device}
    with opened(source, var, **reading) as dataset:
        rows, name, note = _query(model, dataset, points, outside, var, static, **options)
    write_csv(target, list(rows[0]), (list(row.values()) for row in rows))
    return Report(name, {}, [note, f"wrote {target}: {len(rows)} rows"])
