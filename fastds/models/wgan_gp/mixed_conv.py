# SPDX-License-Identifier: Apache-2.0
"""Convolution with kernels of two sizes, run as one 3x3 convolution."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.wgan_gp.shared_kernel import SharedKernel
from fastds.models.wgan_gp.strided_conv import strided_conv3x3
from fastds.ops import conv3x3

MIXINGS = ("parallel", "sum", "sequential")
_kept: ContextVar[dict | None] = ContextVar("kernels", default=None)


@contextmanager
def kernels_kept() -> Iterator[None]:
    """Inside the block a layer puts its kernels together once for all its calls; weights must stay as they are."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def keeps_kernels() -> bool:
    """Whether kernels_kept is active."""
    return _kept.get() is not None


def once(layer: nn.Module, what: str, make: Callable[[], Any]) -> Any:
    """make(), inside kernels_kept() what it gave for the layer before, with and without a graph apart."""
    kept = _kept.get()
    if kept is None:
        return make()
    key = (layer, what, torch.is_grad_enabled())
    if key not in kept:
        kept[key] = make()
    return kept[key]


def embed(weight: Tensor) -> Tensor:
    """A (O, C, 2, 2) kernel padded by one row and column at the bottom and right, as 3x3 with padding 1."""
    return F.pad(weight, (1, 0, 1, 0))


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int, act: str | None = None) -> Tensor:
    """3x3 convolution, padding 1, with act None or "relu"; stride 1 on fastds.ops.conv3x3."""
    if stride == 1:
        return conv3x3(x, weight, bias, act=act)
    y = strided_conv3x3(x, weight, bias, stride)
    return y if act is None else F.relu(y)


class MixedConv(nn.Module):
    """2x2 and 3x3 kernels side by side.

    parallel: y = concat(w2 * pad_{0,1}(x), w3 * pad_{1,1}(x)) + bias, half of the outputs each;
    sum: y = w2 * pad_{0,1}(x) + w3 * pad_{1,1}(x) + bias, all outputs each;
    sequential: y = w2 * pad_{0,1}(w3 * pad_{1,1}(x) + bias3) + bias.

    The 2x2 kernel sees the pixel itself and those below and to the right (the "same" convention), and is biased by
    half a pixel. Both kernels are stored; parallel and sum run as one 3x3 convolution with zeros in the first row and
    column of the 2x2 kernels, which is exact.

    Args:
        in_channels, out_channels: C and O; O even for "parallel".
        stride: in pixels.
        mixing: "parallel", "sum" or "sequential".

    Shapes: (B, C, H, W) -> (B, O, ceil(H/stride), ceil(W/stride)).

    Source: Li et al. 2024 (kernel sizes 2 and 3); parallel halves are our reading.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, mixing: str = "parallel"):
        super().__init__()
        if mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {MIXINGS}, got {mixing!r}")
        if mixing == "parallel" and out_channels % 2:
            raise ValueError(f"out_channels must be even to be split between two kernels, got {out_channels}")
        self.in_channels, self.out_channels, self.stride, self.mixing = in_channels, out_channels, stride, mixing
        each = out_channels // 2 if mixing == "parallel" else out_channels
        inner = out_channels if mixing == "sequential" else in_channels
        self.weight2 = nn.Parameter(torch.empty(each, inner, 2, 2))
        self.weight3 = nn.Parameter(torch.empty(each, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if mixing == "sequential":
            self.bias3 = nn.Parameter(torch.zeros(out_channels))
        for weight in (self.weight2, self.weight3):
            nn.init.kaiming_normal_(weight)

    def kernel(self) -> Tensor:
        """The (O, C, 3, 3) kernel of parallel and sum."""
        two = embed(self.weight2)
        return torch.cat([two, self.weight3]) if self.mixing == "parallel" else two + self.weight3

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, act: str | None = None
    ) -> Tensor:
        """act(scale * y + shift): a normalisation with fixed statistics goes into kernel and bias.

        Args:
            x: (B, C, H, W).
            scale, shift: (O,), both or neither.
            act: None or "relu".
        """
        if scale is None and act is None and self.shares_kernel(x):
            return once(self, "shared", lambda: SharedKernel(self.kernel()))(x, self.bias)
        if self.mixing == "sequential":
            x = convolve(x, self.weight3, self.bias3, self.stride)
            kernel, stride = once(self, "second", lambda: embed(self.weight2)), 1
        else:
            kernel, stride = once(self, "kernel", self.kernel), self.stride
        bias = self.bias
        if scale is not None:
            kernel, bias = kernel * scale[:, None, None, None], bias * scale + shift
        return convolve(x, kernel, bias, stride, act)

    def shares_kernel(self, x: Tensor) -> bool:
        """Whether several passes in one graph gain by one gradient of the kernel: where it is larger than a field."""
        single = self.stride == 1 and self.mixing != "sequential" and keeps_kernels()
        return single and 9 * self.in_channels * self.out_channels > x[0].numel()

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}, mixing={self.mixing!r}"
