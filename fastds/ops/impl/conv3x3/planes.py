# SPDX-License-Identifier: Apache-2.0
"""conv3x3 and its gradients plane by plane: for few outputs, or, in the gradients, few channels on one side.

The engine's and the library's kernels make 8 to 16 channels at once, however few there are, and want channels_last;
this adds up runs of pixels, from either layout.
"""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import outside_autocast
from fastds.ops.core.layout import dense, empty_map, nhwc, plain
from fastds.ops.impl.conv3x3 import direct, reference
from fastds.ops.impl.conv3x3.engine import ACT, PADDING


def _map(x: Tensor) -> tuple[Tensor, tuple]:
    """The map with its pixels or its channels side by side, and what csrc takes of it."""
    x = x.resolve_neg() if x.stride(3) == 1 else nhwc(x)
    batch, channel, row, pixel = x.stride()
    strides = (batch, 1 if x.shape[1] == 1 else channel, row, pixel)
    return x, (x.data_ptr(), native.DTYPE_CODES[x.dtype], x.shape[1], *strides)


def _filters(weight: Tensor) -> Tensor:
    """Float32 filters, each of them dense; their order may be any."""
    weight = weight.float().resolve_neg()
    return weight if weight.stride()[2:] == (3, 1) else plain(weight)


def _run(geometry, sources, weight, adjoint, bias, residual, act, negative_slope, y) -> None:
    filters, maps = _filters(weight), [_map(x) for x in sources]
    stride_o, stride_i = filters.stride()[:2]
    if adjoint:
        stride_o, stride_i = stride_i, stride_o
    bias = None if bias is None else plain(bias.float())
    native.in_workspace(
        native.module().conv3x3_planes, geometry, [call for _, call in maps], filters.data_ptr(), y.shape[1], stride_o,
        stride_i, adjoint, native.address(bias), native.address(residual), y.data_ptr(), native.DTYPE_CODES[y.dtype],
        ACT[act], negative_slope,
    )  # fmt: skip


@outside_autocast
def forward(x, weight, bias, x2, residual, act, negative_slope, padding_mode, shuffle, out_dtype):
    batch, _, height, width = x.shape
    y = empty_map((batch, weight.shape[0], height, width), out_dtype if shuffle == 1 else torch.float32, x)
    sources, geometry = [t for t in (x, x2) if t is not None], _geometry(x, 1, padding_mode)
    if shuffle == 1:
        residual = None if residual is None else dense(residual)
        _run(geometry, sources, weight, False, bias, residual, act, negative_slope, y)
        return y
    _run(geometry, sources, weight, False, bias, None, "none", 0.0, y)
    residual = None if residual is None else residual.float()
    return direct.finish(y, residual, act, negative_slope, shuffle).to(out_dtype)


def _geometry(x: Tensor, pad: int, padding_mode: str) -> tuple[int, ...]:
    batch, _, height, width = x.shape
    return batch, height, width, height + 2 * pad - 2, width + 2 * pad - 2, pad, pad, *PADDING[padding_mode]


def grad_x(grad, weight, padding_mode, dtype):
    batch, _, height, width = grad.shape
    pad = 1 if padding_mode == "zeros" else 2
    size = (height + 2 * pad - 2, width + 2 * pad - 2)
    result = empty_map((batch, weight.shape[1], *size), dtype if pad == 1 else torch.float32, grad)
    _run(_geometry(grad, pad, "zeros"), [grad], weight, True, None, None, "none", 0.0, result)
    return result if pad == 1 else dense(reference.fold(result, padding_mode).to(dtype))


def grad_weight(grad, x, x2, padding_mode, dtype):
    parts = [_grad_weight(grad, source, padding_mode, dtype) for source in (x, x2) if source is not None]
    return parts[0] if x2 is None else torch.cat(parts, 1)


def _grad_weight(grad: Tensor, x: Tensor, padding_mode: str, dtype: torch.dtype) -> Tensor:
    # The map that is laid out plane by plane may be that of the gradient where nothing but zeros lies outside.
    of_outputs = x.shape[1] > grad.shape[1] and padding_mode == "zeros"
    few, many = (grad, nhwc(x)) if of_outputs else (x, nhwc(grad))
    (few, of_few), (many, of_many) = _map(few), _map(many)
    result = torch.empty((grad.shape[1], x.shape[1], 3, 3), dtype=dtype)
    native.in_workspace(
        native.module().conv3x3_few_grad_weight, _geometry(x, 1, padding_mode), of_few, of_many, of_outputs,
        native.DTYPE_CODES[dtype], result.data_ptr(),
    )  # fmt: skip
    return result


@outside_autocast
def backward(grad_y, x, weight, x2, y, negative_slope, padding_mode, shuffle, algorithm, wanted):
    grad, grads = direct.pre_gradient(grad_y, y, negative_slope, shuffle), [None] * 5
    if wanted[0] or wanted[3]:
        both = grad_x(grad, weight, padding_mode, x.dtype)
        grads[0], grads[3] = (dense(part) for part in both.tensor_split([x.shape[1]], 1))
    if wanted[1]:
        grads[1] = grad_weight(grad, x, x2, padding_mode, weight.dtype)
    if wanted[2]:
        grads[2] = direct.bias_gradient(grad, weight.dtype)
    if wanted[4]:
        grads[4] = dense(grad)
    return grads
