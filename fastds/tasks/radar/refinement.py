# SPDX-License-Identifier: Apache-2.0
"""Refinement of coarse reflectivity frames to fine frames at half the interval, pair by pair.

The input of the network is reflectivity scaled to [0, 1] between the floor and the ceiling of its card, so that it
cannot distinguish weak echo from no echo. The network's value is used where it exceeds the floor near echo. At echo
edges, the bias from raising sub-floor cells to the floor is subtracted. Where the interpolated input is below the
floor, the network's value is blended into the interpolated input. Elsewhere, the interpolated input is used (bicubic in
space, along the optical flow in time); pixels without echo in the interpolated input have no echo.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch

from fastds._options import OptionError
from fastds.data import prepare
from fastds.data.io.output import coarsen_with_weak_echo
from fastds.inference.tiling import Tile, run_tiles
from fastds.memory import return_freed_memory
from fastds.models.baselines import advection
from fastds.models.baselines.interpolation import upsample
from fastds.tasks.radar.back_projection import back_project
from fastds.tasks.radar.members import RadarEnsemble, make_detail, make_details
from fastds.tasks.radar.motion import Motion, smooth_flow
from fastds.tasks.radar.steady import match_end_frames

# dBZ; weaker echo is preserved, but counts as this value in the interpolation next to stronger echo
MIN_ECHO_DBZ = 0.0
# Width in dB of the edge correction: values of the network up to this far above its floor are corrected for sub-floor
# cells nearby, with a weight that decreases upwards. Without the correction, the squared error above 0 dBZ is much
# larger, because echo areas grow.
EDGE_DB = 3.0
# Width in dB of the blending. The weight of the network is 1 where the interpolated input is at the floor. It decreases
# to 0 where the input is this far below the floor, because the values of the network are mostly wrong there.
FADE_DB = 10.0
# Echo of the network is used only near input echo above the floor. The maximum distance in coarse pixels is the sum of
# this number and the motion.
NEAR_PIXELS = 4
# Reflectivity is divided by a multiple of this range before warps, which expect values in [0, 1].
_DB_SPAN = 128.0
# fraction of echo below which the interpolated reflectivity is undefined
_MIN_ECHO_SHARE = 0.05
# Number of coarse pixels in a band, and margin in rows for the kernels of interpolation.
_BAND_PIXELS, _MARGIN = 1 << 20, 6


class _MovingPair(NamedTuple):
    """Two coarse frames and their motion.

    Attributes:
        pair: frames in dBZ.
        x: scaled frames (2, H, W).
        flow: optical flow of echo above the floor.
        weak: optical flow of all echo.
        context: scaled frames (2, H, W) before and after the pair, NaN where not known.
    """

    pair: tuple[torch.Tensor, torch.Tensor]
    x: torch.Tensor
    flow: torch.Tensor
    weak: torch.Tensor
    context: torch.Tensor


class FrameRefiner:
    """Refines sequences of coarse frames (H, W) in dBZ, NaN = missing, values <= no_echo = no echo.

    Args:
        network: function, see tiling.run_tiles.
        scale: scale factor in space.
        floor: floor of the network in dBZ.
        ceiling: ceiling of the network in dBZ.
        no_echo: value of pixels without echo in dBZ.
        tiles: tiles of the coarse grid.
        after_tile: function that is called after each tile of each pair.
        static: see run_tiles.
        batch_size: see run_tiles.
        coarsened: how the coarse frames average finer cells, see back_projection.py; None: not known.
        members: draws ensemble members of each fine frame; None: no ensemble.
        steady: whether frames between input times are adjusted to detail and intensities of those at the input times,
            see steady.py. Ignored with members.
        uses_context: whether the network takes the frames before and after a pair.

    Attributes:
        observe: function (x (2, H, W), flow, channels (2, D, H, W) or None, context (2, H, W) or None) that is called
            before the first pair of a batch, or None.
    """

    def __init__(
        self,
        network: Callable,
        *,
        scale: int,
        floor: float,
        ceiling: float,
        no_echo: float,
        tiles: list[Tile],
        after_tile: Callable | None = None,
        static: torch.Tensor | None = None,
        batch_size: int = 1,
        coarsened: str | None = None,
        members: RadarEnsemble | None = None,
        steady: bool = False,
        uses_context: bool = False,
    ):
        self.uses_context = uses_context
        self.steady = steady and members is None
        self.network, self.scale, self.tiles, self.after_tile = network, scale, tiles, after_tile
        self.static, self.coarsened, self.members = static, coarsened, members
        self.batch_size, self.pair_batch = batch_size, max(1, batch_size // max(1, len(tiles)))
        self.floor, self.ceiling, self.no_echo = floor, ceiling, no_echo
        # Weaker echo, and dry cells next to it, count as this value where strong echo is interpolated next to weak
        # echo.
        self.low = min(floor, MIN_ECHO_DBZ)
        self.observe: Callable | None = None

    def refine(
        self,
        frames: Iterable[np.ndarray],
        time_factor: int = 2,
        times: Iterable = itertools.repeat(None),
        requested: tuple[int, int] | None = None,
        channels: Callable[[int], torch.Tensor] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield f N - f + 1 fine frames for N >= 2 coarse frames, f = time_factor.

        An inner input time belongs to two pairs; the network output there is the mean of both. With factor 4, the
        coarsened middle frames of a first pass are inserted between the input frames, and the resulting sequence is
        refined.

        Args:
            frames: coarse frames (H, W).
            time_factor: 2 or 4.
            times: times of the fine frames, used as part of the seed of ensemble members.
            requested: (first, stop), range of coarse frames for which fine frames are computed; None: all. Other frames
                provide the motion and the context (f / 2 + 1 frames on either side suffice), and their fine frames are
                NaN.
            channels: function of the number of a coarse frame that returns the additional channels (D, H, W) of the
                network, called in order for the pairs on which the network runs; None: no channels. Only with factor 2,
                because channels are not available between input times.

        Yields:
            Fine frames (rH, rW), or for ensembles (members, rH, rW).

        Raises:
            ValueError: time_factor is 4 and `channels` is given.
        """
        if time_factor == 4 and channels is not None:
            raise OptionError(
                "time_factor", "must be 2 where a network reads further variables, which only input times have"
            )
        first, stop = (0, sys.maxsize // 4) if requested is None else requested
        if time_factor == 4:
            frames, first, stop = self._insert_middle_frames(frames, range(first - 1, stop + 1)), 2 * first, 2 * stop
        pending, times = None, iter(times)
        for previous, current, result in self._iterate_pairs(frames, range(first - 1, stop), channels):
            now, between = next(times), next(times)
            if result is None:
                yield from (self._make_missing_frame(previous), self._make_missing_frame(previous))
                pending = None
                continue
            y, near, flow, strong = result
            ahead, ahead_near = (y[0], near) if pending is None else ((pending[0] + y[0]) / 2, pending[1] | near)
            yield self._make_input_frame(self._select_at_input(ahead, previous, now), ahead_near, previous)
            middle = self._select_between(y, previous, current, strong, between)
            yield self._make_middle_frame(middle, near, previous, current, flow)
            pending = y[2].clone(), near
        if pending is None:
            yield self._make_missing_frame(current)
        else:
            yield self._make_input_frame(self._select_at_input(pending[0], current, next(times)), pending[1], current)

    def _make_missing_frame(self, given: torch.Tensor) -> np.ndarray:
        """Return a NaN frame for a fine frame that is not requested."""
        count = () if self.members is None else (self.members.count,)
        return np.full((*count, *(self.scale * size for size in given.shape)), np.nan, np.float32)

    def _select_at_input(self, y: torch.Tensor, given: torch.Tensor, time: object) -> torch.Tensor:
        """Return the network's frame at an input time, or the ensemble members there."""
        if self.members is None:
            return y
        detail = make_detail(y, prepare(given, self.floor, self.ceiling), self.members.card)
        return self.members.draw_at_input(detail, time)

    def _select_between(
        self, y: torch.Tensor, first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor | None, time: object
    ) -> torch.Tensor:
        """Return the network's frame between two input times, or ensemble members.

        Args:
            y: network output (3, rH, rW).
            first: coarse frame before.
            second: coarse frame after.
            flow: optical flow of echo above the floor.
            time: time of the frame.
        """
        if self.members is None:
            return self._select_middle(y)
        x = self._scale_frames(first, second, self.floor)
        details = make_details(y, x, cast(torch.Tensor, flow), self.members.card, self._make_bands)
        return self.members.draw_between(details, time)

    def _select_middle(self, y: torch.Tensor) -> torch.Tensor:
        """Return the middle frame of the network output, adjusted to the others if requested."""
        return match_end_frames(y) if self.steady else y[1]

    def _insert_middle_frames(self, frames: Iterable[np.ndarray], requested: range) -> Iterator[np.ndarray]:
        """Yield the coarse frames and, between them, the coarsened middle frames of a first pass.

        Middle frames of pairs outside `requested` are NaN.
        """
        mode = self.coarsened or "dbz"
        for previous, current, result in self._iterate_pairs(frames, requested):
            yield previous.numpy()
            if result is None:
                yield np.full_like(previous.numpy(), np.nan)
                continue
            y, near, flow, _ = result
            middle = self._make_middle_frame(self._select_middle(y), near, previous, current, flow)
            yield coarsen_with_weak_echo(middle, self.scale, mode=mode, floor=self.floor, no_echo=self.no_echo)
        yield current.numpy()

    def _iterate_pairs(
        self, frames: Iterable[np.ndarray], requested: range, channels: Callable | None = None
    ) -> Iterator[tuple]:
        """Yield consecutive frames with their results, see _compute_results, computed in batches of pairs.

        The result is None for pairs whose numbers are not in `requested`. channels: see refine.
        """
        pairs = itertools.pairwise(torch.from_numpy(np.ascontiguousarray(frame, np.float32)) for frame in frames)
        moving = enumerate(self._add_motion(pairs))
        while some := list(itertools.islice(moving, self.pair_batch)):
            flags = [(seen.pair, number in requested) for number, seen in some]
            runs = [number for number, _ in some if number in requested]
            channel_pairs = None if channels is None else [torch.stack([channels(n), channels(n + 1)]) for n in runs]
            results = self._compute_results([seen for number, seen in some if number in requested], channel_pairs)
            some.clear()  # frees large tensors
            for pair, has_run in flags:
                yield *pair, next(results) if has_run else None

    def _add_motion(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[_MovingPair]:
        """Yield pairs of frames with their context, and their motion averaged with that of the neighbouring pairs."""
        before, this, first = [None, None], None, None
        for following in itertools.chain(map(self._prepare_pair, pairs), [None]):
            if this is not None:
                pair, x, motions = this
                after = [None, None] if following is None else following[2]
                flows = [smooth_flow(motion, before[k], after[k]) for k, motion in enumerate(motions)]
                unknown = torch.full_like(x[0], torch.nan)
                last = None if following is None or following[0][1].isnan().all() else following[1][1]
                context = torch.stack([unknown if z is None else z for z in (first, last)])
                yield _MovingPair(pair, x, flows[0], flows[-1], context)
                before, first = motions, None if pair[0].isnan().all() else x[0]
            this = following

    def _prepare_pair(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple:
        """Return a pair, the scaled pair, and a list of its motions.

        The first motion is that of echo above the floor. If the floor is above `low`, the second is that of all echo.
        """
        x = self._scale_frames(*pair, self.floor)
        weak = [Motion(self._scale_frames(*pair, self.low), fine=False)] if self.low < self.floor else []
        return pair, x, [Motion(x), *weak]

    def _compute_results(self, moving: list[_MovingPair], channels: list[torch.Tensor] | None) -> Iterator[tuple]:
        """Run the network on pairs.

        Args:
            moving: pairs with their motion; the list is cleared.
            channels: additional channels (2, D, H, W) of each pair, or None.

        Yields:
            For each pair: network output (3, rH, rW) in [0, 1], mask (H, W) of coarse pixels near echo, optical flow of
            all echo, and for ensembles the flow of echo above the floor, else None.
        """
        pairs, scaled, flows, weak, contexts = map(list, zip(*moving, strict=True))
        moving.clear()
        if self.observe is not None:
            context = contexts[0] if self.uses_context else None
            self.observe(scaled[0], flows[0], None if channels is None else channels[0], context)
        form: dict[str, Any] = {
            "after_tile": self.after_tile,
            "static": self.static,
            "batch_size": self.batch_size,
            "channels": channels,
            "contexts": contexts if self.uses_context else None,
        }
        made = run_tiles(self.network, scaled, flows, self.tiles, self.scale, **form)
        if len(self.tiles) > 1:
            return_freed_memory()  # frees memory of the network before the arrays of whole frames are allocated
        for pair in pairs:
            # large tensors are freed one by one
            x, flow, flow_of_all, y = (some.pop(0) for some in (scaled, flows, weak, made))
            echo, motion = (x > 0).any(0), 0.0
            if echo.any():
                motion = torch.hypot(*flow[0].unbind(1))[:, echo].max().item()
            if self.coarsened is not None:
                known = ~torch.stack(pair).isnan()
                back_project(y, x, flow, known, self.coarsened, self.ceiling - self.floor, self._make_bands)
            del x
            near = _dilate(echo, NEAR_PIXELS + math.ceil(motion))
            yield y, near, flow_of_all, None if self.members is None else flow

    def _scale_frames(self, first: torch.Tensor, second: torch.Tensor, floor: float) -> torch.Tensor:
        """Return both frames (2, H, W), scaled to [0, 1] between floor and ceiling, missing pixels 0."""
        return torch.stack([prepare(z, floor, self.ceiling) for z in (first, second)])

    def _make_input_frame(self, y: torch.Tensor, near: torch.Tensor, given: torch.Tensor) -> np.ndarray:
        """Make the frame at an input time from y (..., rH, rW). Input cells without echo have no echo in the result."""
        wet, out = given > self.no_echo, torch.empty_like(y)
        for rows, window, inner in self._make_bands(given.shape, 0.0):
            up = upsample(self._make_channels(given[window])[None, None], self.scale, "bicubic")[0, 0]
            fine = self._interpolate(up[:, inner])
            where = self._repeat(wet[rows])
            counts = self._repeat(near[rows]) & where
            index = ..., self._refine_rows(rows), slice(None)
            out[index] = self._merge(y[index], counts, fine, where, given[rows].isnan())
        return out.numpy()

    def _make_middle_frame(
        self, y: torch.Tensor, near: torch.Tensor, first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor
    ) -> np.ndarray:
        """Make the frame between two input times from y (..., rH, rW).

        The result may have echo only where echo of the input frames arrives along the flow.
        """
        missing, out = first.isnan() | second.isnan(), torch.empty_like(y)
        for rows, window, inner in self._make_bands(first.shape, flow.abs().max().item()):
            channels = torch.stack([self._make_channels(z[window]) for z in (first, second)])
            fine = self._interpolate(advection(channels[None], self.scale, flow[..., window, :][None])[0, 1])
            counts = self._repeat(near[window]) & _dilate(fine[1] > _MIN_ECHO_SHARE, self.scale)
            fine = fine[:, inner]
            index = ..., self._refine_rows(rows), slice(None)
            out[index] = self._merge(y[index], counts[inner], fine, fine[1] >= 0.5, missing[rows])
        return out.numpy()

    def _make_bands(self, shape: torch.Size, motion: float) -> Iterator[tuple[slice, slice, slice]]:
        """Yield bands of rows of the coarse grid, which limit the memory of the interpolation.

        Args:
            shape: (H, W) of the coarse grid.
            motion: largest motion in pixels.

        Yields:
            The rows of a band, the rows that are read for the band, and the position of the band within the rows that
            are read, on the fine grid.
        """
        margin, height = _MARGIN + math.ceil(motion), shape[0]
        step = max(1, _BAND_PIXELS // max(shape[1], 1) - 2 * margin, margin)
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            window = slice(max(rows.start - margin, 0), min(rows.stop + margin, height))
            yield rows, window, self._refine_rows(slice(rows.start - window.start, rows.stop - window.start))

    def _refine_rows(self, rows: slice) -> slice:
        return slice(rows.start * self.scale, rows.stop * self.scale)

    def _make_channels(self, z: torch.Tensor) -> torch.Tensor:
        """Return the fields (4, H, W) of a frame that are interpolated, scaled so that overshoot stays in [0, 1].

        The fields are: reflectivity of echo relative to no_echo (0 without echo); a mask of echo; reflectivity with dry
        cells at `low`; and reflectivity with all values raised to at least the floor.
        """
        echo = z > self.no_echo
        known = torch.where(echo, z.clamp(min=self.low), self.low)
        alone = torch.where(echo, z - self.no_echo, 0.0)
        channels = alone, echo * _DB_SPAN, known - self.low, known.clamp(min=self.floor) - self.low
        return torch.stack(channels) / (2 * _DB_SPAN)

    def _interpolate(self, channels: torch.Tensor) -> torch.Tensor:
        """Convert interpolated channels to the interpolated input (4, rH, rW).

        The input has four fields: reflectivity of the echo alone; fraction of echo; reflectivity with dry cells at
        `low`; and reflectivity raised to at least the floor. Reflectivity is in dBZ.
        """
        alone, share, known, lifted = (2 * _DB_SPAN * channels).unbind()
        share = share / _DB_SPAN
        alone = torch.where(
            share > _MIN_ECHO_SHARE, self.no_echo + alone / share.clamp(min=_MIN_ECHO_SHARE), self.no_echo
        )
        return torch.stack([alone, share, known + self.low, lifted + self.low])

    def _merge(self, y, near, fine, wet, missing) -> torch.Tensor:
        """Merge the network output and the interpolated input into fine rows in dBZ.

        Args:
            y: network output or ensemble members, in [0, 1].
            near: mask of fine pixels near echo.
            fine: interpolated input (4, ...), see _interpolate.
            wet: mask of fine pixels that may have echo.
            missing: mask of missing coarse pixels.
        """
        alone, _, known, lifted = fine
        z = self.floor + y * (self.ceiling - self.floor)
        # For the network, cells below its floor are at the floor; next to them its values are biased by lifted - known.
        weight = (1 - (z - self.floor) / EDGE_DB).clamp(0, 1)
        counts = ((known - self.floor) / FADE_DB + 1).clamp(0, 1)
        z = (known + counts * (z + weight * (known - lifted) - known)).clamp(max=self.ceiling)
        strong = near & (z > self.floor)
        weak = torch.where(near, torch.minimum(known, z).clamp(min=self.low), known)
        weak = torch.where(known > self.low, weak, alone).clamp(self.no_echo, self.floor)
        out = torch.where(strong, z, torch.where(wet, weak, self.no_echo))
        return out.masked_fill_(self._repeat(missing), float("nan"))

    def _repeat(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -1)


def _dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """Return the mask (H, W) of pixels within `radius` rows and columns of a true pixel."""
    around = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * radius + 1, 2 * radius + 1))
    return torch.from_numpy(cv2.dilate(mask.numpy().astype(np.uint8), around)) > 0
