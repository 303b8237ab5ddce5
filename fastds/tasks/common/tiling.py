# SPDX-License-Identifier: Apache-2.0
"""Cut a coarse grid into tiles with halos, run a network tile by tile, and measure how far a network reaches.

A tile is its core plus a halo on each side, clipped at the border of the domain. Core origins and halos are multiples
of 16 coarse pixels, so that the strided levels of a network fall on the same pixels as on the whole grid. Tiled equals
untiled where the halo covers the network's reach; the optical flow is always cut from the flow of whole frames.
Measured with fczsm-small on seven radars, tiles of 32 to 96, halo 48: 0.01 dBZ at most, and 0.15 dBZ in the outermost
20 fine pixels of the domain, where the network responds to distant echo.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import torch

ALIGNMENT = 16
# A response to a change of the input below this many dBZ counts as none.
REACH_TOLERANCE_DBZ = 1e-3
_PROBE_WIDTH = 16
# Pixels at the border of the probing field that do not count: trained networks respond there to distant changes
# (learned offsets that point across the field), by some hundredths of a dBZ, and a halo cuts the borders of tiles off.
_PROBE_MARGIN = 32
_PROBE_WIDEST = 1024


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows and columns of the coarse grid: `window` is read, `core` inside it is kept; both (rows, columns) slices."""

    window: tuple[slice, slice]
    core: tuple[slice, slice]

    def core_in_window(self, scale: int = 1) -> tuple[slice, slice]:
        """The core's place inside the window, on a grid `scale` times as fine."""
        return tuple(
            slice((c.start - w.start) * scale, (c.stop - w.start) * scale)
            for c, w in zip(self.core, self.window, strict=True)
        )


def check_multiple(name: str, value: int, minimum: int) -> int:
    """Return value as int; ValueError unless it is a multiple of 16 and at least `minimum` (coarse pixels)."""
    if isinstance(value, bool) or int(value) != value or value < minimum or value % ALIGNMENT:
        raise ValueError(
            f"{name} must be a multiple of {ALIGNMENT} and at least {minimum} (pixels of the input grid), got {value!r}"
        )
    return int(value)


def plan_tiles(height: int, width: int, tile: int, halo: int) -> list[Tile]:
    """Return the tiles, in row order, whose cores cover a (height, width) grid without overlap.

    tile: side of a core, a multiple of 16, >= 16. halo: a multiple of 16, >= 0. All in coarse pixels. Raises ValueError
    otherwise.
    """
    tile, halo = check_multiple("tile", tile, ALIGNMENT), check_multiple("halo", halo, 0)

    def cuts(size: int) -> list[tuple[slice, slice]]:
        cores = [slice(start, min(start + tile, size)) for start in range(0, size, tile)]
        return [(slice(max(c.start - halo, 0), min(c.stop + halo, size)), c) for c in cores]

    return [
        Tile((row_window, column_window), (row_core, column_core))
        for row_window, row_core in cuts(height)
        for column_window, column_core in cuts(width)
    ]


def run_tiles(
    network: Callable,
    sequences: Sequence[torch.Tensor],
    flows: Sequence[torch.Tensor] | None,
    tiles: list[Tile],
    scale: int,
    after_tile: Callable | None = None,
    static: torch.Tensor | None = None,
    at_once: int = 1,
    further: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Return the network's output (T, scale*H, scale*W) for each sequence (N, H, W) in [0, 1], assembled from the cores
    of the tiles.

    network: callable (x (k, N, 1 + D, h, w), flow (k, N-1, 2, 2, h, w) or None) -> (k, T, 1, scale*h, scale*w).
    flows: (N-1, 2, 2, H, W) of each sequence's whole frames, in coarse pixels. static: (S, H, W), a third argument
    (k, S, h, w) of the network where it is given. at_once: k, how many windows of one size the network gets at most.
    further: (N, D, H, W) of each sequence, the channels of x behind the first; None: D is 0. A tile whose window of a
    sequence is zero everywhere is not run: its output is zero (no echo anywhere within the halo). after_tile: called
    without arguments after each tile.
    """
    out = [x.new_zeros(2 * len(x) - 1, *(scale * size for size in x.shape[-2:])) for x in sequences]

    def run(windows: list[tuple[int, Tile]]) -> None:
        x = torch.stack([sequences[k][_inside(tile.window)] for k, tile in windows])[:, :, None]
        if further is not None:
            x = torch.cat([x, torch.stack([further[k][_inside(tile.window)] for k, tile in windows])], 2)
        given = [x]
        given += [None if flows is None else torch.stack([flows[k][_inside(tile.window)] for k, tile in windows])]
        given += [] if static is None else [torch.stack([static[_inside(tile.window)] for _, tile in windows])]
        for (k, tile), y in zip(windows, network(*given)[:, :, 0].float(), strict=True):
            core = tuple(slice(c.start * scale, c.stop * scale) for c in tile.core)
            out[k][_inside(core)] = y[_inside(tile.core_in_window(scale))]

    waiting = collections.defaultdict(list)
    for k, tile in itertools.product(range(len(sequences)), tiles):
        part = sequences[k][_inside(tile.window)]
        if part.any():
            alike = waiting[part.shape]
            alike.append((k, tile))
            if len(alike) == at_once:
                run(alike)
                alike.clear()
        if after_tile is not None:
            after_tile()
    for alike in filter(None, waiting.values()):
        run(alike)
    return out


def _inside(window: tuple[slice, slice]) -> tuple:
    """The index of a window in the last two dimensions."""
    return (..., *window)


def network_reach(
    network: Callable, scale: int, amplitude_dbz: float, motion: float = 0.0, uses_flow: bool = True
) -> int:
    """Return how many coarse pixels away from a changed pixel the network's output still changes, by trial.

    A strip of a random field is changed; the reach is the distance of the farthest output that moves by more than 1e-3
    dBZ, for flows of -motion, 0 and +motion pixels along the row. network as in run_tiles; amplitude_dbz: dBZ of 1 in
    [0, 1]. Deterministic. The field is doubled until the reach is well inside it.
    """
    width = 256
    while True:
        reach = max(_probe(network, scale, amplitude_dbz, width, m, uses_flow) for m in sorted({-motion, 0.0, motion}))
        if reach < (width - _PROBE_WIDTH) // 2 - _PROBE_MARGIN - ALIGNMENT or width >= _PROBE_WIDEST:
            return reach
        width *= 2


def _probe(network: Callable, scale: int, amplitude_dbz: float, width: int, motion: float, uses_flow: bool) -> int:
    generator = torch.Generator().manual_seed(0)
    height = 2 * _PROBE_MARGIN + ALIGNMENT
    # Smooth in scale like rain, not white: bilinear blow-up of random numbers.
    seed = torch.rand(1, 2, height // 4, width // 4, generator=generator)
    x = torch.nn.functional.interpolate(seed, scale_factor=4, mode="bilinear")[:, :, None] * 0.6
    flow = None
    if uses_flow:
        flow = torch.zeros(1, 1, 2, 2, height, width)
        flow[:, :, 0, 1], flow[:, :, 1, 1] = motion, -motion
    start = (width - _PROBE_WIDTH) // 2
    changed = x.clone()
    changed[..., start : start + _PROBE_WIDTH] += 0.4 * torch.rand(1, 2, 1, height, _PROBE_WIDTH, generator=generator)
    difference = (network(x, flow) - network(changed, flow)).float().abs() * amplitude_dbz
    margin = scale * _PROBE_MARGIN
    inner = difference[..., margin:-margin, margin:-margin]
    moved = torch.nonzero((inner > REACH_TOLERANCE_DBZ).flatten(0, -2).any(0)).flatten() + margin
    if not len(moved):
        return 0
    first, last = moved[0].item() // scale, moved[-1].item() // scale
    return max(start - first, last - (start + _PROBE_WIDTH - 1), 0)


def round_up(value: float) -> int:
    """The smallest multiple of 16 that is not below value."""
    return ALIGNMENT * math.ceil(value / ALIGNMENT)


def choose_tile(height: int, width: int, halo: int, pixel_bytes: float, budget_bytes: float) -> int | None:
    """Return the largest core side (a multiple of 16) whose window fits the memory budget, None where the whole grid
    does.

    pixel_bytes: working memory per coarse pixel of a window. A core of at least 16 pixels is always returned.
    """
    if height * width * pixel_bytes <= budget_bytes:
        return None
    side = int(math.sqrt(budget_bytes / pixel_bytes)) - 2 * halo
    return max(ALIGNMENT, side // ALIGNMENT * ALIGNMENT)
