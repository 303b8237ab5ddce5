# SPDX-License-Identifier: Apache-2.0
"""conv1x1 and its gradients for checked arguments: natively on a CPU, elsewhere by the library; and empty results."""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import outside_autocast
from fastds.ops.core.layout import CHANNELS_LAST, dense, empty_map, plain, turned
from fastds.ops.impl.conv3x3 import direct
from fastds.ops.impl.conv3x3 import kernels as conv3x3_kernels
from fastds.ops.impl.conv3x3.algorithm import winograd_refusal
from fastds.ops.impl.conv3x3.engine import ACT

# ---- native calls. Every tensor that gives its address stays bound to a name until the call returns.


def _readable(maps: Tensor) -> Tensor:
    """The maps where the kernel can walk from pixel to pixel, else a copy in channels_last."""
    if maps.is_contiguous(memory_format=CHANNELS_LAST) or maps.is_contiguous():
        return maps.resolve_neg()
    _, channels, height, width = maps.shape
    _, of_channel, row, column = maps.stride()
    even = height == 1 or width == 1 or row == width * column
    beside = channels == 1 or 1 in (of_channel, column if width > 1 else row)
    return maps.resolve_neg() if even and beside else dense(maps)


def _view(maps: Tensor) -> tuple:
    """As csrc/conv1x1 takes it: address, channels, strides of images, pixels and channels."""
    _, channels, height, width = maps.shape
    of_image, of_channel, row, column = maps.stride()
    step = column if width > 1 else row if height > 1 else 1
    return maps.data_ptr(), channels, of_image, step, 1 if channels == 1 else of_channel


def _rows(weight: Tensor) -> Tensor:
    """The weight (O, C, 1, 1) with dense rows."""
    return weight if weight.is_contiguous() and not weight.is_neg() else plain(weight)


def _product(sources, weight: Tensor, bias, residual, act: str, negative_slope: float) -> Tensor:
    """weight: (O, C) or (O, C, 1, 1) of all sources, dense rows."""
    batch, _, height, width = sources[0].shape
    dtype, outputs = sources[0].dtype, weight.shape[0]
    y = empty_map((batch, outputs, height, width), dtype, sources[0])
    sources = [_readable(source) for source in sources]
    bias = None if bias is None else plain(bias)
    residual = None if residual is None else dense(residual)
    native.in_workspace(
        native.module().conv1x1, native.DTYPE_CODES[dtype], batch, height * width, [_view(s) for s in sources],
        (weight.data_ptr(), native.DTYPE_CODES[weight.dtype], outputs, weight.stride(0)), native.address(bias),
        native.address(residual), y.data_ptr(), ACT[act], negative_slope,
    )  # fmt: skip
    return y


def _grad_weight(grad: Tensor, sources, dtype: torch.dtype) -> Tensor:
    """(O, C, 1, 1) of all sources."""
    batch, outputs, height, width = grad.shape
    channels = sum(source.shape[1] for source in sources)
    result, grad = torch.empty((outputs, channels, 1, 1), dtype=dtype), _readable(grad)
    at = result.data_ptr()
    for source in map(_readable, sources):
        native.in_workspace(
            native.module().conv1x1_grad_weight, native.DTYPE_CODES[grad.dtype], batch, height * width, _view(grad),
            _view(source), at, native.DTYPE_CODES[dtype], channels,
        )  # fmt: skip
        at += source.shape[1] * dtype.itemsize
    return result


def _grad_sources(grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> list[Tensor | None]:
    """Of x and the second source."""
    parts = turned(_rows(weight).flatten(1)).tensor_split([x.shape[1]])
    return [
        _product([grad], part, None, None, "none", 0.0) if want else None
        for part, want in zip(parts, wanted, strict=True)
    ]


# ---- the op


def forward(x, weight, bias, x2, residual, act, negative_slope):
    args = (x, weight, bias, x2, residual, act, negative_slope)
    if x.shape[0] == 0:
        return forward_fake(*args)
    if winograd_refusal(x) is not None:
        return _by_library(*args, 1, 1)
    sources = [x] if x2 is None else [x, x2]
    return _product(sources, _rows(weight), bias, residual, act, negative_slope)


def forward_fake(x, weight, bias, x2, residual, act, negative_slope):
    return empty_map((x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, x)


_by_library = outside_autocast(direct.convolve)


def backward(grad_y, x, weight, x2, y, negative_slope, wanted):
    if x.shape[0] == 0:
        return [g.zero_() for g in backward_fake(grad_y, x, weight, x2, y, negative_slope, wanted)]
    gradients = _native_gradients if winograd_refusal(x) is None else _library_gradients
    grads = gradients(grad_y, x, weight, x2, y, negative_slope, wanted)
    return [g for g, want in zip(grads, wanted, strict=True) if want]


def _native_gradients(grad_y, x, weight, x2, y, negative_slope, wanted):
    grad = direct.pre_gradient(grad_y, y, negative_slope, 1)
    grad_x, grad_x2 = _grad_sources(grad, x, weight, (wanted[0], wanted[3]))
    grad_weight = _grad_weight(grad, [x] if x2 is None else [x, x2], weight.dtype) if wanted[1] else None
    grad_bias = direct.bias_gradient(grad, weight.dtype) if wanted[2] else None
    return grad_x, grad_weight, grad_bias, grad_x2, dense(grad) if wanted[4] else None


def _library_gradients(grad_y, x, weight, x2, y, negative_slope, wanted):
    return direct.backward(grad_y, x, weight, x2, y, negative_slope, "zeros", 1, "direct", wanted)


def backward_fake(grad_y, x, weight, x2, y, negative_slope, wanted):
    return conv3x3_kernels.backward_fake(grad_y, x, weight, x2, y, negative_slope, "zeros", 1, "direct", wanted)
