# SPDX-License-Identifier: Apache-2.0
"""Downscaling of gridded fields and queries at points: functions of datasets and of files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Unpack, cast

import xarray as xr
from torch import nn

from fastds.data import open_input
from fastds.data.reading import ReadOptions
from fastds.inference.chunking import compute_lazily, is_lazy, make_template
from fastds.inference.execution import inference_context, resolve_execution
from fastds.inference.files import (
    RunSummary,
    check_target,
    check_truth_file,
    process_file,
)
from fastds.inference.tables import write_csv
from fastds.models.baselines.interpolation import interpolate_at
from fastds.tasks.fields.evaluation import check_truth
from fastds.tasks.fields.geometry import find_geometry
from fastds.tasks.fields.methods import pick_method, pick_network
from fastds.tasks.fields.networks import FieldModel
from fastds.tasks.fields.pipeline import FieldsPipeline
from fastds.tasks.fields.points import Points, read_points
from fastds.tasks.fields.stations import find_projection, project_points
from fastds.tasks.fields.totals import RunningTotals
from fastds.tasks.fields.variables import select_field


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
    graph: str | None = None,
    coarsened: str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Downscale the variables of a dataset to a finer grid. Exactly one of scale, grid and like must be given.

    Args:
        model: INRDownscaler, shipped name, weights file, "bilinear", "bicubic" or "lanczos"; None: inr-small if it
            takes the dataset, else inr-any, which processes each variable independently.
        dataset: fields (..., latitude, longitude). inr-any and interpolation also take equally spaced y and x, and
            curvilinear grids.
        scale: scale factor, greater than 0.
        grid: spacing of the output grid in degrees, or in the units of y and x.
        like: dataset or file with the coordinates of the output.
        var: name of the only variable; None: the variables with the most dimensions, or those in the model's card.
        static: static maps for a model that reads static maps: a Dataset, or files FILE.nc or FILE.nc:VARIABLE on any
            grid.
        threads: number of CPU threads; None: torch's setting.
        precision: "fp32" or "bf16"; None: bf16 on a GPU, else fp32.
        device: "auto", "cpu" or "cuda"; None: the device of the model.
        graph: "auto" or "never": whether forwards of repeated shapes are replayed from graphs; None: "auto".
        coarsened: "mean" if each value of the dataset is known to be the mean of the finer cells within its cell. The
            result is then back-projected, see fastds.tasks.fields.back_projection. None: not known.
        progress: show a progress bar.

    Returns:
        A new Dataset, lazy if the variables are dask arrays. The computation needs additional memory for one field.

    Raises:
        ValueError: data, model or target grid that do not fit, or target points outside a regional domain.
        FileNotFoundError: there are no such weights, or no such file.
    """
    where = {"scale": scale, "grid": grid, "like": like, "var": var}
    execution = {"threads": threads, "precision": precision, "device": device, "graph": graph, "coarsened": coarsened}
    return _downscale(model, dataset, static=static, progress=progress, folder=None, **where, **execution)[0]


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
    graph: str | None = None,
    coarsened: str | None = None,
    progress: bool = False,
    truth: str | os.PathLike | None = None,
    picture: str | os.PathLike | None = None,
    dtype: str = "input",
    **reading: Unpack[ReadOptions],
) -> RunSummary:
    """Downscale a file and write the result atomically.

    Variables above 256 MiB are stored in unnamed temporary files in the folder of the target.

    Args:
        source: input file.
        target: output file, NetCDF or Zarr.
        model: see downscale.
        scale: see downscale.
        grid: see downscale.
        like: see downscale.
        var: see downscale.
        static: see downscale.
        threads: see downscale.
        precision: see downscale.
        device: see downscale.
        graph: see downscale.
        coarsened: see downscale.
        progress: see downscale.
        truth: file with which the result will be compared; it is checked before the computation.
        picture: PNG, SVG or PDF file to write, with input and result, or GIF or MP4 with one frame for each time; None:
            no picture.
        dtype: type of the fields in target: "input" (packed integers if the input is packed) or "float32".
        reading: options for reading the input, see fastds.data.reading.

    Returns:
        Summary of the run.
    """
    chosen = {"scale": scale, "grid": grid, "like": like, "var": var, "static": static, "progress": progress}
    chosen |= {"threads": threads, "precision": precision, "device": device, "graph": graph, "coarsened": coarsened}

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, RunSummary]:
        def check(output: xr.Dataset) -> None:
            check_truth_file(
                cast(str, truth), functools.partial(check_truth, output=output, coarse=dataset), var, **reading
            )

        return _downscale(model, dataset, folder=folder, check=None if truth is None else check, **chosen)

    then = None
    if picture is not None:
        from fastds.tasks.downscale_picture import prepare_picture  # imports matplotlib

        then = prepare_picture(source, picture)
    return process_file(source, target, make, then, var=var, dtype=dtype, **reading)


def plan(model: str | None, dataset: xr.Dataset, var: str | None = None) -> str:
    """Describe how `downscale` would process a dataset.

    Args:
        model: name of a network or an interpolation; None: the default model.
        dataset: fields.
        var: name of the only variable.

    Raises:
        ValueError: the dataset does not fit.
    """
    grid = find_geometry(dataset, var)
    method, note = pick_method(model, select_field(dataset, grid, var), grid)
    return "; ".join(filter(None, (f"{', '.join(method.names)} at any scale", note, method.ood.text())))


def _downscale(model, dataset, *, progress=False, folder=None, check=None, **options):
    """Downscale a dataset.

    Args:
        model: see downscale.
        dataset: fields; dask arrays stay lazy if `folder` is None.
        progress: show a progress bar.
        folder: folder for memory-mapped files of large fields; None: in memory.
        check: function that is called with the result before its values are computed; None: no function.
        options: arguments of FieldsPipeline.

    Returns:
        The fine dataset and the summary of the run.
    """
    pipeline = FieldsPipeline(model, dataset, **options)
    if check is not None:
        check(make_template(pipeline))
    out = (
        compute_lazily(pipeline)
        if folder is None and pipeline.dim and is_lazy(dataset)
        else pipeline.compute_all(progress, folder)
    )
    return out, pipeline.make_summary()


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
    graph: str | None = None,
) -> list[dict]:
    """Compute the values of all variables at points, by the model and by bilinear interpolation.

    Args:
        model: see downscale.
        dataset: see downscale.
        points: pairs (latitude, longitude) in degrees, longitudes in any convention; or columns of equal length that
            include lat and lon; or a CSV file with these columns.
        outside: points outside a regional domain: "error" raises an exception, "nan" gives NaN, "clamp" moves them to
            the edge.
        var: name of the only variable.
        static: see downscale.
        threads: see downscale.
        precision: see downscale.
        device: see downscale.
        graph: see downscale.

    Returns:
        One dict per field and point: the columns of the point, the leading coordinates, NAME (value of the model),
        NAME_bilinear, fastds_out_of_domain and, if an input is out of distribution, fastds_out_of_domain_by (see
        fastds.inference.ood.score).

    Raises:
        ValueError: data, model or points that do not fit, or a column of the points with the name of a result.
        FileNotFoundError: there are no such weights, or no such file.
        TypeError: points is not a collection of points.
    """
    options = {"threads": threads, "precision": precision, "device": device, "graph": graph}
    return _query(model, dataset, points, outside, var, static, **options)[0]


def plan_query(dataset: xr.Dataset, var: str | None = None) -> str:
    """Describe what `query` would compute from a dataset with the default model.

    Raises:
        ValueError: the dataset does not fit the model.
    """
    grid = find_geometry(dataset, var)
    fields, note = pick_network(None, select_field(dataset, grid, var), grid)
    find_projection(fields.dataset, grid)
    return f"{', '.join(fields.names[c] for c in fields.predicted)} at points; {note}"


def _query(model, dataset, points, outside, var, static, **options) -> tuple[list[dict], str, str]:
    """Return the rows of query, the name of the model and a note. The options are those of resolve_execution."""
    stations, latitude, longitude = read_points(points)
    grid = find_geometry(dataset, var)
    fields, note = pick_network(model, select_field(dataset, grid, var), grid, static)
    _check_columns(stations, fields)
    grid = fields.grid
    at_rows, at_columns = project_points(find_projection(fields.dataset, grid), grid, latitude, longitude)
    settings = resolve_execution(fields.model, **options)
    with inference_context(fields.model, settings):
        fields.check(stacklevel=4)
        ood = fields.ood.attributes()
        where = grid.points(at_rows, at_columns, outside=outside)
        factor = (fields.model.max_scale,) * 2
        rows = []
        fields.find_totals()
        totals = RunningTotals(fields.running)
        for label, given in fields.iterate_fields():
            x = totals.to_increments(label, given)
            with settings.autocast():
                y = fields.predict_points(x, where, factor)
            for k, c in enumerate(fields.predicted):
                totals.add(label, c, y[:, k].numpy())
            bilinear = interpolate_at(given, where, fields.model.edge)[0]
            at = {d: str(dataset[d].values[i]) if d in dataset.coords else i for d, i in label.items()}
            for q, station in enumerate(stations):
                row = station | at
                for k, c in enumerate(fields.predicted):
                    row |= {fields.names[c]: float(y[q, k]), f"{fields.names[c]}_bilinear": float(bilinear[q, c])}
                rows.append(row | ood)
    return rows, fields.name, note


def _check_columns(stations: list[dict], fields: FieldModel) -> None:
    """Raise ValueError if a column of the points has the name of a column of the result."""
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
            f"the points have {'a column' if one else 'columns'} {', '.join(map(str, taken))}, as the result has, "
            f"whose values would be lost: rename {'it' if one else 'them'} in the points, such as {taken[0]}_observed"
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
    graph: str | None = None,
    **reading: Unpack[ReadOptions],
) -> RunSummary:
    """Query a file at the points of a CSV file and write the rows to another CSV file.

    Args:
        source: input file.
        points: CSV file with the columns lat and lon.
        target: CSV file to write.
        model: see downscale.
        outside: see query.
        var: name of the only variable.
        static: see downscale.
        threads: see downscale.
        precision: see downscale.
        device: see downscale.
        graph: see downscale.
        reading: options for reading the input, see fastds.data.reading.

    Returns:
        Summary of the run.
    """
    check_target(source, target)
    check_target(points, target)
    options = {"threads": threads, "precision": precision, "device": device, "graph": graph}
    with open_input(source, var, **reading) as dataset:
        rows, name, note = _query(model, dataset, points, outside, var, static, **options)
    write_csv(target, list(rows[0]), (list(row.values()) for row in rows))
    return RunSummary(name, {}, [note, f"wrote {target}: {len(rows)} rows"])
