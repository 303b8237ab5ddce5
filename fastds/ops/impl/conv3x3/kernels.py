# SPDX-License-Identifier: Apache-2.0
"""conv3x3 and its gradients by the algorithm of algorithm.py, for checked arguments; and empty results of each."""

import torch

from fastds.ops.core.layout import dense, empty_map
from fastds.ops.impl.conv3x3 import direct, engine, implicit, planes, product, reference
from fastds.ops.impl.conv3x3.algorithm import chosen, passes_behind

BESIDE_THE_ENGINE = {"direct": direct, "planes": planes, "product": product, "implicit_gemm": implicit}


def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
    args = (x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype)
    if x.shape[0] == 0:
        return forward_fake(*args, algorithm)
    if algorithm == "auto" and x.is_cuda and implicit.pays(x, weight, bias, x2, residual, act, shuffle, out_dtype):
        algorithm = "implicit_gemm"
    beside = {"joined": x2 is not None, "passes": passes_behind(residual, act, shuffle)}
    algorithm = chosen(algorithm, x, weight.shape[1], weight.shape[0], out_dtype, False, **beside)
    if algorithm in BESIDE_THE_ENGINE:
        return BESIDE_THE_ENGINE[algorithm].forward(*args)
    return engine.forward(*args, algorithm == "amx")


def forward_fake(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype, algorithm):
    batch, _, height, width = x.shape
    shape = (batch, weight.shape[0] // shuffle**2, height * shuffle, width * shuffle)
    return empty_map(shape, out_dtype, x)


def grad_x(grad, weight, padding_mode, dtype, algorithm):
    if grad.shape[0] == 0:
        return grad_x_fake(grad, weight, padding_mode, dtype, algorithm)
    algorithm = chosen(algorithm, grad, weight.shape[1], weight.shape[0], dtype, True)
    if algorithm in BESIDE_THE_ENGINE:
        return BESIDE_THE_ENGINE[algorithm].grad_x(grad, weight, padding_mode, dtype)
    options = (padding_mode, 1, None, 0.0, [weight.shape[1]], dtype, [None], False, algorithm == "amx")
    return _engine_grad_x(dense(grad), weight, *options)[0]


def _engine_grad_x(grad, weight, padding_mode, shuffle, sign, slope, channels, dtype, added, in_place, amx):
    args = (grad, weight, padding_mode, shuffle, sign, slope, channels, dtype)
    return engine.grad_sources(*args, reference.fold, reference.fold_rows, added, in_place, amx)


def grad_x_fake(grad, weight, padding_mode, dtype, algorithm):
    batch, _, height, width = grad.shape
    return empty_map((batch, weight.shape[1], height, width), dtype, grad)


def grad_weight(grad, x, x2, padding_mode, dtype, algorithm):
    if grad.shape[0] == 0:
        return grad_weight_fake(grad, x, x2, padding_mode, dtype, algorithm).zero_()
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    algorithm = chosen(algorithm, x, channels, grad.shape[1], x.dtype, True, joined=x2 is not None)
    if algorithm in BESIDE_THE_ENGINE:
        return BESIDE_THE_ENGINE[algorithm].grad_weight(grad, x, x2, padding_mode, dtype)
    amx = algorithm == "amx"
    sources = engine.readable((x, x2), amx)
    return engine.grad_weight(dense(grad), sources, padding_mode, 1, None, 0.0, dtype, False, amx)[0]


def grad_weight_fake(grad, x, x2, padding_mode, dtype, algorithm):
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    return torch.empty((grad.shape[1], channels, 3, 3), dtype=dtype, device=grad.device)


def backward(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted, add_x=None, add_x2=None,
    in_place=False,
):  # fmt: skip
    """Engine: x and weight gradients read grad_y and y as they are, the bias gradient comes with that of the weight.

    add_x and add_x2 are added to the gradients of x and x2; in_place: which then take their place.
    """
    beside = {"joined": x2 is not None, "passes": (y is not None) + (shuffle > 1)}
    algorithm = chosen(algorithm, x, weight.shape[1], weight.shape[0], x.dtype, True, **beside)
    args = (grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted)
    if grad_y.shape[0] == 0:
        return [g.zero_() for g in backward_fake(*args)]
    if algorithm in BESIDE_THE_ENGINE:
        grads = BESIDE_THE_ENGINE[algorithm].backward(*args)
        for k, addend in ((0, add_x), (3, add_x2)):
            grads[k] = grads[k] if addend is None else grads[k].add_(addend)
    else:
        grads = _backward_engine(*args, add_x, add_x2, in_place)
    return [g for g, want in zip(grads, wanted, strict=True) if want]


def _backward_engine(
    grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted, add_x, add_x2, in_place
):  # fmt: skip
    grad, amx = dense(grad_y), algorithm == "amx"
    if amx:
        grad = grad.to(x.dtype)
    residual = grad_x = grad_x2 = grad_weight = grad_bias = None
    if wanted[4]:
        residual = dense(direct.pre_gradient(grad, y, negative_slope, shuffle))
    sign = None if y is None else dense(y)
    slope = negative_slope
    if wanted[0] or wanted[3]:
        split = x.shape[1]
        channels = [c for c, want in ((split, wanted[0]), (weight.shape[1] - split, wanted[3])) if want]
        part = weight if len(channels) == 2 or x2 is None else weight[:, :split] if wanted[0] else weight[:, split:]
        added = [addend for addend, want in ((add_x, wanted[0]), (add_x2, wanted[3])) if want]
        settings = (padding_mode, shuffle, sign, slope, channels, x.dtype, added, in_place, amx)
        parts = iter(_engine_grad_x(grad, part, *settings))
        grad_x, grad_x2 = (next(parts) if wanted[i] else None for i in (0, 3))
    if wanted[1]:
        sources = engine.readable((x, x2), amx)
        grad_weight, grad_bias = engine.grad_weight(
            grad, sources, padding_mode, shuffle, sign, slope, weight.dtype, wanted[2], amx
        )
    elif wanted[2]:
        grad_bias = direct.bias_gradient(direct.pre_gradient(grad, y, slope, shuffle), weight.dtype)
    return grad_x, grad_weight, grad_bias, grad_x2, residual


def backward_fake(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted, *added):
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
    return [make() for make, want in zip(makers, wanted, strict=True) if want]
