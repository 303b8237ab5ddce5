# SPDX-License-Identifier: Apache-2.0
"""Learned upsampling in space by sub-pixel convolution."""

from torch import Tensor, nn

from fastds.nn.conv3x3 import Conv3x3


class SubPixel(nn.Module):
    """Upsample by r: a 3x3 convolution to r^2 channels per output channel, leaky ReLU, pixel shuffle.

    y = shuffle_r(leaky_relu(conv(x), 0.1));  r = 4 is done as twice r = 2, r = 1 has no layer.

    Args:
        channels: C in.
        out_channels: O.
        scale: r = 1, 2, 3 or 4. r = 1 returns x and wants out_channels == channels.

    Shapes: (B, C, H, W) -> (B, O, r*H, r*W).

    Source: Shi et al. 2016 (ESPCN); Chen, Qin and Dai 2022, reconstruction.
    """

    def __init__(self, channels: int, out_channels: int, scale: int):
        super().__init__()
        steps = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}
        if scale not in steps:
            raise ValueError(f"scale must be 1, 2, 3 or 4, got {scale!r}")
        if scale == 1 and channels != out_channels:
            raise ValueError(f"scale 1 has no layer to turn {channels} channels into {out_channels}")
        self.scale, self.steps = scale, steps[scale]
        outs = [channels] * (len(self.steps) - 1) + [out_channels]
        self.convs = nn.ModuleList(Conv3x3(channels, o * r * r) for o, r in zip(outs, self.steps, strict=False))

    def forward(self, x: Tensor) -> Tensor:
        for conv, r in zip(self.convs, self.steps, strict=True):
            x = conv(x, act="leaky_relu", shuffle=r)
        return x
