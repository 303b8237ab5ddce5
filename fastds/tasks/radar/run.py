# SPDX-License-Identifier: Apache-2.0
"""Downscale radar fields: every 10 minutes in, every 5 minutes at twice the resolution out, for datasets and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Unpack

import xarray as xr
from torch import nn

import fastds
from fastds.data import (
    ReflectivityInput,
    add_history,
    from_reflectivity,
    output_shape,
    static_maps,
    to_reflectivity,
)
from fastds.data.grid.axes import is_latitude
from fastds.data.reading import Reading
from fastds.tasks.common.inference import (
    Report,
    check_settings,
    check_static,
    computing,
    file_to_file,
    mean_spacing_m,
    store,
    warn_outside,
)
from fastds.tasks.radar.methods import pick_model
from fastds.tasks.radar.tiled_run import TiledRun

TIME_FACTORS = (2, 4)


def downscale(
    model: nn.Module | str | os.PathLike | None,
    dataset: xr.Dataset,
    *,
    var: str | None = None,
    z_r: tuple[float, float] | None = None,
    tile: int | None = None,
    halo: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    time_factor: int = 2,
    static: xr.Dataset | list[str] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Return the dataset's radar field at the model's finer grid and at time_factor times the cadence.

    A fine pixel takes the model's reflectivity where that is above the model's floor and echo is near; weaker echo
    keeps the interpolated value; cells without echo stay without echo; missing cells stay missing. Nothing is
    interpolated across gaps in time. Rates and amounts are converted by Z-R and back; amounts keep the amount of each
    cell and interval.

    model: with a card that holds floor, ceiling and factors, as fastds.load gives it; a shipped name or the path of a
    weights file; None: the shipped weights for reflectivity, see pick_model. dataset: a field (time, y, x).
    var: its variable, where the attributes do not tell. z_r: (a, b) of Z = a R^b, mm6 m-3 and mm/h.
    tile, halo: pixels of the input, multiples of 16; None: one tile where the working memory allows, the network's
    reach.
    threads: CPU threads; None: torch's. precision: "fp32" or "bf16" inside the network. time_factor: 2, or 4 by
    recursion. static: maps for a model that reads some: a Dataset, or files, FILE.nc or FILE.nc:VARIABLE, on any grid.
    progress: show a progress bar. Returns a new Dataset in memory, with the settings in its attributes.
    Deterministic for given settings. Raises ValueError for data, settings or models that do not fit.
    Warns (UserWarning) where grid spacing, cadence or motion lie outside the range in the model's card.
    """
    model = model if isinstance(model, nn.Module) else pick_model(model)[0]
    options = (var, z_r, tile, halo, threads, precision, time_factor, static, progress)
    return _run(model, dataset, *options, folder=None)[0]


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
    precision: str = "fp32",
    time_factor: int = 2,
    static: xr.Dataset | list[str] | None = None,
    progress: bool = False,
    dtype: str = "input",
    **reading: Unpack[Reading],
) -> Report:
    """Downscale the file source into another, arguments as in `downscale`; `target` appears only when it is complete.

    model: None: the only shipped weights whose input variable has the standard name and units of the data. Fine fields
    above 256 MB wait in an unnamed file beside the target, so that memory does not grow with the length of the series.
    reading: see fastds.data.reading. dtype: of the fields in target, "input" (integers where the input has packed ones)
    or "float32". Raises FileNotFoundError, ValueError."""
    options = (var, z_r, tile, halo, threads, precision, time_factor, static, progress)

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        chosen, note = pick_model(model)
        out, report = _run(chosen, dataset, *options, folder=folder)
        report.notes.insert(0, note)
        return out, report

    return file_to_file(source, target, make, var=var, dtype=dtype, **reading)


def plan(source: ReflectivityInput) -> str:
    """What `downscale` would make of a radar field by the shipped weights, for the user; warns outside their range."""
    model, note = pick_model()
    frames, height, width = output_shape(source)
    _warn_outside(model.card, source, None)
    return f"{source.source_name} to {frames} fields of {height} x {width}; {note}"


def _run(model, dataset, var, z_r, tile, halo, threads, precision, time_factor, static, progress, folder):
    """The fine dataset and the report; folder: where large fields are kept in a file, None: in memory."""
    if time_factor not in TIME_FACTORS:
        raise ValueError(f"time_factor must be 2 or 4 (applied by recursion), got {time_factor}")
    check_settings(threads, precision)
    _check_model(model)
    needed = model.config.get("static_channels", 0)
    if static is not None or needed:
        check_static(model.card, needed, static)
    source = _radar_field(dataset, var, z_r)
    source.check(stacklevel=4)
    maps = static_maps(static, source.raw, source.dataset, model.card.static_variables) if needed else None
    with computing(model, threads, precision):
        job = TiledRun(model, source, tile, halo, precision, time_factor, maps)
        z = job.run(progress, folder)
    values = None if source.kind == "reflectivity" else store(output_shape(source, job.scale, time_factor), folder)
    out = from_reflectivity(source, z, job.scale, time_factor, out=values)
    settings = job.settings()
    said = f"fastds {fastds.__version__} downscale with {model.card.name}"
    said += "" if maps is None else f"; {maps.origin}"
    out = add_history(out.assign_attrs(settings), said)
    _warn_outside(model.card, source, job.refiner.motion_px)
    return out, Report(model.card.name, settings, [*source.notes, *job.notes])


def _radar_field(dataset, var, z_r) -> ReflectivityInput:
    """to_reflectivity's, whose refusal of a file of other fields says how those are downscaled."""
    try:
        return to_reflectivity(dataset, var, z_r=z_r)
    except ValueError as error:
        gridded = any(is_latitude(c.attrs) for c in dataset.coords.values() if c.ndim == 1)
        if not gridded or "no variable of reflectivity was found" not in str(error):
            raise
        hint = (
            "latitude-longitude fields take one of the arguments scale, grid and like; humidity takes the model "
            "wgan-gp-small-x2 or wgan-gp-small-x8"
        )
        raise ValueError(f"{error}; {hint}") from None


def _check_model(model) -> None:
    card, config = getattr(model, "card", None), getattr(model, "config", {})
    if card is None:
        raise ValueError("model must have a card with its normalisation; load it with fastds.load")
    if card.input_steps is not None:
        raise ValueError(f"model {card.name} forecasts and does not downscale; use nowcast")
    if card.floor_dbz is None or card.ceiling_dbz is None:
        raise ValueError(
            f"model {card.name} has no floor_dbz and ceiling_dbz in its card, so it does not take radar fields; models "
            "of latitude-longitude fields take one of the arguments scale, grid and like"
        )
    if config.get("in_channels", 1) != 1:
        raise ValueError(
            f"model {card.name} needs {config['in_channels']} variables; a file of one radar field can only feed a "
            "model of one variable"
        )


def _warn_outside(card, source: ReflectivityInput, motion_px: float | None) -> None:
    ranges = (
        ("grid spacing", mean_spacing_m(source), card.grid_spacing_m, "m"),
        ("cadence", source.cadence, card.cadence_s, "s"),
        ("motion per input step", motion_px, card.motion_px, "pixels"),
    )
    warn_outside(card, ranges, stacklevel=4)
