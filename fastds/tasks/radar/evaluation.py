# SPDX-License-Identifier: Apache-2.0
"""Errors of downscaled fields and of the baselines against the truth, on the same pixels."""

from __future__ import annotations

import os

import xarray as xr

from fastds.data import ReflectivityInput, refine_grid, refine_time, to_reflectivity
from fastds.tasks.common.radar_files import check_quietly, differ
from fastds.tasks.common.tables import tracked
from fastds.tasks.radar import scores
from fastds.tasks.radar.methods import BASELINES
from fastds.tasks.radar.pairs import SPACE_FACTOR, Pairs, whole_seconds
from fastds.tasks.radar.scores import EvaluationTable

_NEEDS_VERIFY = "SSIM and FSS need the packages torchmetrics and scores: python -m pip install torchmetrics scores"


def check_truth(
    truth: xr.Dataset,
    source: ReflectivityInput,
    *,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    time_factor: int = 2,
) -> None:
    """What would make evaluate fail after source has been downscaled; truth is read once for it.

    Raises: ValueError where truth is not on the fine grid, has not all times between two input times, or is not
    plausible."""
    fields = to_reflectivity(truth, var, z_r=z_r)
    shape = tuple(SPACE_FACTOR * n for n in source.shape[1:])
    if fields.shape[1:] != shape:
        raise ValueError(f"the grids differ: it has {fields.shape[1:]} pixels, the output will have {shape}")
    grid = refine_grid(source.dataset, source.raw, SPACE_FACTOR)
    for dim, own in zip(fields.dims[1:], source.dims[1:], strict=True):
        if dim in fields.raw.coords and own in grid.coords and differ(fields.raw[dim].values, grid[own].values):
            raise ValueError(f"the grids differ: its coordinate {dim} and that of the output are other places")
    there = set(whole_seconds(fields.times))
    fine = [whole_seconds(refine_time(source.times[part], time_factor)) for part in source.segments]
    starts = ((times, i) for times in fine for i in range(0, len(times) - time_factor, time_factor))
    if not any(there.issuperset(times[i : i + time_factor + 1]) for times, i in starts):
        raise ValueError("it has nowhere all times from one input time to the next")
    check_quietly(fields)


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    coarse: xr.Dataset | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
    report: str | os.PathLike | None = None,
    model: str | os.PathLike | None = None,
) -> EvaluationTable:
    """Compare downscaled fields and the baselines with the truth, pair of input frames by pair of input frames.

    prediction, truth: datasets on the same fine grid; truth holds every time of the prediction between the input times
    used.
    coarse: the dataset that was downscaled; None: truth averaged 2 x 2 as by coarsen_dataset, at every second time.
    var, z_r: as in fastds.data.to_reflectivity, for all datasets. progress: show a progress bar.
    report: an HTML page to write, with the scores, maps and curves; model: name or file of the weights whose card it
    tells, None: as prediction names them.
    Returns the EvaluationTable. Raises ValueError where grids or times do not fit or no pair of frames is common to
    all.
    """
    source = Pairs(prediction, truth, coarse, var, z_r)
    page = None
    if report is not None:
        from fastds.tasks.radar.report import EvaluationReport

        page = EvaluationReport(report, source, model)
    name = f"{source.name} (PRED)" if source.name in BASELINES else source.name
    sums = {method: scores.Scores() for method in (*BASELINES, name)}
    for pair in tracked(source, progress, "pairs"):
        for method, score in sums.items():
            score.add(pair, pair.prediction if method == name else None, BASELINES.get(method))
        if page is not None:
            page.add(pair, BASELINES)
    rows = {method: score.means() for method, score in sums.items()}
    notes = tuple(source.notes if scores.HAS_TORCHMETRICS and scores.HAS_SCORES else [*source.notes, _NEEDS_VERIFY])
    table = EvaluationTable(rows, sums[name].count, round(sums[name].pixels / max(sums[name].count, 1)), notes)
    if page is not None:
        page.write(table)
    return table
