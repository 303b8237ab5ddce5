# SPDX-License-Identifier: Apache-2.0
"""From coarse frames of reflectivity to fine frames at half the interval, pair by pair, with dry and weak pixels kept
as they are.

The network sees reflectivity scaled to [0, 1] between the floor and the ceiling of its card, so weaker echo and no echo
are the same to it. A fine pixel takes the network's value where that is above the floor and echo is near: at the rim of
echo less what interpolation with cells below the floor gains by lifting those to the floor, and less and less of it
where the interpolated input is below the floor. Elsewhere it takes the interpolated input (bicubic in space, along the
optical flow in time), and it is no echo where the input is.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch

from fastds.data import prepare
from fastds.data.io.output import coarsen_with_weak_echo
from fastds.memory import return_freed_memory
from fastds.models.baselines import advection
from fastds.models.baselines.interpolation import upsample
from fastds.tasks.common.tiling import Tile, run_tiles
from fastds.tasks.radar.agreement import agree
from fastds.tasks.radar.members import Members, detail_at, details
from fastds.tasks.radar.motion import Motion, steadied
from fastds.tasks.radar.steady import steadied_between

# Echo weaker than this is kept but means nothing in interpolation next to stronger echo, dBZ.
WEAKEST_DBZ = 0.0
# The rim: the network's values within this many dB of its floor are corrected for cells below the floor nearby, less
# and less upwards. Measured with fczsm-small on five radars: without it the squared error above 0 dBZ is 1.6 to 12
# times as large and CSI at 15 dBZ 0.06 to 0.5 lower; the squared error above 15 dBZ is up to 4 % smaller.
RIM_DB = 3.0
# The network counts less and less where the interpolated input lies below its floor, and from this many dB below it not
# at all: of what it says there more is wrong than right (blocks of training files, squared error above 0 dBZ with means
# of linear Z 1.5 % smaller by it, above 15 dBZ level).
FADE_DB = 10.0
# The network's echo counts within this many coarse pixels, plus the motion, of echo above the floor in the input.
NEAR_PIXELS = 4
# Reflectivity is scaled by this many dB around warps, which expect numbers in [0, 1].
_DB_SPAN = 128.0
# Below this share of echo the interpolated value means nothing.
_LEAST_SHARE = 0.05
# Coarse pixels that are interpolated at once, and rows read beyond the motion for the kernels of interpolation.
_BAND_PIXELS, _MARGIN = 1 << 20, 6


class _Moving(NamedTuple):
    """Two coarse frames in dBZ, scaled (2, H, W), and the flow of echo above the floor and of all echo."""

    pair: tuple[torch.Tensor, torch.Tensor]
    x: torch.Tensor
    flow: torch.Tensor
    weak: torch.Tensor


class FrameRefiner:
    """Refine sequences of coarse frames (H, W) in dBZ, NaN = missing, values <= no_echo = no echo.

    network: callable as in tiling.run_tiles. scale: finer by this factor in space. floor, ceiling, no_echo: dBZ. tiles:
    list of Tile over the coarse grid. after_tile: called after each tile of each pair. static, at_once: see run_tiles.
    coarsened: how the coarse frames average finer cells, see agreement.py; None: not known. members: what draws
    members of every fine frame; None: none are drawn. steady: frames between two input times have the detail and the
    intensities of those at the input times, see steady.py; members have their own.
    Attributes: `observe`, a callable (x (2, H, W), flow, further (2, D, H, W) or None) run before the first pair of
    those at once, or None.
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
        at_once: int = 1,
        coarsened: str | None = None,
        members: Members | None = None,
        steady: bool = False,
    ):
        self.steady = steady and members is None
        self.network, self.scale, self.tiles, self.after_tile = network, scale, tiles, after_tile
        self.static, self.coarsened, self.members = static, coarsened, members
        self.at_once, self.pairs_at_once = at_once, max(1, at_once // max(1, len(tiles)))
        self.floor, self.ceiling, self.no_echo = floor, ceiling, no_echo
        # Echo below this counts as this, and dry cells too, where strong echo is interpolated next to weak echo.
        self.low = min(floor, WEAKEST_DBZ)
        self.observe = None

    def refine(
        self,
        frames: Iterable[np.ndarray],
        time_factor: int = 2,
        times: Iterable = itertools.repeat(None),
        wanted: tuple[int, int] | None = None,
        further: Callable[[int], torch.Tensor] | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield f N - f + 1 fine frames (rH, rW) for N coarse ones, f = time_factor 2 or 4; at least two frames. With
        members: (members, rH, rW), drawn by the fine times.

        Inner input times belong to two pairs; their network output is the mean of both. Factor 4 puts the coarsened
        middle frames of a first pass between the input frames and refines that sequence.

        wanted: (first, stop), the coarse frames from and to which fine ones are wanted; None: all. Others tell the
        motion, for which f / 2 + 1 of them are enough on either side, and are NaN where the network need not run.
        further: gives of the number of a coarse frame what the network reads beside it, (D, H, W); only with factor 2,
        since it has nothing of the times between. Asked for the frames of pairs that the network runs on, as they come.
        """
        if time_factor == 4 and further is not None:
            raise ValueError(
                "time_factor must be 2 where a network reads further variables, which only input times have"
            )
        first, stop = (0, sys.maxsize // 4) if wanted is None else wanted
        if time_factor == 4:
            frames, first, stop = self._with_middle_frames(frames, range(first - 1, stop + 1)), 2 * first, 2 * stop
        pending, times = None, iter(times)
        for previous, current, result in self._pairs(frames, range(first - 1, stop), further):
            now, between = next(times), next(times)
            if result is None:
                yield from (self._nothing(previous), self._nothing(previous))
                pending = None
                continue
            y, near, flow, strong = result
            ahead, ahead_near = (y[0], near) if pending is None else ((pending[0] + y[0]) / 2, pending[1] | near)
            yield self._outer(self._at_input(ahead, previous, now), ahead_near, previous)
            middle = self._between(y, previous, current, strong, between)
            yield self._middle(middle, near, previous, current, flow)
            pending = y[2].clone(), near
        if pending is None:
            yield self._nothing(current)
        else:
            yield self._outer(self._at_input(pending[0], current, next(times)), pending[1], current)

    def _nothing(self, given: torch.Tensor) -> np.ndarray:
        """In the place of a fine frame that is not wanted."""
        count = () if self.members is None else (self.members.count,)
        return np.full((*count, *(self.scale * size for size in given.shape)), np.nan, np.float32)

    def _at_input(self, y: torch.Tensor, given: torch.Tensor, time: object) -> torch.Tensor:
        """The network's field at an input time, or members of it."""
        if self.members is None:
            return y
        detail = detail_at(y, prepare(given, self.floor, self.ceiling), self.members.card)
        return self.members.at_input(detail, time)

    def _between(
        self, y: torch.Tensor, first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor | None, time: object
    ) -> torch.Tensor:
        """The network's field between two input times, or members of it; flow: of echo above the floor."""
        if self.members is None:
            return self._steadied(y)
        x = self._scaled(first, second, self.floor)
        return self.members.between(details(y, x, flow, self.members.card, self._bands), time)

    def _steadied(self, y: torch.Tensor) -> torch.Tensor:
        """The middle one of a network's three fields."""
        return steadied_between(y) if self.steady else y[1]

    def _with_middle_frames(self, frames: Iterable[np.ndarray], wanted: range) -> Iterator[np.ndarray]:
        """The coarse frames with the middle frames of a first pass, averaged back to the coarse grid, between them; NaN
        for those of pairs whose numbers are not wanted."""
        mode = self.coarsened or "dbz"
        for previous, current, result in self._pairs(frames, wanted):
            yield previous.numpy()
            if result is None:
                yield np.full_like(previous.numpy(), np.nan)
                continue
            y, near, flow, _ = result
            middle = self._middle(self._steadied(y), near, previous, current, flow)
            yield coarsen_with_weak_echo(middle, self.scale, mode=mode, floor=self.floor, no_echo=self.no_echo)
        yield current.numpy()

    def _pairs(self, frames: Iterable[np.ndarray], wanted: range, further: Callable | None = None) -> Iterator[tuple]:
        """Frames that follow one another, and what _results gives of them, computed for so many pairs at once, or None
        for pairs whose numbers are not wanted. further: see refine."""
        pairs = itertools.pairwise(torch.from_numpy(np.ascontiguousarray(frame, np.float32)) for frame in frames)
        moving = enumerate(self._with_motion(pairs))
        while some := list(itertools.islice(moving, self.pairs_at_once)):
            told = [(seen.pair, number in wanted) for number, seen in some]
            runs = [number for number, _ in some if number in wanted]
            beside = None if further is None else [torch.stack([further(n), further(n + 1)]) for n in runs]
            results = self._results([seen for number, seen in some if number in wanted], beside)
            some.clear()  # large
            for pair, has_run in told:
                yield *pair, next(results) if has_run else None

    def _with_motion(self, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[_Moving]:
        """Pairs of frames with their motion, which those before and behind make steadier."""
        before, this = [None, None], None
        for behind in itertools.chain(map(self._seen, pairs), [None]):
            if this is not None:
                pair, x, motions = this
                after = [None, None] if behind is None else behind[2]
                flows = [steadied(motion, before[k], after[k]) for k, motion in enumerate(motions)]
                yield _Moving(pair, x, flows[0], flows[-1])
                before = motions
            this = behind

    def _seen(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple:
        """A pair, scaled, and the motion of its echo above the floor and, where weaker echo counts, of all echo."""
        x = self._scaled(*pair, self.floor)
        weak = [Motion(self._scaled(*pair, self.low), fine=False)] if self.low < self.floor else []
        return pair, x, [Motion(x), *weak]

    def _results(self, moving: list[_Moving], further: list[torch.Tensor] | None) -> Iterator[tuple]:
        """Of each pair: network output (3, rH, rW) in [0, 1], where it counts (H, W) bool, the flow of all echo, and
        for members that of echo above the floor."""
        pairs, scaled, flows, weak = map(list, zip(*moving, strict=True))
        moving.clear()
        if self.observe is not None:
            self.observe(scaled[0], flows[0], None if further is None else further[0])
        form = {"after_tile": self.after_tile, "static": self.static, "at_once": self.at_once, "further": further}
        made = run_tiles(self.network, scaled, flows, self.tiles, self.scale, **form)
        if len(self.tiles) > 1:
            return_freed_memory()  # of the network, before the arrays of whole frames are made
        for pair in pairs:
            x, flow, of_all, y = (some.pop(0) for some in (scaled, flows, weak, made))  # large, and freed one by one
            echo, motion = (x > 0).any(0), 0.0
            if echo.any():
                motion = torch.hypot(*flow[0].unbind(1))[:, echo].max().item()
            if self.coarsened is not None:
                known = ~torch.stack(pair).isnan()
                agree(y, x, flow, known, self.coarsened, self.ceiling - self.floor, self._bands)
            del x
            near = _dilate(echo, NEAR_PIXELS + math.ceil(motion))
            yield y, near, of_all, None if self.members is None else flow

    def _scaled(self, first: torch.Tensor, second: torch.Tensor, floor: float) -> torch.Tensor:
        """Both frames (2, H, W), scaled to [0, 1] between floor and the ceiling, missing pixels 0."""
        return torch.stack([prepare(z, floor, self.ceiling) for z in (first, second)])

    def _outer(self, y: torch.Tensor, near: torch.Tensor, given: torch.Tensor) -> np.ndarray:
        """The frame at an input time of y (..., rH, rW): no pixel of an input cell without echo gets any."""
        wet, out = given > self.no_echo, torch.empty_like(y)
        for rows, window, inner in self._bands(given.shape, 0.0):
            up = upsample(self._channels(given[window])[None, None], self.scale, "bicubic")[0, 0]
            fine = self._fine(up[:, inner])
            where = self._repeat(wet[rows])
            counts = self._repeat(near[rows]) & where
            own = ..., self._finer(rows), slice(None)
            out[own] = self._merge(y[own], counts, fine, where, given[rows].isnan())
        return out.numpy()

    def _middle(
        self, y: torch.Tensor, near: torch.Tensor, first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor
    ) -> np.ndarray:
        """The frame between two of y (..., rH, rW): the input's echo carried along the flow from both sides says where
        it may be wet."""
        missing, out = first.isnan() | second.isnan(), torch.empty_like(y)
        for rows, window, inner in self._bands(first.shape, flow.abs().max().item()):
            channels = torch.stack([self._channels(z[window]) for z in (first, second)])
            fine = self._fine(advection(channels[None], self.scale, flow[..., window, :][None])[0, 1])
            counts = self._repeat(near[window]) & _dilate(fine[1] > _LEAST_SHARE, self.scale)
            fine = fine[:, inner]
            own = ..., self._finer(rows), slice(None)
            out[own] = self._merge(y[own], counts[inner], fine, fine[1] >= 0.5, missing[rows])
        return out.numpy()

    def _bands(self, shape: torch.Size, motion: float) -> Iterator[tuple[slice, slice, slice]]:
        """Rows of the coarse grid, band by band, the rows that are read for them, and their place on the fine grid of
        those: large frames are interpolated piece by piece, so that memory does not grow with them."""
        margin, height = _MARGIN + math.ceil(motion), shape[0]
        step = max(1, _BAND_PIXELS // max(shape[1], 1) - 2 * margin, margin)
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            window = slice(max(rows.start - margin, 0), min(rows.stop + margin, height))
            yield rows, window, self._finer(slice(rows.start - window.start, rows.stop - window.start))

    def _finer(self, rows: slice) -> slice:
        return slice(rows.start * self.scale, rows.stop * self.scale)

    def _channels(self, z: torch.Tensor) -> torch.Tensor:
        """What is interpolated of a frame (H, W), (4, H, W): echo alone, 0 where there is none; echo as 1; reflectivity
        with dry cells at `low`; the same lifted to the floor. Scaled, so that overshoot stays in [0, 1], where the
        interpolation cuts."""
        echo = z > self.no_echo
        known = torch.where(echo, z.clamp(min=self.low), self.low)
        alone = torch.where(echo, z - self.no_echo, 0.0)
        channels = alone, echo * _DB_SPAN, known - self.low, known.clamp(min=self.floor) - self.low
        return torch.stack(channels) / (2 * _DB_SPAN)

    def _fine(self, channels: torch.Tensor) -> torch.Tensor:
        """The interpolated input without the network (4, rH, rW): reflectivity over its echo alone, share of echo,
        reflectivity with dry cells at `low`, the last lifted to the floor; all dBZ but the share."""
        alone, share, known, lifted = (2 * _DB_SPAN * channels).unbind()
        share = share / _DB_SPAN
        alone = torch.where(share > _LEAST_SHARE, self.no_echo + alone / share.clamp(min=_LEAST_SHARE), self.no_echo)
        return torch.stack([alone, share, known + self.low, lifted + self.low])

    def _merge(self, y, near, fine, wet, missing) -> torch.Tensor:
        """Fine rows in dBZ from the network's y, or members of it, and the interpolated input `fine` (4, ...); missing:
        coarse."""
        alone, _, known, lifted = fine
        z = self.floor + y * (self.ceiling - self.floor)
        # The network saw cells below its floor as the floor; next to them it says too much by lifted - known.
        weight = (1 - (z - self.floor) / RIM_DB).clamp(0, 1)
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
    """True within `radius` pixels of a true pixel, in rows and columns, (H, W) bool."""
    around = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * radius + 1, 2 * radius + 1))
    return torch.from_numpy(cv2.dilate(mask.numpy().astype(np.uint8), around)) > 0
