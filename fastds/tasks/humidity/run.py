# SPDX-License-Identifier: Apache-2.0
"""Downscaling of gridded fields to an ensemble with a generator: functions of datasets and of files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Unpack, cast

import xarray as xr
from torch import nn

from fastds.data.grid.variables import list_fields
from fastds.data.reading import ReadOptions
from fastds.data.samples.fields import choose_field
from fastds.inference.chunking import compute_lazily, is_lazy, make_template
from fastds.inference.files import RunSummary, check_truth_file, describe_model, load_model, process_file
from fastds.models import load_card
from fastds.tasks.fields.evaluation import check_truth
from fastds.tasks.humidity.pipeline import HumidityPipeline, assess_field


def downscale(
    model: nn.Module | str | os.PathLike,
    dataset: xr.Dataset,
    *,
    members: int | None = None,
    seed: int = 0,
    var: str | None = None,
    level: float | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    graph: str | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Downscale a field to a single field or an ensemble.

    For models of area means, cells are divided into scale x scale cells. For models of decimated fields, the coarse
    points remain, and new points are inserted after each. Values are clipped to the card's valid_range. For humidity,
    that is the range of the input, so that a result can be downscaled again. The result is deterministic.

    Args:
        model: generator with offset, range and coarsening in its card, shipped name or weights file.
        dataset: coarse fields over (time, y, x), in the unit for which the model was trained.
        members: number of ensemble members, along a new first dimension `realization`; None: one field without noise.
        seed: random seed of the first member. The noise of member k at a time depends on seed + k and the time only.
        var: name of the variable; None: the only one that fits, see choose_field.
        level: value of the vertical coordinate; None: the only level.
        threads: number of CPU threads; None: torch's setting.
        precision: "fp32" or "bf16"; None: bf16 on a GPU, else fp32.
        device: "auto", "cpu" or "cuda"; None: the device of the model.
        graph: "auto" or "never": whether forwards of repeated shapes are replayed from graphs; None: "auto".
        progress: show a progress bar.

    Returns:
        A new Dataset with the settings in its attributes, lazy if the variables are dask arrays.

    Raises:
        ValueError: another kind of model, fewer than 1 member, missing values, humidity far outside [0, 105] % or in
            fractions, or a variable or level that is missing or ambiguous.
        FileNotFoundError: there are no such weights.

    A UserWarning is issued if humidity is clipped to [0, 105] %, or if pressure or statistics of the field are outside
    the ranges in the model card.
    """
    execution = {"threads": threads, "precision": precision, "device": device, "graph": graph}
    return _downscale(load_model(model), dataset, members, seed, var, level, execution, progress)[0]


def downscale_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike,
    members: int | None = None,
    seed: int = 0,
    var: str | None = None,
    level: float | None = None,
    threads: int | None = None,
    precision: str | None = None,
    device: str | None = None,
    graph: str | None = None,
    progress: bool = False,
    truth: str | os.PathLike | None = None,
    picture: str | os.PathLike | None = None,
    dtype: str = "input",
    **reading: Unpack[ReadOptions],
) -> RunSummary:
    """Downscale a file and write the result atomically.

    Args:
        source: input file.
        target: output file, NetCDF or Zarr.
        model: see downscale.
        members: see downscale.
        seed: see downscale.
        var: see downscale.
        level: see downscale.
        threads: see downscale.
        precision: see downscale.
        device: see downscale.
        graph: see downscale.
        progress: see downscale.
        truth: file with which the result will be compared; it is checked before the computation.
        picture: PNG, SVG or PDF file to write, with input and result, or GIF or MP4 with one frame for each time; None:
            no picture.
        dtype: type of the fields in target: "input" (packed integers if the input is packed) or "float32".
        reading: options for reading the input, see fastds.data.reading.

    Returns:
        Summary of the run.
    """

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, RunSummary]:
        def check(output: xr.Dataset) -> None:
            fits = functools.partial(check_truth, output=output, coarse=dataset)
            check_truth_file(cast(str, truth), fits, var, **reading)

        generator = load_model(model)
        execution = {"threads": threads, "precision": precision, "device": device, "graph": graph}
        options = members, seed, var, level, execution, progress, None if truth is None else check
        out, notes = _downscale(generator, dataset, *options)
        return out, RunSummary(generator.card.name, dict(out.attrs), [describe_model(generator, model), *notes])

    then = None
    if picture is not None:
        from fastds.tasks.downscale_picture import prepare_picture  # imports matplotlib

        then = prepare_picture(source, picture)
    return process_file(source, target, make, then, var=var, dtype=dtype, **reading)


def plan(name: str, dataset: xr.Dataset, var: str | None = None) -> str:
    """Describe how `downscale` would process a dataset with shipped weights or a weights file.

    A UserWarning is issued for fields outside the ranges of the training.

    Args:
        name: name or file of the weights.
        dataset: fields.
        var: name of the variable.

    Raises:
        ValueError: the dataset does not fit.
    """
    card = load_card(name)
    field = choose_field(dataset, var)
    expected = {str(v.get("standard_name")) for v in card.input_variables}
    if str(field.attrs.get("standard_name")) not in expected:
        needed = ", ".join(sorted(expected)).replace("_", " ")
        raise ValueError(
            f"needs {needed}; this file has {', '.join(map(str, list_fields(dataset))) if var is None else var}"
        )
    parts = f"{field.name} at {card.space_factor} times the resolution", assess_field(card, field).text()
    return "; ".join(filter(None, parts))


def _downscale(
    model, dataset, members, seed, var, level, execution, progress, check=None
) -> tuple[xr.Dataset, list[str]]:
    """Downscale a dataset.

    Args:
        model: generator.
        dataset: see downscale.
        members: see downscale.
        seed: see downscale.
        var: see downscale.
        level: see downscale.
        execution: threads, precision and device.
        progress: show a progress bar.
        check: function that is called with the result before its values are computed; None: no function.

    Returns:
        The fine dataset, and notes on changed values.
    """
    pipeline = HumidityPipeline(model, dataset, members=members, seed=seed, var=var, level=level, **execution)
    if check is not None:
        check(make_template(pipeline))
    out = compute_lazily(pipeline) if is_lazy(dataset) else pipeline.compute_all(progress)
    return out, pipeline.changes.notes()
