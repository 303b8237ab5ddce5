# SPDX-License-Identifier: Apache-2.0
"""The baseline that knows one factor: the same encoder, sub-pixel upsampling."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.card import ModelCard
from fastds.models.inr.encoders import ENCODERS
from fastds.nn.convolutions import BorderConv
from fastds.ops import PointSpec


class FixedRatioDownscaler(nn.Module):
    """EDSR for one factor: encoder, sub-pixel convolutions, output convolution, plus bilinear interpolation.

    Args:
        in_channels: C, all predicted. scale: 2, 3 or 4. encoder, encoder_options: as INRDownscaler.
        periodic_x: columns go round the globe. skip: add the bilinearly interpolated input (not in the paper).

    Shapes: (B, C, H, W) -> (B, C, s H, s W), cell-registered.

    Source: Lim et al. 2017 (EDSR-baseline).
    """

    def __init__(
        self,
        in_channels: int = 4,
        scale: int = 2,
        encoder: str = "edsr",
        encoder_options: dict[str, Any] | None = None,
        periodic_x: bool = False,
        skip: bool = True,
    ):
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {scale!r}")
        if encoder not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
        self.in_channels, self.scale, self.periodic_x, self.skip = in_channels, scale, periodic_x, skip
        padding = "circular_x" if periodic_x else "replicate"
        self.encoder = ENCODERS[encoder](in_channels, padding, **(encoder_options or {}))
        channels = self.encoder.out_channels
        self.steps = [2, 2] if scale == 4 else [scale]
        self.up = nn.ModuleList(BorderConv(channels, channels * r * r, padding) for r in self.steps)
        self.last = BorderConv(channels, in_channels, padding)
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("std", torch.ones(in_channels))
        self.card = ModelCard()

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """x: (B, C, H, W) physical units without missing values; size may be given and must be (s H, s W)."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {self.in_channels}, H, W)")
        target = tuple(self.scale * n for n in x.shape[2:])
        if size is not None and tuple(size) != target:
            raise ValueError(f"size must be {target}, {self.scale} times that of x, got {tuple(size)}")
        mean, std = (t.to(x.dtype)[:, None, None] for t in (self.mean, self.std))
        f = self.encoder((x - mean) / std, lambda i, f: f)
        for conv, r in zip(self.up, self.steps, strict=True):
            f = conv(f, shuffle=r)
        y = self.last(f).to(x.dtype) * std
        return y + bilinear(x, self.scale, self.periodic_x) if self.skip else y + mean

    def query(self, x: Tensor, where: PointSpec, factor: Tensor) -> Tensor:
        """Values (B, Q, C) of the fine pixels that hold the points; what training calls.

        Raises: ValueError: factor (B, 2) is not the model's.
        """
        if (factor != self.scale).any():
            raise ValueError(f"factor must be {self.scale}, the only one this model knows, got {factor.tolist()}")
        y = self(x)
        pixel = self.scale * where.base + torch.floor((where.frac + 0.5) * self.scale).int()
        rows, columns = (pixel[..., i].clamp(0, y.shape[2 + i] - 1) for i in (0, 1))
        index = (rows * y.shape[3] + columns).long()[:, None].expand(*y.shape[:2], -1)
        return y.flatten(2).gather(2, index).transpose(1, 2)


def bilinear(x: Tensor, scale: int, periodic_x: bool) -> Tensor:
    """Bilinear interpolation by a whole factor, across the seam where there is none."""
    if periodic_x:
        x = F.pad(x, (1, 1, 0, 0), mode="circular")
    height, width = x.shape[2:]
    y = F.interpolate(x, (scale * height, scale * width), mode="bilinear", align_corners=False)
    return y[..., scale:-scale] if periodic_x else y
