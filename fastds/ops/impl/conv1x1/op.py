# SPDX-License-Identifier: Apache-2.0
"""conv1x1: 1x1 convolution of one or two sources with a fused epilogue (bias, residual, activation)."""

import torch
from torch import Tensor

from fastds.ops.core.arguments import check_shape, check_tensor, to_float
from fastds.ops.core.backends import Backend
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import define, needs_weight_grad
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.conv1x1 import kernels, reference
from fastds.ops.impl.conv3x3.op import cast_convolution_inputs, compute_gradients, unsupported_reason
from fastds.ops.impl.conv3x3.op import check as check_convolution

__all__ = ["conv1x1"]


# ---- checks


def _check(x, weight, bias, x2, residual, act, negative_slope) -> None:
    dtype = x.dtype if isinstance(x, Tensor) else None
    args = (x, weight, bias, x2, residual, act, negative_slope, "zeros", 1, dtype, "direct")
    check_convolution(*args, size=1)


def _check_backward(grad_y, x, weight, x2, y, negative_slope, needs_grad) -> None:
    _check(x, weight, None, x2, None, "none", negative_slope)
    expected = (x.shape[0], weight.shape[0], *x.shape[2:])
    for name, tensor in (("grad_y", grad_y), ("y", y)):
        if tensor is not None:
            check_tensor(name, tensor, 4, (x.dtype,), x.device, "x")
            check_shape(name, tensor, expected)
    if needs_grad[3] and x2 is None:
        raise ValueError("needs_grad requests the gradient of x2, but x2 is None")


# ---- gradients


class _Conv1x1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, *args):
        x, weight, _, x2, _, act, negative_slope = args
        y = run(*args)
        # The activation's output has the sign of its input, so that its gradient needs only y.
        ctx.save_for_backward(x, weight, x2, None if act == "none" else y)
        ctx.negative_slope = negative_slope if act == "leaky_relu" else 0.0
        return y

    @staticmethod
    def backward(ctx, grad_y):
        x, weight, x2, y = ctx.saved_tensors
        needs_grad = list(ctx.needs_input_grad[1:6])
        needs_grad[1:3] = needs_weight_grad(ctx, weight, grad_y, 2, 3)
        args = (grad_y, x, weight, x2, y, ctx.negative_slope)
        return None, *compute_gradients(CONV1X1_BACKWARD, args, needs_grad, y is None), None, None


# ---- registration


CONV1X1 = define(
    "conv1x1(Tensor x, Tensor weight, Tensor? bias, Tensor? x2, Tensor? residual, str act, float negative_slope) "
    "-> Tensor",
    reference=reference.conv1x1,
    backends={"native": Backend(kernels.forward, unsupported_reason)},
    fake=kernels.forward_fake,
    check=_check,
    function=_Conv1x1,
)
CONV1X1_BACKWARD = define(
    "conv1x1_backward(Tensor grad_y, Tensor x, Tensor weight, Tensor? x2, Tensor? y, float negative_slope, "
    "bool[5] needs_grad) -> Tensor[]",
    reference=reference.conv1x1_backward,
    backends={"native": Backend(kernels.backward, unsupported_reason)},
    fake=kernels.backward_fake,
    check=_check_backward,
)


@planned
def conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    second_input: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.1,
) -> Tensor:
    """Apply a 1x1 convolution, a linear map of the channels of each pixel, with a fused epilogue.

    y = activation(conv(concat(x, second_input), weight) + bias + residual)

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides.
        weight: (O, C1 + C2, 1, 1), dtype of x or float32.
        bias: (O,), dtype of weight, or None.
        second_input: (B, C2, H, W), dtype of x, second source, or None. The concatenation is not materialized.
        residual: (B, O, H, W), dtype of x, added before the activation, or None.
        activation: None, "relu" or "leaky_relu".
        negative_slope: float >= 0, slope of leaky_relu.

    Returns:
        (B, O, H, W), dtype of x, channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.

    Gradients exist for x, weight, bias, second_input and residual, to any order. Where the native
    kernel runs, results are deterministic and do not depend on the number of threads, bit for bit. Sums of 16-bit
    dtypes are computed in float32. Under autocast x, second_input and residual are cast to the autocast dtype; a
    float32 weight and bias stay float32.
    """
    if type(x) is Proxy:
        return record_op(conv1x1, locals())
    x, weight, bias, second_input, residual = cast_convolution_inputs(x, weight, bias, second_input, residual, None)
    activation, slope = "none" if activation is None else activation, to_float("negative_slope", negative_slope)
    return CONV1X1(x, weight, bias, second_input, residual, activation, slope)
