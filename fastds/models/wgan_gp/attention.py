# SPDX-License-Identifier: Apache-2.0
"""Channel and spatial gates."""

import torch
from torch import Tensor, nn

from fastds.models.wgan_gp.mean_and_max import mean_and_max


def bottleneck(channels: int, reduction: int) -> nn.Sequential:
    """C -> max(1, C/reduction) -> C with ReLU between, on (B, C) vectors."""
    inner = max(1, channels // reduction)
    return nn.Sequential(nn.Linear(channels, inner), nn.ReLU(), nn.Linear(inner, channels))


class SqueezeExcitation(nn.Module):
    """Weight every channel by what the channels' means say.

    s = sigmoid(W2 relu(W1 mean_HW(x) + b1) + b2);  y = s * x

    Args:
        channels: C.
        reduction: C/reduction hidden channels.

    Shapes: (B, C, H, W) -> (B, C, H, W).

    Source: Hu et al. 2018, equations 2-4; Li et al. 2024, equations 1-2 (biases are our choice).
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.mlp = bottleneck(channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.mlp(x.mean((2, 3))))[:, :, None, None]


class CBAM(nn.Module):
    """Channel gate, then spatial gate.

    x1 = sigmoid(MLP(mean_HW(x)) + MLP(max_HW(x))) * x;  y = sigmoid(conv7x7([mean_C(x1), max_C(x1)])) * x1

    No batch normalisation behind the 7x7 convolution and its bias is learned, as in the humidity paper's equation 4 and
    unlike the original code.

    Args:
        channels: C.
        reduction: C/reduction hidden channels of the shared MLP.

    Shapes: (B, C, H, W) -> (B, C, H, W).

    Source: Woo et al. 2018, equations 2 and 3; Li et al. 2024, equations 3 and 4.
    """

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        self.mlp = bottleneck(channels, reduction)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        mean, largest = (t.flatten(1) for t in mean_and_max(x, (2, 3)))
        x = x * torch.sigmoid(self.mlp(mean) + self.mlp(largest))[:, :, None, None]
        return x * torch.sigmoid(self.spatial(torch.cat(mean_and_max(x, (1,)), 1)))
