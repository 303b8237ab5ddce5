# SPDX-License-Identifier: Apache-2.0
"""Dynamic pixel feature aggregation: 3x3 aggregation whose offsets, masks and gains depend on features and scale."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.inr.encoders import extend
from fastds.nn.convolutions import BorderConv
from fastds.ops import deform_conv2d

KINDS = ("deform", "mask", "modconv", "film", "none")
_OCTAVES = 6
TAU = 0.1  # strength of a fresh module


class ScaleEmbedding(nn.Module):
    """e = W_b SiLU(W_a [gamma(log2 s_y), gamma(log2 s_x)] + a) + b.

    gamma(z) = [z, sin(2^l pi z / 4), cos(2^l pi z / 4)], l = 0..5. Shapes: (B, 2) scale factors -> (B, channels).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Linear(2 * (2 * _OCTAVES + 1), channels)
        self.second = nn.Linear(channels, channels)

    def forward(self, scale: Tensor) -> Tensor:
        z = torch.log2(scale)[..., None]
        angle = math.pi / 4 * z * 2.0 ** torch.arange(_OCTAVES, device=z.device, dtype=z.dtype)
        gamma = torch.cat([z, torch.sin(angle), torch.cos(angle)], -1).flatten(1)
        return self.second(F.silu(self.first(gamma)))


class DPFA(nn.Module):
    """f + (tau + B e) * a(f, e): a modulated deformable 3x3 convolution steered by features and scale.

    f~ = f (1 + g) + beta, (g, beta) = A e + a; o = conv3x3(f~): 18 offsets and 9 logits, masks 2 sigmoid(logit);
    a(p) = sum_k W_k f(p + p_k + offset_k) mask_k + w_0. At the start offsets are 0 and masks 1.

    Args:
        channels: C of f. embedding: channels of e. padding_mode: how f continues beyond its border.
        kind: "deform" as above; "mask": without offsets; "modconv": kernel W (1 + g), renormalised per output channel;
            "film": f~ itself; there is no module of kind "none".

    Shapes: f (B, C, H, W), e (B, embedding) -> (B, C, H, W).
    """

    def __init__(self, channels: int, embedding: int, padding_mode: str, kind: str = "deform"):
        super().__init__()
        self.kind, self.padding_mode = kind, padding_mode
        self.modulator = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.modulator.weight)
        nn.init.zeros_(self.modulator.bias)
        if kind == "film":
            return
        self.aggregate = BorderConv(channels, channels, padding_mode)
        self.tau = nn.Parameter(torch.full((channels,), TAU))
        self.strength = nn.Linear(embedding, channels, bias=False)
        nn.init.zeros_(self.strength.weight)
        if kind != "modconv":
            self.guide = BorderConv(channels, 27 if kind == "deform" else 9, padding_mode)
            nn.init.zeros_(self.guide.weight)
            nn.init.zeros_(self.guide.bias)

    def forward(self, f: Tensor, e: Tensor) -> Tensor:
        gain, shift = self.modulator(e).to(f.dtype)[..., None, None].chunk(2, 1)
        modulated = f * (1 + gain) + shift
        if self.kind == "film":
            return modulated
        a = self._modulated_kernel(f, gain) if self.kind == "modconv" else self._deformed(f, self.guide(modulated))
        return f + (self.tau + self.strength(e)).to(f.dtype)[..., None, None] * a

    def _deformed(self, f: Tensor, guide: Tensor) -> Tensor:
        # Two pixels of border: the kernel reads zeros beyond, and its own outermost taps need one.
        guide = F.pad(guide, (1, 1, 1, 1))
        mask = 2 * torch.sigmoid(guide[:, -9:])
        offset = guide[:, :18] if self.kind == "deform" else torch.zeros_like(guide).repeat(1, 2, 1, 1)
        weight, bias = (t.to(f.dtype) for t in (self.aggregate.weight, self.aggregate.bias))
        a = deform_conv2d(extend(f, 2, self.padding_mode), offset.to(f.dtype), weight, bias, mask=mask.to(f.dtype))
        return a[:, :, 1:-1, 1:-1]

    def _modulated_kernel(self, f: Tensor, gain: Tensor) -> Tensor:
        """conv(f, W (1 + g)) = conv(f (1 + g), W); each output channel keeps the norm of its filter."""
        square = self.aggregate.weight.square().sum((2, 3))
        scaled = (square[None] * (1 + gain[:, None, :, 0, 0]).square()).sum(2)
        norm = torch.sqrt(square.sum(1) / (scaled + 1e-12))[..., None, None].to(f.dtype)
        bias = self.aggregate.bias[:, None, None]
        return (self.aggregate(f * (1 + gain)) - bias) * norm + bias
