# SPDX-License-Identifier: Apache-2.0
"""From coarse frames of reflectivity to fine frames at half the interval, pair by pair, with dry and weak pixels kept
as they are.

The network sees reflectivity scaled to [0, 1] between the floor and the ceiling of its card, so it knows nothing below
the floor. A fine pixel takes the network's value where that is above the floor and echo is near; elsewhere it takes the
input interpolated over its echo alone (bilinear in space, along the optical flow in time), cut at the floor; and it is
no echo where the input is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from fastds.data import coarsen, prepare
from fastds.models.baselines import advection, optical_flow

from .tiling import Tile, run_tiles

# The network's values below floor + margin are its floor: half a step of common 8-bit radar products.
FLOOR_MARGIN_DBZ = 0.25
# The network's echo counts within this many coarse pixels, plus the motion, of echo above the floor in the input.
NEAR_PIXELS = 4
# Reflectivity is scaled by this many dB around warps, which expect numbers in [0, 1].
_DB_SPAN = 128.0


class FrameRefiner:
    """Refine sequences of coarse frames (H, W) in dBZ, NaN = missing, values <= no_echo = no echo.

    network: callable as in fastds.tiling.run_tiles. scale: finer by this factor in space. floor, ceiling, no_echo: dBZ.
    tiles: list of Tile over the coarse grid. after_tile: called after each tile of each pair.
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
    ):
        self.network, self.scale, self.tiles, self.after_tile = network, scale, tiles, after_tile
        self.floor, self.ceiling, self.no_echo = floor, ceiling, no_echo
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
                y, near, flow = self._pair(previous, current)
                first, first_near = (y[0], near) if pending is None else ((pending[0] + y[0]) / 2, pending[1] | near)
                yield self._merge(first, first_near, previous, previous > self.no_echo, torch.isnan(previous))
                yield self._merge_middle(y[1], near, previous, current, flow)
                pending = y[2], near
            previous = current
        if pending is not None:
            yield self._merge(*pending, previous, previous > self.no_echo, torch.isnan(previous))

    def _with_middle_frames(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The coarse frames with the middle frames of a first pass, averaged back to the coarse grid, between them."""
        previous = None
        for frame in frames:
            current = torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32))
            if previous is not None:
                y, near, flow = self._pair(previous, current)
                yield self._coarsen(self._merge_middle(y[1], near, previous, current, flow))
            yield frame
            previous = current

    def _coarsen(self, fine: np.ndarray) -> np.ndarray:
        """Block mean of floored reflectivity where above the floor, else of the echo; dry where most pixels are."""
        strong = coarsen(fine, self.scale, floor=self.floor)
        echo = fine > self.no_echo
        share = coarsen(echo.astype(np.float32), self.scale)
        weak = coarsen(np.where(echo, fine, 0), self.scale) / np.maximum(share, 1e-6)
        weak = np.where(share >= 0.5, np.minimum(weak, self.floor), self.no_echo)
        return np.where(np.isnan(strong) | (strong > self.floor), strong, weak).astype(np.float32)

    def _pair(self, first: torch.Tensor, second: torch.Tensor):
        """Network output (3, rH, rW) in [0, 1], where it counts (rH, rW) bool, and the flow (1, 2, 2, H, W)."""
        x = torch.stack([prepare(z, self.floor, self.ceiling) for z in (first, second)])
        echo = (x > 0).any(0)
        flow, motion = x.new_zeros(1, 2, 2, *x.shape[-2:]), 0.0
        if echo.any():
            flow = optical_flow(x[None])[0].float()
            speed = torch.linalg.vector_norm(flow[0], dim=1)[:, echo]
            self.motion_px = max(self.motion_px, torch.quantile(_thin(speed), 0.95).item())
            motion = speed.max().item()
        if self.observe is not None:
            self.observe(x, flow)
        y = run_tiles(self.network, x, flow, self.tiles, self.scale, self.after_tile)
        radius = NEAR_PIXELS + math.ceil(motion)
        near = F.max_pool2d(echo[None].float(), (2 * radius + 1, 1), 1, (radius, 0))
        near = F.max_pool2d(near, (1, 2 * radius + 1), 1, (0, radius))[0] > 0
        return y, self._repeat(near), flow

    def _merge_middle(self, y, near, first, second, flow) -> np.ndarray:
        """The middle frame: the input's echo carried along the flow from both sides says where it may be wet."""
        echo = torch.stack([first > self.no_echo, second > self.no_echo])
        values = torch.stack([first, second])
        scaled = torch.where(echo, (values - self.no_echo) / _DB_SPAN, 0.0)
        # (1, 2 frames, 2 channels, H, W) -> the middle of the three frames
        carried = advection(torch.stack([scaled, echo.float()], dim=1)[None], 1, flow[None])[0, 1]
        share = carried[1].clamp(0, 1)
        field = torch.where(share > 0.05, carried[0] / share.clamp(min=0.05) * _DB_SPAN + self.no_echo, self.no_echo)
        wet = F.max_pool2d((share > 0.05).float()[None], 3, 1, 1)[0] > 0
        missing = torch.isnan(first) | torch.isnan(second)
        return self._merge(y, near & self._repeat(wet), field, share >= 0.5, missing, dry_is_dry=False)

    def _merge(self, y, near, field, echo, missing, dry_is_dry: bool = True) -> np.ndarray:
        """One fine frame (rH, rW) in dBZ from the network's y (rH, rW) and the coarse field with its echo mask (H, W).

        dry_is_dry: no pixel of a coarse cell without echo gets echo from the network.
        """
        weight = self._bilinear(echo.float())
        weak = self._bilinear(torch.where(echo, field, 0.0)) / weight.clamp(min=1e-6)
        weak = weak.clamp(max=self.floor)
        weak_echo = (weight >= 0.5) & (weak > self.no_echo)
        z = (self.floor + y * (self.ceiling - self.floor)).clamp(max=self.ceiling)
        strong = near & (z > self.floor + FLOOR_MARGIN_DBZ)
        if dry_is_dry:
            strong &= self._repeat(echo)
        out = torch.where(strong, z, torch.where(weak_echo, weak, self.no_echo))
        return out.masked_fill_(self._repeat(missing), float("nan")).numpy()

    def _bilinear(self, field: torch.Tensor) -> torch.Tensor:
        return F.interpolate(field[None, None], scale_factor=self.scale, mode="bilinear", align_corners=False)[0, 0]

    def _repeat(self, mask: torch.Tensor) -> torch.Tensor:
        return mask.repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -1)


def _thin(values: torch.Tensor, limit: int = 1_000_000) -> torch.Tensor:
    """At most `limit` of the values, evenly taken: torch.quantile refuses large inputs."""
    values = values.flatten()
    return values[:: max(1, -(-values.numel() // limit))]
