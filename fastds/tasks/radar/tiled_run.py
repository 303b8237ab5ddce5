# SPDX-License-Identifier: Apache-2.0
"""Tiled inference over a series of radar frames: choice of tiles, and fine frames one after another."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch

import fastds
from fastds.data import ReflectivityInput, StaticMaps, output_frames, refine_time
from fastds.data.grid.axes import get_north_up_index
from fastds.data.samples.dynamic_fields import DynamicChannels
from fastds.inference.execution import ExecutionConfig
from fastds.inference.files import allocate_output
from fastds.inference.progress import progress_bar
from fastds.inference.tiling import (
    check_multiple,
    choose_tile,
    measure_receptive_field,
    plan_tiles,
    round_up,
    run_tiles,
)
from fastds.memory import return_freed_memory
from fastds.models.card import Network
from fastds.tasks.radar.members import ERROR_MODEL, RadarEnsemble
from fastds.tasks.radar.methods import Baseline, needs_context, needs_flow
from fastds.tasks.radar.refinement import NEAR_PIXELS, FrameRefiner

# Working memory of the network for the automatic choice of tiles on a CPU; on a GPU, half of the free memory is used.
MEMORY_BUDGET_BYTES = 2 << 30
# Maximum number of windows in a batch on a GPU; their results are stored in host memory.
_MAX_BATCH = 16


class TiledInference:
    """Tiled inference of a model over radar fields.

    Args:
        model: network or baseline.
        source: radar fields.
        tile: side of a tile in input pixels; None: chosen by memory.
        halo: width of the halo in input pixels; None: the receptive field.
        settings: execution settings.
        time_factor: 1, 2 or 4.
        static: static maps, or None.
        coarsened: see FrameRefiner.
        members: see FrameRefiner.
        smooth: whether frames between input times are not adjusted, see FrameRefiner.
    """

    def __init__(
        self,
        model: Network,
        source: ReflectivityInput,
        tile: int | None,
        halo: int | None,
        settings: ExecutionConfig,
        time_factor: int,
        static: StaticMaps | None = None,
        coarsened: str | None = None,
        members: RadarEnsemble | None = None,
        smooth: bool = False,
    ):
        self.model, self.source, self.execution, self.time_factor = model, source, settings, time_factor
        self.card, self.scale = model.card, model.config.get("scale", 2)
        self.order = get_north_up_index(source.raw)  # the network processes frames in north-up orientation
        self.uses_flow = needs_flow(model)
        self.amplitude = self.card.ceiling_dbz - self.card.floor_dbz
        self.seam_error: tuple[float, float] | None = None
        self.receptive_field: int = cast(Any, None)  # unknown if _choose_tiles does not need it
        self.static_origin = None if static is None else static.origin
        self.static = None if static is None else self._normalise(static)
        # measured before any computation, because torch caches GPU memory
        self.budget = _find_budget(cast(torch.device, settings.device))
        self.tile, self.halo = self._choose_tiles(tile, halo)
        height, width = source.shape[1:]
        whole = round_up(max(height, width))
        self.tiles = plan_tiles(height, width, self.tile or whole, self.halo if self.tile else 0)
        self.refiner = FrameRefiner(
            self._run_network,
            scale=self.scale,
            floor=self.card.floor_dbz,
            ceiling=self.card.ceiling_dbz,
            no_echo=source.no_echo,
            tiles=self.tiles,
            static=self.static,
            batch_size=self._find_batch_size(),
            coarsened=coarsened,
            members=members,
            # baselines are not adjusted, so that their output is what their name says
            steady=not smooth and not isinstance(model, Baseline),
            uses_context=needs_context(model),
        )
        if self.tile and self.halo < self.receptive_field:
            self.refiner.observe = self._measure_seam

    def _normalise(self, static: StaticMaps) -> torch.Tensor:
        mean, std = (torch.tensor([w[key] for w in self.card.static_variables]) for key in ("mean", "std"))
        return (torch.from_numpy(static.values[self.order].copy()) - mean[:, None, None]) / std[:, None, None]

    def _run_network(
        self,
        x: torch.Tensor,
        flow: torch.Tensor | None,
        static: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if context is None and needs_context(self.model):  # the measurement of the receptive field has no other frames
            context = x[:, [0, -1], :1]
        if static is None and self.static is not None:  # the measurement of the receptive field has no location
            static = x.new_zeros(len(self.static), *x.shape[-2:])
        channels = self.model.config.get("in_channels", 1)
        if x.shape[2] != channels:  # in the measurement of the receptive field, all channels change together
            x = x.expand(-1, -1, channels, -1, -1)
        device = self.execution.device
        given = {"static": static, "flow": flow if self.uses_flow else None, "context": context}
        given = {name: tensor.to(device) for name, tensor in given.items() if tensor is not None}
        with self.execution.autocast():
            return self.model(x.to(device), **given).float().cpu()

    def _choose_tiles(self, tile, halo) -> tuple[int | None, int]:
        """Return the core side (None: the whole grid) and the halo.

        The receptive field is measured only if there are several tiles.
        """
        height, width = self.source.shape[1:]
        if tile is not None:
            tile = check_multiple("tile", tile, 16)
        if halo is not None:
            halo = check_multiple("halo", halo, 0)
        per_pixel = _estimate_pixel_bytes(self.model)
        fits = height * width * per_pixel <= self.budget
        if (tile is None and fits) or (tile is not None and tile >= max(height, width)):
            return None, 0
        motion = self._find_max_motion()
        field = measure_receptive_field(self._run_network, self.scale, self.amplitude, motion, self.uses_flow)
        self.receptive_field = max(field, NEAR_PIXELS + math.ceil(motion))
        halo = round_up(self.receptive_field) if halo is None else halo
        return tile or choose_tile(height, width, halo, per_pixel, self.budget), halo

    def _find_batch_size(self) -> int:
        """Return the number of windows in a batch: 1 on a CPU, where a window uses all cores."""
        if cast(torch.device, self.execution.device).type != "cuda":
            return 1
        largest = max(math.prod(s.stop - s.start for s in tile.window) for tile in self.tiles)
        return max(1, min(_MAX_BATCH, int(self.budget / (largest * _estimate_pixel_bytes(self.model)))))

    def _find_max_motion(self) -> float:
        """Return the motion in pixels per input step for which the receptive field is measured.

        This is the largest motion in the card, or 8 pixels if the card has no motion.
        """
        return float(self.card.motion_px[1]) if self.card.motion_px else 8.0

    def run(
        self,
        source: ReflectivityInput,
        progress: bool,
        folder: str | os.PathLike | None,
        requested: tuple[int, int] | None = None,
        dynamics: DynamicChannels | None = None,
    ) -> np.ndarray:
        """Compute the fine reflectivity of all segments of the source, or of a part of one segment.

        Args:
            source: radar fields.
            progress: show a progress bar.
            folder: folder for memory-mapped files of large fields; None: in memory.
            requested: range of coarse frames of a part, see FrameRefiner.refine; None: all.
            dynamics: additional input channels of the frames, or None.

        Returns:
            ([members,] n, rH, rW) float32 in dBZ.
        """
        height, width = source.shape[1:]
        shape = (output_frames(source, self.time_factor), self.scale * height, self.scale * width)
        first = () if self.refiner.members is None else (self.refiner.members.count,)
        z = allocate_output((*first, *shape), folder)
        start = 0
        with progress_bar(progress, self._count_passes(source) * len(self.tiles), "downscaling", "tiles") as advance:
            self.refiner.after_tile = advance
            for segment in source.segments:
                for fine in self._iterate_frames(source, segment, requested, dynamics):
                    z[..., start, :, :] = fine[self.order]
                    start += 1
                    if self.tile:
                        return_freed_memory()
        return z

    def _iterate_frames(
        self,
        source: ReflectivityInput,
        segment: slice,
        requested: tuple[int, int] | None,
        dynamics: DynamicChannels | None,
    ) -> Iterator[np.ndarray]:
        """Return an iterator over the fine frames of a segment, north up, or over ensemble members."""

        @functools.lru_cache(maxsize=1)  # a frame ends a pair and begins the next
        def channels(number: int) -> torch.Tensor:
            assert dynamics is not None
            return torch.from_numpy(dynamics.frame(segment.start + number)[self.order].copy())

        frames = (source.frames(i)[self.order].copy() for i in range(segment.start, segment.stop))
        times = source.times[segment]
        if len(times) > 1:
            fine_times = refine_time(times, self.time_factor)
            given: Callable | None = None if dynamics is None else channels
            return self.refiner.refine(frames, self.time_factor, fine_times, requested, given)
        # A single frame between two gaps is paired with itself; only the first fine frame is used.
        frame = next(frames)
        given = None if dynamics is None else lambda number: channels(0)
        pair = [frame, frame]
        return itertools.islice(self.refiner.refine(pair, times=itertools.repeat(times[0]), channels=given), 1)

    def _count_passes(self, source: ReflectivityInput) -> int:
        """Return how many times the network runs over all tiles."""
        lengths = [s.stop - s.start for s in source.segments]
        return sum(max(n - 1, 1) + (2 * (n - 1) if self.time_factor == 4 and n > 1 else 0) for n in lengths)

    def _measure_seam(
        self, x: torch.Tensor, flow: torch.Tensor, channels: torch.Tensor | None, context: torch.Tensor | None
    ) -> None:
        """Measure the seam error, once: recompute the tile with most echo with a halo that covers the receptive field.

        Args:
            x: scaled pair of frames (2, H, W).
            flow: optical flow of the pair.
            channels: additional channels (2, D, H, W), or None.
            context: scaled frames (2, H, W) before and after the pair, or None.
        """
        self.refiner.observe = None
        height, width = x.shape[-2:]
        tile = max(self.tiles, key=lambda t: x[:, t.core[0], t.core[1]].sum().item())
        wide_tiles = plan_tiles(height, width, cast(int, self.tile), round_up(self.receptive_field))
        wide_tile = wide_tiles[self.tiles.index(tile)]
        given = self._run_network, [x], [flow]
        options: dict[str, Any] = {
            "static": self.static,
            "channels": None if channels is None else [channels],
            "contexts": None if context is None else [context],
        }
        small, large = (run_tiles(*given, [t], self.scale, **options)[0] for t in (tile, wide_tile))
        rows, columns = (slice(c.start * self.scale, c.stop * self.scale) for c in tile.core)
        difference = (small - large)[:, rows, columns].abs() * self.amplitude
        self.seam_error = difference.max().item(), difference.square().mean().sqrt().item()

    def notes(self) -> list[str]:
        """Return notes about the tiles, if there are tiles."""
        if not self.tile:
            return []
        text = f"{len(self.tiles)} tiles of {self.tile} pixels with a halo of {self.halo}"
        if self.halo >= self.receptive_field:
            return [f"{text}, which covers the network's reach of {self.receptive_field} pixels"]
        short = f"{text}, less than the network's reach of {self.receptive_field} pixels"
        if self.seam_error is None:
            return [short]
        most, rms = self.seam_error
        return [f"{short}: seam error in the tile with most echo {most:.3g} dBZ at most, {rms:.2g} dBZ rms"]

    def make_attributes(self) -> dict:
        """Return the attributes that record the settings."""
        settings = {
            "fastds_version": fastds.__version__,
            "fastds_task": "radar",
            "fastds_model": self.card.name,
            "fastds_space_factor": self.scale,
            "fastds_time_factor": self.time_factor,
            **self.execution.attributes(),
            "fastds_floor_dBZ": float(self.card.floor_dbz),
            "fastds_tile": self.tile or 0,
            "fastds_halo": self.halo,
        }
        if self.time_factor > 1 and self.refiner.members is None:
            settings["fastds_smooth"] = int(not self.refiner.steady)
        if self.refiner.coarsened:
            settings["fastds_coarsened"] = self.refiner.coarsened
        if (members := self.refiner.members) is not None:
            settings |= {"fastds_members": members.count, "fastds_seed": members.seed, "fastds_errors": ERROR_MODEL}
        if self.static_origin:
            settings["fastds_static_maps"] = self.static_origin.removeprefix("static maps: ")
        if self.card.licence:
            settings["fastds_model_licence"] = self.card.licence
        if self.seam_error is not None:
            settings["fastds_seam_error_dBZ"] = self.seam_error[0]
        if self.source.z_r is not None:
            a, b = self.source.z_r
            settings["fastds_z_r"] = f"Z = {a:g} R^{b:g}, {self.source.z_r_origin}"
        return settings


def _find_budget(device: torch.device) -> float:
    """Return the working memory for the network in bytes."""
    if device.type != "cuda":
        return MEMORY_BUDGET_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return free / 2


def _estimate_pixel_bytes(model) -> float:
    """Estimate the working memory in bytes of a forward pass per coarse pixel of a pair, from the network's width."""
    features, scale = model.config.get("num_features") or model.config.get("width", 64), model.config.get("scale", 2)
    return 4.0 * features * (60 + scale**2)
