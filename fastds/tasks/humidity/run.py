# SPDX-License-Identifier: Apache-2.0
"""Gridded fields to an ensemble of finer fields with a generator such as HumidityGenerator."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Unpack

import xarray as xr
from torch import nn

from fastds.data.grid.variables import field_names
from fastds.data.reading import Reading
from fastds.data.samples.fields import choose_field
from fastds.models import load_card
from fastds.tasks.common.inference import Report, check_truth_file, file_to_file, loaded, named
from fastds.tasks.common.pieces import is_lazy, lazy, outline
from fastds.tasks.fields.evaluation import check_truth
from fastds.tasks.humidity.job import HumidityJob, humidity_domain


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
    progress: bool = False,
) -> xr.Dataset:
    """Return the field at the model's finer grid, as one field or an ensemble.

    Args:
        model: a generator with offset, range and coarsening in its card, or the name or path of its weights.
        dataset: coarse fields over (time, y, x), in the unit the model was trained for.
        members: number of members, along a new first dimension `realization`; None: one field without noise.
        seed: of the first member; the noise of member k at a time depends on seed + k and the time, whatever other
            members and times there are.
        var, level: variable and value of its vertical coordinate where the file does not tell, see choose_field.
        threads: CPU threads; None: torch's. device, precision: see fastds.tasks.common.settings.settle.
        progress: show a progress bar.

    Returns:
        a new Dataset with the coordinates of the finer cells, settings in its attributes, lazy where dask holds the
        fields of the dataset. Cells are cut into factor x
        factor for models of area means; for models of decimated fields the coarse points stay where they are and the
        new ones lie behind them. Values are cut to the card's valid_range: for humidity what is taken as input, so that
        a result can be refined again. Deterministic for given settings.

    Raises:
        ValueError: another model, members below 1, missing values, humidity far outside [0, 105] % or a fraction, or
        a variable or level that is missing or ambiguous. Warns (UserWarning) where humidity is cut to [0, 105] %, and
        of pressure and statistics of a field outside the ranges in the model's card.
    """
    computed = {"threads": threads, "precision": precision, "device": device}
    return _run(loaded(model), dataset, members, seed, var, level, computed, progress)[0]


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
    progress: bool = False,
    truth: str | os.PathLike | None = None,
    dtype: str = "input",
    **reading: Unpack[Reading],
) -> Report:
    """Downscale the file source into a NetCDF or Zarr file, arguments as in `downscale`; `target` appears only when it
    is complete. reading: see fastds.data.reading. truth: the file that the result will be compared with; whether it
    fits is checked before it is computed. dtype: of the fields in target, "input" (integers where the input has packed
    ones) or "float32"."""

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        def check(output: xr.Dataset) -> None:
            fits = functools.partial(check_truth, output=output, coarse=dataset)
            check_truth_file(truth, fits, var, **reading)

        generator = loaded(model)
        computed = {"threads": threads, "precision": precision, "device": device}
        options = members, seed, var, level, computed, progress, None if truth is None else check
        out, notes = _run(generator, dataset, *options)
        return out, Report(generator.card.name, dict(out.attrs), [named(generator, model), *notes])

    return file_to_file(source, target, make, var=var, dtype=dtype, **reading)


def plan(name: str, dataset: xr.Dataset, var: str | None = None) -> str:
    """What `downscale` would make of a dataset by the weights of this name, for the user. Raises: ValueError where they
    do not fit; warns of fields outside the ranges of the training."""
    card = load_card(name)
    field = choose_field(dataset, var)
    wanted = {str(v.get("standard_name")) for v in card.input_variables}
    if str(field.attrs.get("standard_name")) not in wanted:
        needed = ", ".join(sorted(wanted)).replace("_", " ")
        raise ValueError(f"needs {needed}; this file has {', '.join(field_names(dataset)) if var is None else var}")
    told = f"{field.name} at {card.space_factor} times the resolution", humidity_domain(card, field).text()
    return "; ".join(filter(None, told))


def _run(model, dataset, members, seed, var, level, computed, progress, check=None) -> tuple[xr.Dataset, list[str]]:
    """The fine dataset, and sentences about what was changed; check: called with its outline before it is computed."""
    job = HumidityJob(model, dataset, members=members, seed=seed, var=var, level=level, **computed)
    if check is not None:
        check(outline(job))
    out = lazy(job) if is_lazy(dataset) else job.at_once(progress)
    return out, job.changes.notes()
