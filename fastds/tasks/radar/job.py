# SPDX-License-Identifier: Apache-2.0
"""A model and the radar field that it makes finer, in pieces along time."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

import fastds
from fastds.data import ReflectivityInput, add_history, output_shape, static_maps, to_reflectivity
from fastds.data import prepare as scale_reflectivity
from fastds.data.grid.axes import upright
from fastds.data.io.output import fine_dataset, fine_values
from fastds.data.radar.preparation import check_modes
from fastds.data.samples.dynamic_fields import DynamicChannels
from fastds.models import ModelCard
from fastds.tasks.common.inference import (
    Report,
    check_static,
    mean_spacing_m,
    store,
)
from fastds.tasks.common.pieces import Piece, cut
from fastds.tasks.common.settings import check_settings, computing, settle
from fastds.tasks.domain.score import Domain, domain_of, select_evenly
from fastds.tasks.domain.statistics import of_echo
from fastds.tasks.fields.places import members_of
from fastds.tasks.radar.dynamics import listed, read_channels
from fastds.tasks.radar.members import LAW, Members, check_members
from fastds.tasks.radar.methods import pick_model
from fastds.tasks.radar.tiled_run import TiledRun

TIME_FACTORS = (2, 4)


class RadarJob:
    """A model and a dataset's radar field, see fastds.tasks.common.pieces.Job; arguments as in `downscale`."""

    least = 4  # a pair of frames is computed twice where two pieces meet

    def __init__(
        self, model, dataset, *, var=None, z_r=None, tile=None, halo=None, threads=None, precision=None,
        device=None, time_factor=2, static=None, dynamics=None, coarsened=None, members=None, seed=None, smooth=False,
    ):  # fmt: skip
        if time_factor not in TIME_FACTORS:
            raise ValueError(f"time_factor must be 2 or 4 (applied by recursion), got {time_factor}")
        check_settings(threads, precision, device)
        if coarsened is not None:
            check_modes([coarsened], "coarsened")
        self.model, self.note = pick_model(model)
        check_model(self.model)
        check_members(members, seed, self.model.card)
        if smooth and members is not None:
            raise ValueError("smooth is for one field of each time: leave it out, or the argument members")
        needed = self.model.config.get("static_channels", 0)
        if static is not None or needed:
            check_static(self.model.card, needed, static)
        self.source = source = _radar_field(dataset, var, z_r)
        self.dynamics, self.dynamics_told = read_channels(self.model, source, dynamics)
        if self.dynamics is not None and time_factor == 4:
            raise ValueError(
                f"time_factor must be 2 for model {self.model.card.name}: a second pass would need "
                f"{listed(self.dynamics.names)} at times between those of the data"
            )
        self.time_factor = time_factor = time_factor_of(source, time_factor)
        self.settings = settle(self.model, threads, precision, device)
        cards = self.model.card.static_variables
        self.maps = static_maps(static, source.raw, source.dataset, cards) if needed else None
        drawn = None if members is None else Members(int(members), int(seed or 0), self.model.card)
        self.first = None if drawn is None else members_of(drawn.count)
        with computing(self.model, self.settings):
            self.tiled = TiledRun(
                self.model, source, tile, halo, self.settings, time_factor, self.maps, coarsened, drawn, smooth
            )
        self.dim = source.dims[0]
        dims, shape = source.dims, output_shape(source, self.tiled.scale, time_factor)
        if self.first is not None:
            dims, shape = (*self.first.dims, *dims), (*self.first.shape, *shape)
        self.variables = {source.source_name: (dims, shape)}

    def pieces(self, steps: int) -> list[Piece]:
        """Pieces within segments; a frame needs those beside it, and those that tell its motion."""
        pieces, outputs, beside = [], 0, (2, self.time_factor // 2 + 1)
        for segment in self.source.segments:
            for start, stop in cut(segment.start, segment.stop, steps):
                reads = max(start - beside[0], segment.start), min(stop + beside[1], segment.stop)
                made = self.time_factor * (stop - start)
                if stop == segment.stop and self.source.kind != "amount":
                    made -= self.time_factor - 1  # nothing follows the last frame
                pieces.append(Piece((start, stop), reads, (outputs, outputs + made)))
                outputs += made
        return pieces

    def compute(self, piece: Piece) -> dict[str, np.ndarray]:
        """See Job."""
        part = self.source.part(slice(*piece.reads))
        wanted = tuple(step - piece.reads[0] for step in piece.steps)
        used = slice(max(wanted[0] - 1, 0), wanted[1] + 1)  # the others tell the motion alone
        part.part(used).check(stacklevel=3)
        first = self.time_factor * wanted[0]
        dynamics = None if self.dynamics is None else self.dynamics.part(slice(*piece.reads))
        values = self._values(part, False, None, wanted, dynamics)
        made = slice(first, first + piece.outputs[1] - piece.outputs[0])
        return {self.source.source_name: values[..., made, :, :]}

    def at_once(self, progress: bool, folder: str | os.PathLike | None) -> xr.Dataset:
        """The whole result; folder: where large fields are kept in a file, None: in memory."""
        self.source.check(stacklevel=5)
        values = self._values(self.source, progress, folder, dynamics=self.dynamics)
        return self.result({self.source.source_name: values})

    def _values(
        self,
        source: ReflectivityInput,
        progress: bool,
        folder: str | os.PathLike | None,
        wanted: tuple[int, int] | None = None,
        dynamics: DynamicChannels | None = None,
    ) -> np.ndarray:
        """The fine values of the source, or of a part of it, or members of them; wanted: see FrameRefiner.refine;
        dynamics: of the same frames."""
        with computing(self.model, self.settings):
            z = self.tiled.run(source, progress, folder, wanted, dynamics)
        if source.kind == "reflectivity":
            return z
        form = self.tiled.scale, self.time_factor
        out = store((*z.shape[:-3], *output_shape(source, *form)), folder)
        for fields, values in [(z, out)] if self.first is None else zip(z, out, strict=True):
            fine_values(source, fields, *form, out=values)
        return out

    def result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """See Job."""
        own = values[self.source.source_name]
        out = fine_dataset(self.source, own, self.tiled.scale, self.time_factor, first=self.first)
        said = f"fastds {fastds.__version__} downscale with {self.model.card.name}"
        said += "" if self.maps is None else f"; {self.maps.origin}"
        return add_history(out.assign_attrs(self._told()), said)

    def report(self) -> Report:
        """See Job."""
        drawn = [] if self.first is None else [f"{self.first.size} members, error model {LAW}"]
        notes = [self.note, *self.source.notes, *one_time(self.source), *self.tiled.notes(), *drawn]
        notes += [f"read beside the reflectivity: {self.dynamics_told}"] * bool(self.dynamics_told)
        return Report(self.model.card.name, self._told(), notes)

    @functools.cached_property
    def domain(self) -> Domain:
        """How far the field lies from what the model was trained on; warns where it lies outside."""
        return radar_domain(self.model.card, self.source)

    def _told(self) -> dict:
        """Attributes that say how the file was made."""
        beside = {"fastds_dynamics": self.dynamics_told} if self.dynamics_told else {}
        return self.tiled.settings() | beside | self.domain.attributes()


def _radar_field(dataset, var, z_r) -> ReflectivityInput:
    """to_reflectivity's, whose refusal of a file of other fields says how those are downscaled."""
    try:
        return to_reflectivity(dataset, var, z_r=z_r, least=1)
    except ValueError as error:
        if "no variable of reflectivity was found" not in str(error):
            raise
        hint = (
            "other fields take one of the arguments scale, grid and like; humidity takes the model wgan-gp-small-x2 or "
            "wgan-gp-small-x8"
        )
        raise ValueError(f"{error}; {hint}") from None


def time_factor_of(source: ReflectivityInput, wanted: int = TIME_FACTORS[0]) -> int:
    """How many times as many fields there will be: a single one becomes finer in space alone."""
    return wanted if source.shape[0] > 1 else 1


def one_time(source: ReflectivityInput) -> list[str]:
    """What is said of a single field."""
    return [] if source.shape[0] > 1 else ["one time, so finer in space alone: time factor 1"]


def check_model(model) -> None:
    """ValueError for a model that does not downscale radar fields."""
    card = model.card
    if card.input_steps is not None:
        raise ValueError(f"model {card.name} forecasts and does not downscale; use nowcast")
    if card.floor_dbz is None or card.ceiling_dbz is None:
        raise ValueError(
            f"model {card.name} has no floor_dbz and ceiling_dbz in its card, so it does not take radar fields; models "
            "of latitude-longitude fields take one of the arguments scale, grid and like"
        )


def radar_domain(card: ModelCard, source: ReflectivityInput) -> Domain:
    """A radar field against a model's card, by some pairs of frames evenly over all; warns (UserWarning) where it lies
    outside."""
    pairs = [(i, i + 1) for segment in source.segments for i in range(segment.start, segment.stop - 1)]
    looked_at = [pairs[k] for k in select_evenly(len(pairs))] if card.motion_px or card.input_ranges else []
    frames = (torch.from_numpy(source.frames(list(pair))[upright(source.raw)].copy()) for pair in looked_at)
    inputs = [of_echo(scale_reflectivity(z, card.floor_dbz, card.ceiling_dbz)) for z in frames]
    found = judge(card, mean_spacing_m(source), source.cadence, inputs)
    found.warn(stacklevel=4)
    return found


def judge(card: ModelCard, spacing: float | None, cadence: float, inputs: list[dict[str, float]]) -> Domain:
    """Pairs of frames against a model's card; spacing: of the grid, metres; inputs: of_echo of each pair."""
    motion = [found["motion"] for found in inputs if found]
    ranges = (
        ("grid spacing", spacing, card.grid_spacing_m, "m"),
        ("cadence", None if np.isnan(cadence) else cadence, card.cadence_s, "s"),
        ("motion per input step", float(np.median(motion)) if motion else None, card.motion_px, "pixels"),
    )
    return domain_of(card, ranges, inputs)


def prepare(model: str | os.PathLike | None, dataset: xr.Dataset, **options: Any) -> RadarJob:
    """The job of a model by its name or file; options as in fastds.tasks.radar.run.downscale.

    Raises: ValueError for one time, whose result other times could not be appended to."""
    job = RadarJob(model, dataset, **options)
    if job.source.shape[0] < 2:
        raise ValueError(f"at least 2 times are needed for an archive, variable {job.source.source_name} has 1")
    return job
