# SPDX-License-Identifier: Apache-2.0
"""Downscaling of radar fields to twice the resolution and half the time step: functions of datasets and of files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, Unpack, cast

import xarray as xr
from torch import nn

from fastds._options import spell_argument
from fastds.data import (
    ReflectivityInput,
    output_shape,
)
from fastds.data.grid.variables import list_fields
from fastds.data.io.mlcast import ArchiveMetadata
from fastds.data.reading import ReadOptions
from fastds.inference.chunking import compute_lazily, is_lazy
from fastds.inference.files import (
    RunSummary,
    check_truth_file,
    process_file,
)
from fastds.inference.tables import format_count
from fastds.tasks.radar.dynamics import Dynamics, find_channels, join_names, list_missing
from fastds.tasks.radar.evaluation import check_truth
from fastds.tasks.radar.methods import pick_model
from fastds.tasks.radar.pipeline import RadarPipeline, assess_field, check_model, describe_single_time, find_time_factor


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
    graph: str | None = None,
    time_factor: int = 2,
    static: xr.Dataset | list[str] | None = None,
    dynamics: Dynamics | None = None,
    coarsened: str | None = None,
    members: int | None = None,
    seed: int | None = None,
    smooth: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Downscale radar fields in space and time.

    The model's reflectivity is used where it exceeds the model's floor near echo; weaker echo is interpolated; pixels
    without echo and missing pixels are preserved. Gaps in time are not interpolated. A single time is downscaled in
    space only. Rates and amounts are converted with the Z-R relation and back; the amount of each cell and interval is
    preserved. The result is deterministic.

    Args:
        model: network with a card that has floor, ceiling and factors, shipped name, weights file or baseline; None:
            the shipped weights for reflectivity, see pick_model.
        dataset: field (time, y, x) of reflectivity, rain rate or rain amount.
        var: name of the variable; None: found by its attributes.
        z_r: a and b of Z = a R^b, mm6 m-3 and mm/h; None: zr_a and zr_b of the dataset, else (200, 1.6).
        tile: side of a tile in input pixels, a multiple of 16; None: the whole grid if the working memory suffices,
            else chosen by memory.
        halo: width of the halo of a tile in input pixels, a multiple of 16; None: the receptive field of the network.
        threads: number of CPU threads; None: torch's setting.
        precision: "fp32" or "bf16"; None: bf16 on a GPU, else fp32.
        device: "auto", "cpu" or "cuda"; None: the device of the model.
        graph: "auto" or "never": whether forwards of repeated shapes are replayed from graphs; None: "auto".
        time_factor: 2, or 4 by applying the model twice.
        static: static maps for a model that reads static maps: a Dataset, or files FILE.nc or FILE.nc:VARIABLE on any
            grid.
        dynamics: additional input variables of the model, on the grid and at the times of the reflectivity, if names or
            units differ from the model card: {"probability": "prob"} gives the name in the dataset, {"probability": [0,
            1]} the range in the units of the dataset. Or all variables by their names in the dataset with their ranges,
            in the order of the model's channels. Text is parsed as on the command line. The ends of a range are scaled
            to 0 and 1; values outside are clipped, missing values are 0.
        coarsened: how the dataset averages finer cells: "linear_z", "dbz" or "plain_dbz", see fastds.data.coarsen. The
            result, or the centre of the ensemble, is then back-projected, see fastds.tasks.radar.back_projection. None
            or "auto" estimates it for networks, see coarsening_estimate.py; "unknown" does not correct the result.
        members: number of ensemble members along a new first dimension `realization`, with realistic detail and errors;
            None: a single field.
        seed: random seed of the ensemble; None: 0.
        smooth: True leaves the frames between input times as frames of least squared error. They have less detail and
            less heavy rain than the frames at input times. False adjusts their detail and intensities, so that both
            are the same in all frames of a series, see fastds.tasks.radar.steady.
        progress: show a progress bar.

    Returns:
        A new Dataset with the settings in its attributes, lazy if the variable is a dask array.

    Raises:
        ValueError: data, options or models that do not fit.
        FileNotFoundError: there are no such weights or static maps.

    A UserWarning is issued if grid spacing, time step or motion statistics are outside the ranges in the model card.
    """
    options: dict[str, Any] = {
        "var": var,
        "z_r": z_r,
        "tile": tile,
        "halo": halo,
        "time_factor": time_factor,
        "static": static,
    }
    options |= {"threads": threads, "precision": precision, "device": device, "graph": graph, "coarsened": coarsened}
    options |= {"members": members, "seed": seed, "smooth": smooth, "dynamics": dynamics}
    return _downscale(model, dataset, progress=progress, **options)[0]


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
    graph: str | None = None,
    time_factor: int = 2,
    static: xr.Dataset | list[str] | None = None,
    dynamics: Dynamics | None = None,
    coarsened: str | None = None,
    members: int | None = None,
    seed: int | None = None,
    smooth: bool = False,
    progress: bool = False,
    truth: str | os.PathLike | None = None,
    picture: str | os.PathLike | None = None,
    dtype: str = "input",
    origin: ArchiveMetadata | None = None,
    **reading: Unpack[ReadOptions],
) -> RunSummary:
    """Downscale a file and write the result atomically.

    Fine fields above 256 MiB are stored in an unnamed temporary file in the folder of the target, so that memory does
    not grow with the length of the series.

    Args:
        source: input file.
        target: output file, NetCDF or Zarr.
        model: see downscale.
        var: see downscale.
        z_r: see downscale.
        tile: see downscale.
        halo: see downscale.
        threads: see downscale.
        precision: see downscale.
        device: see downscale.
        graph: see downscale.
        time_factor: see downscale.
        static: see downscale.
        dynamics: see downscale.
        coarsened: see downscale.
        members: see downscale.
        seed: see downscale.
        smooth: see downscale.
        progress: see downscale.
        truth: file with which the result will be compared; it is checked before the computation.
        picture: PNG, SVG or PDF file to write, with input and result, or GIF or MP4 with one frame for each time; None:
            no picture.
        dtype: type of the fields in target: "input" (packed integers if the input is packed) or "float32".
        origin: metadata of an MLCast archive, the format of target then; None: CF output.
        reading: options for reading the input, see fastds.data.reading.

    Returns:
        Summary of the run.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: data or options that do not fit.
    """
    options: dict[str, Any] = {
        "var": var,
        "z_r": z_r,
        "tile": tile,
        "halo": halo,
        "time_factor": time_factor,
        "static": static,
    }
    options |= {"threads": threads, "precision": precision, "device": device, "graph": graph, "coarsened": coarsened}
    options |= {"members": members, "seed": seed, "smooth": smooth, "dynamics": dynamics}

    if origin is not None and members is not None:
        raise ValueError(f"MLCast's form has one field a time: leave out {spell_argument('members')}, got {members}")

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, RunSummary]:
        def check(source: ReflectivityInput) -> None:
            fits = functools.partial(check_truth, source=source, var=var, z_r=z_r, time_factor=time_factor)
            check_truth_file(cast(str, truth), fits, var, **reading)

        return _downscale(
            model, dataset, progress=progress, folder=folder, check=None if truth is None else check, **options
        )

    then = None
    if picture is not None:
        from fastds.tasks.downscale_picture import prepare_picture  # imports matplotlib

        then = prepare_picture(source, picture)
    return process_file(source, target, make, then, var=var, dtype=dtype, origin=origin, **reading)


def plan(source: ReflectivityInput, model: str | os.PathLike | None = None) -> str:
    """Describe how `downscale` would process radar fields; issue a UserWarning if they are out of distribution.

    Args:
        source: radar fields.
        model: weights; None: the default model.

    Raises:
        ValueError: the weights do not fit.
        FileNotFoundError: there are no such weights.
    """
    network, note = pick_model(model)
    check_model(network)
    channels = find_channels(network, source.dataset)
    if list_missing(channels, source.dataset):
        needs = f"variable{'s' * (len(channels) > 1)} {join_names([channel.variable for channel in channels])}"
        raise ValueError(f"needs {needs}; this file has {join_names(list_fields(source.dataset))}")
    read = join_names([source.source_name, *(channel.variable for channel in channels)])
    frames, height, width = output_shape(source, network.config.get("scale", 2), find_time_factor(source))
    summary = f"{read} to {format_count(frames, 'field')} of {height} x {width}"
    maps = [f"{w['name']} ({w.get('units', 'no units')})" for w in network.card.static_variables]
    needed = [f"with {spell_argument('static')} for {join_names(maps)}"] * bool(maps)
    parts = summary, *needed, *describe_single_time(source), note, assess_field(network.card, source).text()
    return "; ".join(filter(None, parts))


def _downscale(model, dataset, *, progress=False, folder=None, check=None, **options):
    """Downscale a dataset.

    Args:
        model: see downscale.
        dataset: see downscale; dask arrays stay lazy if `folder` is None.
        progress: show a progress bar.
        folder: folder for memory-mapped files of large fields; None: in memory.
        check: function of the radar fields that is called before the computation; None: no function.
        options: arguments of RadarPipeline.

    Returns:
        The fine dataset and the summary of the run.
    """
    pipeline = RadarPipeline(model, dataset, **options)
    if check is not None:
        check(pipeline.source)
    out = compute_lazily(pipeline) if folder is None and is_lazy(dataset) else pipeline.compute_all(progress, folder)
    return out, pipeline.make_summary()
