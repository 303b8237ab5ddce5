# SPDX-License-Identifier: Apache-2.0
"""Decoders of arbitrary-scale networks, and decoding of large grids in bands of rows."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.baselines.interpolation import interpolate_at
from fastds.models.card import Network
from fastds.models.graph import is_capturing
from fastds.models.inr.encoders import pad_border
from fastds.nn.convolutions import PaddedConv3x3
from fastds.nn.local_decoders import CLAMPED, LocalAttentionDecoder, LocalDecoder, LocalEnsembleDecoder, Trunk
from fastds.ops import GridSpec, PointSpec, conv3x3
from fastds.ops.impl.conv3x3.algorithm import assume_height
from fastds.ops.impl.inr_query.points import Axis
from fastds.ops.impl.inr_query.reference import Corners


class LTEDecoder(LocalDecoder):
    """Local texture estimator (LTE).

    At each corner, amplitudes times cosines and sines of learned frequencies are the input of an MLP.

    Args:
        channels: channels of the features.
        outputs: number of output channels.
        padding_mode: border of the convolutions.
        width: number of amplitudes and width of the MLP.
        hidden: number of hidden layers.
        compat: see INRDownscaler.

    Source: Lee and Jin 2022; frequencies are (row, column) pairs.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        padding_mode: str,
        width: int = 256,
        hidden: int = 3,
        compat: str | None = None,
    ):
        super().__init__(padding_mode)
        self.compat = compat
        self.amplitude = PaddedConv3x3(channels, width, padding_mode=padding_mode)
        self.frequency = PaddedConv3x3(channels, width, padding_mode=padding_mode)
        self.phase = nn.Parameter(torch.empty(width // 2, 2).uniform_(-(0.5**0.5), 0.5**0.5))
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return torch.cat([self.amplitude(features), self.frequency(features)], 1)

    def options(self) -> dict[str, Any]:
        return {"feature": "fourier", "ensemble": "late", "phase": self.phase, "compat": self.compat}


class MetaSRDecoder(LocalDecoder):
    """MetaSR: a kernel predicted from offset and scale, applied to the features of one pixel.

    The product is factored, so that the kernels are never computed: y_o = <a, G_o> + g_o with a = relu(W1 [rho, 1/s_y]
    + b1) and 3x3 convolutions G and g of the features. Offsets are measured to the upper left corner of the query's
    cell.

    Args:
        channels, outputs, padding_mode: as for LTEDecoder.
        width: width of the hidden layer.

    Source: Hu et al. 2019; the factoring is ours.
    """

    def __init__(self, channels: int, outputs: int, padding_mode: str, width: int = 256):
        super().__init__(padding_mode)
        self.outputs, self.width = outputs, width
        self.first = nn.Linear(3, width)
        bound = width**-0.5
        self.kernels = PaddedConv3x3(channels, outputs * width, padding_mode=padding_mode)
        self.constant = PaddedConv3x3(channels, outputs, padding_mode=padding_mode)
        for parameter in (self.kernels.weight, self.constant.weight):
            nn.init.uniform_(parameter, -bound, bound)
        # The convolutions hold W2 and b2 of the published network, which has no further biases.
        self.kernels.bias, self.constant.bias = None, None

    def prepare(self, features: Tensor) -> Tensor:
        return torch.cat([self.kernels(features), self.constant(features)], 1)

    def query(
        self,
        maps: Tensor,
        where: GridSpec | PointSpec,
        cell: Tensor,
        skip: Tensor | None = None,
        edge: tuple[str, str] = CLAMPED,
        mask: Tensor | None = None,
        gain: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the decoder.

        Args:
            maps: (B, M, H, W), result of prepare.
            where: grid or points with Q queries.
            cell: (B, 2) or (B, Q, 2), size of a query in half pixels of the maps.
            skip: (B, O, H, W), field to interpolate and add, or None.
            edge: for rows and columns "clamp" or "wrap".
            mask: (B, H, W) bool, valid pixels, or None.
            gain: (O,), factor per output channel, or None.

        Returns:
            (B, Q, O).
        """
        if gain is not None:
            depth = gain.repeat_interleave(self.width)
            maps = maps * torch.cat([depth, gain])[:, None, None].to(maps.dtype)
        w, where = self.first.weight, shift_to_upper_left(where, cell)
        options = {
            "feature": "dot",
            "ensemble": "none",
            "rho_w": w[:, :2] / 2,  # rho of the op is in half pixels
            "cell_w": torch.cat([w[:, 2:] / 2, torch.zeros_like(w[:, 2:])], 1),  # 1 / s_y = kappa_y / 2
            "bias": self.first.bias,
        }
        return self.call_inr_query(maps, where, (), cell, skip, edge, mask, **options)


def shift_to_upper_left(where: GridSpec | PointSpec, cell: Tensor) -> GridSpec | PointSpec:
    """Shift queries from the centre to the upper left corner of their cell: u + 1/2 - 1 / (2 s), s = 2 / cell.

    Args:
        where: grid or points.
        cell: (B, 2) or (B, Q, 2), 2 / s per axis.
    """
    if isinstance(where, GridSpec):
        return GridSpec(
            *(Axis(a.size, 2 * a.step, 2 * a.start + a.den - a.step, 2 * a.den) for a in (where.rows, where.columns))
        )
    cell = cell if cell.dim() == 3 else cell[:, None]
    moved = where.frac + 0.5 - cell.to(where.frac.dtype) / 4
    carry = torch.floor(moved.detach())
    return PointSpec((where.base + carry.int()).int(), moved - carry, where.outside)


class CiaoSRDecoder(nn.Module):
    """CiaoSR, local part: attention over four corners with keys and values from MLPs of the unfolded features.

        k_j = U_j * phi_k([U_j, rho_j, kappa]), v_j = U_j * phi_v([U_j, rho_j, kappa])
        alpha = softmax_j <U_nearest, k_j>;  y = phi_q(sum_j alpha_j v_j) + bilinear(x)

    U is the unfolded 3x3 neighbourhood. The corners are the four pixels around the query, as in LIIF. The published
    code shifts the query by (1 - cell) / (n - 1) to find the corners. At factor 2 this gives the same pixels, at factor
    1 it selects one pixel twice.

    The first layers of phi_k and phi_v are linear in U_j and run as one 3x3 convolution of the features.
    fastds.ops.inr_query does not support this decoder, because keys and values are MLPs of the corners and not feature
    maps.

    Args:
        channels, outputs, padding_mode: as for LTEDecoder.
        width: width of the MLPs.
        hidden: number of hidden layers of the MLPs.

    Source: Cao et al. 2023 (CiaoSR), local part.
    """

    def __init__(self, channels: int, outputs: int, padding_mode: str, width: int = 256, hidden: int = 3):
        super().__init__()
        self.padding_mode = padding_mode
        unfolded = 9 * channels
        self.key = build_perceptron([unfolded + 4, *(hidden + 1) * [width], unfolded])
        self.value = build_perceptron([unfolded + 4, *(hidden + 1) * [width], unfolded])
        self.head = build_perceptron([unfolded, *(hidden + 1) * [width], outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return features

    def query(
        self,
        maps: Tensor,
        where: GridSpec | PointSpec,
        cell: Tensor,
        skip: Tensor | None,
        edge: tuple[str, str],
        mask: Tensor | None,
        gain: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the decoder.

        Args:
            maps: features, (B, C, H, W).
            where: grid or points with Q queries.
            cell: (B, 2) or (B, Q, 2), size of a query in half pixels of the maps.
            skip: (B, O, H, W), field to interpolate and add, or None.
            edge: for rows and columns "clamp" or "wrap".
            mask: (B, H, W) bool, valid pixels, or None.
            gain: factor per output channel or None.

        Returns:
            (B, Q, O).
        """
        wrap = [e == "wrap" for e in edge]
        batch, _, height, width = maps.shape
        unfolded = F.unfold(pad_border(maps, 1, self.padding_mode), 3).unflatten(2, (height, width))
        unfolded = unfolded.contiguous(memory_format=torch.channels_last)  # converted once, not in every gather
        first, offset_weight = self.compute_first_layers(maps)
        place = (where, unfolded, mask, wrap)
        corners = _find_corners(*place, nearest=False)
        query = _find_corners(_shift_half_pixel(where), unfolded, mask, wrap, nearest=True).gather(unfolded, 0)
        cell = (cell if cell.dim() == 3 else cell[:, None]).to(query.dtype).expand(batch, query.shape[1], 2)
        logits: Any = []
        values: list[Tensor] = []
        for j in range(4):
            u = corners.gather(unfolded, j)
            offset = torch.cat([corners.rho[j].to(u.dtype), cell], -1)
            key_hidden, value_hidden = (corners.gather(first, j) + F.linear(offset, offset_weight)).chunk(2, -1)
            logits.append((query * u * _apply_tail(self.key, key_hidden)).sum(-1))
            values.append(u * _apply_tail(self.value, value_hidden))
        logits = torch.stack(logits)
        if mask is not None:
            logits = logits.masked_fill(~torch.stack(corners.mask), -torch.inf)
            logits = torch.where(corners.valid, logits, 0)
        alpha = torch.softmax(logits, 0)
        y = self.head(sum(a[..., None] * v for a, v in zip(alpha, values, strict=True)))
        y = y if gain is None else y * gain
        if skip is not None:
            y = y + sum(w[..., None] * corners.gather(skip.to(w.dtype), j) for j, w in enumerate(corners.weights))
        return y if mask is None else torch.where(corners.valid[..., None], y, torch.nan)

    def compute_first_layers(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the contribution of U to the first layers of key and value.

        Returns:
            The contribution with the bias, (B, 2 * width, H, W), and the weight for [rho, kappa], (2 * width, 4).
        """
        both = self.key[0], self.value[0]
        weight, bias = (torch.cat(parts) for parts in zip(*((a.weight, a.bias) for a in both), strict=True))
        channels = maps.shape[1]
        kernel = weight[:, : 9 * channels].unflatten(
            1, (channels, 3, 3)
        )  # the order of F.unfold is (channel, row, column)
        return conv3x3(maps, kernel, bias, padding_mode=self.padding_mode), weight[:, 9 * channels :]


def _apply_tail(layers: nn.Sequential, hidden: Tensor) -> Tensor:
    """Apply all layers but the first."""
    for layer in list(layers)[1:]:
        hidden = layer(hidden)
    return hidden


def build_perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Build linear layers of the given widths with ReLU between them."""
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _find_corners(
    where: GridSpec | PointSpec, maps: Tensor, mask: Tensor | None, wrap: list[bool], nearest: bool
) -> Corners:
    base: Tensor | None = None
    frac: Tensor | None = None
    axes: Sequence = []
    if isinstance(where, GridSpec):
        axes = where.numbers()
    else:
        base, frac = where.base, where.frac
    exact = torch.promote_types(maps.dtype, torch.float32)  # half precision cannot represent pixel positions
    return Corners(base, frac, axes, maps, mask, wrap, nearest, "bilinear", exact)


def _shift_half_pixel(where: GridSpec | PointSpec) -> GridSpec | PointSpec:
    """Shift queries by half a pixel. The upper left corner of a shifted query is the pixel nearest to the query."""
    if isinstance(where, GridSpec):
        return GridSpec(
            *(Axis(a.size, 2 * a.step, 2 * a.start + a.den, 2 * a.den) for a in (where.rows, where.columns))
        )
    moved = where.frac + 0.5
    carry = torch.floor(moved.detach())
    return PointSpec((where.base + carry.int()).int(), moved - carry)


DECODERS: dict[str, type[nn.Module]] = {
    "attention": LocalAttentionDecoder,
    "liif": LocalEnsembleDecoder,
    "lte": LTEDecoder,
    "metasr": MetaSRDecoder,
    "ciaosr": CiaoSRDecoder,
}


BAND_ROWS = 16  # rows of the field per band: fewer rows need less memory, but read more rows twice
_TILE = 4  # rows of a Winograd tile: bands aligned with tiles are bitwise equal to the whole field


class Encoded(NamedTuple):
    """Result of the encoder for a batch of fields.

    Attributes:
        features: (B, C, H, W).
        skip: (B, O, H, W), field to interpolate and add, in physical units, or None.
        mask: (B, H, W) bool, valid pixels, or None.
        spread: (B, O, H, W), unit of the decoder's output relative to the skip field, or None.
    """

    features: Tensor
    skip: Tensor | None
    mask: Tensor | None
    spread: Tensor | None = None

    def select_rows(self, first: int, stop: int) -> "Encoded":
        """Return the rows first ... stop - 1."""
        maps: Any = (None if t is None else t[..., first:stop, :] for t in self)
        return Encoded(*maps)


def decode(
    decoder: Network,
    encoded: Encoded,
    where: GridSpec | PointSpec,
    cell: Tensor,
    edge: tuple[str, str],
    gain: Tensor | None = None,
) -> Tensor:
    """Evaluate a decoder at queries. Without gradients, fine grids are processed in bands of rows to save memory.

    Args:
        decoder: one of DECODERS.
        encoded: result of the encoder.
        where: grid or points with Q queries.
        cell: (B, 2) or (B, Q, 2), size of a query in half pixels of the maps.
        edge: for rows and columns "clamp" or "wrap".
        gain: factor per output channel or None.

    Returns:
        (B, Q, O).
    """

    def query(part: Encoded, where: GridSpec | PointSpec, cell: Tensor) -> Tensor:
        maps = decoder.prepare(part.features)
        if part.spread is None:
            return decoder.query(maps, where, cell, part.skip, edge, part.mask, gain=gain)
        added = decoder.query(maps, where, cell, None, edge, part.mask, gain=gain)
        assert part.skip is not None  # `spread` needs `skip`
        interpolated, spread = interpolate_at(torch.cat([part.skip, part.spread], 1), where, edge, part.mask).chunk(
            2, 2
        )
        return torch.addcmul(interpolated, spread, added)

    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return query(encoded, where, cell)
    height, y = encoded.features.shape[2], None
    for queries, part in _split_bands(where):
        band_cell = cell if cell.dim() == 2 else cell[:, queries]
        first, stop = _find_rows(part, band_cell, height)
        with assume_height(height):
            values = query(encoded.select_rows(first, stop), _shift_rows(part, -first), band_cell)
        if values.shape[1] == where.count:
            return values
        y = values.new_empty((values.shape[0], where.count, values.shape[2])) if y is None else y
        y[:, queries] = values
    assert y is not None  # there is at least one band
    return y


def _split_bands(where: GridSpec | PointSpec) -> Iterator[tuple[slice, GridSpec | PointSpec]]:
    """Yield bands of a query grid as (slice of the queries, their grid).

    Points, and grids coarser than the field, are one band.
    """
    if isinstance(where, PointSpec) or where.rows.step > where.rows.den or not where.count:
        yield slice(0, where.count), where
        return
    height, width = where.size
    rows = BAND_ROWS * where.rows.den // where.rows.step if where.rows.step else height
    for first in range(0, height, rows):
        stop = min(height, first + rows)
        yield slice(first * width, stop * width), where.window((first, stop), (0, width))


def _find_rows(where: GridSpec | PointSpec, cell: Tensor, height: int) -> tuple[int, int]:
    """Find the rows of the field that the queries need, rounded to whole tiles.

    The rows include one further row on each side, for the convolutions of the decoder. The result is the whole field
    for coarse queries, and for points on a GPU or in a graph, whose positions cannot be read.

    Args:
        where: grid or points.
        cell: (B, 2) or (B, Q, 2).
        height: number of rows of the field.

    Returns:
        (first, stop).
    """
    if not where.count:
        return 0, height
    if isinstance(where, GridSpec):
        a = where.rows
        fine, low, high = a.step <= a.den, a.start // a.den, (a.start + a.step * (a.size - 1)) // a.den
    elif cell.device.type == "cpu" and not is_capturing():
        rows = where.base[..., 0]
        fine, low, high = bool(cell[..., 0].max() <= 2), int(rows.min()), int(rows.max())
    else:  # reading positions would wait for the device, and is not possible in a graph
        fine = False
    if not fine:  # the corners of MetaSR's large cells are several rows away
        return 0, height
    low, high = (min(max(row, 0), height - 1) for row in (low, high))
    # Corners are in rows low .. high + 1. Published area weights and MetaSR's corners may read one more row.
    return max(0, low - 1) // _TILE * _TILE, min(height, -(-(high + 4) // _TILE) * _TILE)


def _shift_rows(where: GridSpec | PointSpec, rows: int) -> GridSpec | PointSpec:
    """Return the queries with row coordinates increased by `rows`, for a field that begins `rows` rows earlier."""
    if isinstance(where, GridSpec):
        a = where.rows
        return GridSpec(Axis(a.size, a.step, a.start + rows * a.den, a.den), where.columns)
    return PointSpec(where.base + where.base.new_tensor([rows, 0]), where.frac, where.outside) if rows else where
