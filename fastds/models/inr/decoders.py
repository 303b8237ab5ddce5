# SPDX-License-Identifier: Apache-2.0
"""Decoders of arbitrary-scale networks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.inr.encoders import extend
from fastds.nn.convolutions import BorderConv
from fastds.nn.local_decoders import CLAMPED, LocalAttentionDecoder, LocalDecoder, LocalEnsembleDecoder, Trunk
from fastds.ops import GridSpec, PointSpec, conv3x3
from fastds.ops.impl.inr_query.points import Axis
from fastds.ops.impl.inr_query.reference import Corners


class LTEDecoder(LocalDecoder):
    """Local texture estimator: amplitudes times cosines and sines of learned frequencies, one network per corner.

    Source: Lee and Jin 2022; frequencies in (row, column) pairs.
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
        self.amplitude = BorderConv(channels, width, padding_mode)
        self.frequency = BorderConv(channels, width, padding_mode)
        self.phase = nn.Parameter(torch.empty(width // 2, 2).uniform_(-(0.5**0.5), 0.5**0.5))
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return torch.cat([self.amplitude(features), self.frequency(features)], 1)

    def options(self) -> dict[str, Any]:
        return {"feature": "fourier", "ensemble": "late", "phase": self.phase, "compat": self.compat}


class MetaSRDecoder(LocalDecoder):
    """A kernel predicted from offset and scale times the features of one pixel, factored: the kernels never exist.

    y_o = <a, G_o> + g_o with a = relu(W1 [rho, 1/s_y] + b1) and G, g 3x3 convolutions of the features. Places are the
    upper left corners of the queries.

    Source: Hu et al. 2019; the factoring is ours.
    """

    def __init__(self, channels: int, outputs: int, padding_mode: str, width: int = 256):
        super().__init__(padding_mode)
        self.outputs, self.width = outputs, width
        self.first = nn.Linear(3, width)
        bound = width**-0.5
        self.kernels = BorderConv(channels, outputs * width, padding_mode)
        self.constant = BorderConv(channels, outputs, padding_mode)
        for parameter in (self.kernels.weight, self.constant.weight):
            nn.init.uniform_(parameter, -bound, bound)
        # W2 and b2 of the published network are these convolutions; it has no further biases.
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
        if gain is not None:
            depth = gain.repeat_interleave(self.width)
            maps = maps * torch.cat([depth, gain])[:, None, None].to(maps.dtype)
        w, where = self.first.weight, upper_left(where, cell)
        options = {
            "feature": "dot",
            "ensemble": "none",
            "rho_w": w[:, :2] / 2,  # rho of the op is in half pixels
            "cell_w": torch.cat([w[:, 2:] / 2, torch.zeros_like(w[:, 2:])], 1),  # 1 / s_y = kappa_y / 2
            "bias": self.first.bias,
        }
        return self.call_inr_query(maps, where, (), cell, skip, edge, mask, **options)


def upper_left(where: GridSpec | PointSpec, cell: Tensor) -> GridSpec | PointSpec:
    """The upper left corners of the queries instead of their centres: u + 1/2 - 1 / (2 s), s = 2 / cell."""
    if isinstance(where, GridSpec):
        return GridSpec(
            *(Axis(a.size, 2 * a.step, 2 * a.start + a.den - a.step, 2 * a.den) for a in (where.rows, where.columns))
        )
    cell = cell if cell.dim() == 3 else cell[:, None]
    moved = where.frac + 0.5 - cell.to(where.frac.dtype) / 4
    carry = torch.floor(moved.detach())
    return PointSpec((where.base + carry.int()).int(), moved - carry, where.outside)


class CiaoSRDecoder(nn.Module):
    """Attention over four corners whose keys and values are unfolded features times a network of themselves.

    k_j = U_j * phi_k([U_j, rho_j, kappa]), v_j = U_j * phi_v([U_j, rho_j, kappa]), U the unfolded 3x3 neighbourhood;
    alpha = softmax_j <U_nearest, k_j>; y = phi_q(sum_j alpha_j v_j) + bilinear(x). Corners lie half a pixel apart as in
    LIIF; the published shift (1 - cell) / (n - 1) equals that at factor 2 and picks one pixel twice at factor 1.

    The first layers of phi_k and phi_v, linear in U_j, are one 3x3 convolution of the maps; a query takes about 0.8
    times as long with it (bench/results/ops_in_networks.csv). The rest is no form of fastds.ops.inr_query: its keys and
    values are read from maps, those of CiaoSR are networks of each corner, as wide as what they gather.

    Source: Cao et al. 2023 (CiaoSR), local part.
    """

    def __init__(self, channels: int, outputs: int, padding_mode: str, width: int = 256, hidden: int = 3):
        super().__init__()
        self.padding_mode = padding_mode
        unfolded = 9 * channels
        self.key = perceptron([unfolded + 4, *(hidden + 1) * [width], unfolded])
        self.value = perceptron([unfolded + 4, *(hidden + 1) * [width], unfolded])
        self.head = perceptron([unfolded, *(hidden + 1) * [width], outputs])

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
        wrap = [e == "wrap" for e in edge]
        batch, _, height, width = maps.shape
        unfolded = F.unfold(extend(maps, 1, self.padding_mode), 3).unflatten(2, (height, width))
        unfolded = unfolded.contiguous(memory_format=torch.channels_last)  # once, and not in every gather
        first, of_place = self.first_layers(maps)
        place = (where, unfolded, mask, wrap)
        corners = _corners(*place, nearest=False)
        query = _corners(_moved_half(where), unfolded, mask, wrap, nearest=True).gather(unfolded, 0)
        cell = (cell if cell.dim() == 3 else cell[:, None]).to(query.dtype).expand(batch, query.shape[1], 2)
        logits, values = [], []
        for j in range(4):
            u = corners.gather(unfolded, j)
            offset = torch.cat([corners.rho[j].to(u.dtype), cell], -1)
            of_key, of_value = (corners.gather(first, j) + F.linear(offset, of_place)).chunk(2, -1)
            logits.append((query * u * _behind_first(self.key, of_key)).sum(-1))
            values.append(u * _behind_first(self.value, of_value))
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

    def first_layers(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Of key and value, one below the other: what they give of U and the bias, as maps (B, 2 * width, H, W), and
        their weight for [rho, kappa], (2 * width, 4)."""
        both = self.key[0], self.value[0]
        weight, bias = (torch.cat(parts) for parts in zip(*((a.weight, a.bias) for a in both), strict=True))
        channels = maps.shape[1]
        kernel = weight[:, : 9 * channels].unflatten(1, (channels, 3, 3))  # F.unfold gives (channel, row, column)
        return conv3x3(maps, kernel, bias, padding_mode=self.padding_mode), weight[:, 9 * channels :]


def _behind_first(layers: nn.Sequential, hidden: Tensor) -> Tensor:
    """What the layers after the first make of its result."""
    for layer in list(layers)[1:]:
        hidden = layer(hidden)
    return hidden


def perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _corners(
    where: GridSpec | PointSpec, maps: Tensor, mask: Tensor | None, wrap: list[bool], nearest: bool
) -> Corners:
    grid = isinstance(where, GridSpec)
    base, frac, axes = (None, None, where.numbers()) if grid else (where.base, where.frac, [])
    exact = torch.promote_types(maps.dtype, torch.float32)  # half precision cannot resolve pixels
    return Corners(base, frac, axes, maps, mask, wrap, nearest, "bilinear", exact)


def _moved_half(where: GridSpec | PointSpec) -> GridSpec | PointSpec:
    """Places half a pixel on, so that their upper left corner is the nearest pixel."""
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
