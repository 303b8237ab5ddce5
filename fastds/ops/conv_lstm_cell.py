# SPDX-License-Identifier: Apache-2.0
"""conv_lstm_cell: a convolutional LSTM step whose gates run in the output stage of the Winograd engine.

Where the engine does not run or does not pay, the op runs conv3x3 and lstm_gates one after the other. Its third result,
for the backward and empty unless `keep`, are the pre-activations.
"""

import torch
from torch import Tensor

from fastds import _native
from fastds._registry import Backend, call, define, without_gradients
from fastds.convolution import current
from fastds.ops import _winograd
from fastds.ops._gates import autocast, vector_jacobian
from fastds.ops.conv3x3 import CONV3X3, CONV3X3_BACKWARD, _use_winograd, conv3x3
from fastds.ops.conv3x3 import _refusal as convolution_refusal
from fastds.ops.lstm_gates import OPS as GATES
from fastds.ops.lstm_gates import lstm_gates
from fastds.reference.conv_lstm_cell import conv_lstm_cell as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _check(x, h, c, weight, bias) -> None:
    named = {"x": x, "h": h, "c": c, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a Tensor")
    if x.dtype not in DTYPES:
        raise TypeError(f"x has dtype {x.dtype}, expected a float type")
    for name, tensor in named.items():
        allowed = {x.dtype} if name == "h" else {x.dtype, torch.promote_types(x.dtype, torch.float32)}
        if tensor.dtype not in allowed:
            raise TypeError(f"{name} has dtype {tensor.dtype}, expected {' or '.join(sorted(map(str, allowed)))}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on device {tensor.device}, expected {x.device} as x")
        dims = 1 if name == "bias" else 4
        if tensor.dim() != dims:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {dims} dimension{'s' * (dims > 1)}")
    batch, inputs, height, width = x.shape
    channels = h.shape[1]
    if min(inputs, channels, height, width) < 1:
        raise ValueError(f"x has shape {tuple(x.shape)} and h {tuple(h.shape)}, expected at least one of everything")
    state = (batch, channels, height, width)
    expected = {"h": state, "c": state, "weight": (4 * channels, inputs + channels, 3, 3), "bias": (4 * channels,)}
    for name, shape in expected.items():
        if name in named and tuple(named[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(named[name].shape)}, expected {shape}")


def _fake(x, h, c, weight, bias, algorithm, keep):
    _check(x, h, c, weight, bias)
    batch, channels, height, width = h.shape

    def empty(maps, dtype):
        return _winograd.empty((batch, maps, height, width), dtype, x)

    return empty(channels, x.dtype), empty(channels, c.dtype), empty(4 * channels if keep else 0, x.dtype)


def _forward(x, h, c, weight, bias, algorithm, keep):
    fused = c.dtype == torch.float32 and _use_winograd(algorithm, x, weight.shape[1], weight.shape[0], x.dtype, False)
    if fused and x.shape[0]:
        return _fused_forward(x, h, c, weight, bias, algorithm, keep)
    _check(x, h, c, weight, bias)
    pre = without_gradients(CONV3X3, x, weight, bias, h, None, "none", 0.0, "zeros", 1, x.dtype, algorithm)
    return *without_gradients(GATES.forward, pre, c), pre if keep else _nothing(x)


def _nothing(x):
    return _winograd.empty((x.shape[0], 0, *x.shape[2:]), x.dtype, x)


def _fused_forward(x, h, c, weight, bias, algorithm, keep):
    new_h, new_c, pre = _fake(x, h, c, weight, bias, algorithm, keep)
    batch, _, height, width = x.shape
    sources, c = [_winograd.nhwc(x), _winograd.nhwc(h)], _winograd.nhwc(c)
    bias = None if bias is None else bias.contiguous()
    filters = _winograd.packed(weight, False, 1, gates=4)
    cell = _native.native().ConvLstmCell(
        geometry=(batch, height, width, height, width, 1, 1, 0, 0), sources=[_winograd._tensor(t) for t in sources],
        packed=filters.data_ptr(), bias=0 if bias is None else bias.data_ptr(),
        bias_dtype=0 if bias is None else _native.DTYPES[bias.dtype], c=_winograd._tensor(c),
        new_h=_winograd._tensor(new_h), new_c=_winograd._tensor(new_c), pre=_winograd._tensor(pre) if keep else None,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    cell.run(_winograd._workspace(cell.bytes).data_ptr())
    return new_h, new_c, pre


def _reference(x, h, c, weight, bias, algorithm, keep):
    return *reference(x, h, c, weight, bias), _nothing(x)


class _ConvLstmCell(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, h, c, weight, bias, algorithm, keep):
        new_h, new_c, pre = without_gradients(CONV_LSTM_CELL, x, h, c, weight, bias, algorithm, True)
        ctx.algorithm = algorithm
        ctx.save_for_backward(x, h, c, weight, bias, pre)
        ctx.set_materialize_grads(False)
        kept = pre if keep else _nothing(x)
        ctx.mark_non_differentiable(kept)
        return new_h, new_c, kept

    @staticmethod
    def backward(ctx, grad_h, grad_c, _):
        x, h, c, weight, bias, pre = ctx.saved_tensors
        want_x, want_h, want_c, want_weight, want_bias, *_ = ctx.needs_input_grad
        if grad_h is None and grad_c is None:
            return (None,) * 7

        def composed(x, h, c, weight, bias):
            return lstm_gates(conv3x3(x, weight, bias, x2=h, algorithm=ctx.algorithm), c)

        if torch.is_grad_enabled():  # from the inputs, not from pre: right to any order
            wanted = (want_x, want_h, want_c, want_weight, want_bias)
            found = iter(vector_jacobian(composed, (x, h, c, weight, bias), (grad_h, grad_c), wanted))
            return *(next(found) if want else None for want in wanted), None, None
        both = call(GATES.backward, grad_h, grad_c, pre, c, [True, want_c])
        asked = [want_x, want_weight, want_bias, want_h, False]
        options = (0.0, "zeros", 1, ctx.algorithm)
        found = iter(call(CONV3X3_BACKWARD, both[0], x, weight, h, None, *options, asked) if any(asked) else ())
        grad_x, grad_weight, grad_bias, grad_hidden, _ = (next(found) if want else None for want in asked)
        return grad_x, grad_hidden, both[1] if want_c else None, grad_weight, grad_bias, None, None


CONV_LSTM_CELL = define(
    "conv_lstm_cell(Tensor x, Tensor h, Tensor c, Tensor weight, Tensor? bias, str algorithm, bool keep) "
    "-> (Tensor, Tensor, Tensor)",
    reference=_reference,
    backends={"native": Backend(_forward, convolution_refusal)},
    fake=_fake,
    function=_ConvLstmCell,
)


def conv_lstm_cell(
    x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of a convolutional LSTM, the pre-activations never written unless a gradient needs them.

    [i f g o] = conv3x3([x; h]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C, H, W), dtype of x.
        c: (B, C, H, W), dtype of x or float32.
        weight: (4C, C1 + C, 3, 3), dtype of x or float32, outputs in the order i, f, g, o. bias: (4C,) or None.

    Returns:
        h' in x's dtype and c' in c's dtype, both (B, C, H, W), channels_last.

    Gradients: all inputs, to any order. Deterministic, and independent of the number of threads, bit for bit. Under
    autocast x and h take its dtype, c is float32. fastds.convolution chooses the convolution's algorithm.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3 without peepholes.
    """
    x, h, c = autocast((x, h, c), wide=(2,))
    _check(x, h, c, weight, bias)
    return call(CONV_LSTM_CELL, x, h, c, weight, bias, current(), False)[:2]
