# SPDX-License-Identifier: Apache-2.0
"""From coarse frames of reflectivity to fine frames at half the interval, pair by pair, with dry and weak pixels kept
as they are.

The network sees reflectivity scaled to [0, 1] between the floor and the ceiling of its card, so weaker echo and no echo
are the same to it. A fine pixel takes the network's value (at the rim of echo less what interpolation with cells below
the floor gains by lifting those to the floor) where that is above the floor and echo is near. Elsewhere it takes the
interpolated input (bicubic in space, along the optical flow in time), and it is no echo where the input is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from fastds.data import prepare
from fastds.data.io.output import coarsen_with_weak_echo
from fastds.models.baselines import advection, optical_flow
from fastds.tasks.common.tiling import Tile, run_tiles

# Echo weaker than this is kept but means nothing in interpolation next to stronger echo, dBZ.
WEAKEST_DBZ = 0.0
# The rim: the network's values within this many dB of its floor are corrected for cells below the floor nearby, less
# and less upwards. Measured with fczsm-small on five radars: without it the squared error above 0 dBZ is 1.6 to 7 times
# as large and CSI at 15 dBZ 0.06 to 0.37 lower; the squared error above 15 dBZ is up to 4 % smaller.
RIM_DB = 3.0
# The network's echo counts within this many coarse pixels, plus the motion, of echo above the floor in the input.
NEAR_PIXELS = 4
# Reflectivity is scaled by this many dB around warps, which expect numbers in [0, 1].
_DB_SPAN = 128.0
# Below this share of echo the interpolated value means nothing.
_LEAST_SHARE = 0.05


class FrameRefiner:
    """Refine sequences of coarse frames (H, W) in dBZ, NaN = missing, values <= no_echo = no echo.

    network: callable as in tiling.run_tiles. scale: finer by this factor in space. floor, ceiling, no_echo: dBZ. tiles:
    list of Tile over the coarse grid. after_tile: called after each tile of each pair. static: see run_tiles.
    Attributes: `motion_px`, the largest 95th percentile of the displacement over echo, coarse pixels per input step;
    `observe`, a callable (x (2, H, W), flow) run before each pair, or None.
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
    ):
        self.network, self.scale, self.tiles, self.after_tile = network, scale, tiles, after_tile
        self.static = static
        self.floor, self.ceiling, self.no_echo = floor, ceiling, no_echo
        # Echo below this counts as this, and dry cells too, where strong echo is interpolated next to weak echo.
        self.low = min(floor, WEAKEST_DBZ)
        self.motion_px = 0.0
        self.observe = None

    def refine(self, frames: Iterable[np.ndarray], time_factor: int = 2) -> Iterator[np.ndarray]:
        """Yield f N - f + 1 fine frames for N coarse ones, f = time_factor 2 or 4; at least two frames.

        Inner input times belong to two pairs; their network output is the mean of both. Factor 4 puts the coarsened
        middle frames of a first pass between the input frames and refines that sequence.
        """
        if time_factor == 4:
            frames = self._with_middle_frames(frames)
        pending = previous = None
        for frame in frames:
            current = torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32))
            if previous is not None:
                y, near, fine = self._pair(previous, current)
                first, first_near = (y[0], near) if pending is None else ((pending[0] + y[0]) / 2, pending[1] | near)
                yield self._outer(first, first_near, fine[0], previous)
                yield self._middle(y[1], near, fine[1], previous, current)
                pending = y[2], near, fine[2]
            previous = current
        if pending is not None:
            yield self._outer(*pending, previous)

    def _with_middle_frames(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The coarse frames with the middle frames of a first pass, averaged back to the coarse grid, between them."""
        previous = None
        for frame in frames:
            current = torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32))
            if previous is not None:
                y, near, fine = self._pair(previous, current)
                middle = self._middle(y[1], near, fine[1], previous, current)
                yield coarsen_with_weak_echo(middle, self.scale, mode="dbz", floor=self.floor, no_echo=self.no_echo)
            yield frame
            previous = current

    def _pair(self, first: torch.Tensor, second: torch.Tensor):
        """Network output (3, rH, rW) in [0, 1], where it counts (rH, rW) bool, and the interpolated input."""
        x = self._scaled(first, second, self.floor)
        echo = (x > 0).any(0)
        flow, motion = _flow(x), 0.0
        if echo.any():
            speed = torch.linalg.vector_norm(flow[0], dim=1)[:, echo]
            self.motion_px = max(self.motion_px, torch.quantile(_thin(speed), 0.95).item())
            motion = speed.max().item()
        if self.observe is not None:
            self.observe(x, flow)
        y = run_tiles(self.network, x, flow, self.tiles, self.scale, self.after_tile, self.static)
        near = self._repeat(_dilate(echo, NEAR_PIXELS + math.ceil(motion)))
        # Weak echo has a motion of its own, which the network's input does not show.
        whole = flow if self.low == self.floor else _flow(self._scaled(first, second, self.low))
        return y, near, self._interpolated(first, second, whole)

    def _scaled(self, first: torch.Tensor, second: torch.Tensor, floor: float) -> torch.Tensor:
        """Both frames (2, H, W), scaled to [0, 1] between floor and the ceiling, missing pixels 0."""
        return torch.stack([prepare(z, floor, self.ceiling) for z in (first, second)])

    def _interpolated(self, first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """The input on the fine grid without the network, (3, 4, rH, rW).

        Channels: reflectivity over its echo alone, share of echo, reflectivity with dry cells at `low`, and the last
        lifted to the floor; all dBZ but the share. Bicubic in space, along the flow in time.
        """
        z = torch.stack([first, second])
        echo = z > self.no_echo
        known = torch.where(echo, z.clamp(min=self.low), self.low)
        channels = [
            torch.where(echo, z - self.no_echo, 0.0),
            echo * _DB_SPAN,
            known - self.low,
            known.clamp(min=self.floor),
        ]
        channels[3] = channels[3] - self.low
        # Halved, so that overshoot stays in [0, 1], where the interpolation cuts.
        stacked = torch.stack(channels, dim=1)[None] / (2 * _DB_SPAN)
        alone, share, known, lifted = (2 * _DB_SPAN * advection(stacked, self.scale, flow[None])[0]).unbind(1)
        share = share / _DB_SPAN
        alone = torch.where(share > _LEAST_SHARE, self.no_echo + alone / share.clamp(min=_LEAST_SHARE), self.no_echo)
        return torch.stack([alone, share, known + self.low, lifted + self.low], dim=1)

    def _outer(self, y: torch.Tensor, near: torch.Tensor, fine: torch.Tensor, given: torch.Tensor) -> np.ndarray:
        """The frame at an input time: no pixel of an input cell without echo gets any."""
        wet = self._repeat(given > self.no_echo)
        return self._merge(y, near & wet, fine, wet, torch.isnan(given))

    def _middle(self, y, near, fine, first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
        """The frame between two: the input's echo carried along the flow from both sides says where it may be wet."""
        near = near & _dilate(fine[1] > _LEAST_SHARE, self.scale)
        return self._merge(y, near, fine, fine[1] >= 0.5, torch.isnan(first) | torch.isnan(second))

    def _merge(self, y, near, fine, wet, missing) -> np.ndarray:
        """One fine frame (rH, rW) in dBZ from the network's y and the interpolated input `fine` (4, rH, rW)."""
        alone, _, known, lifted = fine
        z = self.floor + y * (self.ceiling - self.floor)
        # The network saw cells below its floor as the floor; next to them it says too much by lifted - known.
        weight = (1 - (z - self.floor) / RIM_DB).clamp(0, 1)
        z = (z + weight * (known - lifted)).clamp(max=self.ceiling)
        strong = near & (z > self.floor)
        below = torch.where(alone > self.low, torch.minimum(known, z).clamp(min=self.low), alone)
        below = torch.where(near, below, torch.where(alone > self.low, known, alone)).clamp(self.no_echo, self.floor)
        out = torch.where(strong, z, torch.where(wet, below, self.no_echo))
        return out.masked_fill_(self._repeat(missing), float("nan")).numpy()

    def _repeat(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -1)


def _flow(x: torch.Tensor) -> torch.Tensor:
    """The optical flow (1, 2, 2, H, W) of two frames (2, H, W) in [0, 1], zero where both are dry everywhere."""
    return optical_flow(x[None])[0].float() if x.any() else x.new_zeros(1, 2, 2, *x.shape[-2:])


def _dilate(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """True within `radius` pixels of a true pixel, in rows and columns, (H, W) bool."""
    wide = F.max_pool2d(mask[None].float(), (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(wide, (1, 2 * radius + 1), 1, (0, radius))[0] > 0


def _thin(values: torch.Tensor, limit: int = 1_000_000) -> torch.Tensor:
    """At most `limit` of the values, evenly taken: torch.quantile refuses large inputs."""
    values = values.flatten()
    return values[:: max(1, -(-values.numel() // limit))]
