# SPDX-License-Identifier: Apache-2.0
"""Inference in pieces that stay in cache.

Without gradients nothing of a chain of layers need outlive it, so each frame, or each band of rows, goes through the
whole chain before the next one starts. The maps between the layers then fit in the cache and reuse the same memory;
whole batches of large maps cost twice the time of their convolutions in fresh pages.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Bytes of the largest map inside a chain; half of a usual last-level cache share, below the size from which the C
# library returns memory to the system after each use.
WORKING_SET_BYTES = 12 << 20


def can_chunk(x: Tensor) -> bool:
    """Whether to work in pieces: on the CPU, without gradients, outside of compilation."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def get_frames_per_chunk(x: Tensor, channels: int | None = None) -> int | None:
    """Frames of x (B, C, H, W) to work on together, at least one; channels: of the widest map in the chain, C if None.

    None: no limit, without pieces (see pieces_pay).
    """
    if not can_chunk(x):
        return None
    return max(1, WORKING_SET_BYTES // max(1, (channels or x.shape[1]) * x.shape[2] * x.shape[3] * x.element_size()))


def apply_in_chunks(chain: Callable[..., Tensor], *maps: Tensor, channels: int | None = None) -> Tensor:
    """chain(*maps) over pieces of the batch; channels as in frames_at_once, all maps (B, ...)."""
    frames = get_frames_per_chunk(maps[0], channels)
    if frames is None or frames >= maps[0].shape[0]:
        return chain(*maps)
    return torch.cat([chain(*part) for part in zip(*(z.split(frames) for z in maps), strict=True)])


def split_rows(height: int, row_bytes: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Bands (first, last, start, stop) that cover `height` rows: rows first:last are wanted, start:stop are read.

    Bands are multiples of four rows; halo rows are read on either side where the field has them.
    """
    rows = max(4, WORKING_SET_BYTES // max(1, row_bytes) // 4 * 4)
    bands = []
    for first in range(0, height, rows):
        last = min(height, first + rows)
        bands.append((first, last, max(0, first - halo), min(height, last + halo)))
    return bands
