# SPDX-License-Identifier: Apache-2.0
"""Nowcast radar fields: the last fields in, the next ones out, for datasets and files."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from pathlib import Path

import numpy as np
import xarray as xr
from torch import nn

import fastds
from fastds.data import (
    ReflectivityInput,
    add_history,
    opened,
    reflectivity_to_rate,
    to_reflectivity,
)
from fastds.data.grid.times import text_of
from fastds.data.radar.reflectivity import z_r_law
from fastds.tasks.common.inference import (
    TOLERANCE,
    Report,
    check_settings,
    check_target,
    computing,
    file_to_file,
    mean_spacing_m,
    store,
    warn_outside,
)
from fastds.tasks.common.progress import progress_bar
from fastds.tasks.nowcast.forecasts import QUANTITIES, forecast_dataset
from fastds.tasks.nowcast.methods import Method, pick_method
from fastds.tasks.nowcast.starts import Start, Timeline, coarse_fields, count_of, find_starts

STEPS = 12


@dataclasses.dataclass(frozen=True)
class Options:
    """What a nowcast may be asked for.

    Attributes:
        steps: number of fields, each `interval` after the one before.
        lead: of the last field, a duration such as "60min", instead of steps; neither: 12 steps.
        start: date of the last known field; None: the file's last.
        every: a duration; one forecast from `start` (None: the first time with enough fields before it) and one from
            every such step after it (hindcasts).
        quantity: "rate" (mm h-1) or "reflectivity" (dBZ).
        var: the file's variable, where the attributes do not tell.
        z_r: (a, b) of Z = a R^b, mm6 m-3 and mm/h; None: attributes zr_a and zr_b of the file, else (200, 1.6).
        coarsen: cells of the file along a cell of the forecast, means of reflectivity; None: as many as bring the grid
            into the range of the model's card.
        interval: duration between fields, a multiple of the file's; None: the shortest in the range of the card.
        block: fields after which the network starts anew from its last forecasts, None: it keeps its state.
        smooth: the mean forecast, of least squared error, without the intensities that networks in the frame of the
            moving air else take from the last field.
        threads: CPU threads; None: torch's. precision: "fp32" or "bf16" inside the network.
    """

    steps: int | None = None
    lead: str | None = None
    start: str | None = None
    every: str | None = None
    quantity: str = "rate"
    var: str | None = None
    z_r: tuple[float, float] | None = None
    coarsen: int | None = None
    interval: str | None = None
    block: int | None = None
    smooth: bool = False
    threads: int | None = None
    precision: str = "fp32"

    def __post_init__(self):
        check_settings(self.threads, self.precision)
        if self.quantity not in QUANTITIES:
            raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}")
        if self.steps is not None and self.lead is not None:
            raise ValueError(f"give one of the arguments steps and lead, got {self.steps} and {self.lead!r}")
        for name, value in (("steps", self.steps), ("coarsen", self.coarsen), ("block", self.block)):
            if value is not None and (int(value) != value or value < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def nowcast(
    model: nn.Module | str | os.PathLike | None, dataset: xr.Dataset, *, progress: bool = False, **options
) -> xr.Dataset:
    """Return forecasts of a dataset's radar field from its last fields before a start.

    A pixel that is missing in the last known field is missing in the forecast; elsewhere the method takes missing
    pixels by its own rule (networks of the DB-RNN family: as dry). Grids of any size are padded and cut back by the
    network. Times are those of the file's labels: the rate made of an amount stands for the interval that its label
    stands for in the file.

    Args:
        model: a network with .forecast and a card, as fastds.load gives it; its name or file; a name of
            fastds.tasks.nowcast.methods.BASELINES; None: the shipped nowcaster, else extrapolation.
        dataset: a field (time, y, x) of reflectivity, rain rates or rain amounts.
        progress: show a progress bar. options: see fastds.tasks.nowcast.run.Options.

    Returns: a new Dataset over (time, y, x), or with every over (forecast_reference_time, forecast_period, y, x), with
        the settings in its attributes. Deterministic for given settings.

    Raises: ValueError for data, settings or models that do not fit, too few fields, and gaps before the start;
        TypeError for an option that is not there. Warns (UserWarning) where grid spacing or interval lie outside the
        range in the model's card.
    """
    method, _ = pick_method(model)
    return _run(method, dataset, Options(**options), progress, folder=None)[0]


def nowcast_file(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    model: nn.Module | str | os.PathLike | None = None,
    picture: str | os.PathLike | None = None,
    truth: str | os.PathLike | None = None,
    progress: bool = False,
    missing: float | None = None,
    units: str | None = None,
    stop: str | None = None,
    dtype: str = "input",
    **options,
) -> Report:
    """Nowcast the file source into another, see `nowcast`; `target` appears only when it is complete.

    model, progress, options: as nowcast. picture: PNG of the first forecast: observed fields where the file has them,
    forecast and difference. truth: the file that the forecasts will be compared with; whether it fits is checked before
    they are made. Forecasts above 256 MB wait in an unnamed file beside the target. missing, units: of both files, see
    fastds.data.reading. stop: the last time that is read of source. dtype: of the fields in target, "input" (integers
    where the input has packed ones of the same units) or "float32". Raises FileNotFoundError, ValueError."""
    if picture is not None:
        check_target(source, Path(picture))
    chosen = Options(**options)

    def make(dataset: xr.Dataset, folder: Path) -> tuple[xr.Dataset, Report]:
        method, note = pick_method(model)
        out, report = _run(method, dataset, chosen, progress, folder, check if truth is not None else None)
        report.notes.insert(0, note)
        return out, report

    def check(*forecasts) -> None:
        from fastds.tasks.nowcast.evaluation import check_truth

        try:
            with opened(truth, chosen.var, missing=missing, units=units) as file:
                check_truth(file, *forecasts, var=chosen.var, z_r=chosen.z_r)
        except ValueError as error:
            raise ValueError(f"truth: {error}") from error

    def draw(dataset: xr.Dataset, out: xr.Dataset) -> str:
        from fastds.tasks.nowcast.picture import write_picture

        write_picture(Path(picture), out, dataset, chosen.var, chosen.z_r)
        return f"wrote {picture}"

    then = None if picture is None else draw
    reading = {"missing": missing, "units": units, "stop": stop}
    return file_to_file(source, target, make, then, var=chosen.var, dtype=dtype, **reading)


def plan(source: ReflectivityInput) -> str:
    """What `nowcast` would make of a radar field by the default method, for the user.

    Raises: ValueError where no forecast can start."""
    method, note = pick_method()
    options = Options()
    spacing = mean_spacing_m(source)
    factor, interval = _factor(method.card, source, options, spacing), _interval(method.card, source, options)
    line = Timeline(source.raw[source.dims[0]].values, source.cadence)
    (start, *_), _ = find_starts(line, method.known, interval, options.start, options.every)
    steps = f"{_steps(options, interval)} fields every {interval / 60:g} min from {text_of(start.time)}"
    return "; ".join(text for text in (steps, note, _coarser(source, factor, spacing, interval)) if text)


def _run(method: Method, dataset: xr.Dataset, options: Options, progress: bool, folder, check=None):
    """The forecasts and the report; folder: where large ones are kept in a file, None: in memory; check: called with
    the source, the starts and the leads before anything is computed."""
    method = method if options.block is None else method.in_blocks(options.block)
    method = method.smoothed() if options.smooth else method
    card, source = method.card, to_reflectivity(dataset, options.var, z_r=options.z_r)
    law, origin = z_r_law(source.dataset, source.raw, options.z_r)
    spacing = mean_spacing_m(source)
    factor, interval = _factor(card, source, options, spacing), _interval(card, source, options)
    steps = _steps(options, interval)
    line = Timeline(source.raw[source.dims[0]].values, source.cadence)
    starts, notes = find_starts(line, method.known, interval, options.start, options.every)
    source.check(sorted({frame for start in starts for frame in start.frames}), stacklevel=4)
    leads = [(k + 1) * interval for k in range(steps)]
    if check is not None:
        check(source, [start.time for start in starts], np.array(leads))
    z = _forecasts(method, source, starts, steps, factor, options, progress, folder)
    if np.isnan(z[:, 0]).all() and method.known > 1:  # of one field all of it are missing, which check says
        warnings.warn("every pixel of the last known field is missing, and so is the forecast", UserWarning, 3)
    form = {"quantity": options.quantity, "law": law, "factor": factor, "floor": card.floor_dbz}
    out = forecast_dataset(source, starts, leads, z, **form)
    settings = _settings(method, factor, interval, options, law, origin)
    coarser = _coarser(source, factor, spacing, interval)
    if coarser:
        settings["fastds_resolution"] = coarser
        keep = factor > 1 and options.coarsen is None
        notes = [*notes, coarser + "; with the argument coarsen 1 cells stay those of the file" * keep]
    out = add_history(out.assign_attrs(settings), f"fastds {fastds.__version__} nowcast with {method.name}")
    ranges = (
        ("grid spacing", None if spacing is None else factor * spacing, card.grid_spacing_m, "m"),
        ("interval between fields", interval, card.cadence_s, "s"),
    )
    warn_outside(card, ranges, stacklevel=3)
    if spacing is None and card.grid_spacing_m is not None:
        notes = [*notes, "the file does not tell its grid spacing, so it was not brought to that of the model"]
    said = f"{len(starts)} forecast{'s' * (len(starts) > 1)} of {steps} fields every {interval / 60:g} min"
    return out, Report(method.name, settings, [*source.notes, *notes, f"{said}, rain by {settings['fastds_z_r']}"])


def _forecasts(method: Method, source, starts: list[Start], steps, factor, options, progress, folder) -> np.ndarray:
    """(starts, steps, h, w) in dBZ, NaN where the last known field is missing."""
    height, width = (size // factor for size in source.shape[1:])
    z = store((len(starts), steps, height, width), folder)
    bar = progress_bar(progress, len(starts), "nowcasting", "starts")
    with computing(method.model, options.threads), bar as advance:
        for number, start in enumerate(starts):
            known = coarse_fields(source, list(start.frames), factor, method.card.floor_dbz)
            z[number] = method(known, steps, options.precision)
            z[number][:, np.isnan(known[-1])] = np.nan
            if advance is not None:
                advance()
    return z


def _coarser(source: ReflectivityInput, factor: int, spacing: float | None, interval: float) -> str:
    """What a forecast has lost of the file's resolution in space and time, in words; "" where nothing."""
    parts = []
    if factor > 1:
        size = "" if spacing is None else f" ({factor * spacing:g} instead of {spacing:g} m)"
        parts.append(f"cells of {factor} x {factor} of the file{size}")
    if interval > source.cadence:
        parts.append(f"fields every {interval:g} s of the file's {source.cadence:g} s")
    return f"coarser than the file: {', '.join(parts)}" if parts else ""


def _factor(card, source: ReflectivityInput, options: Options, spacing: float | None) -> int:
    if options.coarsen is not None:
        if options.coarsen > min(source.shape[1:]) // 2:
            raise ValueError(
                f"coarsen must leave 2 or more cells each way of {source.shape[1:]}, got {options.coarsen}"
            )
        return options.coarsen
    return 1 if spacing is None else _multiple(spacing, card.grid_spacing_m)


def _interval(card, source: ReflectivityInput, options: Options) -> float:
    if options.interval is None:
        return source.cadence * _multiple(source.cadence, card.cadence_s)
    return source.cadence * count_of(options.interval, "interval", source.cadence, "the file's")


def _multiple(value: float, limits: tuple[float, float] | None) -> int:
    """How often the value fits into the lower limit of a range, at least once."""
    return 1 if limits is None else max(1, math.ceil(limits[0] / TOLERANCE / value))


def _steps(options: Options, interval: float) -> int:
    if options.lead is not None:
        return count_of(options.lead, "lead", interval, "the interval between fields,")
    return STEPS if options.steps is None else int(options.steps)


def _settings(method: Method, factor: int, interval: float, options: Options, law, origin: str) -> dict:
    """Attributes that say how the file was made."""
    settings = {
        "fastds_version": fastds.__version__,
        "fastds_model": method.name,
        "fastds_input_steps": method.known,
        "fastds_interval_s": interval,
        "fastds_coarsening": factor,
        "fastds_block": options.block or 0,
        "fastds_smooth": int(options.smooth),
        "fastds_precision": options.precision,
        "fastds_floor_dBZ": float(method.card.floor_dbz),
        "fastds_ceiling_dBZ": float(method.card.ceiling_dbz),
        "fastds_dry_below_dBZ": method.dry_below,
        "fastds_dry_below_mm_h": round(float(reflectivity_to_rate(method.dry_below, law)), 4),
        "fastds_z_r": f"Z = {law[0]:g} R^{law[1]:g}, {origin}",
    }
    if method.card.licence:
        settings["fastds_model_licence"] = method.card.licence
    return settings
