# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution of any stride by the library, closed under differentiation.

torch derives the gradient of a convolution's weight once more as a convolution with transposed operands, which takes
several times as long as the library's own gradient of the weight. Here both orders use that.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core.arguments import cast_for_autocast
from fastds.ops.core.layout import to_channels_last
from fastds.ops.core.registry import has_active_transforms, needs_weight_grad
from fastds.ops.impl.conv3x3.library import compute_bias_gradient


def strided_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """conv(x, weight) + bias, padding 1.

    Args:
        x: (B, C, H, W), fastest in channels_last.
        weight: (O, C, 3, 3).
        bias: (O,) or None.
        stride: in pixels.

    Returns:
        (B, O, ceil(H/stride), ceil(W/stride)).

    Gradients: all, to any order.
    """
    if has_active_transforms() or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.conv2d(x, weight, bias, stride, 1)
    return _Conv.apply(*cast_for_autocast((x, weight, bias)), stride)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride):
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, bias, stride, 1)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        wanted[1:] = needs_weight_grad(ctx, weight, grad, 1, 2)
        grad_x, grad_weight = _gradients(grad, x, weight, ctx.stride, wanted[0], wanted[1])
        return grad_x, grad_weight, compute_bias_gradient(grad, grad.dtype) if wanted[2] else None, None


def _gradients(grad, x, weight, stride, wants_x, wants_weight):
    """Of the convolution's input and weight, None where not wanted; differentiable in a graph."""
    if not torch.is_grad_enabled():
        return _library(grad, x, weight, stride, wants_x, wants_weight)
    return (
        _Gradient.apply(grad, x.detach(), weight, stride, 0) if wants_x else None,
        _Gradient.apply(grad, x, weight.detach(), stride, 1) if wants_weight else None,
    )


def _library(grad, x, weight, stride, wants_x, wants_weight):
    if not (wants_x or wants_weight):
        return None, None
    options = (None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [wants_x, wants_weight, False])
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(to_channels_last(grad), x, weight, *options)
    return grad_x, grad_weight


class _Gradient(torch.autograd.Function):
    """Of x (which = 0) or of weight (1), of which itself only the shape matters."""

    @staticmethod
    def forward(ctx, grad, x, weight, stride, which):
        ctx.save_for_backward(grad, x, weight)
        ctx.stride, ctx.which = stride, which
        return _library(grad, x, weight, stride, which == 0, which == 1)[which]

    @staticmethod
    def backward(ctx, cotangent):
        grad, *operands = ctx.saved_tensors
        operands[ctx.which], other = cotangent, 1 - ctx.which
        grad_grad = strided_conv3x3(*operands, None, ctx.stride) if ctx.needs_input_grad[0] else None
        wanted = [other == k and ctx.needs_input_grad[1 + k] for k in (0, 1)]
        return grad_grad, *_gradients(grad, *operands, ctx.stride, *wanted), None, None
