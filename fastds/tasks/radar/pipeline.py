# SPDX-License-Identifier: Apache-2.0
"""Pipeline that downscales radar fields in chunks along time."""

from __future__ import annotations

import functools
import os
from collections.abc import Hashable, Mapping
from typing import Any, cast

import numpy as np
import torch
import xarray as xr

import fastds
from fastds._options import OptionError, spell_argument
from fastds.data import ReflectivityInput, add_history, output_shape, static_maps, to_reflectivity
from fastds.data import prepare as scale_reflectivity
from fastds.data.grid.axes import get_north_up_index
from fastds.data.io.output import compute_fine_values, make_fine_dataset
from fastds.data.radar.preparation import AUTO_COARSENING, UNKNOWN_COARSENING, check_modes
from fastds.data.samples.dynamic_fields import DynamicChannels
from fastds.inference.chunking import Chunk, split_range
from fastds.inference.execution import check_execution, inference_context, resolve_execution
from fastds.inference.files import RunSummary, allocate_output, check_static, compute_mean_spacing
from fastds.inference.ood.score import OODReport, assess_inputs, select_evenly
from fastds.inference.ood.statistics import compute_motion_statistics
from fastds.models import ModelCard
from fastds.tasks.fields.alignment import make_member_coordinate
from fastds.tasks.radar.coarsening_estimate import CoarseningEstimate, estimate_coarsening
from fastds.tasks.radar.dynamics import join_names, read_channels
from fastds.tasks.radar.members import ERROR_MODEL, RadarEnsemble, check_members
from fastds.tasks.radar.methods import Baseline, pick_model
from fastds.tasks.radar.tiled_run import TiledInference

TIME_FACTORS = (2, 4)


class RadarPipeline:
    """Downscaling of radar fields by a model, in chunks.

    The class implements the protocol fastds.inference.chunking.Pipeline. The arguments are those of
    fastds.tasks.radar.run.downscale.
    """

    step_multiple = 4  # limits repeated work: the pair of frames at the boundary of two chunks is computed in both

    def __init__(
        self, model, dataset, *, var=None, z_r=None, tile=None, halo=None, threads=None, precision=None,
        device=None, graph=None, time_factor=2, static=None, dynamics=None, coarsened=None, members=None, seed=None,
        smooth=False,
    ):  # fmt: skip
        if time_factor not in TIME_FACTORS:
            raise OptionError("time_factor", f"must be 2 or 4 (applied by recursion), got {time_factor}")
        check_execution(threads, precision, device, graph)
        if coarsened not in (None, AUTO_COARSENING, UNKNOWN_COARSENING):
            check_modes([coarsened], "coarsened")
        self.model, self.note = pick_model(model)
        check_model(self.model)
        check_members(members, seed, self.model.card)
        if smooth and members is not None:
            raise OptionError("smooth", f"is for one field of each time: leave it out, or {spell_argument('members')}")
        needed = self.model.config.get("static_channels", 0)
        if static is not None or needed:
            check_static(self.model.card, needed, static)
        self.source = source = _find_radar_field(dataset, var, z_r)
        self.dynamics, self.dynamics_text = read_channels(self.model, source, dynamics)
        if self.dynamics is not None and time_factor == 4:
            raise OptionError(
                "time_factor",
                f"must be 2 for model {self.model.card.name}: a second pass would need "
                f"{join_names(self.dynamics.names)} at times between those of the data",
            )
        self.time_factor = time_factor = find_time_factor(source, time_factor)
        self.settings = resolve_execution(self.model, threads, precision, device, graph)
        cards = self.model.card.static_variables
        self.maps = static_maps(static, source.raw, source.dataset, cards) if needed else None
        self.smooth, self.estimate = bool(smooth), None
        if coarsened in (None, AUTO_COARSENING):
            self.estimate = self._estimate_coarsening()
            coarsened = None if self.estimate is None else self.estimate.choose_correction(self.smooth)
        elif coarsened == UNKNOWN_COARSENING:
            coarsened = None
        drawn = None if members is None else RadarEnsemble(int(members), int(seed or 0), self.model.card)
        self.first = None if drawn is None else make_member_coordinate(drawn.count)
        with inference_context(self.model, self.settings):
            self.tiled = TiledInference(
                self.model, source, tile, halo, self.settings, time_factor, self.maps, coarsened, drawn, smooth
            )
        self.dim: Any = source.dims[0]
        dims: tuple[Hashable, ...] = source.dims
        shape: tuple[int, ...] = output_shape(source, self.tiled.scale, time_factor)
        if self.first is not None:
            dims, shape = (*self.first.dims, *dims), (*self.first.shape, *shape)
        self.variables: dict[str, Any] = {source.source_name: (dims, shape)}

    def _estimate_coarsening(self) -> CoarseningEstimate | None:
        """Estimate how the input averages finer cells; None for baselines and for factors other than 2."""
        if isinstance(self.model, Baseline) or self.model.config.get("scale", 2) != 2:
            return None
        return estimate_coarsening(self.source)

    def make_chunks(self, steps: int) -> list[Chunk]:
        """Return chunks within segments. A frame needs its neighbours, and further frames for the motion."""
        chunks, outputs, neighbours = [], 0, (2, self.time_factor // 2 + 1)
        for segment in self.source.segments:
            for start, stop in split_range(segment.start, segment.stop, steps):
                reads = max(start - neighbours[0], segment.start), min(stop + neighbours[1], segment.stop)
                made = self.time_factor * (stop - start)
                if stop == segment.stop and self.source.kind != "amount":
                    made -= self.time_factor - 1  # no frames follow the last frame
                chunks.append(Chunk((start, stop), reads, (outputs, outputs + made)))
                outputs += made
        return chunks

    def compute(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Compute the values of a chunk, by variable name."""
        part = self.source.part(slice(*chunk.reads))
        requested = tuple(step - chunk.reads[0] for step in chunk.steps)
        used = slice(max(requested[0] - 1, 0), requested[1] + 1)  # other frames are used for the motion only
        part.part(used).check(stacklevel=3)
        first = self.time_factor * requested[0]
        dynamics = None if self.dynamics is None else self.dynamics.part(slice(*chunk.reads))
        values = self._values(part, False, None, (requested[0], requested[1]), dynamics)
        made = slice(first, first + chunk.outputs[1] - chunk.outputs[0])
        return {self.source.source_name: values[..., made, :, :]}

    def compute_all(self, progress: bool, folder: str | os.PathLike | None) -> xr.Dataset:
        """Compute the whole result.

        Args:
            progress: show a progress bar.
            folder: folder for memory-mapped files of large fields; None: in memory.
        """
        self.source.check(stacklevel=5)
        values = self._values(self.source, progress, folder, dynamics=self.dynamics)
        return self.make_result({self.source.source_name: values})

    def _values(
        self,
        source: ReflectivityInput,
        progress: bool,
        folder: str | os.PathLike | None,
        requested: tuple[int, int] | None = None,
        dynamics: DynamicChannels | None = None,
    ) -> np.ndarray:
        """Return the fine values of the source or a part of it, or ensemble members.

        Args:
            source: radar fields.
            progress: show a progress bar.
            folder: folder for memory-mapped files of large fields; None: in memory.
            requested: range of coarse frames, see FrameRefiner.refine; None: all.
            dynamics: additional input channels of the same frames, or None.
        """
        with inference_context(self.model, self.settings):
            z = self.tiled.run(source, progress, folder, requested, dynamics)
        if source.kind == "reflectivity":
            return z
        form = self.tiled.scale, self.time_factor
        out = allocate_output((*z.shape[:-3], *output_shape(source, *form)), folder)
        for fields, values in [(z, out)] if self.first is None else zip(z, out, strict=True):
            compute_fine_values(source, fields, *form, out=values)
        return out

    def make_result(self, values: Mapping[str, Any]) -> xr.Dataset:
        """Return the result with coordinates and attributes."""
        field = values[self.source.source_name]
        out = make_fine_dataset(self.source, field, self.tiled.scale, self.time_factor, first=self.first)
        text = f"fastds {fastds.__version__} downscale with {self.model.card.name}"
        text += "" if self.maps is None else f"; {self.maps.origin}"
        return add_history(out.assign_attrs(self._make_attributes()), text)

    def make_summary(self) -> RunSummary:
        """Return the summary of the run."""
        drawn = [] if self.first is None else [f"{self.first.size} members, error model {ERROR_MODEL}"]
        notes = [self.note, *self.source.notes, *describe_single_time(self.source), *self.tiled.notes(), *drawn]
        notes += [] if self.estimate is None else self.estimate.make_notes(self.smooth)
        notes += [f"read in addition to the reflectivity: {self.dynamics_text}"] * bool(self.dynamics_text)
        notes += self.settings.make_notes()
        return RunSummary(self.model.card.name, self._make_attributes(), notes)

    @functools.cached_property
    def ood(self) -> OODReport:
        """Out-of-distribution report of the fields for the network, with a UserWarning if they are outside."""
        return assess_field(self.model.card, self.source)

    def _make_attributes(self) -> dict:
        """Return the attributes that record the settings."""
        neighbours = {"fastds_dynamics": self.dynamics_text} if self.dynamics_text else {}
        if self.estimate is not None and self.estimate.mode is not None:
            neighbours["fastds_coarsened_estimate"] = f"{self.estimate.mode}: {self.estimate.reason}"
        return self.tiled.make_attributes() | neighbours | self.ood.attributes()


def _find_radar_field(dataset, var, z_r) -> ReflectivityInput:
    """Return the radar fields; if there are none, the error message mentions how other fields are downscaled."""
    try:
        return to_reflectivity(dataset, var, z_r=z_r, least=1)
    except ValueError as error:
        if "no variable of reflectivity was found" not in str(error):
            raise
        hint = (
            f"other fields take one of {spell_argument('scale', 'grid', 'like')}; humidity takes the model "
            "wgan-gp-small-x2 or wgan-gp-small-x8"
        )
        raise ValueError(f"{error}; {hint}") from None


def find_time_factor(source: ReflectivityInput, requested: int = TIME_FACTORS[0]) -> int:
    """Return the time factor, which is 1 for a single time."""
    return requested if source.shape[0] > 1 else 1


def describe_single_time(source: ReflectivityInput) -> list[str]:
    """Return a note if there is a single time."""
    return [] if source.shape[0] > 1 else ["one time, so finer in space alone: time factor 1"]


def check_model(model) -> None:
    """Raise ValueError for a model that does not downscale radar fields."""
    card = model.card
    if card.input_steps is not None:
        raise ValueError(f"model {card.name} forecasts and does not downscale; use nowcast")
    if card.floor_dbz is None or card.ceiling_dbz is None:
        raise ValueError(
            f"model {card.name} has no floor_dbz and ceiling_dbz in its card, so it does not take radar fields; models "
            f"of latitude-longitude fields take one of {spell_argument('scale', 'grid', 'like')}"
        )


def assess_field(card: ModelCard, source: ReflectivityInput) -> OODReport:
    """Compare radar fields with the training data of a model; issue a UserWarning if they are outside.

    A sample of pairs of frames, evenly distributed over all, is examined.
    """
    pairs = [(i, i + 1) for segment in source.segments for i in range(segment.start, segment.stop - 1)]
    selected = [pairs[k] for k in select_evenly(len(pairs))] if card.motion_px or card.input_ranges else []
    frames = (torch.from_numpy(source.frames(list(pair))[get_north_up_index(source.raw)].copy()) for pair in selected)
    low, high = cast(float, card.floor_dbz), cast(float, card.ceiling_dbz)
    inputs = [compute_motion_statistics(scale_reflectivity(z, low, high)) for z in frames]
    found = assess_statistics(card, compute_mean_spacing(source), source.cadence, inputs)
    found.warn(stacklevel=4)
    return found


def assess_statistics(
    card: ModelCard, spacing: float | None, cadence: float, inputs: list[dict[str, float]]
) -> OODReport:
    """Compare statistics of radar fields with the ranges in a model card.

    Args:
        card: model card.
        spacing: grid spacing in metres, or None.
        cadence: time step in seconds, NaN for a single time.
        inputs: statistics of each pair of frames, see compute_motion_statistics.
    """
    motion = [found["motion"] for found in inputs if found]
    ranges = (
        ("grid spacing", spacing, card.grid_spacing_m, "m"),
        ("cadence", None if np.isnan(cadence) else cadence, card.cadence_s, "s"),
        ("motion per input step", float(np.median(motion)) if motion else None, card.motion_px, "pixels"),
    )
    return assess_inputs(card, ranges, inputs)


def prepare(model: str | os.PathLike | None, dataset: xr.Dataset, **options: Any) -> RadarPipeline:
    """Make the pipeline of a model for a dataset.

    Args:
        model: name or file of the weights, or None.
        dataset: radar fields.
        options: further arguments of fastds.tasks.radar.run.downscale.

    Raises:
        ValueError: a single time, to whose result other times could not be appended.
    """
    pipeline = RadarPipeline(model, dataset, **options)
    if pipeline.source.shape[0] < 2:
        raise ValueError(f"at least 2 times are needed for an archive, variable {pipeline.source.source_name} has 1")
    return pipeline
