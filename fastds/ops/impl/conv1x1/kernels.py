# SPDX-License-Identifier: Apache-2.0
"""conv1x1 and its gradients for checked arguments: natively on a CPU, elsewhere by the library; and empty results."""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import outside_autocast
from fastds.ops.core.layout import CHANNELS_LAST, dense, empty_map, plain, turned
from fastds.ops.impl.conv3x3 import direct
from fastds.ops.impl.conv3x3.algorithm import winograd_refusal
from fastds.ops.impl.conv3x3.engine import ACT


def _native_takes(x: Tensor) -> bool:
    return winograd_refusal(x) is None


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
    """(O, C, 1, 1) as a matrix of dense rows."""
    dense_rows = weight.is_contiguous() and not weight.is_neg()
    return (weight if dense_rows else plain(weight)).view(weight.shape[:2])


def _product(sources, weight: Tensor, bias, residual, act: str, negative_slope: float) -> Tensor:
    """weight: (O, C) of all sources, dense rows."""
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
    parts = turned(_rows(weight)).tensor_split([x.shape[1]])
    return [
        _product([grad], part, None, None, "none", 0.0) if want else None
        for part, want in zip(parts, wanted, strict=True)
    ]


# ---- the op


def forward(x, weight, bias, x2, residual, act, negative_slope):
    args = (x, weight, bias, x2, residual, act, negative_slope)
    if x.shape[0] == 0:
        return forward_fake(*args)
    if not _native_takes(x):
        return _by_library(*args, 1, 1)
    sources = [x] if x2 is None else [x, x2]
    return _product(sources, _rows(weight), bias, residual, act, negative_slope)


def forward_fake(x, weight, bias, x2, residual, act, negative_slope):
    return empty_map((x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, x)


_by_library = outside_autocast(direct.convolve)


def backward(grad_y, x, weight, x2, y, negative_slope, wanted):
    if x.shape[0] == 0:
        return [g.zero_() for g in backward_fake(grad_y, x, weight, x2, y, negative_slope, wanted)]
    grad = direct.pre_gradient(grad_y, y, negative_slope, 1)
    gradients = _native_gradients if _native_takes(x) else _library_gradients
    grad_x, grad_weight, grad_x2 = gradients(grad, x, weight, x2, wanted)
    grad_bias = direct.bias_gradient(grad, weight.dtype) if wanted[2] else None
    grads = (grad_x, grad_weight, grad_bias, grad_x2, dense(grad) if wanted[4] else None)
    return [g for g, want in zip(grads, wanted, strict=True) if want]


def _native_gradients(grad, x, weight, x2, wanted):
    grad_x, grad_x2 = _grad_sources(grad, x, weight, (wanted[0], wanted[3]))
    sources = [x] if x2 is None else [x, x2]
    return grad_x, _grad_weight(grad, sources, weight.dtype) if wanted[1] else None, grad_x2


@outside_autocast
def _library_gradients(grad, x, weight, x2, wanted):
    source = x if x2 is None else torch.cat([x, x2], 1)
    of_source, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, source, weight.to(x.dtype), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1,
        [wanted[0] or wanted[3], wanted[1], False],
    )  # fmt: skip
    parts = (None, None) if of_source is None else map(dense, of_source.tensor_split([x.shape[1]], 1))
    grad_x, grad_x2 = parts
    return grad_x, plain(of_weight.to(weight.dtype)) if wanted[1] else None, grad_x2


def backward_fake(grad_y, x, weight, x2, y, negative_slope, wanted):
    batch, _, height, width = x.shape

    def image(channels):
        return empty_map((batch, channels, height, width), x.dtype, x)

    makers = (
        lambda: image(x.shape[1]),
        lambda: torch.empty(weight.shape, dtype=weight.dtype, device=x.device),
        lambda: torch.empty(weight.shape[:1], dtype=weight.dtype, device=x.device),
        lambda: image(x2.shape[1]),
        lambda: image(weight.shape[0]),
    )
    return [make() for make, want in zip(makers, wanted, strict=True) if want]
