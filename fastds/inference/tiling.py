# SPDX-License-Identifier: Apache-2.0
"""Tiled inference: split a coarse grid into tiles with halos, run a network on each tile, measure receptive fields.

A tile is a core and a halo on each side, clipped at the edge of the domain. Core origins and halos are multiples of 16
coarse pixels, so that the strided levels of a network are aligned as on the whole grid. The tiled result equals the
untiled result if the halo covers the receptive field. The optical flow of a tile is cut from the flow of whole frames.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastds._options import OptionError

ALIGNMENT = 16
# Smaller changes of the output, in dBZ, do not count for the receptive field.
RESPONSE_TOLERANCE_DBZ = 1e-3
_PROBE_WIDTH = 16
# Margin in pixels of the test field in which changes of the output are ignored. Learned offsets may point out of the
# field, so that the output near the edge depends slightly on distant pixels.
_PROBE_MARGIN = 32
_PROBE_MAX_WIDTH = 1024


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile on the coarse grid.

    Attributes:
        window: rows and columns that are read, as slices.
        core: rows and columns inside the window whose results are used, as slices.
    """

    window: tuple[slice, slice]
    core: tuple[slice, slice]

    def core_in_window(self, scale: int = 1) -> tuple[slice, slice]:
        """Return the slices of the core within the window, on a grid that is `scale` times finer."""
        rows, columns = (
            slice((c.start - w.start) * scale, (c.stop - w.start) * scale)
            for c, w in zip(self.core, self.window, strict=True)
        )
        return rows, columns


def check_multiple(name: str, value: int, minimum: int) -> int:
    """Check an option that must be a multiple of ALIGNMENT.

    Args:
        name: name of the option.
        value: value of the option, in coarse pixels.
        minimum: smallest valid value.

    Returns:
        The value as int.

    Raises:
        ValueError: value is not a multiple of ALIGNMENT or is less than minimum.
    """
    if isinstance(value, bool) or int(value) != value or value < minimum or value % ALIGNMENT:
        raise OptionError(
            name, f"must be a multiple of {ALIGNMENT} and at least {minimum} (pixels of the input grid), got {value!r}"
        )
    return int(value)


def plan_tiles(height: int, width: int, tile: int, halo: int) -> list[Tile]:
    """Return tiles, in row order, whose cores cover a grid without overlap.

    Args:
        height: number of rows of the coarse grid.
        width: number of columns of the coarse grid.
        tile: side of a core in coarse pixels, a multiple of 16, at least 16.
        halo: width of the halo in coarse pixels, a multiple of 16, at least 0.

    Raises:
        ValueError: tile or halo is not a multiple of 16 or is too small.
    """
    tile, halo = check_multiple("tile", tile, ALIGNMENT), check_multiple("halo", halo, 0)

    def split_axis(size: int) -> list[tuple[slice, slice]]:
        cores = [slice(start, min(start + tile, size)) for start in range(0, size, tile)]
        return [(slice(max(c.start - halo, 0), min(c.stop + halo, size)), c) for c in cores]

    return [
        Tile((row_window, column_window), (row_core, column_core))
        for row_window, row_core in split_axis(height)
        for column_window, column_core in split_axis(width)
    ]


def run_tiles(
    network: Callable,
    sequences: Sequence[torch.Tensor],
    flows: Sequence[torch.Tensor] | None,
    tiles: list[Tile],
    scale: int,
    after_tile: Callable | None = None,
    static: torch.Tensor | None = None,
    batch_size: int = 1,
    channels: Sequence[torch.Tensor] | None = None,
    contexts: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Run a network tile by tile and assemble the outputs of the cores.

    A tile is skipped if its window of the sequence is zero everywhere; its output is then zero.

    Args:
        network: function (x (k, N, 1 + D, h, w), flow (k, N-1, 2, 2, h, w) or None[, static][, context=(k, 2, 1, h,
            w)]) -> (k, T, 1, scale*h, scale*w).
        sequences: tensors (N, H, W) in [0, 1].
        flows: for each sequence, the optical flow (N-1, 2, 2, H, W) of whole frames in coarse pixels; None: no flow.
        tiles: see plan_tiles.
        scale: ratio of the fine and the coarse grid.
        after_tile: function without arguments that is called after each tile; None: no function.
        static: static maps (S, H, W), passed to the network as (k, S, h, w); None: no third argument.
        batch_size: maximum number k of windows of one size in a batch.
        channels: for each sequence, additional channels (N, D, H, W) of x; None: no additional channels.
        contexts: for each sequence, the frames (2, H, W) before and after it in [0, 1], NaN where not known; None: no
            such argument.

    Returns:
        For each sequence, the output (T, scale*H, scale*W), T = 2 N - 1.
    """
    out = [x.new_zeros(2 * len(x) - 1, *(scale * size for size in x.shape[-2:])) for x in sequences]

    def run(windows: list[tuple[int, Tile]]) -> None:
        x = torch.stack([sequences[k][_index_window(tile.window)] for k, tile in windows])[:, :, None]
        if channels is not None:
            x = torch.cat([x, torch.stack([channels[k][_index_window(tile.window)] for k, tile in windows])], 2)
        inputs: list[torch.Tensor | None] = [x]
        inputs += [
            None if flows is None else torch.stack([flows[k][_index_window(tile.window)] for k, tile in windows])
        ]
        inputs += [] if static is None else [torch.stack([static[_index_window(tile.window)] for _, tile in windows])]
        options = {}
        if contexts is not None:
            around = torch.stack([contexts[k][_index_window(tile.window)] for k, tile in windows])
            options["context"] = around[:, :, None]
        for (k, tile), y in zip(windows, network(*inputs, **options)[:, :, 0].float(), strict=True):
            rows, columns = (slice(c.start * scale, c.stop * scale) for c in tile.core)
            out[k][_index_window((rows, columns))] = y[_index_window(tile.core_in_window(scale))]

    waiting: dict[Any, list[tuple[int, Tile]]] = collections.defaultdict(list)
    for k, tile in itertools.product(range(len(sequences)), tiles):
        part = sequences[k][_index_window(tile.window)]
        if part.any():
            batch = waiting[part.shape]
            batch.append((k, tile))
            if len(batch) == batch_size:
                run(batch)
                batch.clear()
        if after_tile is not None:
            after_tile()
    for batch in filter(None, waiting.values()):
        run(batch)
    return out


def _index_window(window: tuple[slice, slice]) -> tuple:
    """Return the index of a window in the last two dimensions."""
    return (..., *window)


def measure_receptive_field(
    network: Callable, scale: int, amplitude_dbz: float, motion: float = 0.0, uses_flow: bool = True
) -> int:
    """Measure the receptive field of a network: the largest distance at which a changed pixel changes the output.

    The pixels of a strip of a random field are changed. The receptive field is the distance of the farthest output that
    changes by more than 1e-3 dBZ, for optical flows of -motion, 0 and +motion pixels along x. The field is enlarged
    until the receptive field is well inside it, up to a limit. The result is deterministic.

    Args:
        network: see run_tiles.
        scale: ratio of the fine and the coarse grid.
        amplitude_dbz: difference in dBZ between the values 0 and 1.
        motion: motion in coarse pixels.
        uses_flow: whether the network reads an optical flow.

    Returns:
        The receptive field in coarse pixels.
    """
    width = 256
    while True:
        field = max(
            _measure_response(network, scale, amplitude_dbz, width, m, uses_flow)
            for m in sorted({-motion, 0.0, motion})
        )
        if field < (width - _PROBE_WIDTH) // 2 - _PROBE_MARGIN - ALIGNMENT or width >= _PROBE_MAX_WIDTH:
            return field
        width *= 2


def _measure_response(
    network: Callable, scale: int, amplitude_dbz: float, width: int, motion: float, uses_flow: bool
) -> int:
    generator = torch.Generator().manual_seed(0)
    height = 2 * _PROBE_MARGIN + ALIGNMENT
    # Bilinear interpolation of random numbers: smooth, like rain.
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
    moved = torch.nonzero((inner > RESPONSE_TOLERANCE_DBZ).flatten(0, -2).any(0)).flatten() + margin
    if not len(moved):
        return 0
    first, last = int(moved[0]) // scale, int(moved[-1]) // scale
    return max(start - first, last - (start + _PROBE_WIDTH - 1), 0)


def round_up(value: float) -> int:
    """Round up to a multiple of 16."""
    return ALIGNMENT * math.ceil(value / ALIGNMENT)


def choose_tile(height: int, width: int, halo: int, pixel_bytes: float, budget_bytes: float) -> int | None:
    """Choose the largest core side whose window fits a memory budget.

    Args:
        height: number of rows of the coarse grid.
        width: number of columns of the coarse grid.
        halo: width of the halo in coarse pixels.
        pixel_bytes: working memory in bytes per coarse pixel of a window.
        budget_bytes: memory budget in bytes.

    Returns:
        A multiple of 16, at least 16, or None if the whole grid fits.
    """
    if height * width * pixel_bytes <= budget_bytes:
        return None
    side = int(math.sqrt(budget_bytes / pixel_bytes)) - 2 * halo
    return max(ALIGNMENT, side // ALIGNMENT * ALIGNMENT)
