# SPDX-License-Identifier: Apache-2.0
"""conv3x3 and its gradients as sums of shifted planes, for few input or output channels.

The kernels of the engine and of the library compute 8 to 16 channels at once, even if there are fewer channels, and
need channels_last memory. The kernels used here add runs of pixels, and read contiguous and channels_last memory.
"""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import without_autocast
from fastds.ops.core.layout import as_nhwc, empty_map, to_channels_last, to_contiguous
from fastds.ops.impl.conv3x3 import library, reference
from fastds.ops.impl.conv3x3.winograd import ACTIVATION_CODES, PADDING_CODES


def _describe_map(x: Tensor) -> tuple[Tensor, tuple]:
    """Return a map whose pixel or channel stride is 1, and its description for csrc/conv3x3."""
    x = x.resolve_neg() if x.stride(3) == 1 else as_nhwc(x)
    batch, channel, row, pixel = x.stride()
    strides = (batch, 1 if x.shape[1] == 1 else channel, row, pixel)
    return x, (x.data_ptr(), native.DTYPE_CODES[x.dtype], x.shape[1], *strides)


def _to_float32_filters(weight: Tensor) -> Tensor:
    """Return float32 filters whose 9 taps are contiguous; the strides of outputs and inputs may be any."""
    weight = weight.float().resolve_neg()
    return weight if weight.stride()[2:] == (3, 1) else to_contiguous(weight)


def _run(geometry, sources, weight, adjoint, bias, residual, act, negative_slope, y) -> None:
    """Run the native kernel.

    Args:
        geometry: sizes and padding, see _describe_geometry.
        sources: list of one or two inputs.
        weight: the filters.
        adjoint: bool, compute the gradient of the input.
        bias: (O,) or None.
        residual: tensor like y or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        y: output.
    """
    filters, maps = _to_float32_filters(weight), [_describe_map(x) for x in sources]
    stride_o, stride_i = filters.stride()[:2]
    if adjoint:
        stride_o, stride_i = stride_i, stride_o
    bias = None if bias is None else to_contiguous(bias.float())
    native.call_with_workspace(
        native.get_module().conv3x3_planes, geometry, [call for _, call in maps], filters.data_ptr(), y.shape[1],
        stride_o, stride_i, adjoint, native.get_address(bias), native.get_address(residual), y.data_ptr(),
        native.DTYPE_CODES[y.dtype], ACTIVATION_CODES[act], negative_slope,
    )  # fmt: skip


@without_autocast
def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype):
    """Compute conv3x3 by sums of shifted planes, see fastds.ops.conv3x3.

    Args:
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 3, 3).
        bias: (O,) or None.
        x2: (B, C2, H, W), second source, or None.
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle, 1: none.
        out_dtype: dtype of the result.

    Returns:
        (B, O / shuffle^2, shuffle * H, shuffle * W).
    """
    batch, _, height, width = x.shape
    y = empty_map((batch, weight.shape[0], height, width), out_dtype if shuffle == 1 else torch.float32, x)
    sources, geometry = [t for t in (x, x2) if t is not None], _describe_geometry(x, 1, padding_mode)
    if shuffle == 1:
        residual = None if residual is None else to_channels_last(residual)
        _run(geometry, sources, weight, False, bias, residual, act, negative_slope, y)
        return y
    _run(geometry, sources, weight, False, bias, None, "none", 0.0, y)
    residual = None if residual is None else residual.float()
    return library.apply_epilogue(y, residual, act, negative_slope, shuffle).to(out_dtype)


def _describe_geometry(x: Tensor, pad: int, padding_mode: str) -> tuple[int, ...]:
    """Return batch, height and width of x, height and width of the result, padding, and codes of the padding mode."""
    batch, _, height, width = x.shape
    return batch, height, width, height + 2 * pad - 2, width + 2 * pad - 2, pad, pad, *PADDING_CODES[padding_mode]


def grad_x(grad, weight, padding_mode, dtype):
    """Compute the gradient of the concatenated input from the gradient of the output before the epilogue.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        weight: (O, C, 3, 3).
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.

    Returns:
        (B, C, H, W).
    """
    batch, _, height, width = grad.shape
    pad = 1 if padding_mode == "zeros" else 2
    size = (height + 2 * pad - 2, width + 2 * pad - 2)
    result = empty_map((batch, weight.shape[1], *size), dtype if pad == 1 else torch.float32, grad)
    _run(_describe_geometry(grad, pad, "zeros"), [grad], weight, True, None, None, "none", 0.0, result)
    return result if pad == 1 else to_channels_last(reference.fold(result, padding_mode).to(dtype))


def grad_weight(grad, x, x2, padding_mode, dtype):
    """Compute the gradient of the weight from the gradient of the output before the epilogue.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        x: (B, C1, H, W), first source.
        x2: (B, C2, H, W), second source, or None.
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.

    Returns:
        (O, C1 + C2, 3, 3).
    """
    parts = [_grad_weight(grad, source, padding_mode, dtype) for source in (x, x2) if source is not None]
    return parts[0] if x2 is None else torch.cat(parts, 1)


def _grad_weight(grad: Tensor, x: Tensor, padding_mode: str, dtype: torch.dtype) -> Tensor:
    """Compute the gradient of the weight for one source."""
    # The kernel reads the tensor with few channels plane by plane. With zero padding this may be the input or the
    # gradient, whichever has fewer channels.
    swapped = x.shape[1] > grad.shape[1] and padding_mode == "zeros"
    few, many = (grad, as_nhwc(x)) if swapped else (x, as_nhwc(grad))
    (few, few_view), (many, many_view) = _describe_map(few), _describe_map(many)
    result = torch.empty((grad.shape[1], x.shape[1], 3, 3), dtype=dtype)
    native.call_with_workspace(
        native.get_module().conv3x3_few_grad_weight, _describe_geometry(x, 1, padding_mode), few_view, many_view,
        swapped, native.DTYPE_CODES[dtype], result.data_ptr(),
    )  # fmt: skip
    return result


@without_autocast
def backward(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad):
    """Compute the gradients of x, weight, bias, x2 and residual; gradients that are not needed are None.

    Args:
        grad_y: gradient of the result.
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 3, 3).
        x2: (B, C2, H, W), second source, or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle, 1: none.
        algorithm: not used.
        needs_grad: five bools, one for each gradient.

    Returns:
        The five gradients, in the order above.
    """
    grad = library.backpropagate_epilogue(grad_y, y, negative_slope, shuffle)
    grads: list[Tensor | None] = [None] * 5
    if needs_grad[0] or needs_grad[3]:
        both = grad_x(grad, weight, padding_mode, x.dtype)
        grads[0], grads[3] = (to_channels_last(part) for part in both.tensor_split([x.shape[1]], 1))
    if needs_grad[1]:
        grads[1] = grad_weight(grad, x, x2, padding_mode, weight.dtype)
    if needs_grad[2]:
        grads[2] = library.compute_bias_gradient(grad, weight.dtype)
    if needs_grad[4]:
        grads[4] = to_channels_last(grad)
    return grads
