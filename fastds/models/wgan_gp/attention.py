# SPDX-License-Identifier: Apache-2.0
"""Channel and spatial gates."""

import torch
from torch import Tensor, nn

from fastds._registry import transforms_active


class _MeanAndMax(torch.autograd.Function):
    """Both over the same dimensions, which are kept; where several values are largest they share the gradient.

    One gradient for both in three passes over the map, where torch's two take twice as many. Its derivative in what it
    is given is autograd's own, in x it is zero.
    """

    @staticmethod
    def forward(ctx, x, dims):
        mean, largest = x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
        ctx.save_for_backward(x, largest)
        ctx.dims = dims
        return mean, largest

    @staticmethod
    def backward(ctx, grad_mean, grad_largest):
        x, largest = (t.detach() for t in ctx.saved_tensors)
        hits = x.clone().eq_(largest)  # overwriting stays in the dtype of x, comparing to bool is several times slower
        count = hits.sum(ctx.dims, keepdim=True)
        size = x.numel() / max(1, largest.numel())
        return torch.addcmul(grad_mean / size, hits, grad_largest / count), None


def mean_and_max(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of x over dims, kept with size 1; differentiable to any order."""
    if transforms_active() or torch.compiler.is_compiling():
        return x.mean(dims, keepdim=True), x.amax(dims, keepdim=True)
    return _MeanAndMax.apply(x, dims)


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
