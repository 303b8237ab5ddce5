# SPDX-License-Identifier: Apache-2.0
"""Convolutions with a fused epilogue, and blocks of them."""

import math
from typing import Any

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
    second_input: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.1,
    upscale_factor: int = 1,
    stride: int = 1,
) -> Tensor:
    """Convolve the concatenation of x and second_input with padding k // 2 and a fused epilogue.

    y = pixel_shuffle(activation(conv(concat(x, second_input), weight) + bias + residual))

    With stride 1, fastds.ops.conv3x3 computes 3x3 kernels, and fastds.ops.conv1x1 computes 1x1 kernels without pixel
    shuffle. For other kernels and strides two sources are convolved separately and added, so that no concatenation is
    stored or saved for the backward pass. On a CPU with stride 1 fastds.ops.conv2d computes these convolutions. On a
    GPU, in 16 bits and without gradients, one fused kernel computes the function where that is faster.

    Args:
        x: (B, C1, H, W), any strides, fastest in channels_last.
        weight: (O, C1 + C2, k, k), k odd.
        bias: (O,) or None.
        second_input: (B, C2, H, W), second source, or None.
        residual: (B, O, H/stride, W/stride), added before the activation, or None.
        activation: None, "relu" or "leaky_relu".
        negative_slope: float >= 0, slope of leaky_relu.
        upscale_factor: int, r, factor of a final pixel shuffle as in torch.nn.PixelShuffle. O must be a multiple of
            r^2.
        stride: int, stride in pixels.

    Returns:
        (B, O / r^2, r*H/stride, r*W/stride), channels_last. H/stride and W/stride are rounded up.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.
        RuntimeError: the algorithm of the enclosing fastds.use_conv_algorithm(...) cannot run.

    Dtypes, gradients and autocast are those of conv3x3.
    """
    if type(x) is Proxy:
        return record_op(convolve, locals())
    options: dict[str, Any] = {
        "second_input": second_input,
        "residual": residual,
        "activation": activation,
        "negative_slope": negative_slope,
    }
    if weight.shape[-1] == 3 and stride == 1:
        return conv3x3(x, weight, bias, upscale_factor=upscale_factor, **options)
    if weight.shape[-1] == 1 and stride == upscale_factor == 1:
        return conv1x1(x, weight, bias, **options)
    activation, size = "none" if activation is None else activation, weight.shape[-1]
    x, weight, bias, second_input, residual = cast_convolution_inputs(x, weight, bias, second_input, residual, None)
    slope = to_float("negative_slope", negative_slope)
    dtype = x.dtype if isinstance(x, Tensor) else None
    check(
        x,
        weight,
        bias,
        second_input,
        residual,
        activation,
        slope,
        "zeros",
        upscale_factor,
        dtype,
        "direct",
        size=size,
        stride=stride,
    )
    by = conv2d if stride == 1 and x.is_cpu else None
    return library.convolve(x, weight, bias, second_input, residual, activation, slope, upscale_factor, stride, by)


def get_parameters(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a layer without calling the layer.

    The forward pre-hooks of prune, weight_norm and spectral_norm, which compute the weight, run first. Other hooks do
    not run.
    """
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod | WeightNorm | SpectralNorm):
            hook(layer, ())
    parameters: Any = layer  # attributes of an nn.Module are Tensor or Module to type checkers
    return parameters.weight, parameters.bias


class _Conv(nn.Module):
    """Weight and bias of a k x k convolution, initialized as in torch.nn.Conv2d."""

    kernel_size = 1

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = True):
        super().__init__()
        check_positive_ints(in_channels=in_channels, out_channels=out_channels, stride=stride)
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, self.kernel_size, self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weight and bias uniformly within +-1/sqrt(fan in)."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        x: Tensor,
        second_input: Tensor | None = None,
        *,
        residual: Tensor | None = None,
        activation: str | None = None,
        negative_slope: float = 0.1,
        upscale_factor: int = 1,
    ) -> Tensor:
        """Return pixel_shuffle(activation(conv(concat(x, second_input)) + bias + residual)).

        Args:
            x: (B, C1, H, W).
            second_input: (B, C2, H, W), second source, or None.
            residual: (B, O, H/s, W/s), added before the activation, or None.
            activation: None, "relu" or "leaky_relu".
            negative_slope: float, slope of leaky_relu.
            upscale_factor: int, r, factor of a final pixel shuffle as in torch.nn.PixelShuffle; 1: none.

        Returns:
            (B, O/r^2, r*H/s, r*W/s), channels_last, with stride s.
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(
                self,
                x,
                second_input=second_input,
                residual=residual,
                activation=activation,
                negative_slope=negative_slope,
                upscale_factor=upscale_factor,
            )
        return convolve(
            x,
            self.weight,
            self.bias,
            second_input=second_input,
            residual=residual,
            activation=activation,
            negative_slope=negative_slope,
            upscale_factor=upscale_factor,
            stride=self.stride,
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, bias={self.bias is not None}"
        return text if self.stride == 1 else f"{text}, stride={self.stride}"


class Conv3x3(_Conv):
    """3x3 convolution with zero padding 1 and a fused epilogue.

    y = pixel_shuffle(activation(conv(concat(x, second_input)) + bias + residual))

    Args:
        in_channels: int, C1 + C2, channels of both sources.
        out_channels: int, O, channels before the pixel shuffle.
        stride: int, s, in pixels.
        bias: bool, add a learned bias.

    Shapes: x (B, C1, H, W), second_input (B, C2, H, W), residual (B, O, H/s, W/s) -> (B, O/r^2, r*H/s, r*W/s),
    channels_last. H/s and W/s are rounded up. r is the argument `upscale_factor` of forward, by default 1.
    """

    kernel_size = 3


class Conv1x1(_Conv):
    """1x1 convolution, a learned linear map of channels, with the sources and the epilogue of Conv3x3.

    y = pixel_shuffle(activation(conv(concat(x, second_input)) + bias + residual))

    Args:
        in_channels: int, C1 + C2, channels of both sources.
        out_channels: int, O, channels before the pixel shuffle.
        stride: int, s, in pixels.
        bias: bool, add a learned bias.

    Shapes are those of Conv3x3.
    """

    kernel_size = 1


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, computed by fastds.ops.conv2d, for stride 1 and zero padding that preserves the image size.

    The arguments are those of torch.nn.Conv2d, in the same order. For kernel_size > 1 the argument `padding` must be
    given, because its default, which is 0 as in torch, is not supported.

    Args:
        in_channels: int, C, divisible by groups.
        out_channels: int, O, divisible by groups.
        kernel_size: int or a pair of equal ints, k, odd.
        stride: int or pair, only 1.
        padding: "same", or int or pair, only k // 2.
        dilation: int or pair, only 1.
        groups: int, G.
        bias: bool, add a learned bias.
        padding_mode: str, only "zeros".
        device: device of the parameters, or None for the default device.
        dtype: dtype of the parameters, or None for the default dtype.

    Raises:
        ValueError: an argument has an unsupported value.

    Shapes: (B, C, H, W) -> (B, O, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        size, *others = tuple(kernel_size) if isinstance(kernel_size, tuple | list) else (kernel_size,)
        if others not in ([], [size]):
            raise ValueError(f"kernel_size must be an int or a pair of equal ints, got {kernel_size}")
        check_positive_ints(in_channels=in_channels, out_channels=out_channels, kernel_size=size, groups=groups)
        if size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if padding != "same" and padding not in (size // 2, (size // 2, size // 2)):
            raise ValueError(f"padding must be 'same' or kernel_size // 2 = {size // 2}, got {padding!r}")
        for name, value in (("stride", stride), ("dilation", dilation)):
            if value not in (1, (1, 1)):
                raise ValueError(f"{name} must be 1, got {value!r}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {padding_mode!r}")
        super().__init__(
            in_channels, out_channels, size, padding=size // 2, groups=groups, bias=bias, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, O, H, W).
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, x)
        return conv2d(x, self.weight, self.bias, groups=self.groups)


class PaddedConv3x3(Conv3x3):
    """3x3 convolution with a choice of padding.

    Args:
        in_channels: int, C.
        out_channels: int, O.
        padding_mode: str, "replicate", "circular_x" or "zeros", as in fastds.ops.conv3x3.
    """

    def __init__(self, in_channels: int, out_channels: int, *, padding_mode: str):
        super().__init__(in_channels, out_channels)
        self.padding_mode = padding_mode

    def forward(  # type: ignore[override]  # there is no second input
        self, x: Tensor, *, residual: Tensor | None = None, activation: str | None = None, upscale_factor: int = 1
    ) -> Tensor:
        """Return pixel_shuffle(activation(conv(x) + bias + residual)).

        Args:
            x: (B, C, H, W).
            residual: (B, O, H, W), added before the activation, or None.
            activation: None, "relu" or "leaky_relu".
            upscale_factor: int, r, factor of a final pixel shuffle; 1: none.

        Returns:
            (B, O/r^2, r*H, r*W), channels_last.
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, x, residual=residual, activation=activation, upscale_factor=upscale_factor)
        return conv3x3(
            x,
            self.weight,
            self.bias,
            residual=residual,
            activation=activation,
            upscale_factor=upscale_factor,
            padding_mode=self.padding_mode,
        )


class MultiInputConv3x3(nn.Module):
    """Sum of 3x3 convolutions of several inputs, each with its own bias.

    y = sum_k conv3x3(x_k) + residual

    Args:
        in_channels: tuple of int, channels of each input.
        out_channels: int, O.

    Shapes: forward(x_1 (B, C_1, H, W), ..., residual (B, O, H, W) or None) -> (B, O, H, W), channels_last. Inputs are
    cast to the dtype of the first.
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
        """Initialize each convolution as torch.nn.Conv2d: weight and bias uniform within +-1/sqrt(k^2 C_k)."""
        with torch.no_grad():
            for part, bias, channels in zip(self.weights(), self.bias, self.in_channels, strict=True):
                bound = 1 / math.sqrt(part[0, 0].numel() * channels)
                nn.init.uniform_(part, -bound, bound)
                nn.init.uniform_(bias, -bound, bound)

    def weights(self) -> tuple[Tensor, ...]:
        """Return the weight of each convolution."""
        return self.weight.split(self.in_channels, 1)

    def sum_biases(self) -> Tensor:
        """Return the sum of the biases, (O,)."""
        return self.bias if self.bias.ndim == 1 else self.bias.sum(0)

    def freeze_bias(self) -> None:
        """Replace the biases by their sum. Inference on a GPU then launches one kernel less in each step."""
        self.bias = nn.Parameter(self.sum_biases().detach(), requires_grad=False)

    def forward(self, *sources: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return sum_k conv3x3(sources[k]) + residual, (B, O, H, W)."""
        if type(sources[0]) is Proxy and sources[0].tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, *sources, residual=residual)
        bias = self.sum_biases()
        sources = tuple(x.to(sources[0].dtype) for x in sources)
        if len(sources) <= 2:
            return convolve(
                sources[0], self.weight, bias, second_input=sources[1] if sources[1:] else None, residual=residual
            )
        parts, y = self.weights(), residual
        for k in range(0, len(sources), 2):  # convolve takes up to two sources
            weight = torch.cat(parts[k : k + 2], 1)
            second_input = sources[k + 1] if k + 1 < len(sources) else None
            y = convolve(sources[k], weight, bias if k == 0 else None, second_input=second_input, residual=y)
        assert y is not None  # there are at least three sources
        return y

    def extra_repr(self) -> str:
        return f"{' + '.join(map(str, self.in_channels))} -> {self.out_channels}"


class MultiInputConv5x5(MultiInputConv3x3):
    """MultiInputConv3x3 with 5x5 kernels. It runs one convolution for each input."""

    kernel_size = 5


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between them and a skip connection around both.

    y = x + conv2(relu(conv1(x)))

    Args:
        channels: int, C.

    Shapes: (B, C, H, W) -> (B, C, H, W). Weights are initialized Kaiming-normal (fan in) times 0.1, biases to zero.

    Source: Lim et al. 2017 (EDSR); Chen, Qin and Dai 2022, feature extractor and reconstruction.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv3x3(channels, channels)
        self.conv2 = Conv3x3(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize weights Kaiming-normal (fan in) times 0.1, and biases to zero."""
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, a=0, mode="fan_in")
            conv.weight.data.mul_(0.1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + conv2(relu(conv1(x))).

        Args:
            x: (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        return self.conv2(self.conv1(x, activation="relu"), residual=x)


class PixelShuffleUpsample(nn.Module):
    """Upsampling by a factor r: a 3x3 convolution to r^2 O channels, a leaky ReLU, and a pixel shuffle.

    y = shuffle_r(leaky_relu(conv(x), 0.1))

    For r = 4 two steps with r = 2 follow one another; for r = 1 the result is x. Because the leaky ReLU comes last, a
    network with outputs of both signs needs another convolution after this layer.

    Args:
        in_channels: int, C.
        out_channels: int, O. It must equal in_channels if upscale_factor is 1.
        upscale_factor: int, r, 1, 2, 3 or 4.

    Raises:
        ValueError: upscale_factor has another value, or out_channels differs from in_channels with upscale_factor 1.

    Shapes: (B, C, H, W) -> (B, O, r*H, r*W).

    Source: Shi et al. 2016 (ESPCN); Chen, Qin and Dai 2022, reconstruction.
    """

    def __init__(self, in_channels: int, out_channels: int, *, upscale_factor: int):
        super().__init__()
        steps = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}
        if not isinstance(upscale_factor, int) or upscale_factor not in steps:
            raise ValueError(f"upscale_factor must be 1, 2, 3 or 4, got {upscale_factor!r}")
        if upscale_factor == 1 and in_channels != out_channels:
            raise ValueError(
                f"out_channels must equal in_channels for upscale_factor 1, got {out_channels} and {in_channels}"
            )
        self.upscale_factor, self.steps = upscale_factor, steps[upscale_factor]
        outs = [in_channels] * (len(self.steps) - 1) + [out_channels]
        self.convs = nn.ModuleList(Conv3x3(in_channels, o * r * r) for o, r in zip(outs, self.steps, strict=False))

    def forward(self, x: Tensor) -> Tensor:
        """Upsample feature maps.

        Args:
            x: (B, C, H, W).

        Returns:
            (B, O, r*H, r*W).
        """
        for conv, r in zip(self.convs, self.steps, strict=True):
            x = conv(x, activation="leaky_relu", upscale_factor=r)
        return x

    def extra_repr(self) -> str:
        return f"upscale_factor={self.upscale_factor}"
