# SPDX-License-Identifier: Apache-2.0
"""Layers around fastds.ops.deform_conv2d."""

import math
from numbers import Integral

import torch
from torch import Tensor, nn

from fastds.nn.convolutions import Conv3x3, convolve, get_parameters
from fastds.ops import deform_conv2d
from fastds.ops.core.arguments import check_positive_ints
from fastds.ops.core.tracing import Proxy, record_layer
from fastds.ops.impl.conv3x3.library import activate_
from fastds.ops.impl.deform_conv2d import guided as guided


def _pair(name: str, value: int | tuple[int, int], least: int = 1) -> tuple[int, int]:
    """Return a pair of ints from an int or a pair, or raise ValueError for other values and for ints below `least`."""
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, Integral) and v >= least for v in pair):
        raise ValueError(f"{name} must be an int >= {least} or a pair of them, got {value!r}")
    return int(pair[0]), int(pair[1])


class DeformConv2d(nn.Module):
    """Deformable convolution with learned weights. Offsets and mask are arguments of forward.

    Args:
        in_channels: int, C, divisible by groups.
        out_channels: int, O, divisible by groups.
        kernel_size: int or pair (rows, columns).
        stride: int or pair, in pixels.
        padding: int or pair, in pixels.
        dilation: int or pair, in pixels.
        groups: int, convolution groups. The number of offset groups follows from the channels of the offset.
        bias: bool, add a learned bias.

    Raises:
        ValueError: an argument is invalid.

    Shapes: x (B, C, H, W), offset (B, 2*G*K, H', W') in pixels, mask (B, G*K, H', W') or None -> (B, O, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        check_positive_ints(in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels, got groups={groups}, "
                f"in_channels={in_channels}, out_channels={out_channels}"
            )
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _pair("kernel_size", kernel_size), _pair("stride", stride)
        self.padding, self.dilation = _pair("padding", padding, 0), _pair("dilation", dilation, 0)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the weight Kaiming-uniform and the bias uniform, as torch.nn.Conv2d does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return fastds.ops.deform_conv2d of x with the layer's parameters.

        Args:
            x: (B, C, H, W).
            offset: (B, 2*G*K, H', W'), pixels.
            mask: (B, G*K, H', W'), or None for 1.

        Returns:
            (B, O, H', W').
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, x, offset, mask)
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        names = ("kernel_size", "stride", "padding", "dilation", "groups")
        text = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.in_channels}, {self.out_channels}, {text}, bias={self.bias is not None}"


class GuidedDeformConv2d(nn.Module):
    """Modulated deformable convolution of x whose offsets and mask are a 3x3 convolution of a guide.

    [o | m] = Conv3x3(guide);  y = deform_conv2d(x, o + base_offset, weight, bias, mask=sigmoid(m))

    The convolution for offsets and mask is initialized to zero. Without base_offset, the initial layer is therefore an
    ordinary convolution plus bias, where the convolution has the factor 1/2 if there is a mask. In bfloat16 the learned
    offsets are rounded to bfloat16, an error of up to 0.4 % of a displacement; base_offset is added in float32. Where
    guided_deform_conv2d supports the GPU, one kernel computes everything after the convolution for the offsets.

    Args:
        in_channels: int, C, channels of x and guide.
        out_channels: int, O.
        offset_groups: int, G; channel c of x belongs to offset group c // (C/G).
        modulated: bool, whether there is a mask (DCNv2) or not (DCNv1).
        kernel_size: int, odd; K = kernel_size^2.

    Raises:
        ValueError: an argument is invalid.

    Shapes: x and guide (B, C, H, W), base_offset (B, 2, H, W) or None -> (B, O, H, W).

    Source: equations of the one-way aligner of FC-ZSM; EDVR and Zooming Slow-Mo (DCN with a separate guide).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        offset_groups: int,
        modulated: bool = True,
        kernel_size: int = 3,
    ):
        super().__init__()
        check_positive_ints(
            in_channels=in_channels, out_channels=out_channels, offset_groups=offset_groups, kernel_size=kernel_size
        )
        if in_channels % offset_groups:
            raise ValueError(
                f"offset_groups must divide in_channels, got {offset_groups} groups and {in_channels} channels"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd to keep the size of the field, got {kernel_size}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.offset_groups, self.modulated, self.kernel_size = offset_groups, modulated, kernel_size
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        maps = (3 if modulated else 2) * offset_groups * kernel_size**2
        self.conv_offset_mask = Conv3x3(in_channels, maps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the weight uniformly within +-1/sqrt(C*K), the bias and the convolution for the offsets to 0."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        for parameter in (self.bias, *self.conv_offset_mask.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, guide: Tensor, base_offset: Tensor | None = None, *, activation: str | None = None
    ) -> Tensor:
        """Return the deformable convolution of x with offsets and mask computed from guide.

        Args:
            x: (B, C, H, W).
            guide: (B, C, H, W).
            base_offset: (B, 2, H, W), pixels (dy, dx) added to the offset of every tap and group, such as an optical
                flow, or None.
            activation: None or "leaky_relu" with slope 0.1.

        Returns:
            (B, O, H, W).

        Raises:
            ValueError: activation has another value, or base_offset has another shape.
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, x, guide, base_offset=base_offset, activation=activation)
        if activation not in (None, "leaky_relu"):
            raise ValueError(f"activation must be None or 'leaky_relu', got {activation!r}")
        if base_offset is not None and base_offset.shape != (x.shape[0], 2, *x.shape[2:]):
            expected = (x.shape[0], 2, *x.shape[2:])
            raise ValueError(f"base_offset has shape {tuple(base_offset.shape)}, expected {expected}")
        if guided.is_supported(x):
            raw = self.conv_offset_mask(guide)
            options = (self.offset_groups, self.modulated, 0.1 if activation else 1.0)
            return guided.guided_deform_conv2d(x, raw, self.weight, self.bias, base_offset, *options)
        # Two convolutions give dense maps, which views of one result would not be. The maps are also smaller, so that
        # glibc maps new pages for them less often.
        split = 2 * self.offset_groups * self.kernel_size**2
        weight, bias = get_parameters(self.conv_offset_mask)
        assert bias is not None
        offset = convolve(guide, weight[:split], bias[:split])
        mask = None
        if self.modulated:
            mask = convolve(guide, weight[split:], bias[split:]).sigmoid_().to(x.dtype)
        in_place = not offset.requires_grad
        if base_offset is not None:
            pairs = offset.to(torch.promote_types(offset.dtype, torch.float32)).unflatten(1, (-1, 2))
            base = base_offset.to(pairs.dtype).unsqueeze(1)
            offset = (pairs.add_(base) if in_place else pairs + base).flatten(1, 2)
        y = deform_conv2d(x, offset, self.weight, self.bias, 1, self.kernel_size // 2, 1, mask)
        return activate_(y, activation)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, offset_groups={self.offset_groups}"
        return f"{text}, modulated={self.modulated}, kernel_size={self.kernel_size}"
