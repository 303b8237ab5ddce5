# SPDX-License-Identifier: Apache-2.0
"""Pipeline that forecasts radar fields, and its options."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from torch import nn

import fastds
from fastds._options import OptionError, spell_argument
from fastds.data import ReflectivityInput, add_history, rate_to_reflectivity, reflectivity_to_rate, to_reflectivity
from fastds.data import prepare as scale_reflectivity
from fastds.data.grid.axes import get_north_up_index
from fastds.data.radar.reflectivity import find_z_r
from fastds.inference.change_counts import ChangeCounts
from fastds.inference.chunking import Chunk, split_range
from fastds.inference.execution import (
    MAX_COUNT,
    ExecutionConfig,
    check_execution,
    check_whole,
    inference_context,
    resolve_execution,
)
from fastds.inference.files import (
    RunSummary,
    allocate_output,
    compute_mean_spacing,
)
from fastds.inference.ood.score import TOLERANCE, OODReport, assess_inputs, select_evenly
from fastds.inference.ood.statistics import compute_motion_statistics
from fastds.inference.progress import progress_bar
from fastds.inference.tables import format_count
from fastds.models import ModelCard
from fastds.tasks.fields.alignment import make_member_coordinate
from fastds.tasks.nowcast.forecasts import (
    OUTSIDE,
    PERIOD,
    PROBABILITY,
    QUANTITIES,
    REFERENCE,
    convert_forecasts,
    make_forecast_dataset,
    make_threshold_coordinate,
)
from fastds.tasks.nowcast.members import (
    ERROR_MODEL,
    NETWORK_NOISE,
    Ensemble,
    NetworkEnsemble,
    compute_exceedance,
    compute_min_echo,
    find_inflow,
    find_trajectories,
    scale_known_frames,
)
from fastds.tasks.nowcast.methods import Method, pick_method
from fastds.tasks.nowcast.starts import (
    ForecastCells,
    Start,
    Timeline,
    compute_wet_shares,
    count_units,
    find_starts,
    read_coarse_frames,
)
from fastds.tasks.nowcast.wet_area import limit_wet_area

DEFAULT_STEPS = 12
DEFAULT_MEMBERS = 24  # default number of members for probabilities


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a nowcast.

    Attributes:
        steps: number of forecast frames; None: 12.
        lead: lead time of the last frame, such as "60min", in place of steps.
        start: initialization time, a date; None: the last time of the file.
        every: interval of hindcasts; forecasts are made from `start` (None: the first time with enough frames before
            it) at this interval.
        quantity: "rate" (mm h-1) or "reflectivity" (dBZ).
        var: name of the variable; None: found by its attributes.
        z_r: a and b of Z = a R^b, mm6 m-3 and mm/h; None: attributes zr_a and zr_b of the file, else (200, 1.6).
        coarsen: number of cells of the file along the side of a forecast cell, which are averaged in rain rate, or in
            reflectivity if that is the quantity; None: the smallest that brings the grid spacing into the range of the
            model card.
        interval: time between frames, a multiple of the file's time step; None: the shortest in the range of the model
            card.
        block: number of frames after which the network restarts from the last forecast frames; None: no restart.
        smooth: keep the smooth forecast of least squared error: intensities are not matched to the last frame, and the
            wet area is not limited. Rain rates are then the expected rain rates of the error model, see members.py.
        members: number of ensemble members along a new first dimension `realization`; None: a single forecast.
        seed: random seed of the ensemble; None: 0. Member k of an initialization time does not depend on the number of
            members.
        probability: rain rates in mm/h whose exceedance probabilities are computed in place of the members; the
            default number of members is then 24.
        threads: number of CPU threads; None: torch's setting.
        precision: "fp32" or "bf16"; None: bf16 on a GPU, else fp32.
        device: "auto", "cpu" or "cuda"; None: the device of the model.
        graph: "auto" or "never": whether forwards of repeated shapes are replayed from graphs; None: "auto".
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
    members: int | None = None
    seed: int | None = None
    probability: Sequence[float] | None = None
    threads: int | None = None
    precision: str | None = None
    device: str | None = None
    graph: str | None = None

    def __post_init__(self):
        check_execution(self.threads, self.precision, self.device, self.graph)
        if self.quantity not in QUANTITIES:
            raise OptionError("quantity", f"must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}")
        if self.steps is not None and self.lead is not None:
            raise ValueError(f"give one of {spell_argument('steps', 'lead')}, got {self.steps} and {self.lead!r}")
        for name in ("steps", "coarsen", "block", "members"):
            check_whole(name, getattr(self, name), 1, MAX_COUNT)
        check_whole("seed", self.seed, 0)
        if self.seed is not None and not self.n_members:
            remedy = f"give {spell_argument('members', 'probability', conjunction='or')}"
            raise OptionError("seed", f"is that of members, {remedy}, got {self.seed}")
        if self.probability is not None:
            self._check_probability()

    def _check_probability(self) -> None:
        rates = list(self.probability or ())
        if not rates or not all(0 < rate < math.inf for rate in rates) or sorted(set(rates)) != rates:
            raise OptionError(
                "probability", f"must be growing rain rates in mm/h such as 1,5,10, got {self.probability!r}"
            )
        if self.quantity != "rate":
            raise OptionError(
                "quantity", f"must be rate with probability, whose thresholds are mm/h, got {self.quantity!r}"
            )

    @property
    def n_members(self) -> int:
        """Number of members that are drawn, 0 for a single forecast."""
        return self.members or (0 if self.probability is None else DEFAULT_MEMBERS)

    @property
    def is_expected_rain(self) -> bool:
        """Whether the forecast is the expected rain rate of the error model."""
        return self.smooth and self.quantity == "rate" and not self.n_members


def _create_change_counts() -> ChangeCounts:
    hint = f"with {spell_argument('smooth')} they stay"
    return ChangeCounts({"dried": f"are dry so that the wet area stays near that of the last field; {hint}"})


def select_method(model: nn.Module | str | os.PathLike | None, options: Options) -> tuple[Method, str]:
    """Return the method of a nowcast, and a note about it.

    Args:
        model: see `nowcast`.
        options: options of the nowcast.

    Raises:
        ValueError: the method does not have an option, or see pick_method.
        FileNotFoundError: there are no such weights.
    """
    method, note = pick_method(model)
    method = method if options.block is None else method.with_blocks(options.block)
    method = method.with_smooth_forecasts() if options.smooth else method
    return method.to_ensemble_mean() if options.n_members else method, note


def find_input_offsets(
    model: nn.Module | str | os.PathLike | None, cadence: float, options: Options
) -> tuple[np.ndarray, int]:
    """Find how long before the initialization time a forecast reads input fields.

    Args:
        model: see `nowcast`.
        cadence: time step of the data in seconds.
        options: options of the nowcast.

    Returns:
        (n,) seconds, ascending from 0, and the number of the first offsets at which fields are necessary. Both are at
        least two, because the time step of the data is unknown otherwise. The further fields improve the forecast, and
        each is read if all later ones are there.

    Raises:
        ValueError: the option `interval` is not a multiple of the cadence, or see select_method.
    """
    method, _ = select_method(model, options)
    if method.known == 1:
        return np.array([0.0, cadence]), 2
    return _find_interval(method.card, cadence, options) * np.arange(method.known), method.fewest


class NowcastPipeline:
    """Computation of the forecasts of a method from radar fields, in chunks.

    The class implements the protocol fastds.inference.chunking.Pipeline. A step of a chunk is one forecast.

    Args:
        model: see `nowcast`.
        source: radar fields.
        options: options of the nowcast.
    """

    step_multiple = 1

    def __init__(self, model: nn.Module | str | os.PathLike | None, source: ReflectivityInput, options: Options):
        self.method, self.note = method, _ = select_method(model, options)
        self.options, self.source, card = options, source, method.card
        self.execution = resolve_execution(
            method.model, options.threads, options.precision, options.device, options.graph
        )
        self.z_r, origin = find_z_r(source.dataset, source.raw, options.z_r)
        spacing = compute_mean_spacing(source)
        self.factor, interval = (
            _find_factor(card, source, options, spacing),
            _find_interval(card, source.cadence, options),
        )
        self.leads = [(k + 1) * interval for k in range(_count_steps(options, interval))]
        line = Timeline.of(source)
        try:
            self.starts, notes = find_starts(line, method.known, method.fewest, interval, options.start, options.every)
        except ValueError as error:
            step = line.cadence if options.interval is None else interval
            raise ValueError(f"{error}{method.suggest_baseline(line, step, options.start, options.every)}") from None
        rain_z_r = self.z_r if options.quantity == "rate" and self.factor > 1 else None
        self.cells = ForecastCells(self.factor, float(cast(float, card.floor_dbz)), rain_z_r)
        input_steps = max(len(start.frames) for start in self.starts)
        self.settings = _make_settings(
            method, input_steps, self.cells, interval, options, self.execution, self.z_r, origin
        )
        coarser = _describe_coarsening(source, self.factor, spacing, interval)
        if coarser:
            self.settings["fastds_resolution"] = coarser
            keep = self.factor > 1 and options.coarsen is None
            notes = [*notes, coarser + f"; with {spell_argument('coarsen')} 1 cells stay those of the file" * keep]
        if spacing is None and card.grid_spacing_m is not None:
            notes = [*notes, "the file declares no grid spacing, so it was not adapted to the model"]
        self.notes = notes
        plane = (size // self.factor for size in source.shape[1:])
        shape = len(self.starts), len(self.leads), *plane
        self.dim = REFERENCE if len(self.starts) > 1 else ""
        self.first, self.ensemble, self.changes = _make_first_coordinate(options), None, _create_change_counts()
        self.error_model = None
        if options.is_expected_rain:
            self.error_model = Ensemble(method, self.execution, 0, self.z_r)
        lead = {} if self.first is None else dict(zip(self.first.dims, self.first.shape, strict=True))
        if options.n_members:
            kind = NetworkEnsemble if method.draws_members else Ensemble
            self.ensemble = kind(method, self.execution, options.seed or 0, self.z_r)
        name = QUANTITIES[options.quantity][0] if options.probability is None else PROBABILITY
        dims = REFERENCE, PERIOD, *source.dims[1:]
        self.variables: dict[str, Any] = {name: ((*lead, *dims), (*lead.values(), *shape))}
        if method.uses_motion:
            self.variables[OUTSIDE] = dims, shape
        self.spacing, self.interval = None if spacing is None else self.factor * spacing, interval

    def make_chunks(self, steps: int) -> list[Chunk]:
        """Return chunks of at most `steps` forecasts."""
        chunks = []
        for some in split_range(0, len(self.starts), steps):
            frames = [frame for start in self.starts[slice(*some)] for frame in start.frames]
            chunks.append(Chunk(some, (min(frames), max(frames) + 1), some))
        return chunks

    def compute(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Compute the values of a chunk, by variable name."""
        return self._values(self.starts[slice(*chunk.steps)], False, None)

    def compute_all(self, progress: bool, folder) -> xr.Dataset:
        """Compute the whole result.

        Args:
            progress: show a progress bar.
            folder: folder for memory-mapped files of large fields; None: in memory.
        """
        self.changes = _create_change_counts()
        values = self._values(self.starts, progress, folder)
        return self.make_result(values).assign_attrs(self.changes.attributes())

    def _values(self, starts: list[Start], progress: bool, folder) -> dict[str, np.ndarray]:
        """Return forecasts ([members or thresholds,] starts, leads, h, w) and masks of inflow, by variable name."""
        self.source.check(sorted({frame for start in starts for frame in start.frames}), stacklevel=5)
        z, outside = self._compute_forecasts(starts, progress, folder)
        if np.isnan(z[0, :, 0]).all() and self.method.known > 1:
            # source.check reports missing values if there is only one frame
            warnings.warn("every pixel of the last known field is missing, and so is the forecast", UserWarning, 4)
        if self.options.probability is None:
            floor = cast(float, self.method.card.floor_dbz)
            convert_forecasts(self.source, z, quantity=self.options.quantity, z_r=self.z_r, floor=floor)
        return dict(zip(self.variables, (z[0] if self.first is None else z, *outside), strict=True))

    def _compute_forecasts(self, starts: list[Start], progress: bool, folder) -> tuple[np.ndarray, list[np.ndarray]]:
        """Compute forecasts.

        Args:
            starts: initialization times.
            progress: show a progress bar.
            folder: folder for memory-mapped files of large fields; None: in memory.

        Returns:
            Forecasts (members or thresholds or 1, starts, leads, h, w) in dBZ or probabilities, NaN where the last
            frame is missing. For methods that use motion also the masks (starts, leads, h, w) of air from outside the
            observed area.
        """
        (_, shape), *further = self.variables.values()
        count = 1 if self.first is None else self.first.size
        z, outside = (allocate_output((n, len(starts), *shape[-3:]), folder) for n in (count, len(further)))
        floor, steps, order = cast(float, self.method.card.floor_dbz), len(self.leads), self._order
        bar = progress_bar(progress, len(starts), "nowcasting", "starts")
        with inference_context(self.method.model, self.execution), bar as advance:
            for number, start in enumerate(starts):
                known = self._read_known(start.frames)
                paths = find_trajectories(scale_known_frames(known, floor), steps) if self.method.uses_motion else None
                for place, fields in enumerate(self._compute_frames(known, paths, start)):
                    z[place, number] = fields[order]
                    z[place, number][:, np.isnan(known[-1])[order]] = np.nan
                for mask in outside:
                    mask[number] = find_inflow(known[-1], cast(torch.Tensor, paths))[order]
                if advance is not None:
                    advance()
        return z, list(outside)

    def _read_known(self, frames: Sequence[int]) -> np.ndarray:
        """Return frames of the source on the cells of the forecast, in dBZ, oriented as for the method."""
        return read_coarse_frames(self.source, list(frames), self.cells)[self._order].copy()

    @property
    def _order(self) -> tuple:
        """Index that orients rows and columns for the method, and back.

        It changes nothing for networks that were trained in the orientation of the files.
        """
        return get_north_up_index(self.source.raw) if getattr(self.method.model, "upright", True) else (...,)

    def _compute_frames(self, known: np.ndarray, paths: torch.Tensor | None, start: Start) -> Iterable[np.ndarray]:
        """Return the forecast, its members, or the exceedance probabilities, each (leads, h, w)."""
        steps, count = len(self.leads), self.options.n_members
        if self.error_model is not None:
            return [self.error_model.compute_mean_rain(known, cast(torch.Tensor, paths), steps)]
        if self.ensemble is None:
            with self.execution.autocast():
                forecast = self.method(known, steps)
            unlimited = self.options.smooth or not self.method.has_limited_wet_area
            return [forecast if unlimited else self._limit_wet_area(forecast, paths, start.frames[-1])]
        members = self.ensemble.draw(known, cast(torch.Tensor, paths), steps, start.time, count)
        if self.options.probability is None:
            return members
        limits = rate_to_reflectivity(np.array(self.options.probability), self.z_r)
        # Dry pixels have the floor, which must not reach a threshold of less rain.
        lowest = np.nextafter(np.float32(cast(float, self.method.card.floor_dbz)), np.float32(np.inf))
        return compute_exceedance(members, count, np.maximum(limits, lowest))

    def _limit_wet_area(self, forecast: np.ndarray, paths: torch.Tensor | None, frame: int) -> np.ndarray:
        """Limit the forecast (leads, h, w), in place, to about the wet area of a frame of the source."""
        wet = compute_wet_shares(self.source, frame, self.cells)[self._order]
        dried = limit_wet_area(forecast, wet, paths, self.cells.floor)
        self.changes.add("dried", dried, len(forecast) * int(np.count_nonzero(~np.isnan(wet))))
        return forecast

    def make_result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """Return the result with coordinates and attributes."""
        forecasts, outside = next(iter(values.values())), values.get(OUTSIDE)
        form: dict[str, Any] = {
            "quantity": self.options.quantity,
            "z_r": self.z_r,
            "factor": self.factor,
            "first": self.first,
        }
        form["outside"] = outside
        out = make_forecast_dataset(self.source, self.starts, self.leads, forecasts, **form)
        return add_history(
            out.assign_attrs(self._make_attributes()), f"fastds {fastds.__version__} nowcast with {self.method.name}"
        )

    def make_summary(self) -> RunSummary:
        """Return the summary of the run."""
        count, leads = len(self.starts), self.leads
        text = format_count(count, "forecast" if self.ensemble is None else "ensemble")
        text += f" of {self.options.n_members} members," * bool(self.ensemble) + f" of {len(leads)} fields"
        text += f" every {leads[0] / 60:g} min"
        notes = [self.note, *self.source.notes, *self.notes, f"{text}, rain by {self.settings['fastds_z_r']}"]
        notes += self.changes.notes() + self.execution.make_notes()
        return RunSummary(self.method.name, self._make_attributes(), notes)

    @functools.cached_property
    def ood(self) -> OODReport:
        """Out-of-distribution report of the input frames, with a UserWarning if they are outside."""
        card, inputs = self.method.card, []
        limits = cast(float, card.floor_dbz), cast(float, card.ceiling_dbz)
        for k in select_evenly(len(self.starts)) if card.input_ranges and self.method.known > 1 else ():
            z = self._read_known(self.starts[k].frames[-2:])
            inputs.append(compute_motion_statistics(scale_reflectivity(torch.from_numpy(z), *limits)))
        found = assess_statistics(card, self.spacing, self.interval, inputs)
        found.warn(stacklevel=5)
        return found

    def _make_attributes(self) -> dict:
        """Return the attributes that record the settings."""
        return self.settings | self.ood.attributes()


def assess_statistics(
    card: ModelCard, spacing: float | None, interval: float, inputs: list[dict[str, float]]
) -> OODReport:
    """Compare inputs with the ranges in a model card.

    Args:
        card: model card.
        spacing: grid spacing of the forecast in metres, or None.
        interval: time between frames in seconds.
        inputs: statistics of each pair of last frames, see compute_motion_statistics.
    """
    ranges = (
        ("grid spacing", spacing, card.grid_spacing_m, "m"),
        ("interval between fields", interval, card.cadence_s, "s"),
    )
    return assess_inputs(card, ranges, inputs)


def _describe_coarsening(source: ReflectivityInput, factor: int, spacing: float | None, interval: float) -> str:
    """Describe the loss of resolution in space and time relative to the file; "" if there is none."""
    parts = []
    if factor > 1:
        size = "" if spacing is None else f" ({factor * spacing:g} instead of {spacing:g} m)"
        parts.append(f"cells of {factor} x {factor} of the file{size}")
    if interval > source.cadence:
        parts.append(f"fields every {interval:g} s of the file's {source.cadence:g} s")
    return f"coarser than the file: {', '.join(parts)}" if parts else ""


def _find_factor(card, source: ReflectivityInput, options: Options, spacing: float | None) -> int:
    if options.coarsen is not None:
        if options.coarsen > min(source.shape[1:]) // 2:
            raise OptionError(
                "coarsen", f"must leave 2 or more cells each way of {source.shape[1:]}, got {options.coarsen}"
            )
        return options.coarsen
    return 1 if spacing is None else _find_multiple(spacing, card.grid_spacing_m)


def _find_interval(card: ModelCard, cadence: float, options: Options) -> float:
    if options.interval is None:
        return cadence * _find_multiple(cadence, card.cadence_s)
    return cadence * count_units(options.interval, "interval", cadence, "the file's")


def _find_multiple(value: float, limits: tuple[float, float] | None) -> int:
    """Return the smallest multiple of the value that reaches the lower limit of a range, at least 1."""
    return 1 if limits is None else max(1, math.ceil(limits[0] / TOLERANCE / value))


def _count_steps(options: Options, interval: float) -> int:
    if options.lead is not None:
        steps = count_units(options.lead, "lead", interval, "the interval between fields,")
        if steps > MAX_COUNT:
            raise OptionError(
                "lead", f"must be at most {MAX_COUNT} steps of {interval:g} s, got {options.lead!r}: {steps} steps"
            )
        return steps
    return DEFAULT_STEPS if options.steps is None else int(options.steps)


def _make_settings(
    method: Method,
    input_steps: int,
    cells: ForecastCells,
    interval: float,
    options: Options,
    execution: ExecutionConfig,
    z_r: tuple[float, float],
    origin: str,
):
    """Return the attributes that record the settings."""
    dry_below = method.dry_below
    if options.n_members:
        dry_below = compute_min_echo(z_r)
    elif options.is_expected_rain:
        dry_below = cells.floor
    settings = {
        "fastds_version": fastds.__version__,
        "fastds_model": method.name,
        "fastds_input_steps": input_steps,
        "fastds_interval_s": interval,
        "fastds_coarsening": cells.factor,
        "fastds_block": options.block or 0,
        "fastds_smooth": int(options.smooth),
        **execution.attributes(),
        "fastds_floor_dBZ": cells.floor,
        "fastds_ceiling_dBZ": float(cast(float, method.card.ceiling_dbz)),
        "fastds_dry_below_dBZ": dry_below,
        "fastds_dry_below_mm_h": round(float(reflectivity_to_rate(dry_below, z_r)), 4),
        "fastds_z_r": f"Z = {z_r[0]:g} R^{z_r[1]:g}, {origin}",
    }
    if cells.factor > 1:
        settings["fastds_averaged"] = cells.describe_average()
    if method.card.licence:
        settings["fastds_model_licence"] = method.card.licence
    if options.n_members:
        errors = NETWORK_NOISE if method.draws_members else ERROR_MODEL
        settings |= {"fastds_members": options.n_members, "fastds_seed": options.seed or 0, "fastds_errors": errors}
    elif options.is_expected_rain:
        settings["fastds_errors"] = ERROR_MODEL
    return settings


def _make_first_coordinate(options: Options) -> xr.Variable | None:
    """Return the coordinate of the additional first dimension, for members or thresholds, or None."""
    if options.probability is not None:
        return make_threshold_coordinate(options.probability)
    return make_member_coordinate(options.members) if options.members else None


def prepare(model: str | os.PathLike | None, dataset: xr.Dataset, **options: Any) -> NowcastPipeline:
    """Make the pipeline of a model for a dataset.

    Args:
        model: name or file of the weights, or None.
        dataset: radar fields.
        options: attributes of Options.
    """
    chosen = Options(**options)
    return NowcastPipeline(model, to_reflectivity(dataset, chosen.var, z_r=chosen.z_r), chosen)
