# SPDX-License-Identifier: Apache-2.0
"""Decoders: feature maps and places to values. One registry; each makes its maps once and queries them anywhere.

A decoder has prepare(features) -> maps, and query(maps, where, cell, skip, edge, mask) -> (B, Q, O), where skip is
the field to interpolate or None and cell the size of a query in half pixels, 2 n / m. Those that any network may use
are in fastds.nn.
"""

import torch
from torch import Tensor, nn

from fastds.models.inr.ciaosr import CiaoSRDecoder
from fastds.nn.border_conv import BorderConv
from fastds.nn.local_decoders import CLAMPED, LocalAttentionDecoder, LocalDecoder, LocalEnsembleDecoder, Trunk
from fastds.ops.impl.inr_query.points import Axis, GridSpec, PointSpec


class LTEDecoder(LocalDecoder):
    """Local texture estimator: amplitudes times cosines and sines of learned frequencies, one network per corner.

    Source: Lee and Jin 2022; frequencies in (row, column) pairs.
    """

    def __init__(self, channels, outputs, padding_mode, width=256, hidden=3, compat=None):
        super().__init__(padding_mode)
        self.compat = compat
        self.amplitude = BorderConv(channels, width, padding_mode)
        self.frequency = BorderConv(channels, width, padding_mode)
        self.phase = nn.Parameter(torch.empty(width // 2, 2).uniform_(-(0.5**0.5), 0.5**0.5))
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return torch.cat([self.amplitude(features), self.frequency(features)], 1)

    def query(self, maps, where, cell, skip=None, edge=CLAMPED, mask=None, gain=None) -> Tensor:
        options = {"feature": "fourier", "ensemble": "late", "phase": self.phase, "compat": self.compat}
        return self.ask(maps, where, self.trunk.pairs(gain), cell, skip, edge, mask, **options)


class MetaSRDecoder(LocalDecoder):
    """A kernel predicted from offset and scale times the features of one pixel, factored: the kernels never exist.

    y_o = <a, G_o> + g_o with a = relu(W1 [rho, 1/s_y] + b1) and G, g 3x3 convolutions of the features. Places are the
    upper left corners of the queries.

    Source: Hu et al. 2019; the factoring is ours.
    """

    def __init__(self, channels, outputs, padding_mode, width=256):
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

    def query(self, maps, where, cell, skip=None, edge=CLAMPED, mask=None, gain=None) -> Tensor:
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
        return self.ask(maps, where, (), cell, skip, edge, mask, **options)


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


DECODERS: dict[str, type[nn.Module]] = {
    "attention": LocalAttentionDecoder,
    "liif": LocalEnsembleDecoder,
    "lte": LTEDecoder,
    "metasr": MetaSRDecoder,
    "ciaosr": CiaoSRDecoder,
}
