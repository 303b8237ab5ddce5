# SPDX-License-Identifier: Apache-2.0
"""One 3x3 kernel for several convolutions of a graph: prepared once, and one gradient of it for all of them together.

They are the steps of a sequence, or a critic's passes over its samples. The gradient is that of a weight they share,
fastds/ops/impl/conv3x3/shared_weight_grad.py.

Kernels prepared for oneDNN take 5 % off a training step of the humidity WGAN-GP; where that is impossible conv3x3 runs.
"""

import torch
from torch import Tensor

from fastds.ops.core import onednn
from fastds.ops.core.arguments import cast_for_autocast
from fastds.ops.core.layout import to_channels_last
from fastds.ops.core.registry import has_active_transforms, needs_weight_grad
from fastds.ops.impl.conv3x3.algorithm import current_algorithm, select_algorithm
from fastds.ops.impl.conv3x3.costs import ENGINES
from fastds.ops.impl.conv3x3.library import compute_bias_gradient
from fastds.ops.impl.conv3x3.op import CONV3X3, CONV3X3_GRAD_WEIGHT, CONV3X3_GRAD_X, conv3x3
from fastds.ops.impl.conv3x3.shared_weight_grad import defer_to_shared_node, share_weight

_GEOMETRY = [1, 1], [1, 1], [1, 1], 1  # padding, stride, dilation, groups


class _Kernel:
    """What the convolutions share: the kernel as oneDNN wants it, in both directions."""

    def __init__(self):
        self.forwards = self.backwards = None

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        """conv(x, weight) + bias + residual, without a graph."""
        if not _library_pays(x, *weight.shape[:2]):
            args = (None, residual, "none", 0.0, "zeros", 1, x.dtype, current_algorithm())
            return CONV3X3(x, weight, bias, *args)
        if self.forwards is None:
            self.forwards = _prepared(weight.detach(), x)
        y = _library(x, self.forwards, bias)
        return y if residual is None else y.add_(residual)

    def grad_x(self, grad: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The adjoint of convolve in x, without a graph."""
        if not _library_pays(grad, *weight.shape[:2]):
            return CONV3X3_GRAD_X.call_unchecked(grad, weight, "zeros", dtype, current_algorithm())
        if self.backwards is None:
            self.backwards = _prepared(weight.detach().flip(2, 3).transpose(0, 1), grad)
        return _library(grad, self.backwards)


def _library_pays(x: Tensor, outputs: int, channels: int) -> bool:
    """Fields too small for the engine: its transform of the kernel, four times as large, would be read every step."""
    if current_algorithm() != "auto" or x.dtype != torch.float32 or x.device.type != "cpu" or x.numel() == 0:
        return False
    if not onednn.can_prepare_filters(x.dtype):
        return False
    return select_algorithm("auto", x, channels, outputs, x.dtype, False) not in ENGINES


def _prepared(weight: Tensor, x: Tensor) -> Tensor:
    """The kernel as oneDNN would otherwise make it again in every call: half of a small one."""
    return onednn.prepare_filters(weight.contiguous(), x, *_GEOMETRY)


def _library(x: Tensor, prepared: Tensor, bias: Tensor | None = None) -> Tensor:
    return to_channels_last(onednn.convolve(to_channels_last(x), prepared, bias, *_GEOMETRY))


class _Step(torch.autograd.Function):
    """conv(x, weight) + bias + residual."""

    @staticmethod
    def forward(ctx, x, weight, bias, residual, kernel):
        ctx.save_for_backward(x, weight)
        ctx.kernel = kernel
        return kernel.convolve(x, weight, bias, residual)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), kernel = ctx.saved_tensors, ctx.kernel
        want_x, _, _, want_residual, _ = ctx.needs_input_grad
        want_weight, want_bias = needs_weight_grad(ctx, weight, grad, 1, 2)
        grad_weight = _grad_weight(grad, x, weight) if want_weight else None
        grad_x = _grad_x(grad, weight, x.dtype, kernel) if want_x else None
        grad_bias = compute_bias_gradient(grad, weight.dtype) if want_bias else None
        return grad_x, grad_weight, grad_bias, grad if want_residual else None, None


class _StepGradX(torch.autograd.Function):
    """The adjoint of _Step in x."""

    @staticmethod
    def forward(ctx, grad, weight, dtype, kernel):
        ctx.save_for_backward(grad, weight)
        ctx.kernel = kernel
        return kernel.grad_x(grad, weight, dtype)

    @staticmethod
    def backward(ctx, cotangent):
        (grad, weight), kernel = ctx.saved_tensors, ctx.kernel
        of_grad = _step(cotangent, weight, None, None, kernel) if ctx.needs_input_grad[0] else None
        return of_grad, _grad_weight(grad, cotangent, weight) if ctx.needs_input_grad[1] else None, None, None


def _step(x, weight, bias, residual, kernel):
    args = (x, weight, bias, residual)
    return _Step.apply(*args, kernel) if torch.is_grad_enabled() else kernel.convolve(*args)


def _grad_weight(grad, x, weight):
    """None where it is left to the weight's node."""
    if defer_to_shared_node(weight, grad, x):
        return None
    return CONV3X3_GRAD_WEIGHT.call_unchecked(grad, x, None, "zeros", weight.dtype, current_algorithm())


def _grad_x(grad, weight, dtype, kernel):
    tracked = torch.is_grad_enabled()
    return _StepGradX.apply(grad, weight, dtype, kernel) if tracked else kernel.grad_x(grad, weight, dtype)


class SharedKernel:
    """y = conv3x3(x, weight) + bias + residual, for several x in one graph.

    Args:
        weight: (O, C, 3, 3), not to be changed while this is in use.

    Shapes: x (B, C, H, W), bias (O,) or None, residual (B, O, H, W) or None -> (B, O, H, W).

    Gradients: all, to any order; that of weight is one batched product per backward pass. Inside torch.compile, export
    and functorch transforms every call is a conv3x3 of its own.
    """

    def __init__(self, weight: Tensor):
        self.alone = torch.compiler.is_compiling() or has_active_transforms()
        self.kernel = _Kernel()
        self.weight = weight if self.alone else share_weight(weight)

    def __call__(self, x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        if self.alone:
            return conv3x3(x, self.weight, bias, residual=residual)
        x, residual = cast_for_autocast((x, residual))
        return _step(x, self.weight, bias, residual, self.kernel)
