# SPDX-License-Identifier: Apache-2.0
"""Native backend of conv3x3 and of its gradients, which calls the selected algorithm with checked arguments.

Functions named *_fake only allocate the results, for tracing.
"""

from typing import Any

import torch

from fastds.ops.core.layout import empty_map, to_channels_last
from fastds.ops.impl.conv3x3 import cuda_window, im2col, library, planes, reference, triton_implicit_gemm, winograd
from fastds.ops.impl.conv3x3.algorithm import count_epilogue_passes, select_algorithm

OTHER_ALGORITHMS = {
    "direct": library,
    "planes": planes,
    "product": im2col,
    "implicit_gemm": triton_implicit_gemm,
}


def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
    """Compute conv3x3 by the selected algorithm, see fastds.ops.conv3x3.

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
        algorithm: str, requested algorithm.

    Returns:
        (B, O / shuffle^2, shuffle * H, shuffle * W).
    """
    args = (x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype)
    if x.shape[0] == 0:
        return forward_fake(*args, algorithm)
    if (
        algorithm == "auto"
        and x.is_cuda
        and triton_implicit_gemm.is_faster(x, weight, bias, x2, residual, act, shuffle, out_dtype)
    ):
        algorithm = "implicit_gemm"
    selector_options: dict[str, Any] = {
        "joined": x2 is not None,
        "passes": count_epilogue_passes(residual, act, shuffle),
    }
    algorithm = select_algorithm(algorithm, x, weight.shape[1], weight.shape[0], out_dtype, False, **selector_options)
    if algorithm == "window":
        if cuda_window.get_call_reason(x, weight, x2, residual, shuffle, out_dtype) is None:
            return cuda_window.forward(*args)
        return forward(*args, "auto")
    if algorithm in OTHER_ALGORITHMS:
        return OTHER_ALGORITHMS[algorithm].forward(*args)
    return winograd.forward(*args, algorithm == "amx")


def forward_fake(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
    """Allocate the result of forward.

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
        algorithm: not used.

    Returns:
        Uninitialized tensor of the shape and dtype of the result.
    """
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[0] // shuffle**2, height * shuffle, width * shuffle)
    return empty_map(shape, out_dtype, x)


def grad_x(grad, weight, padding_mode, dtype, algorithm):
    """Compute the gradient of the concatenated input from the gradient of the output before the epilogue.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        weight: (O, C, 3, 3).
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.
        algorithm: str, requested algorithm.

    Returns:
        (B, C, H, W).
    """
    if grad.shape[0] == 0:
        return grad_x_fake(grad, weight, padding_mode, dtype, algorithm)
    algorithm = select_algorithm(algorithm, grad, weight.shape[1], weight.shape[0], dtype, True)
    if algorithm in OTHER_ALGORITHMS:
        return OTHER_ALGORITHMS[algorithm].grad_x(grad, weight, padding_mode, dtype)
    options = (padding_mode, 1, None, 0.0, [weight.shape[1]], dtype, [None], False, algorithm == "amx")
    return _engine_grad_x(to_channels_last(grad), weight, *options)[0]


def _engine_grad_x(grad, weight, padding_mode, shuffle, sign, slope, channels, dtype, added, in_place, amx):
    """Compute the gradients of the sources on the engine: see winograd.grad_sources."""
    args = (grad, weight, padding_mode, shuffle, sign, slope, channels, dtype)
    return winograd.grad_sources(*args, reference.fold, reference.fold_rows, added, in_place, amx)


def grad_x_fake(grad, weight, padding_mode, dtype, algorithm):
    """Allocate the result of grad_x.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        weight: (O, C, 3, 3).
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.
        algorithm: not used.

    Returns:
        (B, C, H, W), uninitialized.
    """
    batch, _, height, width = grad.shape
    return empty_map((batch, weight.shape[1], height, width), dtype, grad)


def grad_weight(grad, x, x2, padding_mode, dtype, algorithm):
    """Compute the gradient of the weight from the gradient of the output before the epilogue.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        x: (B, C1, H, W), first source.
        x2: (B, C2, H, W), second source, or None.
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.
        algorithm: str, requested algorithm.

    Returns:
        (O, C1 + C2, 3, 3).
    """
    if grad.shape[0] == 0:
        return grad_weight_fake(grad, x, x2, padding_mode, dtype, algorithm).zero_()
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    algorithm = select_algorithm(algorithm, x, channels, grad.shape[1], x.dtype, True, joined=x2 is not None)
    if algorithm in OTHER_ALGORITHMS:
        return OTHER_ALGORITHMS[algorithm].grad_weight(grad, x, x2, padding_mode, dtype)
    amx = algorithm == "amx"
    sources = winograd.to_readable_layout((x, x2), amx)
    return winograd.grad_weight(to_channels_last(grad), sources, padding_mode, 1, None, 0.0, dtype, False, amx)[0]


def grad_weight_fake(grad, x, x2, padding_mode, dtype, algorithm):
    """Allocate the result of grad_weight.

    Args:
        grad: (B, O, H, W), gradient of the output before the epilogue.
        x: (B, C1, H, W), first source.
        x2: (B, C2, H, W), second source, or None.
        padding_mode: "zeros", "replicate" or "circular_x".
        dtype: dtype of the gradient.
        algorithm: not used.

    Returns:
        (O, C1 + C2, 3, 3), uninitialized.
    """
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    return torch.empty((grad.shape[1], channels, 3, 3), dtype=dtype, device=grad.device)


def backward(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad, add_x=None, add_x2=None,
    in_place=False,
):  # fmt: skip
    """Return the requested gradients of x, weight, bias, x2 and residual.

    The engine reads grad_y and y without storing the gradient before the activation. It computes the gradient of the
    bias together with the gradient of the weight if both are requested.

    Args:
        grad_y: gradient of the result.
        x: first source.
        weight: (O, C1 + C2, 3, 3).
        x2: second source or None.
        y: result if there is an activation, else None.
        negative_slope: float, slope of the activation for negative inputs.
        padding_mode: "zeros", "replicate" or "circular_x".
        shuffle: factor of the pixel shuffle.
        algorithm: str, requested algorithm.
        needs_grad: five bools.
        add_x: tensor that is added to the gradient of x, or None.
        add_x2: tensor that is added to the gradient of x2, or None.
        in_place: bool, whether the sums may overwrite add_x and add_x2.
    """
    selector_options = {"joined": x2 is not None, "passes": (y is not None) + (shuffle > 1)}
    algorithm = select_algorithm(algorithm, x, weight.shape[1], weight.shape[0], x.dtype, True, **selector_options)
    args = (grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad)
    if grad_y.shape[0] == 0:
        return [g.zero_() for g in backward_fake(*args)]
    if algorithm in OTHER_ALGORITHMS:
        grads = OTHER_ALGORITHMS[algorithm].backward(*args)
        for k, addend in ((0, add_x), (3, add_x2)):
            grads[k] = grads[k] if addend is None else library.add_(grads[k], addend)
    else:
        grads = _backward_engine(*args, add_x, add_x2, in_place)
    return [g for g, needed in zip(grads, needs_grad, strict=True) if needed]


def _backward_engine(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad, add_x, add_x2, in_place
):  # fmt: skip
    """Return the gradients of x, weight, bias, x2 and residual, None where not needed.

    The native engine computes them, except those of residual, and of bias if the gradient of weight is not needed.
    """
    grad, amx = to_channels_last(grad_y), algorithm == "amx"
    if amx:
        grad = grad.to(x.dtype)
    residual = grad_x = grad_x2 = grad_weight = grad_bias = None
    if needs_grad[4]:
        residual = to_channels_last(library.backpropagate_epilogue(grad, y, negative_slope, shuffle))
    sign = None if y is None else to_channels_last(y)
    slope = negative_slope
    if needs_grad[0] or needs_grad[3]:
        split = x.shape[1]
        channels = [c for c, needed in ((split, needs_grad[0]), (weight.shape[1] - split, needs_grad[3])) if needed]
        part = weight if len(channels) == 2 or x2 is None else weight[:, :split] if needs_grad[0] else weight[:, split:]
        added = [addend for addend, needed in ((add_x, needs_grad[0]), (add_x2, needs_grad[3])) if needed]
        settings = (padding_mode, shuffle, sign, slope, channels, x.dtype, added, in_place, amx)
        parts = iter(_engine_grad_x(grad, part, *settings))
        grad_x, grad_x2 = (next(parts) if needs_grad[i] else None for i in (0, 3))
    if needs_grad[1]:
        sources = winograd.to_readable_layout((x, x2), amx)
        grad_weight, grad_bias = winograd.grad_weight(
            grad, sources, padding_mode, shuffle, sign, slope, weight.dtype, needs_grad[2], amx
        )
    elif needs_grad[2]:
        grad_bias = library.compute_bias_gradient(library.backpropagate_epilogue(grad, y, slope, shuffle), weight.dtype)
    return grad_x, grad_weight, grad_bias, grad_x2, residual


def backward_fake(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, needs_grad, *added):
    """Allocate the results of backward.

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
        *added: further arguments of backward, not used.

    Returns:
        Uninitialized tensors, one for each requested gradient.
    """
    batch, _, height, width = x.shape
    device = x.device

    def image(channels, dtype):
        return empty_map((batch, channels, height, width), dtype, x)

    makers = (
        lambda: image(x.shape[1], x.dtype),
        lambda: torch.empty(weight.shape, dtype=weight.dtype, device=device),
        lambda: torch.empty(weight.shape[:1], dtype=weight.dtype, device=device),
        lambda: image(x2.shape[1], x.dtype),
        lambda: image(weight.shape[0], grad_y.dtype),
    )
    return [make() for make, needed in zip(makers, needs_grad, strict=True) if needed]
