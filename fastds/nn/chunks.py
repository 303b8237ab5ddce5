# SPDX-License-Identifier: Apache-2.0
"""Chunked inference that keeps intermediate feature maps in the processor's cache.

Without gradients the intermediate maps of a chain of layers are not needed afterwards. Therefore each chunk of frames,
or each band of rows, passes through the whole chain before the next one starts. The intermediate maps of a chunk fit in
the cache and reuse the memory of the previous chunk's maps, so that no new pages are mapped.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Chunks are chosen so that the largest feature map of a chain of layers has at most this size. It is half of a core's
# typical share of the last-level cache, and small enough that glibc keeps the memory of a freed map.
WORKING_SET_BYTES = 12 << 20


def can_chunk(x: Tensor) -> bool:
    """Return True if inference may run in chunks: x is on the CPU, without gradients and outside torch.compile."""
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def get_frames_per_chunk(x: Tensor, channels: int | None = None) -> int | None:
    """Return the number of frames in a chunk, at least 1, or None if inference should not be chunked.

    Args:
        x: (B, C, H, W), input.
        channels: largest number of channels in the chain. None: C.
    """
    if not can_chunk(x):
        return None
    return max(1, WORKING_SET_BYTES // max(1, (channels or x.shape[1]) * x.shape[2] * x.shape[3] * x.element_size()))


def apply_in_chunks(chain: Callable[..., Tensor], *maps: Tensor, channels: int | None = None) -> Tensor:
    """Apply a chain of layers to chunks of the batch and concatenate the results.

    Args:
        chain: chain(*maps) returns a tensor (B, ...).
        *maps: inputs (B, ...).
        channels: largest number of channels in the chain, see get_frames_per_chunk.
    """
    frames = get_frames_per_chunk(maps[0], channels)
    if frames is None or frames >= maps[0].shape[0]:
        return chain(*maps)
    return torch.cat([chain(*part) for part in zip(*(z.split(frames) for z in maps), strict=True)])


def split_rows(height: int, row_bytes: int, halo: int) -> list[tuple[int, int, int, int]]:
    """Split an image into bands of rows with a halo.

    Args:
        height: rows of the image.
        row_bytes: bytes of a row of the largest map.
        halo: rows that are read on either side of a band, as far as the image extends.

    Returns:
        list of (first, last, start, stop). The band has the rows first:last and reads the rows start:stop. The number
        of rows is a multiple of four in every band but the last.
    """
    rows = max(4, WORKING_SET_BYTES // max(1, row_bytes) // 4 * 4)
    bands = []
    for first in range(0, height, rows):
        last = min(height, first + rows)
        bands.append((first, last, max(0, first - halo), min(height, last + halo)))
    return bands
