# SPDX-License-Identifier: Apache-2.0
"""Maps of a whole globe in bands of rows, with the rows beyond the poles."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastds.models.baselines.interpolation import bilinear_at
from fastds.models.graph import capturing
from fastds.ops import GridSpec, PointSpec
from fastds.ops.impl.conv3x3.algorithm import assume_height
from fastds.ops.impl.inr_query.points import Axis

POLES = ("clamp", "cross")
HALO = 16  # rows; whole tiles of the convolution engine


def across_poles(z: Tensor, registration: str, vector_channels: list[int]) -> tuple[Tensor, int]:
    """z (B, C, H, W) with rows beyond both poles, and how many on each side.

    Row -k is row k (nodes: the pole itself is row 0) or row k-1 (cells), turned by half a circle; vector components
    change sign.

    Raises:
        ValueError: an odd number of columns.
    """
    height, width = z.shape[2:]
    if width % 2:
        raise ValueError(f"pole='cross' needs an even number of columns, got {width}")
    first = 1 if registration == "node" else 0
    halo = min(HALO, height - first)
    other = torch.cat(z.split([width // 2] * 2, 3)[::-1], 3)
    if vector_channels:
        sign = z.new_ones(z.shape[1])
        for channel in vector_channels:
            sign[channel] = -1
        other = other * sign[:, None, None]
    north = other[:, :, first : first + halo].flip(2)
    south = other[:, :, height - first - halo : height - first].flip(2)
    return torch.cat([north, z, south], 2), halo


BAND_ROWS = 16  # of the field; its maps are the memory, what a band reads twice at its ends the cost
_TILE = 4  # rows of a tile of the convolution engine: bands on its tiles give the bits of the whole field


class Encoded(NamedTuple):
    """What a decoder needs of a field: features (B, C, H, W), skip field in physical units or None, mask of
    valid pixels or None, spread (B, O, H, W), the units of what the decoder adds to the skip field, or None."""

    features: Tensor
    skip: Tensor | None
    mask: Tensor | None
    spread: Tensor | None = None

    def rows(self, first: int, stop: int) -> "Encoded":
        """The same of some rows."""
        maps = (None if t is None else t[..., first:stop, :] for t in self)
        return Encoded(*maps)


def decode(
    decoder: nn.Module,
    encoded: Encoded,
    where: GridSpec | PointSpec,
    cell: Tensor,
    edge: tuple[str, str],
    gain: Tensor | None = None,
) -> Tensor:
    """decoder's values (B, Q, O) at `where`; without gradients, grids in bands of BAND_ROWS with maps of their own."""

    def query(part: Encoded, where: GridSpec | PointSpec, cell: Tensor) -> Tensor:
        maps = decoder.prepare(part.features)
        if part.spread is None:
            return decoder.query(maps, where, cell, part.skip, edge, part.mask, gain=gain)
        added = decoder.query(maps, where, cell, None, edge, part.mask, gain=gain)
        plain, spread = bilinear_at(torch.cat([part.skip, part.spread], 1), where, edge, part.mask).chunk(2, 2)
        return torch.addcmul(plain, spread, added)

    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return query(encoded, where, cell)
    height, y = encoded.features.shape[2], None
    for queries, part in _bands(where):
        of_band = cell if cell.dim() == 2 else cell[:, queries]
        first, stop = _rows_read(part, of_band, height)
        with assume_height(height):
            values = query(encoded.rows(first, stop), _moved(part, -first), of_band)
        if values.shape[1] == where.count:
            return values
        y = values.new_empty((values.shape[0], where.count, values.shape[2])) if y is None else y
        y[:, queries] = values
    return y


def _bands(where: GridSpec | PointSpec) -> Iterator[tuple[slice, GridSpec | PointSpec]]:
    """(queries, where they are); points and grids coarser than the field as one band."""
    if isinstance(where, PointSpec) or where.rows.step > where.rows.den or not where.count:
        yield slice(0, where.count), where
        return
    height, width = where.size
    rows = BAND_ROWS * where.rows.den // where.rows.step if where.rows.step else height
    for first in range(0, height, rows):
        stop = min(height, first + rows)
        yield slice(first * width, stop * width), where.window((first, stop), (0, width))


def _rows_read(where: GridSpec | PointSpec, cell: Tensor, height: int) -> tuple[int, int]:
    """Rows [first, stop), whole tiles, that hold the corners of all queries and a row around them."""
    if not where.count:
        return 0, height
    if isinstance(where, GridSpec):
        a = where.rows
        fine, low, high = a.step <= a.den, a.start // a.den, (a.start + a.step * (a.size - 1)) // a.den
    elif cell.device.type == "cpu" and not capturing():
        rows = where.base[..., 0]
        fine, low, high = bool(cell[..., 0].max() <= 2), rows.min().item(), rows.max().item()
    else:  # reading the rows of points would wait for the device, and a graph reads none
        fine = False
    if not fine:  # MetaSR's corner of a wide cell lies rows away
        return 0, height
    low, high = (min(max(row, 0), height - 1) for row in (low, high))
    # Corners are rows low .. high + 1; published area weights and MetaSR's corner may read one further.
    return max(0, low - 1) // _TILE * _TILE, min(height, -(-(high + 4) // _TILE) * _TILE)


def _moved(where: GridSpec | PointSpec, rows: int) -> GridSpec | PointSpec:
    """The same places in a field that begins `rows` rows later."""
    if isinstance(where, GridSpec):
        a = where.rows
        return GridSpec(Axis(a.size, a.step, a.start + rows * a.den, a.den), where.columns)
    return PointSpec(where.base + where.base.new_tensor([rows, 0]), where.frac, where.outside) if rows else where
