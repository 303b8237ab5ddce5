# SPDX-License-Identifier: Apache-2.0
"""Test regions of the WGAN-GP study, divided into days and tiles."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from fastds.data.samples.fields import coarsen_fields
from fastds.tasks.humidity.config import DataConfig
from fastds.tasks.humidity.samples import find_sources, read_regions


@dataclasses.dataclass
class Region:
    """A test region.

    Attributes:
        name: label.
        days: fine fields (days, T, H, W) in the unit of the file.
        coarse: the coarsened fields.
        tiles: (rows, columns) of the tiles that are scored separately.
    """

    name: str
    days: Tensor
    coarse: Tensor
    tiles: list[tuple[slice, slice]]

    def __len__(self) -> int:
        return len(self.days) * len(self.tiles)


def read_test_regions(config: DataConfig, scale: int, tile: int) -> list[Region]:
    """Read the test regions of a training.

    Args:
        config: data configuration of the training.
        scale: downscaling factor of its generator.
        tile: side of the tiles in grid points.
    Raises:
        FileNotFoundError, ValueError: if no region has a whole day and a whole tile.
    """
    found, config = [], find_sources(config)
    for name, source in (config.sources or {pathlib.Path(config.path).name: {}}).items():
        regions = read_regions(dataclasses.replace(config, sources={name: source}), "test")
        for k, region in enumerate(regions):
            label = name if len(regions) == 1 else f"{name} {k + 1}"
            found.append(_cut(label, region * config.range + config.offset, config, scale, tile))
    found = [region for region in found if len(region)]
    if not found:
        raise ValueError(
            f"data.path: the training names no test region of {config.steps} times and {tile} x {tile} points"
        )
    return found


def _cut(name: str, fields: Tensor, config: DataConfig, scale: int, tile: int) -> Region:
    """Crop fields (T, H, W) to whole days and to multiples of the scale."""
    count = len(fields) // config.steps
    h, w = (n - n % scale for n in fields.shape[1:])
    days = fields[: count * config.steps, :h, :w].unflatten(0, (count, config.steps))
    corners = [(i, j) for i in range(0, h - tile + 1, tile) for j in range(0, w - tile + 1, tile)]
    tiles = [(slice(i, i + tile), slice(j, j + tile)) for i, j in corners]
    return Region(name, days, coarsen_fields(days, scale, config.coarsening), tiles)


def make_sample_labels(regions: Iterable[Region]) -> np.ndarray:
    """Return (samples, 2), the numbers of day and tile of each sample; the samples are the tiles of each day."""
    labels, days, tiles = [], 0, 0
    for region in regions:
        labels += [(days + d, tiles + t) for d in range(len(region.days)) for t in range(len(region.tiles))]
        days, tiles = days + len(region.days), tiles + len(region.tiles)
    return np.array(labels)
