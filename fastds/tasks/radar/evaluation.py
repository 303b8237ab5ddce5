# SPDX-License-Identifier: Apache-2.0
"""Errors of downscaled fields and of the baselines against the truth, on the same pixels."""

from __future__ import annotations

import os

import xarray as xr

from fastds.data import declared, open_dataset
from fastds.models.baselines import advection, bicubic, trilinear
from fastds.tasks.common.tables import tracked
from fastds.tasks.radar import scores
from fastds.tasks.radar.pairs import Pairs
from fastds.tasks.radar.scores import EvaluationTable

BASELINES = {"trilinear": trilinear, "bicubic": bicubic, "advection": advection}
_NEEDS_VERIFY = "SSIM and FSS need the packages torchmetrics and scores: python -m pip install torchmetrics scores"


def evaluate_files(
    prediction: str | os.PathLike,
    truth: str | os.PathLike,
    *,
    coarse: str | os.PathLike | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
    missing: float | None = None,
    units: str | None = None,
) -> EvaluationTable:
    """Compare the files prediction and truth, see `evaluate`.

    coarse: the file that was downscaled; None: truth averaged 2 x 2 at every second time. var, z_r: as in evaluate.
    progress: show a progress bar. missing, units: what truth and coarse do not tell, see fastds.data.declared.
    Raises what open_dataset raises, too."""
    with open_dataset(prediction) as p, open_dataset(truth) as t:
        t = declared(t, missing, units, var)
        if coarse is None:
            return evaluate(p, t, var=var, z_r=z_r, progress=progress)
        with open_dataset(coarse) as c:
            return evaluate(p, t, coarse=declared(c, missing, units, var), var=var, z_r=z_r, progress=progress)


def evaluate(
    prediction: xr.Dataset,
    truth: xr.Dataset,
    *,
    coarse: xr.Dataset | None = None,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    progress: bool = False,
) -> EvaluationTable:
    """Compare downscaled fields and the baselines with the truth, pair of input frames by pair of input frames.

    prediction, truth: datasets on the same fine grid; truth holds every time of the prediction between the input times
    used.
    coarse: the dataset that was downscaled; None: truth averaged 2 x 2 as by coarsen_dataset, at every second time.
    var, z_r: as in fastds.data.to_reflectivity, for all datasets. progress: show a progress bar.
    Returns the EvaluationTable. Raises ValueError where grids or times do not fit or no pair of frames is common to
    all.
    """
    source = Pairs(prediction, truth, coarse, var, z_r)
    name = f"{source.name} (PRED)" if source.name in BASELINES else source.name
    sums = {method: scores.Scores() for method in (*BASELINES, name)}
    for pair in tracked(source, progress, "pairs"):
        for method, score in sums.items():
            score.add(pair, pair.prediction if method == name else None, BASELINES.get(method))
    rows = {method: score.means() for method, score in sums.items()}
    notes = tuple(source.notes if scores.HAS_TORCHMETRICS and scores.HAS_SCORES else [*source.notes, _NEEDS_VERIFY])
    return EvaluationTable(rows, sums[name].count, round(sums[name].pixels / max(sums[name].count, 1)), notes)
