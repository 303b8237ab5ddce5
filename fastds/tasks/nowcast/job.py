# SPDX-License-Identifier: Apache-2.0
"""What a nowcast may be asked for, and the forecasts of a radar field, which can be made one by one."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import fastds
from fastds.data import ReflectivityInput, add_history, rate_to_reflectivity, reflectivity_to_rate, to_reflectivity
from fastds.data import prepare as scale_reflectivity
from fastds.data.grid.axes import upright
from fastds.data.radar.reflectivity import z_r_law
from fastds.models import ModelCard
from fastds.tasks.common.changes import Changes
from fastds.tasks.common.inference import (
    Report,
    mean_spacing_m,
    store,
)
from fastds.tasks.common.pieces import Piece, cut
from fastds.tasks.common.progress import progress_bar
from fastds.tasks.common.settings import MOST, Settings, check_settings, check_whole, computing, settle
from fastds.tasks.common.tables import counted
from fastds.tasks.domain.score import TOLERANCE, Domain, domain_of, select_evenly
from fastds.tasks.domain.statistics import of_echo
from fastds.tasks.fields.places import members_of
from fastds.tasks.nowcast.forecasts import (
    OUTSIDE,
    PERIOD,
    PROBABILITY,
    QUANTITIES,
    REFERENCE,
    forecast_dataset,
    forecast_values,
    thresholds_of,
)
from fastds.tasks.nowcast.members import (
    LAW,
    OWN,
    Ensemble,
    OwnMembers,
    exceedance,
    from_outside,
    known_echo,
    paths_of,
    weakest_echo,
)
from fastds.tasks.nowcast.methods import Method, pick_method
from fastds.tasks.nowcast.starts import Start, Timeline, coarse_fields, count_of, find_starts, wet_shares
from fastds.tasks.nowcast.wet_area import keep_wet_area

STEPS = 12
MEMBERS = 24  # that probabilities are counted of
_DRIED = {"dried": "are dry so that the wet area stays near that of the last field; with the argument smooth they stay"}


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
            moving air else take from the last field, and without the limit of the wet area.
        members: of an ensemble around the mean forecast, or that the network draws itself, along a new first dimension
            `realization`; None: one forecast.
        seed: of the members; None: 0. Member k of a start is the same whatever the number of members.
        probability: rain rates in mm/h; the share of the members that reach each is given in place of the members, of
            which then 24 are drawn where no number is given.
        threads: CPU threads; None: torch's. device, precision: see fastds.tasks.common.settings.settle.
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

    def __post_init__(self):
        check_settings(self.threads, self.precision, self.device)
        if self.quantity not in QUANTITIES:
            raise ValueError(f"quantity must be one of {', '.join(QUANTITIES)}, got {self.quantity!r}")
        if self.steps is not None and self.lead is not None:
            raise ValueError(f"give one of the arguments steps and lead, got {self.steps} and {self.lead!r}")
        for name in ("steps", "coarsen", "block", "members"):
            check_whole(name, getattr(self, name), 1, MOST)
        check_whole("seed", self.seed, 0)
        if self.seed is not None and not self.drawn:
            raise ValueError(f"seed is that of members, give the argument members or probability, got {self.seed}")
        if self.probability is not None:
            self._check_probability()

    def _check_probability(self) -> None:
        rates = list(self.probability)
        if not rates or not all(0 < rate < math.inf for rate in rates) or sorted(set(rates)) != rates:
            raise ValueError(f"probability must be growing rain rates in mm/h such as 1,5,10, got {self.probability!r}")
        if self.quantity != "rate":
            raise ValueError(
                f"quantity must be rate with probability, whose thresholds are mm/h, got {self.quantity!r}"
            )

    @property
    def drawn(self) -> int:
        """How many members are drawn, 0 for a single forecast."""
        return self.members or (0 if self.probability is None else MEMBERS)


class NowcastJob:
    """A method and a radar field, see fastds.tasks.common.pieces.Job. A step is one forecast; model as in `nowcast`."""

    least = 1

    def __init__(self, model: nn.Module | str | os.PathLike | None, source: ReflectivityInput, options: Options):
        method, self.note = pick_method(model)
        method = method if options.block is None else method.in_blocks(options.block)
        method = method.smoothed() if options.smooth else method
        self.method = method = method.mean() if options.drawn else method
        self.options, self.source, card = options, source, method.card
        self.computed = settle(method.model, options.threads, options.precision, options.device)
        self.law, origin = z_r_law(source.dataset, source.raw, options.z_r)
        spacing = mean_spacing_m(source)
        self.factor, interval = _factor(card, source, options, spacing), _interval(card, source, options)
        self.leads = [(k + 1) * interval for k in range(_steps(options, interval))]
        line = Timeline(source.raw[source.dims[0]].values, source.cadence)
        try:
            self.starts, notes = find_starts(line, method.known, interval, options.start, options.every)
        except ValueError as error:
            own = line.cadence if options.interval is None else interval
            raise ValueError(f"{error}{method.needing_fewer(line, own, options.start, options.every)}") from None
        self.settings = _settings(method, self.factor, interval, options, self.computed, self.law, origin)
        coarser = _coarser(source, self.factor, spacing, interval)
        if coarser:
            self.settings["fastds_resolution"] = coarser
            keep = self.factor > 1 and options.coarsen is None
            notes = [*notes, coarser + "; with the argument coarsen 1 cells stay those of the file" * keep]
        if spacing is None and card.grid_spacing_m is not None:
            notes = [*notes, "the file does not tell its grid spacing, so it was not brought to that of the model"]
        self.notes = notes
        plane = (size // self.factor for size in source.shape[1:])
        shape = len(self.starts), len(self.leads), *plane
        self.dim = REFERENCE if len(self.starts) > 1 else ""
        self.first, self.ensemble, self.changes = _first(options), None, Changes(_DRIED)
        lead = {} if self.first is None else dict(zip(self.first.dims, self.first.shape, strict=True))
        if options.drawn:
            kind = OwnMembers if method.draws else Ensemble
            self.ensemble = kind(method, self.computed, options.seed or 0, self.law)
        name = QUANTITIES[options.quantity][0] if options.probability is None else PROBABILITY
        dims = REFERENCE, PERIOD, *source.dims[1:]
        self.variables = {name: ((*lead, *dims), (*lead.values(), *shape))}
        if method.moves:
            self.variables[OUTSIDE] = dims, shape
        self.spacing, self.interval = None if spacing is None else self.factor * spacing, interval

    def pieces(self, steps: int) -> list[Piece]:
        """Pieces of so many forecasts."""
        pieces = []
        for some in cut(0, len(self.starts), steps):
            frames = [frame for start in self.starts[slice(*some)] for frame in start.frames]
            pieces.append(Piece(some, (min(frames), max(frames) + 1), some))
        return pieces

    def compute(self, piece: Piece) -> dict[str, np.ndarray]:
        """See Job."""
        return self._values(self.starts[slice(*piece.steps)], False, None)

    def at_once(self, progress: bool, folder) -> xr.Dataset:
        """The whole result; folder: where large fields are kept in a file, None: in memory."""
        self.changes = Changes(_DRIED)
        values = self._values(self.starts, progress, folder)
        return self.result(values).assign_attrs(self.changes.attributes())

    def _values(self, starts: list[Start], progress: bool, folder) -> dict[str, np.ndarray]:
        """The forecasts of some starts ([members or thresholds,] starts, leads, h, w), and where they rest on no
        observation."""
        self.source.check(sorted({frame for start in starts for frame in start.frames}), stacklevel=5)
        z, outside = self._forecasts(starts, progress, folder)
        if np.isnan(z[0, :, 0]).all() and self.method.known > 1:  # of one field all of it are missing, which check says
            warnings.warn("every pixel of the last known field is missing, and so is the forecast", UserWarning, 4)
        if self.options.probability is None:
            form = {"quantity": self.options.quantity, "law": self.law, "floor": self.method.card.floor_dbz}
            forecast_values(self.source, z, **form)
        return dict(zip(self.variables, (z[0] if self.first is None else z, *outside), strict=True))

    def _forecasts(self, starts: list[Start], progress: bool, folder) -> tuple[np.ndarray, list[np.ndarray]]:
        """Forecasts (members or thresholds or one, starts, leads, h, w) in dBZ, or shares; NaN where the last known
        field is missing. Where their air comes from outside (starts, leads, h, w), of methods that move echo."""
        (_, shape), *further = self.variables.values()
        count = 1 if self.first is None else self.first.size
        z, outside = (store((n, len(starts), *shape[-3:]), folder) for n in (count, len(further)))
        floor, steps, order = self.method.card.floor_dbz, len(self.leads), self._order
        bar = progress_bar(progress, len(starts), "nowcasting", "starts")
        with computing(self.method.model, self.computed), bar as advance:
            for number, start in enumerate(starts):
                known = self._known(start.frames)
                paths = paths_of(known_echo(known, floor), steps) if self.method.moves else None
                for place, fields in enumerate(self._drawn(known, paths, start)):
                    z[place, number] = fields[order]
                    z[place, number][:, np.isnan(known[-1])[order]] = np.nan
                for mask in outside:
                    mask[number] = from_outside(known[-1], paths)[order]
                if advance is not None:
                    advance()
        return z, list(outside)

    def _known(self, frames: Sequence[int]) -> np.ndarray:
        """Fields of the source on the cells of the forecast, in dBZ and in the order that the method sees them in."""
        z = coarse_fields(self.source, list(frames), self.factor, self.method.card.floor_dbz)
        return z[self._order].copy()

    @property
    def _order(self) -> tuple:
        """The index of rows and columns for the method, and back: upright, but for a network that was trained else."""
        return upright(self.source.raw) if getattr(self.method.model, "upright", True) else (...,)

    def _drawn(self, known: np.ndarray, paths: torch.Tensor | None, start: Start) -> Iterable[np.ndarray]:
        """The forecast, its members, or how many of them reach the thresholds, each (leads, h, w)."""
        steps, count = len(self.leads), self.options.drawn
        if self.ensemble is None:
            with self.computed.autocast():
                forecast = self.method(known, steps)
            kept = self.options.smooth or not self.method.keeps_area
            return [forecast if kept else self._dried(forecast, paths, start.frames[-1])]
        members = self.ensemble.draw(known, paths, steps, start.time, count)
        if self.options.probability is None:
            return members
        return exceedance(members, count, rate_to_reflectivity(np.array(self.options.probability), self.law))

    def _dried(self, forecast: np.ndarray, paths: torch.Tensor | None, frame: int) -> np.ndarray:
        """The forecast (leads, h, w), which changes, with about the wet area of a frame of the source."""
        floor = self.method.card.floor_dbz
        wet = wet_shares(self.source, frame, self.factor, floor)[self._order]
        dried = keep_wet_area(forecast, wet, paths, floor)
        self.changes.add("dried", dried, len(forecast) * np.count_nonzero(~np.isnan(wet)))
        return forecast

    def result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """See Job."""
        forecasts, outside = next(iter(values.values())), values.get(OUTSIDE)
        form = {"quantity": self.options.quantity, "law": self.law, "factor": self.factor, "first": self.first}
        form["outside"] = outside
        out = forecast_dataset(self.source, self.starts, self.leads, forecasts, **form)
        return add_history(
            out.assign_attrs(self._told()), f"fastds {fastds.__version__} nowcast with {self.method.name}"
        )

    def report(self) -> Report:
        """See Job."""
        count, leads = len(self.starts), self.leads
        said = counted(count, "forecast" if self.ensemble is None else "ensemble")
        said += f" of {self.options.drawn} members," * bool(self.ensemble) + f" of {len(leads)} fields"
        said += f" every {leads[0] / 60:g} min"
        notes = [self.note, *self.source.notes, *self.notes, f"{said}, rain by {self.settings['fastds_z_r']}"]
        notes += self.changes.notes()
        return Report(self.method.name, self._told(), notes)

    @functools.cached_property
    def domain(self) -> Domain:
        """How far the last known fields lie from what the network was trained on; warns where they lie outside."""
        card, inputs = self.method.card, []
        for k in select_evenly(len(self.starts)) if card.input_ranges and self.method.known > 1 else ():
            z = self._known(self.starts[k].frames[-2:])
            inputs.append(of_echo(scale_reflectivity(torch.from_numpy(z), card.floor_dbz, card.ceiling_dbz)))
        found = judge(card, self.spacing, self.interval, inputs)
        found.warn(stacklevel=5)
        return found

    def _told(self) -> dict:
        """Attributes that say how the file was made."""
        return self.settings | self.domain.attributes()


def judge(card: ModelCard, spacing: float | None, interval: float, inputs: list[dict[str, float]]) -> Domain:
    """Last known fields against a network's card; spacing: of the forecast's grid, metres; inputs: of_echo of each."""
    ranges = (
        ("grid spacing", spacing, card.grid_spacing_m, "m"),
        ("interval between fields", interval, card.cadence_s, "s"),
    )
    return domain_of(card, ranges, inputs)


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
        steps = count_of(options.lead, "lead", interval, "the interval between fields,")
        if steps > MOST:
            raise ValueError(
                f"lead must be at most {MOST} steps of {interval:g} s, got {options.lead!r}: {steps} steps"
            )
        return steps
    return STEPS if options.steps is None else int(options.steps)


def _settings(method: Method, factor: int, interval: float, options: Options, computed: Settings, law, origin: str):
    """Attributes that say how the file was made."""
    dry_below = weakest_echo(law) if options.drawn else method.dry_below
    settings = {
        "fastds_version": fastds.__version__,
        "fastds_model": method.name,
        "fastds_input_steps": method.known,
        "fastds_interval_s": interval,
        "fastds_coarsening": factor,
        "fastds_block": options.block or 0,
        "fastds_smooth": int(options.smooth),
        **computed.attributes(),
        "fastds_floor_dBZ": float(method.card.floor_dbz),
        "fastds_ceiling_dBZ": float(method.card.ceiling_dbz),
        "fastds_dry_below_dBZ": dry_below,
        "fastds_dry_below_mm_h": round(float(reflectivity_to_rate(dry_below, law)), 4),
        "fastds_z_r": f"Z = {law[0]:g} R^{law[1]:g}, {origin}",
    }
    if method.card.licence:
        settings["fastds_model_licence"] = method.card.licence
    if options.drawn:
        errors = OWN if method.draws else LAW
        settings |= {"fastds_members": options.drawn, "fastds_seed": options.seed or 0, "fastds_errors": errors}
    return settings


def _first(options: Options) -> xr.Variable | None:
    """The coordinate of the dimension before those of a single forecast, or None."""
    if options.probability is not None:
        return thresholds_of(options.probability)
    return members_of(options.members) if options.members else None


def prepare(model: str | os.PathLike | None, dataset: xr.Dataset, **options: Any) -> NowcastJob:
    """The job of a model by its name or file; options as in Options."""
    chosen = Options(**options)
    return NowcastJob(model, to_reflectivity(dataset, chosen.var, z_r=chosen.z_r), chosen)
