# SPDX-License-Identifier: Apache-2.0
"""Convolutions with what follows them, and the blocks made of them."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastds.ops import conv1x1, conv2d, conv3x3
from fastds.ops.core.arguments import check_positive_ints, to_float
from fastds.ops.core.tracing import Proxy, record_layer, record_op
from fastds.ops.impl.conv3x3 import library
from fastds.ops.impl.conv3x3.op import cast_convolution_inputs, check


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

    Those of 3x3 and 1x1 pixels and stride 1 are fastds.ops.conv3x3 and conv1x1. For the others two sources are the sum
    of two convolutions, so that no concatenated map is made or saved for the gradient, and the epilogue overwrites the
    convolution's output; with stride 1 on a CPU they are fastds.ops.conv2d. On a GPU, in 16 bits and without gradients,
    all is one kernel where that pays.

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

    Gradients, dtypes, autocast, errors: as conv3x3; deterministic where torch's convolution is.
    """
    if type(x) is Proxy:
        return record_op(convolve, locals())
    options = {"x2": x2, "residual": residual, "act": act, "negative_slope": negative_slope}
    if weight.shape[-1] == 3 and stride == 1:
        return conv3x3(x, weight, bias, shuffle=shuffle, **options)
    if weight.shape[-1] == 1 and stride == shuffle == 1:
        return conv1x1(x, weight, bias, **options)
    act, size = "none" if act is None else act, weight.shape[-1]
    x, weight, bias, x2, residual = cast_convolution_inputs(x, weight, bias, x2, residual, None)
    slope = to_float("negative_slope", negative_slope)
    dtype = x.dtype if isinstance(x, Tensor) else None
    check(x, weight, bias, x2, residual, act, slope, "zeros", shuffle, dtype, "direct", size=size, stride=stride)
    by = conv2d if stride == 1 and x.is_cpu else None
    return library.convolve(x, weight, bias, x2, residual, act, slope, shuffle, stride, by)


def get_parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer that is read and not called, after torch.nn.utils' hooks that make them before a call:
    prune, weight_norm and spectral_norm. Its other hooks do not run.
    """
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod | WeightNorm | SpectralNorm):
            hook(layer, ())
    return layer.weight, layer.bias


class _Conv(nn.Module):
    """Weights and bias of a k x k convolution, initialised as torch.nn.Conv2d."""

    kernel_size = 1

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True, stride: int = 1):
        super().__init__()
        check_positive_ints(in_channels=in_channels, out_channels=out_channels, stride=stride)
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
        """Return shuffle(act(conv(concat(x, x2)) + bias + residual)).

        x2: second source, or None. residual: added before the activation, or None. act: None, "relu" or "leaky_relu"
        with negative_slope. shuffle: r, the channels become r x r sub-pixels as in torch.nn.PixelShuffle; 1: none.
        """
        if type(x) is Proxy and x.tracer.root is not self:
            return record_layer(
                self, x, x2=x2, residual=residual, act=act, negative_slope=negative_slope, shuffle=shuffle
            )
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
        stride: s, in pixels.

    Shapes: x (B, C1, H, W), x2 (B, C2, H, W), residual (B, O, H/s, W/s) -> (B, O/r^2, r*H/s, r*W/s), channels_last;
    H/s and W/s are rounded up, r is the argument shuffle of the call, 1 without it.
    """

    kernel_size = 3


class Conv1x1(_Conv):
    """1x1 convolution with the same sources and epilogue as Conv3x3: a learned mix of channels.

    y = shuffle(act(conv(concat(x, x2)) + bias + residual))

    Args:
        in_channels, out_channels, bias, stride: as Conv3x3.

    Shapes: as Conv3x3.
    """

    kernel_size = 1


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d of stride 1 whose map keeps its size, by fastds.ops.conv2d.

    Args:
        in_channels, out_channels: C and O, divisible by groups.
        kernel_size: k, odd.
        groups: G.
        bias: add a learned bias.

    Shapes: (B, C, H, W) -> (B, O, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int = 1, bias: bool = True):
        check_positive_ints(in_channels=in_channels, out_channels=out_channels, kernel_size=kernel_size, groups=groups)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x."""
        if type(x) is Proxy and x.tracer.root is not self:
            return record_layer(self, x)
        return conv2d(x, self.weight, self.bias, groups=self.groups)


class BorderConv(Conv3x3):
    """3x3 convolution whose border is continued as the field is: "replicate", "circular_x" or "zeros"."""

    def __init__(self, in_channels: int, out_channels: int, padding_mode: str):
        super().__init__(in_channels, out_channels)
        self.padding_mode = padding_mode

    def forward(self, x: Tensor, residual: Tensor | None = None, act: str | None = None, shuffle: int = 1) -> Tensor:
        if type(x) is Proxy and x.tracer.root is not self:
            return record_layer(self, x, residual=residual, act=act, shuffle=shuffle)
        options = {"residual": residual, "act": act, "shuffle": shuffle, "padding_mode": self.padding_mode}
        return conv3x3(x, self.weight, self.bias, **options)


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

    def sum_biases(self) -> Tensor:
        """The biases of the summands together, (O,)."""
        return self.bias if self.bias.ndim == 1 else self.bias.sum(0)

    def freeze_bias(self) -> None:
        """Keep the sum of the biases in their place, for inference on a GPU: a kernel less in every step."""
        self.bias = nn.Parameter(self.sum_biases().detach(), requires_grad=False)

    def forward(self, *sources: Tensor, residual: Tensor | None = None) -> Tensor:
        if type(sources[0]) is Proxy and sources[0].tracer.root is not self:
            return record_layer(self, *sources, residual=residual)
        bias = self.sum_biases()
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
    """As SummedConv3x3 with 5x5 kernels: a convolution per source."""

    kernel_size = 5


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between them and a skip around both.

    y = x + conv2(relu(conv1(x)))

    Args:
        channels: C.

    Shapes: (B, C, H, W) -> (B, C, H, W). Weights start Kaiming-normal (fan in) times 0.1, biases at zero.

    Source: Lim et al. 2017 (EDSR); Chen, Qin and Dai 2022, feature extractor and reconstruction.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv3x3(channels, channels)
        self.conv2 = Conv3x3(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, a=0, mode="fan_in")
            conv.weight.data.mul_(0.1)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + conv2(relu(conv1(x))), of the shape of x."""
        return self.conv2(self.conv1(x, act="relu"), residual=x)


class SubPixel(nn.Module):
    """Upsample by r: a 3x3 convolution to r^2 channels per output channel, leaky ReLU, pixel shuffle.

    y = shuffle_r(leaky_relu(conv(x), 0.1));  r = 4 is done as twice r = 2, r = 1 has no layer. The leaky
    ReLU is the last step: a network whose output is negative as often as positive needs a convolution behind it.

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
        if not isinstance(scale, int) or scale not in steps:
            raise ValueError(f"scale must be 1, 2, 3 or 4, got {scale!r}")
        if scale == 1 and channels != out_channels:
            raise ValueError(f"scale 1 has no layer to turn {channels} channels into {out_channels}")
        self.scale, self.steps = scale, steps[scale]
        outs = [channels] * (len(self.steps) - 1) + [out_channels]
        self.convs = nn.ModuleList(Conv3x3(channels, o * r * r) for o, r in zip(outs, self.steps, strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, C, H, W) at r times the resolution, (B, O, r*H, r*W)."""
        for conv, r in zip(self.convs, self.steps, strict=True):
            x = conv(x, act="leaky_relu", shuffle=r)
        return x

    def extra_repr(self) -> str:
        return f"scale={self.scale}, act='leaky_relu'" if self.steps else "scale=1"
