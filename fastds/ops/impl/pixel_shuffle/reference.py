# SPDX-License-Identifier: Apache-2.0
"""References of pixel_shuffle and its adjoint in PyTorch: differentiable to any order, exact in float64."""

import torch
from torch import Tensor

from fastds.ops.impl.conv3x3.reference import activate, shuffle_pixels, to_channels_last, unshuffle_pixels


def _to_layout_of(like: Tensor, result: Tensor) -> Tensor:
    """Return the result in contiguous memory if `like` is contiguous, else in channels_last.

    The function does not check whether a tensor is channels_last, because vmap does not support that check.
    """
    return result.contiguous() if like.is_contiguous() else to_channels_last(result)


def pixel_shuffle(x, r, bias=None, act="none", negative_slope=0.1) -> Tensor:
    """Compute shuffle_r(act(x + bias)), see fastds.ops.pixel_shuffle.

    Args:
        x: (B, C * r^2, H, W).
        r: int, factor of the pixel shuffle.
        bias: (C * r^2,) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.

    Returns:
        (B, C, r * H, r * W), dtype of x.
    """
    y = x if bias is None else x + bias[:, None, None]
    return _to_layout_of(x, shuffle_pixels(activate(y, act, negative_slope), r).to(x.dtype))


def pixel_unshuffle(x, r) -> Tensor:
    """Compute y[b, c*r*r + i*r + j, h, w] = x[b, c, r*h + i, r*w + j]."""
    return _to_layout_of(x, unshuffle_pixels(x, r))


def backpropagate_activation(grad_y, y, negative_slope) -> Tensor:
    """Return the gradient before the activation, given the gradient after it.

    Args:
        grad_y: gradient of the result.
        y: the result after the activation, or None if there is none.
        negative_slope: float, slope of the activation for negative inputs.
    """
    return grad_y if y is None else torch.where(y > 0, grad_y, negative_slope * grad_y)


def pixel_shuffle_backward(grad_y, y, r, negative_slope, bias_dtype, needs_grad) -> list[Tensor]:
    """Compute the requested gradients of x and bias.

    Args:
        grad_y: gradient of the result.
        y: the result if there is an activation, else None.
        r: factor.
        negative_slope: float, slope of the activation for negative inputs.
        bias_dtype: dtype of the bias.
        needs_grad: two bools.
    """
    grad_x = pixel_unshuffle(backpropagate_activation(grad_y, y, negative_slope), r)
    grads = [grad_x]
    if needs_grad[1]:
        grads.append(grad_x.sum((0, 2, 3), dtype=torch.promote_types(grad_x.dtype, torch.float32)).to(bias_dtype))
    return [g.clone() for g, needed in zip(grads, needs_grad, strict=False) if needed]
