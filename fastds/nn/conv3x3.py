# SPDX-License-Identifier: Apache-2.0
"""3x3 and 1x1 convolutions with what follows them: second source, residual, activation, sub-pixel shuffle."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.ops.impl.conv3x3.direct import compose
from fastds.ops.impl.conv3x3.op import conv3x3
from fastds.ops.impl.conv3x3.reference import ACTIVATIONS


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    x2: Tensor | None = None,
    residual: Tensor | None = None,
    act: str | None = None,
    negative_slope: float = 0.1,
    shuffle: int = 1,
    stride: int = 1,
) -> Tensor:
    """Convolve the virtual concatenation of x and x2, size kept, with everything that follows in place.

    y = shuffle(act(conv(concat(x, x2), weight) + bias + residual))

    3x3 convolutions of stride 1 are fastds.ops.conv3x3. For the others two sources are the sum of two convolutions, so
    that no concatenated map is made or saved for the gradient, and the epilogue overwrites the convolution's output.

    Args:
        x: (B, C1, H, W), any strides, fastest in channels_last.
        weight: (O, C1 + C2, k, k), k odd.
        bias: (O,) or None.
        x2: (B, C2, H, W) or None.
        residual: (B, O, H/stride, W/stride) or None.
        act: None, "relu" or "leaky_relu" with negative_slope.
        shuffle: r of the sub-pixel permutation of torch.nn.PixelShuffle, O divisible by r^2; 1 = none.
        stride: of the convolution, in pixels.

    Returns:
        (B, O / r^2, r*H/stride, r*W/stride), channels_last.

    Raises:
        ValueError: an unknown act.
    """
    if weight.shape[-1] == 3 and stride == 1:
        options = {"residual": residual, "act": act, "negative_slope": negative_slope, "shuffle": shuffle}
        return conv3x3(x, weight, bias, x2=x2, **options)
    act = "none" if act is None else act
    if act not in ACTIVATIONS:
        raise ValueError(f"act must be None, 'relu' or 'leaky_relu', got {act!r}")

    def convolution(source, weight, bias):
        return F.conv2d(source, weight, bias, stride, weight.shape[-1] // 2)

    return compose(convolution, x, weight, bias, x2, residual, act, negative_slope, shuffle)


class _Conv(nn.Module):
    """Weights and bias of a k x k convolution, initialised as torch.nn.Conv2d."""

    kernel_size = 1

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, stride: int = 1):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.kernel_size, self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within +-1/sqrt(fan in), weights and bias."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        x: Tensor,
        x2: Tensor | None = None,
        residual: Tensor | None = None,
        act: str | None = None,
        negative_slope: float = 0.1,
        shuffle: int = 1,
    ) -> Tensor:
        """Return shuffle(act(conv(concat(x, x2)) + bias + residual)), see fastds.nn.conv3x3.convolve."""
        return convolve(
            x,
            self.weight,
            self.bias,
            x2=x2,
            residual=residual,
            act=act,
            negative_slope=negative_slope,
            shuffle=shuffle,
            stride=self.stride,
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"
        return text if self.stride == 1 else f"{text}, stride={self.stride}"


class Conv3x3(_Conv):
    """3x3 convolution, zero padding 1, with second source, residual, activation and sub-pixel shuffle.

    y = shuffle(act(conv(concat(x, x2)) + bias + residual))

    Args:
        in_channels: C1 + C2, channels of both sources together.
        out_channels: O, before the shuffle.
        bias: add a learned bias.
        stride: in pixels.

    Shapes: x (B, C1, H, W), x2 (B, C2, H, W), residual (B, O, H, W) -> (B, O/r^2, r*H, r*W), channels_last.
    """

    kernel_size = 3


class Conv1x1(_Conv):
    """1x1 convolution with the same sources and epilogue as Conv3x3: a learned mix of channels.

    y = shuffle(act(conv(concat(x, x2)) + bias + residual))

    Args:
        in_channels, out_channels, bias, stride: as Conv3x3.

    Shapes: as Conv3x3, H and W divided by stride.
    """

    kernel_size = 1
