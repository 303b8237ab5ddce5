# SPDX-License-Identifier: Apache-2.0
"""Correction of the frames between two input times from four input frames: motion, blending weights and intensity."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.baselines.advection import AdvectedPairs, warp
from fastds.nn.convolutions import Conv1x1, Conv3x3, ResidualBlock
from fastds.ops.core.layout import get_padding_to_multiple

# Normalised reflectivity rarely exceeds 0.5, displacements are a few pixels: factors that bring both near one.
_FIELD_FACTOR, _MOTION_FACTOR = 4.0, 0.25


class MiddleFrameCorrection(nn.Module):
    """Correct the frame between two input frames with the frames before and after them.

    The four input frames are moved to the middle time along the halfway flow d. A U-Net of three levels on the coarse
    grid reads them, the frame of the main network and d. It returns corrections e0 and e1 of the displacements, a
    blending weight w and a residual:

        y = y_middle - advection + w u0(p + d + e0) + (1 - w) u1(p - d + e1) + residual

    u0 and u1 are the input frames, bicubic on the fine grid. Untrained corrections are zero and w is 1/2, so that y is
    y_middle.

    Args:
        scale: factor r in space.
        widths: numbers of feature maps of the three levels.

    Source: not in the paper. Displacements and blending weights are learned as in Jiang et al. 2018 (Super SloMo).
    """

    def __init__(self, scale: int, widths: tuple[int, int, int] = (32, 64, 80)):
        super().__init__()
        self.scale = scale
        fine, (a, b, c) = scale * scale, widths
        self.first = Conv3x3(4 + 2 + 2 + fine, a)
        self.encoders = nn.ModuleList([ResidualBlock(a), ResidualBlock(b), ResidualBlock(c)])
        self.down = nn.ModuleList([Conv3x3(a, b, stride=2), Conv3x3(b, c, stride=2)])
        self.up = nn.ModuleList([Conv1x1(c, b), Conv1x1(b, a)])
        self.decoders = nn.ModuleList([ResidualBlock(b), ResidualBlock(a)])
        self.last = Conv3x3(a, 4 + 1 + fine)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, middle: Tensor, frames: Tensor, context: Tensor, pairs: AdvectedPairs) -> Tensor:
        """Correct middle frames.

        Args:
            middle: (B, 1, r*h, r*w), frames of the main network, normalised.
            frames: (B, 2, h, w), the input frames before and after, normalised.
            context: (B, 2, h, w), the input frames before and after `frames`, NaN where not known.
            pairs: `frames` moved to the middle time, see `advect_pairs`.

        Returns:
            (B, 1, r*h, r*w), normalised.
        """
        r, (h, w) = self.scale, frames.shape[-2:]
        dtype = torch.promote_types(frames.dtype, torch.float32)  # half precision would round positions
        middle, frames, context = (z.to(dtype) for z in (middle, frames, context))
        features = self._make_features(middle, frames, context, pairs.half)
        motion, residual = self.run_layers(features.to(self.first.weight.dtype)).to(dtype).split([5, r * r], 1)
        motion = F.interpolate(motion, (r * h, r * w), mode="bilinear")
        first, second = pairs.fine[:, :-1].flatten(0, 1), pairs.fine[:, 1:].flatten(0, 1)
        weight = motion[:, 4:].sigmoid()
        start = warp(first, pairs.fine_half + r * motion[:, 0:2])
        end = warp(second, r * motion[:, 2:4] - pairs.fine_half)
        return middle - pairs.middles.flatten(0, 1) + weight * start + (1 - weight) * end + F.pixel_shuffle(residual, r)

    def _make_features(self, middle: Tensor, frames: Tensor, context: Tensor, half: Tensor) -> Tensor:
        """Make the input (B, 8 + r^2, h, w) of the U-Net, see `forward`."""
        known = ~context.isnan()
        context = torch.where(known, context, frames)
        steps = (3.0, 1.0, -1.0, -3.0)  # intervals of half an input step to the middle time
        fields = (context[:, :1], frames[:, :1], frames[:, 1:], context[:, 1:])
        moved = [warp(field, step * half) for field, step in zip(fields, steps, strict=True)]
        all_fields = _FIELD_FACTOR * torch.cat([*moved, F.pixel_unshuffle(middle, self.scale)], 1)
        return torch.cat([all_fields, known.to(half.dtype), _MOTION_FACTOR * half], 1)

    def run_layers(self, x: Tensor) -> Tensor:
        """Run the U-Net on features of any size."""
        h, w = x.shape[-2:]
        pad = (0, get_padding_to_multiple(w, 4), 0, get_padding_to_multiple(h, 4))
        x = F.pad(x, pad, mode="replicate").contiguous(memory_format=torch.channels_last)
        x = self.encoders[0](self.first(x, activation="leaky_relu"))
        skips = []
        for down, encoder in zip(self.down, self.encoders[1:], strict=True):
            skips.append(x)
            x = encoder(down(x, activation="leaky_relu"))
        for up, decoder, skip in zip(self.up, self.decoders, reversed(skips), strict=True):
            x = decoder(skip + F.interpolate(up(x), scale_factor=2.0, mode="nearest"))
        return self.last(x)[..., :h, :w]
