# SPDX-License-Identifier: Apache-2.0
"""Native backend of conv1x1 and of its gradients, for checked arguments.

On a CPU the kernel of csrc/conv1x1 computes, except in float64 and with the instruction set "baseline". Otherwise the
library (oneDNN or cuDNN) computes.
Functions named *_fake only allocate the results, for tracing.
"""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import without_autocast
from fastds.ops.core.layout import CHANNELS_LAST, empty_map, to_channels_last, to_contiguous, transpose_matrix
from fastds.ops.impl.conv3x3 import kernels as conv3x3_kernels
from fastds.ops.impl.conv3x3 import library
from fastds.ops.impl.conv3x3.algorithm import winograd_unsupported_reason
from fastds.ops.impl.conv3x3.winograd import ACTIVATION_CODES

# ---- native calls. A tensor whose address is passed stays referenced until the call returns.


def _to_readable_layout(maps: Tensor) -> Tensor:
    """Return the feature maps in a layout that the kernel reads, copied to channels_last if necessary.

    The kernel reads maps whose pixels are evenly spaced and whose channel or pixel stride is 1.
    """
    if maps.is_contiguous(memory_format=CHANNELS_LAST) or maps.is_contiguous():
        return maps.resolve_neg()
    _, channels, height, width = maps.shape
    _, channel_stride, row_stride, column_stride = maps.stride()
    is_evenly_spaced = height == 1 or width == 1 or row_stride == width * column_stride
    has_unit_stride = channels == 1 or 1 in (channel_stride, column_stride if width > 1 else row_stride)
    return maps.resolve_neg() if is_evenly_spaced and has_unit_stride else to_channels_last(maps)


def _describe_map(maps: Tensor) -> tuple:
    """Return the arguments of a map for csrc/conv1x1: address, channels, image, pixel and channel stride."""
    _, channels, height, width = maps.shape
    image_stride, channel_stride, row_stride, column_stride = maps.stride()
    pixel_stride = column_stride if width > 1 else row_stride if height > 1 else 1
    return maps.data_ptr(), channels, image_stride, pixel_stride, 1 if channels == 1 else channel_stride


def _to_dense_rows(weight: Tensor) -> Tensor:
    """Return the weight (O, C, 1, 1) contiguous and without a lazy negation."""
    return weight if weight.is_contiguous() and not weight.is_neg() else to_contiguous(weight)


def _multiply(sources, weight: Tensor, bias, residual, act: str, negative_slope: float) -> Tensor:
    """Run the native kernel: act(weight * concat(sources) + bias + residual).

    Args:
        sources: list of one or two feature maps (B, C_k, H, W).
        weight: (O, C) or (O, C, 1, 1) with contiguous rows, where C is the number of channels of all sources.
        bias: (O,) or None.
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
    """
    batch, _, height, width = sources[0].shape
    dtype, outputs = sources[0].dtype, weight.shape[0]
    y = empty_map((batch, outputs, height, width), dtype, sources[0])
    sources = [_to_readable_layout(source) for source in sources]
    bias = None if bias is None else to_contiguous(bias)
    residual = None if residual is None else to_channels_last(residual)
    native.call_with_workspace(
        native.get_module().conv1x1, native.DTYPE_CODES[dtype], batch, height * width,
        [_describe_map(s) for s in sources],
        (weight.data_ptr(), native.DTYPE_CODES[weight.dtype], outputs, weight.stride(0)), native.get_address(bias),
        native.get_address(residual), y.data_ptr(), ACTIVATION_CODES[act], negative_slope,
    )  # fmt: skip
    return y


def _compute_weight_gradient(grad: Tensor, sources, dtype: torch.dtype) -> Tensor:
    """Compute the gradient (O, C, 1, 1) of the weight for all sources."""
    batch, outputs, height, width = grad.shape
    channels = sum(source.shape[1] for source in sources)
    result, grad = torch.empty((outputs, channels, 1, 1), dtype=dtype), _to_readable_layout(grad)
    address = result.data_ptr()
    for source in map(_to_readable_layout, sources):
        native.call_with_workspace(
            native.get_module().conv1x1_grad_weight, native.DTYPE_CODES[grad.dtype], batch, height * width,
            _describe_map(grad), _describe_map(source), address, native.DTYPE_CODES[dtype], channels,
        )  # fmt: skip
        address += source.shape[1] * dtype.itemsize
    return result


def _compute_source_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needs_grad: tuple[bool, bool]
) -> list[Tensor | None]:
    """Compute the gradients of x and of the second source; gradients that are not needed are None."""
    parts = transpose_matrix(_to_dense_rows(weight).view(weight.shape[:2])).tensor_split([x.shape[1]])
    return [
        _multiply([grad], part, None, None, "none", 0.0) if needed else None
        for part, needed in zip(parts, needs_grad, strict=True)
    ]


# ---- the op


def forward(x, weight, bias, x2, residual, act, negative_slope):
    """Compute conv1x1, see fastds.ops.conv1x1.

    Args:
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 1, 1).
        bias: (O,) or None.
        x2: (B, C2, H, W), second source, or None.
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.

    Returns:
        (B, O, H, W).
    """
    args = (x, weight, bias, x2, residual, act, negative_slope)
    if x.shape[0] == 0:
        return forward_fake(*args)
    if winograd_unsupported_reason(x) is not None:
        return _forward_library(*args, 1, 1)
    sources = [x] if x2 is None else [x, x2]
    return _multiply(sources, _to_dense_rows(weight), bias, residual, act, negative_slope)


def forward_fake(x, weight, bias, x2, residual, act, negative_slope):
    """Allocate the result of forward.

    Args:
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 1, 1).
        bias: (O,) or None.
        x2: (B, C2, H, W), second source, or None.
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.

    Returns:
        (B, O, H, W), uninitialized.
    """
    return empty_map((x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, x)


_forward_library = without_autocast(library.convolve)


def backward(grad_y, x, weight, x2, y, negative_slope, needs_grad):
    """Return the requested gradients of x, weight, bias, x2 and residual.

    Args:
        grad_y: gradient of the result.
        x: first source.
        weight: (O, C1 + C2, 1, 1).
        x2: second source or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        needs_grad: five bools.
    """
    if x.shape[0] == 0:
        return [g.zero_() for g in backward_fake(grad_y, x, weight, x2, y, negative_slope, needs_grad)]
    gradients = _backward_native if winograd_unsupported_reason(x) is None else _backward_library
    grads = gradients(grad_y, x, weight, x2, y, negative_slope, needs_grad)
    return [g for g, needed in zip(grads, needs_grad, strict=True) if needed]


def _backward_native(grad_y, x, weight, x2, y, negative_slope, needs_grad):
    """Compute the gradients of x, weight, bias, x2 and residual by native kernels, or None where not needed."""
    grad = library.backpropagate_epilogue(grad_y, y, negative_slope, 1)
    grad_x, grad_x2 = _compute_source_gradients(grad, x, weight, (needs_grad[0], needs_grad[3]))
    grad_weight = (
        _compute_weight_gradient(grad, [x] if x2 is None else [x, x2], weight.dtype) if needs_grad[1] else None
    )
    grad_bias = library.compute_bias_gradient(grad, weight.dtype) if needs_grad[2] else None
    return grad_x, grad_weight, grad_bias, grad_x2, to_channels_last(grad) if needs_grad[4] else None


def _backward_library(grad_y, x, weight, x2, y, negative_slope, needs_grad):
    """Compute the gradients of x, weight, bias, x2 and residual by the library, or None where not needed."""
    return library.backward(grad_y, x, weight, x2, y, negative_slope, "zeros", 1, "direct", needs_grad)


def backward_fake(grad_y, x, weight, x2, y, negative_slope, needs_grad):
    """Allocate the results of backward.

    Args:
        grad_y: gradient of the result.
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 1, 1).
        x2: (B, C2, H, W), second source, or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        needs_grad: five bools, one for each gradient.

    Returns:
        Uninitialized tensors, one for each requested gradient.
    """
    return conv3x3_kernels.backward_fake(grad_y, x, weight, x2, y, negative_slope, "zeros", 1, "direct", needs_grad)
