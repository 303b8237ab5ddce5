# SPDX-License-Identifier: Apache-2.0
"""Residual block of generator and critic: mixed kernels, normalisation, attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastds.models.wgan_gp.attention import CBAM
from fastds.models.wgan_gp.mixed_conv import MixedConv

NORMS = ("batch", "layer", "none", "spectral")


def normalisation(kind: str, channels: int) -> nn.Module | None:
    """ "batch", "layer" (over channels and space with one factor per channel) or None."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else None


class ResidualAttentionBlock(nn.Module):
    """Two mixed convolutions with normalisation and CBAM beside a skip.

    r = CBAM(N2(conv2(relu(N1(conv1(x))))));  y = relu(r + S(x)),
    S the identity, a 1x1 convolution where the channels change, behind a 2x2 mean where stride is 2.

    Args:
        in_channels, out_channels: C and O.
        norm: "batch", "layer", "none" or "spectral" (weights of spectral norm 1, no layer).
        stride: 1 or 2, of the first convolution.
        attention: with CBAM of `reduction`.
        skip: with S; False: y = relu(r), the ablation without residual blocks.
        activation: the ReLU behind the sum.
        mixing: see MixedConv.

    Shapes: (B, C, H, W) -> (B, O, ceil(H/stride), ceil(W/stride)).

    Source: Li et al. 2024, figure 5; Woo et al. 2018 (CBAM before the addition); Gulrajani et al. 2017 (layer
    normalisation in a critic).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: str,
        stride: int = 1,
        attention: bool = True,
        reduction: int = 16,
        skip: bool = True,
        activation: bool = True,
        mixing: str = "parallel",
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
        self.stride, self.skip, self.activation = stride, skip, activation
        self.conv1 = MixedConv(in_channels, out_channels, stride, mixing)
        self.conv2 = MixedConv(out_channels, out_channels, 1, mixing)
        self.norm1, self.norm2 = normalisation(norm, out_channels), normalisation(norm, out_channels)
        self.cbam = CBAM(out_channels, reduction) if attention else None
        self.shortcut = None
        if skip and in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
            nn.init.xavier_normal_(self.shortcut.weight)
            nn.init.zeros_(self.shortcut.bias)
        if norm == "spectral":
            for conv in (self.conv1, self.conv2):
                spectral_norm(spectral_norm(conv, "weight2"), "weight3")

    def forward(self, x: Tensor) -> Tensor:
        r = normalised(self.conv1, self.norm1, x, "relu")
        r = normalised(self.conv2, self.norm2, r, None)
        if self.cbam is not None:
            r = self.cbam(r)
        if self.skip:
            r = r + self.identity(x)
        return F.relu(r) if self.activation else r

    def identity(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        return x if self.shortcut is None else self.shortcut(x)


def normalised(conv: MixedConv, norm: nn.Module | None, x: Tensor, act: str | None) -> Tensor:
    """act(norm(conv(x))); batch statistics that are fixed go into the kernel."""
    if norm is None:
        return conv(x, act=act)
    if isinstance(norm, nn.BatchNorm2d) and not norm.training:
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return conv(x, scale, norm.bias - norm.running_mean * scale, act)
    y = norm(conv(x))
    return y if act is None else F.relu(y)
