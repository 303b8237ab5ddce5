# SPDX-License-Identifier: Apache-2.0
"""conv3x3 and its gradients by im2col and one matrix product, for few pixels and many channels.

Library kernels reorder the weights in each call, which takes longer than the arithmetic if pixels are few. The matrix
product reads the weights once, without reordering, and the im2col matrix (9 C, B H W) is small.
"""

import torch
from torch import Tensor

from fastds.ops.core.arguments import without_autocast
from fastds.ops.core.layout import to_channels_last, transpose_matrix
from fastds.ops.impl.conv3x3 import reference
from fastds.ops.impl.conv3x3.library import apply_epilogue, backpropagate_epilogue


def _unfold(sources, padding_mode: str, dtype: torch.dtype) -> Tensor:
    """Return the im2col matrix (9 C, B H W): the inputs that the nine taps of each channel read at each pixel.

    Args:
        sources: inputs (B, C_k, H, W) or None.
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the matrix.
    """
    maps = [_to_channel_major(reference.pad(x.to(dtype), padding_mode)) for x in sources if x is not None]
    _, batch, height, width = maps[0].shape
    height, width, channels = height - 2, width - 2, sum(source.shape[0] for source in maps)
    result, first = maps[0].new_empty((channels, 3, 3, batch, height, width)), 0
    for source in maps:
        channel_stride, image_stride, row, column = source.stride()
        views = source.as_strided(
            (source.shape[0], 3, 3, *result.shape[3:]), (channel_stride, row, column, image_stride, row, column)
        )
        result[first : first + source.shape[0]] = views
        first += source.shape[0]
    return result.flatten(3).flatten(0, 2)


def _to_rows(maps: Tensor) -> Tensor:
    """Return maps (B, C, H, W) as a matrix (C, B H W)."""
    return transpose_matrix(to_channels_last(maps).permute(0, 2, 3, 1).flatten(0, 2))


def _to_channel_major(maps: Tensor) -> Tensor:
    """Return maps (B, C, H, W) as (C, B, H, W), contiguous."""
    batch, _, height, width = maps.shape
    return _to_rows(maps).unflatten(1, (batch, height, width))


def _to_maps(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return a matrix (O, B H W) as channels_last maps (B, O, H, W); shape: (B, ., H, W)."""
    batch, _, height, width = shape
    return transpose_matrix(rows).unflatten(0, (batch, height, width)).permute(0, 3, 1, 2)


@without_autocast
def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype):
    """Compute conv3x3 by im2col, see fastds.ops.conv3x3.

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
    columns = _unfold((x, x2), padding_mode, out_dtype)
    y = weight.to(out_dtype).flatten(1) @ columns
    if bias is not None:
        y += bias.to(out_dtype)[:, None]
    return apply_epilogue(_to_maps(y, x.shape), residual, act, negative_slope, shuffle)


def _grad_x(rows: Tensor, weight: Tensor, shape: torch.Size, padding_mode: str, dtype: torch.dtype) -> Tensor:
    """Compute the gradient of the concatenated input.

    Args:
        rows: (O, B H W), gradient of the result, in dtype.
        weight: (O, C, 3, 3).
        shape: (B, ., H, W).
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the computation and of the gradient.
    """
    (batch, _, height, width), channels = shape, weight.shape[1]
    grad_taps = (weight.to(dtype).flatten(1).t() @ rows).view(channels, 3, 3, batch, height, width)
    sum_dtype = torch.promote_types(dtype, torch.float32)
    full = grad_taps.new_zeros((channels, batch, height + 2, width + 2), dtype=sum_dtype)
    for i in range(3):
        for j in range(3):
            full[:, :, i : i + height, j : j + width] += grad_taps[:, i, j]
    return to_channels_last(reference.fold(full.transpose(0, 1), padding_mode).to(dtype))


def _grad_weight(rows: Tensor, x, x2, padding_mode: str, dtype: torch.dtype) -> Tensor:
    """Compute the gradient of the weight from the gradient of the result as a matrix (O, B H W)."""
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    product = rows @ _unfold((x, x2), padding_mode, rows.dtype).t()
    return product.view(rows.shape[0], channels, 3, 3).to(dtype)


@without_autocast
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
    return _grad_x(_to_rows(grad.to(dtype)), weight, grad.shape, padding_mode, dtype)


@without_autocast
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
    return _grad_weight(_to_rows(grad.to(x.dtype)), x, x2, padding_mode, dtype)


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
    grad = backpropagate_epilogue(grad_y, y, negative_slope, shuffle)
    rows = _to_rows(grad.to(x.dtype))
    grads: list[Tensor | None] = [None] * 5
    if needs_grad[0] or needs_grad[3]:
        both = _grad_x(rows, weight, x.shape, padding_mode, x.dtype)
        grads[0], grads[3] = (to_channels_last(part) for part in both.tensor_split([x.shape[1]], 1))
    if needs_grad[1]:
        grads[1] = _grad_weight(rows, x, x2, padding_mode, weight.dtype)
    if needs_grad[2]:
        grads[2] = rows.sum(1, dtype=torch.promote_types(rows.dtype, torch.float32)).to(weight.dtype)
    if needs_grad[4]:
        grads[4] = to_channels_last(grad)
    return grads
