# SPDX-License-Identifier: Apache-2.0
"""Test crops of a region, and the errors of a method on them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastds.tasks.fields.evaluation import make_coarse_and_fine

BANDS = 4  # latitude bands; bands and times are drawn by the bootstrap
_AT_ONCE = 8  # crops predicted in one batch


class Crop(NamedTuple):
    """A window of fine pixels: time, latitude band, first row and first column."""

    time: int
    band: int
    row: int
    column: int


def draw_crops(shape: tuple[int, ...], size: int | None, per_cell: int, seed: int) -> list[Crop]:
    """Draw `per_cell` random crops for every time and latitude band.

    Args:
        shape: shape of the fields (T, C, H, W).
        size: side of the crops; None: each field whole.
        per_cell: crops of each time and band.
        seed: random seed.

    Raises:
        ValueError: if the fields are smaller than the crops.
    """
    times, _, rows, columns = shape
    if size is None:
        return [Crop(time, 0, 0, 0) for time in range(times)]
    if min(rows, columns) < size:
        raise ValueError(f"test region of {rows} x {columns} is smaller than the crops of {size} x {size}")
    g = torch.Generator().manual_seed(seed)
    edges = torch.linspace(0, rows - size + 1, BANDS + 1).round().int().tolist()
    draw = lambda low, stop: int(torch.randint(low, max(low + 1, stop), (), generator=g))  # noqa: E731
    return [
        Crop(time, band, draw(min(edges[band], rows - size), edges[band + 1]), draw(0, columns - size + 1))
        for time in range(times)
        for band in range(BANDS)
        for _ in range(per_cell)
    ]


def compute_crop_errors(
    predict: Callable,
    fields: Tensor,
    crops: list[Crop],
    size: int | None,
    scale: tuple[float, float],
    degrade: Callable | None = None,
) -> list[list[float]]:
    """Compute the mean squared error of a method on crops.

    A margin of ceil(s) + 6 fine pixels at every border is excluded, where s is the factor along the axis.

    Args:
        predict: predict(x, size) returns fine fields.
        fields: (T, C, H, W) fine fields.
        crops: the crops.
        size: side of the crops; None for whole fields.
        scale: downscaling factors of rows and columns.
        degrade: degrade(fine, coarse size, number of the first crop) makes the inputs; None for area means.

    Returns:
        (crops, C) in squared units of the fields.
    """
    result = []
    shave = [int(-(-s // 1)) + 6 for s in scale]
    for first in range(0, len(crops), _AT_ONCE):
        windows = [cut_crop(fields[c.time], c, size) for c in crops[first:][:_AT_ONCE]]
        x, y = make_coarse_and_fine(torch.stack(windows), scale)
        if degrade is not None:
            x = degrade(y, tuple(x.shape[2:]), first)
        error = (predict(x, tuple(y.shape[2:])) - y)[..., shave[0] : -shave[0], shave[1] : -shave[1]]
        result += error.double().square().mean((2, 3)).tolist()
    return result


def cut_crop(field: Tensor, crop: Crop, size: int | None) -> Tensor:
    """Cut a crop out of a field.

    Args:
        field: (C, H, W).
        crop: position of the crop.
        size: side of the crop in pixels; None for the whole field.

    Returns:
        (C, size, size), or the field from the first row and column of the crop to its end if size is None.
    """
    stop = [None, None] if size is None else [crop.row + size, crop.column + size]
    return field[:, crop.row : stop[0], crop.column : stop[1]]
