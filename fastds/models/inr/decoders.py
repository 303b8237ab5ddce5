# SPDX-License-Identifier: Apache-2.0
"""Decoders: feature maps and places to values. One registry; each makes its maps once and queries them anywhere.

A decoder has prepare(features) -> maps, and forward(maps, where, cell, skip, edge, mask) -> (B, Q, O), where skip is
the field to interpolate or None and cell the size of a query in half pixels, 2 n / m.
"""

import torch
from torch import Tensor, nn

from fastds.models.inr.ciaosr import CiaoSRDecoder
from fastds.models.inr.encoders import BorderConv
from fastds.nn.conv3x3 import Conv1x1
from fastds.ops import inr_query
from fastds.reference.query_points import Axis, GridSpec, PointSpec


class Trunk(nn.ModuleList):
    """Linear layers with ReLU between them."""

    def __init__(self, widths):
        super().__init__(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def pairs(self, gain: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer; gain multiplies the last one's outputs."""
        pairs = [(layer.weight, layer.bias) for layer in self]
        if gain is not None:
            pairs[-1] = (pairs[-1][0] * gain[:, None], pairs[-1][1] * gain)
        return pairs


class _Decoder(nn.Module):
    def query(self, maps, where, trunk, cell, skip, edge, mask, **options) -> Tensor:
        exact = torch.float64 if maps.dtype == torch.float64 else torch.float32
        cell = cell.to(exact)
        skip = None if skip is None else skip.to(exact)
        return inr_query(maps, where, trunk, cell=cell, skip=skip, edge=edge, mask=mask, **options)


class AttentionDecoder(_Decoder):
    """Attention over the four nearest pixels with their bilinear weights as prior, then one small network.

    h_j = relu(P_j + R rho_j + Lambda kappa), z_h = sum_j alpha_jh h_jh, y = MLP(z) + bilinear(x), as inr_query.
    The last layer starts at zero: an untrained model is bilinear interpolation.

    Args:
        channels: of the features. outputs: O. width: D. heads, key_width: of the attention. hidden: layers of width D.
        attention: off: bilinear weights. slope: every pixel has its own R beside the common one, two more maps.
    """

    def __init__(
        self, channels, outputs, padding_mode, width=128, heads=4, key_width=16, hidden=3, attention=True, slope=False
    ):  # fmt: skip
        super().__init__()
        self.heads, self.key_width, self.attention = heads, key_width, attention
        self.feature = "slope" if slope else "affine"
        self.local = BorderConv(channels, width, padding_mode)
        self.slopes = BorderConv(channels, 2 * width, padding_mode) if slope else None
        if attention:
            self.key = Conv1x1(channels, heads * key_width)
            self.content = Conv1x1(channels, heads * key_width)
            self.offset_bias = nn.Parameter(torch.zeros(heads, 2))
        self.offset = nn.Parameter(0.5 * torch.randn(width, 2))
        self.cell = nn.Parameter(0.1 * torch.randn(width, 2))
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])
        nn.init.zeros_(self.trunk[-1].weight)
        nn.init.zeros_(self.trunk[-1].bias)

    def prepare(self, features: Tensor) -> Tensor:
        maps = [self.local(features)]
        if self.slopes is not None:
            maps.append(self.slopes(features))
        if self.attention:
            maps += [self.key(features), self.content(features)]
        return torch.cat(maps, 1)

    def forward(self, maps, where, cell, skip, edge, mask, gain=None) -> Tensor:
        options = {"feature": self.feature, "rho_w": self.offset, "cell_w": self.cell, "ensemble": "early_area"}
        if self.attention:
            options |= {"ensemble": "early_attn", "heads": self.heads, "dk": self.key_width}
            options["rho_bias"] = self.offset_bias
        return self.query(maps, where, self.trunk.pairs(gain), cell, skip, edge, mask, **options)


class LIIFDecoder(_Decoder):
    """Local implicit image function: one network per corner, averaged; its first layer is a 3x3 convolution here.

    Source: Chen, Liu and Wang 2021, local ensemble, feature unfolding and cell decoding on.
    """

    def __init__(self, channels, outputs, padding_mode, width=256, hidden=3, compat=None):
        super().__init__()
        self.compat = compat
        self.local = BorderConv(channels, width, padding_mode)
        self.offset = nn.Parameter(torch.empty(width, 2))
        self.cell = nn.Parameter(torch.empty(width, 2))
        bound = (9 * channels + 4) ** -0.5  # as one linear layer over the unfolded features would start
        for parameter in (self.local.weight, self.local.bias, self.offset, self.cell):
            nn.init.uniform_(parameter, -bound, bound)
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return self.local(features)

    def forward(self, maps, where, cell, skip, edge, mask, gain=None) -> Tensor:
        options = {"rho_w": self.offset, "cell_w": self.cell, "ensemble": "late", "compat": self.compat}
        return self.query(maps, where, self.trunk.pairs(gain), cell, skip, edge, mask, **options)


class LTEDecoder(_Decoder):
    """Local texture estimator: amplitudes times cosines and sines of learned frequencies, one network per corner.

    Source: Lee and Jin 2022; frequencies in (row, column) pairs.
    """

    def __init__(self, channels, outputs, padding_mode, width=256, hidden=3, compat=None):
        super().__init__()
        self.compat = compat
        self.amplitude = BorderConv(channels, width, padding_mode)
        self.frequency = BorderConv(channels, width, padding_mode)
        self.phase = nn.Parameter(torch.empty(width // 2, 2).uniform_(-(0.5**0.5), 0.5**0.5))
        self.trunk = Trunk([width] * (hidden + 1) + [outputs])

    def prepare(self, features: Tensor) -> Tensor:
        return torch.cat([self.amplitude(features), self.frequency(features)], 1)

    def forward(self, maps, where, cell, skip, edge, mask, gain=None) -> Tensor:
        options = {"feature": "fourier", "ensemble": "late", "phase": self.phase, "compat": self.compat}
        return self.query(maps, where, self.trunk.pairs(gain), cell, skip, edge, mask, **options)


class MetaSRDecoder(_Decoder):
    """A kernel predicted from offset and scale times the features of one pixel, factored: the kernels never exist.

    y_o = <a, G_o> + g_o with a = relu(W1 [rho, 1/s_y] + b1) and G, g 3x3 convolutions of the features. Places are the
    upper left corners of the queries.

    Source: Hu et al. 2019; the factoring is ours.
    """

    def __init__(self, channels, outputs, padding_mode, width=256):
        super().__init__()
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

    def forward(self, maps, where, cell, skip, edge, mask, gain=None) -> Tensor:
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
        return self.query(maps, where, (), cell, skip, edge, mask, **options)


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
    "attention": AttentionDecoder,
    "liif": LIIFDecoder,
    "lte": LTEDecoder,
    "metasr": MetaSRDecoder,
    "ciaosr": CiaoSRDecoder,
}
