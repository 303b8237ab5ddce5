# SPDX-License-Identifier: Apache-2.0
"""Downscaling of gridded fields and queries at points: functions of datasets and of files."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import xarray as xr
from torch import nn

from fastds._options import OptionError
from fastds.data import open_input
from fastds.data.reading import ReadOptions
from fastds.inference.chunking import compute_lazily, is_lazy, make_template
from fastds.inference.files import (
    RunSummary,
    check_target,
    check_truth_file,
    process_file,
)
from fastds.inference.tables import write_csv
from fastds.tasks.fields.evaluation import check_truth
from fastds.tasks.fields.geometry import find_geometry
from fastds.tasks.fields.methods import pick_method, pick_network, split_dataset, warn_about_left_out
from fastds.tasks.fields.pipeline import FieldsPipeline
from fastds.tasks.fields.point_query import query_points
from fastds.tasks.fields.points import Points
from fastds.tasks.fields.stations import find_projection
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
        model: INRDownscaler, shipped name, weights file, "bilinear", "bicubic", "lanczos" or "conservative" (means over
            the cells of a finer or coarser grid); None: inr-small if it takes the dataset, else inr-any, which
            processes each variable independently.
        dataset: fields (..., latitude, longitude). inr-any and interpolation also take equally spaced y and x, and
            curvilinear grids.
        scale: scale factor, greater than 0.
        grid: spacing of the output grid in degrees, or in the units of y and x.
        like: dataset or file with the coordinates of the output.
        var: name of the only variable; several names separated by commas, or "all" for all fields, which may have
            different dimensions; None: the variables with the most dimensions, or those in the model's card.
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
        options: arguments of FieldsPipeline; var may name fields with different dimensions.

    Returns:
        The fine dataset and the summary of the run.
    """
    var = options.pop("var", None)
    pipelines, failed = _make_pipelines(model, dataset, var, options)
    if check is not None:
        check(merge_parts([make_template(pipeline) for pipeline in pipelines]))
    parts = [
        compute_lazily(pipeline)
        if folder is None and pipeline.dim and is_lazy(dataset)
        else pipeline.compute_all(progress, folder)
        for pipeline in pipelines
    ]
    computed = [name for pipeline in pipelines for name in pipeline.variables]
    warn_about_left_out(dataset, computed, failed, var, stacklevel=4)
    summaries = [pipeline.make_summary(with_others=var is None or len(pipelines) == 1) for pipeline in pipelines]
    name = ", ".join(dict.fromkeys(summary.model for summary in summaries))
    return merge_parts(parts), RunSummary(name, {}, [note for summary in summaries for note in summary.notes])


def _make_pipelines(model, dataset, var, options) -> tuple[list[FieldsPipeline], dict[str, str]]:
    """Return a pipeline for each part of the requested fields, and the reasons why fields do not fit the model.

    Fields need to fit the model unless they were requested by "all" together with fields that do.
    """
    pipelines: list[FieldsPipeline] = []
    failed: dict[str, str] = {}
    parts = split_dataset(model, dataset, find_geometry(dataset, var), var)
    for part in parts:
        try:
            pipelines.append(FieldsPipeline(part.model, dataset, var=",".join(part.names) or None, **options))
        except ValueError as error:
            if not part.optional or len(parts) == 1 or isinstance(error, OptionError):
                raise
            failed |= dict.fromkeys(part.names, str(error))
    if not pipelines:
        raise ValueError(next(iter(failed.values())))
    return pipelines, failed


def merge_parts(parts: list[xr.Dataset]) -> xr.Dataset:
    """Merge results on one grid.

    Of an attribute that differs, a number is the largest, and a text has the parts of all.
    """
    if len(parts) == 1:
        return parts[0]
    attrs: dict[Hashable, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part.attrs):
        values = [part.attrs[key] for part in parts if key in part.attrs]
        texts = all(isinstance(value, str) for value in values)
        if any(not np.array_equal(values[0], value) for value in values[1:]):
            separator = "\n" if key == "history" else ", "
            lines = dict.fromkeys(line for value in values for line in str(value).split(separator))
            attrs[key] = separator.join(lines) if texts else max(values)
        else:
            attrs[key] = values[0]
    return xr.merge(parts, compat="override", join="exact", combine_attrs="override").assign_attrs(attrs)


def query(
    model: nn.Module | str | os.PathLike | None,
    dataset: xr.Dataset,
    points: Points,
    *,
    outside: str = "error",
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    height: str | None = None,
    lapse_rate: float | str | None = None,
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
        var: name of the only variable, several names separated by commas, or "all" for all fields.
        static: static maps of the model, see downscale, and the orography for `height`.
        height: column of the points with their heights in metres. Temperatures near the surface are corrected by
            the lapse rate times the height of the model surface above the point. The orography of the model is one of
            the static maps, else a variable of the dataset; a network for any variable interpolates it as the
            temperature, other networks bilinearly. None: no correction.
        lapse_rate: decrease of temperature with height in K/km; or "levels", fitted to the pressure levels above
            the surface; or "neighbourhood", fitted to the cells around each point. None: 6.5.
        threads: see downscale.
        precision: see downscale.
        device: see downscale.
        graph: see downscale.

    Returns:
        One dict per field and point: the columns of the point, the leading coordinates, NAME (value of the model),
        NAME_bilinear, fastds_out_of_domain and, if an input is out of distribution, fastds_out_of_domain_by (see
        fastds.inference.ood.score). With `height`, the values of temperatures include the correction, and further
        columns are fastds_model_height and fastds_model_height_bilinear (m), NAME_correction and
        NAME_bilinear_correction (K), NAME_lapse_rate (K/km) and NAME_lapse_rate_source ("given", "levels",
        "neighbourhood", or "standard" where no rate could be fitted). Variables with different dimensions are in
        different rows.

    Raises:
        ValueError: data, model or points that do not fit, or a column of the points with the name of a result.
        FileNotFoundError: there are no such weights, or no such file.
        TypeError: points is not a collection of points.
    """
    options: dict[str, Any] = {"outside": outside, "var": var, "static": static, "height": height}
    options |= {"threads": threads, "precision": precision, "device": device, "graph": graph}
    return query_points(model, dataset, points, lapse_rate=lapse_rate, **options).rows


def plan_query(dataset: xr.Dataset, var: str | None = None) -> str:
    """Describe what `query` would compute from a dataset with the default model.

    Raises:
        ValueError: the dataset does not fit the model.
    """
    grid = find_geometry(dataset, var)
    fields, note = pick_network(None, select_field(dataset, grid, var), grid)
    find_projection(fields.dataset, grid)
    return f"{', '.join(fields.names[c] for c in fields.predicted)} at points; {note}"


def query_file(
    source: str | os.PathLike,
    points: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    outside: str = "error",
    var: str | None = None,
    static: xr.Dataset | list[str] | None = None,
    height: str | None = None,
    lapse_rate: float | str | None = None,
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
        var: see query.
        static: see query.
        height: see query.
        lapse_rate: see query.
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
    options: dict[str, Any] = {"outside": outside, "var": var, "static": static, "height": height}
    options |= {"threads": threads, "precision": precision, "device": device, "graph": graph}
    with open_input(source, var, **reading) as dataset:
        result = query_points(model, dataset, points, lapse_rate=lapse_rate, **options)
    columns = result.columns
    write_csv(target, columns, ([row.get(name, "") for name in columns] for row in result.rows))
    return RunSummary(result.model, {}, [*result.notes, f"wrote {target}: {len(result.rows)} rows"])
