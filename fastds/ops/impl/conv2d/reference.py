# SPDX-License-Identifier: Apache-2.0
"""Reference of conv2d in PyTorch: differentiable to any order, exact in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastds.ops.impl.conv3x3.reference import to_channels_last


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Compute a grouped convolution, see fastds.ops.conv2d.

    Args:
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        bias: (O,) or None.
        groups: number of groups.

    Returns:
        (B, O, H, W), dtype of x, channels_last.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    y = F.conv2d(x.to(dtype), weight.to(dtype), bias, padding=weight.shape[-1] // 2, groups=groups)
    return to_channels_last(y.to(x.dtype))


def conv2d_backward(grad_y: Tensor, x: Tensor, weight: Tensor, groups: int, needs_grad: list[bool]) -> list[Tensor]:
    """Compute the gradients of x, weight and bias.

    Args:
        grad_y: (B, O, H, W), gradient of the result.
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        groups: number of groups.
        needs_grad: three bools, one for each gradient.

    Returns:
        The requested gradients, in the order above.
    """
    padding, dtype = weight.shape[-1] // 2, torch.promote_types(grad_y.dtype, weight.dtype)
    grad = grad_y.to(dtype)
    grads = (
        lambda: to_channels_last(
            F.conv_transpose2d(grad, weight.to(dtype), padding=padding, groups=groups).to(x.dtype)
        ),
        lambda: conv2d_weight(x.to(dtype), weight.shape, grad, padding=padding, groups=groups).to(weight.dtype),
        lambda: grad.sum((0, 2, 3)).to(weight.dtype),
    )
    return [make() for make, needed in zip(grads, needs_grad, strict=True) if needed]
