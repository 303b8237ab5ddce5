# SPDX-License-Identifier: Apache-2.0
"""Reference of conv1x1 in PyTorch: differentiable to any order, exact in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.impl.conv3x3.reference import apply_epilogue, backpropagate_epilogue, to_channels_last


def conv1x1(
    x: Tensor, weight: Tensor, bias: Tensor | None, x2: Tensor | None, residual: Tensor | None, act: str,
    negative_slope: float,
) -> Tensor:  # fmt: skip
    """Compute act(conv(concat(x, x2)) + bias + residual), see fastds.ops.conv1x1.

    Args:
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 1, 1).
        bias: (O,) or None.
        x2: (B, C2, H, W), second source, or None.
        residual: (B, O, H, W) or None.
        act: "none", "relu" or "leaky_relu".
        negative_slope: float, slope of leaky_relu.

    Returns:
        (B, O, H, W), dtype of x, channels_last.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    source = (x if x2 is None else torch.cat([x, x2], 1)).to(dtype)
    y = F.conv2d(source, weight, bias)
    return to_channels_last(apply_epilogue(y, residual, act, negative_slope, 1).to(x.dtype))


def conv1x1_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, x2: Tensor | None, y: Tensor | None, negative_slope: float,
    needs_grad: list[bool],
) -> list[Tensor]:  # fmt: skip
    """Compute the gradients of x, weight, bias, x2 and residual from the gradient of the result y.

    Args:
        grad_y: gradient of the result.
        x: (B, C1, H, W), first source.
        weight: (O, C1 + C2, 1, 1).
        x2: (B, C2, H, W), second source, or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        needs_grad: five bools, one for each gradient.

    Returns:
        The requested gradients, in the order above.
    """
    grad = backpropagate_epilogue(grad_y, y, negative_slope, 1)
    upcast_grad = grad.to(torch.promote_types(grad.dtype, weight.dtype))
    grad_sources = F.conv_transpose2d(upcast_grad, weight.to(upcast_grad.dtype)).to(x.dtype)
    source = x if x2 is None else torch.cat([x, x2], 1)
    grad_weight = F.conv2d(source.to(upcast_grad.dtype).transpose(0, 1), upcast_grad.transpose(0, 1)).transpose(0, 1)
    grad_weight = grad_weight.to(weight.dtype).contiguous()
    grad_x, grad_x2 = grad_sources.split([x.shape[1], weight.shape[1] - x.shape[1]], 1)
    grad_bias = grad.sum((0, 2, 3)).to(weight.dtype)
    grads = (to_channels_last(grad_x), grad_weight, grad_bias, to_channels_last(grad_x2), to_channels_last(grad))
    return [g for g, needed in zip(grads, needs_grad, strict=True) if needed]
