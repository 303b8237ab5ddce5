# SPDX-License-Identifier: Apache-2.0
"""Sum of convolutions of several maps, computed as one convolution of their concatenation that is never made."""

import math

import torch
from torch import Tensor, nn

from fastds.nn.conv3x3 import convolve


class SummedConv3x3(nn.Module):
    """y = sum_k conv3x3(x_k) + residual, each summand with its own bias as separate convolutions would have.

    Args:
        in_channels: of each source.
        out_channels: O.

    Shapes: forward(x_1 (B, C_1, H, W), ..., residual (B, O, H, W) or None) -> (B, O, H, W), channels_last. Sources take
    the dtype of the first.
    """

    kernel_size = 3

    def __init__(self, in_channels: tuple[int, ...], out_channels: int):
        super().__init__()
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        k = self.kernel_size
        self.weight = nn.Parameter(torch.empty(out_channels, sum(self.in_channels), k, k))
        self.bias = nn.Parameter(torch.empty(len(self.in_channels), out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each summand as torch.nn.Conv2d: uniform within +-1/sqrt(k^2 C_k), weight and bias."""
        with torch.no_grad():
            for part, bias, channels in zip(self.weights(), self.bias, self.in_channels, strict=True):
                bound = 1 / math.sqrt(part[0, 0].numel() * channels)
                nn.init.uniform_(part, -bound, bound)
                nn.init.uniform_(bias, -bound, bound)

    def weights(self) -> tuple[Tensor, ...]:
        """The weight of each summand."""
        return self.weight.split(self.in_channels, 1)

    def forward(self, *sources: Tensor, residual: Tensor | None = None) -> Tensor:
        bias = self.bias.sum(0)
        sources = [x.to(sources[0].dtype) for x in sources]
        if len(sources) <= 2:
            return convolve(sources[0], self.weight, bias, x2=sources[1] if sources[1:] else None, residual=residual)
        parts, y = self.weights(), residual
        for k in range(0, len(sources), 2):  # the convolution takes two sources at a time
            weight = torch.cat(parts[k : k + 2], 1)
            x2 = sources[k + 1] if k + 1 < len(sources) else None
            y = convolve(sources[k], weight, bias if k == 0 else None, x2=x2, residual=y)
        return y

    def extra_repr(self) -> str:
        return f"{' + '.join(map(str, self.in_channels))} -> {self.out_channels}"


class SummedConv5x5(SummedConv3x3):
    """As SummedConv3x3 with 5x5 kernels, which the Winograd engine has not: a convolution per source."""

    kernel_size = 5
