# SPDX-License-Identifier: Apache-2.0
"""window_attention2d: local attention without a row of weights per pixel in memory."""

import torch
from torch import Tensor

from fastds.ops.core import native as _native
from fastds.ops.core import triton_loader as _triton
from fastds.ops.core.registry import Backend, call, define, vector_jacobian, without_gradients
from fastds.ops.impl.conv3x3.winograd import nhwc
from fastds.ops.impl.gates.passes import autocast
from fastds.ops.impl.window_attention2d import reference as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_CHANNELS, MAX_WINDOW = 64, 64
_CL = torch.channels_last


def _check(q, k, v, window) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a Tensor")
        if tensor.dtype not in DTYPES if name == "q" else tensor.dtype != q.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, expected {q.dtype if name != 'q' else 'a float type'}")
        if tensor.dim() != 4 or tensor.shape != q.shape:
            expected = "4 dimensions" if name == "q" else f"{tuple(q.shape)} as q"
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on device {tensor.device}, expected {q.device} as q")
    if not 1 <= q.shape[1] <= MAX_CHANNELS or min(q.shape[2:]) < 1:
        raise ValueError(f"q has shape {tuple(q.shape)}, expected 1 to {MAX_CHANNELS} channels, a row and a column")
    if not isinstance(window, int) or not 1 <= window <= MAX_WINDOW:
        raise ValueError(f"window must be an int from 1 to {MAX_WINDOW}, got {window!r}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _map(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride())


def _workspace(dims, backward: bool, device) -> Tensor:
    size = _native.native().window_attention2d_workspace(dims, backward)
    return torch.empty(size, dtype=torch.uint8, device=device)


def _fake(q, k, v, window):
    _check(q, k, v, window)
    lse = torch.empty((q.shape[0], *q.shape[2:]), dtype=_wide(q.dtype), device=q.device)
    return torch.empty(q.shape, dtype=q.dtype, device=q.device, memory_format=_CL), lse


def _forward(q, k, v, window):
    y, lse = _fake(q, k, v, window)
    if q.shape[0]:
        dims = (_native.DTYPES[q.dtype], *q.shape, window)
        workspace = _workspace(dims, False, q.device)
        maps = (_map(t) for t in (q, k, v, y))
        threads = torch.get_num_threads()
        _native.native().window_attention2d_forward(dims, *maps, lse.data_ptr(), workspace.data_ptr(), threads)
    return y, lse


def _forward_triton(q, k, v, window):
    y, lse = _fake(q, k, v, window)
    _triton.kernels("window_attention2d").launch_forward(nhwc(q), nhwc(k), nhwc(v), y, lse, window)
    return y, lse


def _reference(q, k, v, window):
    return reference.window_attention2d(q, k, v, window), reference.log_sum_exp(q, k, window)


def _backward_fake(grad_y, q, k, v, y, lse, window, wanted):
    _check(q, k, v, window)
    empty = (torch.empty(q.shape, dtype=q.dtype, device=q.device, memory_format=_CL) for _ in range(3))
    return [t for t, want in zip(empty, wanted, strict=True) if want]


def _backward(grad_y, q, k, v, y, lse, window, wanted):
    grads = _backward_fake(grad_y, q, k, v, y, lse, window, wanted)
    if q.shape[0]:
        dims = (_native.DTYPES[q.dtype], *q.shape, window)
        workspace = _workspace(dims, True, q.device)
        lse = lse.contiguous()
        given = iter(grads)
        sinks = (_map(next(given) if want else None) for want in wanted)
        maps = (_map(t) for t in (grad_y, q, k, v, y))
        arguments = (dims, *maps, lse.data_ptr(), *sinks, workspace.data_ptr(), torch.get_num_threads())
        _native.native().window_attention2d_backward(*arguments)
    return grads


def _backward_triton(grad_y, q, k, v, y, lse, window, wanted):
    grads = _backward_fake(grad_y, q, k, v, y, lse, window, wanted)
    given = iter(grads)
    sinks = [next(given) if want else None for want in wanted]
    grad_y, y = (t.contiguous(memory_format=_CL) for t in (grad_y, y))
    maps = (grad_y, nhwc(q), nhwc(k), nhwc(v), y)
    _triton.kernels("window_attention2d").launch_backward(*maps, lse.contiguous(), *sinks, window)
    return grads


def _backward_reference(grad_y, q, k, v, y, lse, window, wanted):
    def function(*tensors):
        return reference.window_attention2d(*tensors, window)

    return vector_jacobian(function, (q, k, v), (grad_y,), wanted)


class _WindowAttention2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, window):
        y, lse = without_gradients(WINDOW_ATTENTION2D, q, k, v, window)
        ctx.save_for_backward(q, k, v, y, lse)
        ctx.window = window
        ctx.mark_non_differentiable(lse)
        return y, lse

    @staticmethod
    def backward(ctx, grad_y, _):
        wanted = list(ctx.needs_input_grad[:3])
        grads = iter(call(WINDOW_ATTENTION2D_BACKWARD, grad_y, *ctx.saved_tensors, ctx.window, wanted))
        return *(next(grads) if want else None for want in wanted), None


WINDOW_ATTENTION2D = define(
    "window_attention2d(Tensor q, Tensor k, Tensor v, int window) -> (Tensor, Tensor)",
    reference=_reference,
    backends={
        "native": Backend(_forward, lambda q, *_: _native.refusal({"cpu": "window_attention2d_forward"}, q)),
        "triton": Backend(_forward_triton, lambda q, *_: _triton.refusal(q)),
    },
    fake=_fake,
    function=_WindowAttention2d,
)

WINDOW_ATTENTION2D_BACKWARD = define(
    "window_attention2d_backward(Tensor grad_y, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, int window, "
    "bool[3] wanted) -> Tensor[]",
    reference=_backward_reference,
    backends={
        "native": Backend(_backward, lambda _, q, *__: _native.refusal({"cpu": "window_attention2d_backward"}, q)),
        "triton": Backend(_backward_triton, lambda _, q, *__: _triton.refusal(q)),
    },
    fake=_backward_fake,
)


def window_attention2d(q: Tensor, k: Tensor, v: Tensor, *, window: int = 30) -> Tensor:
    """Attention of every pixel to a square window around it.

    y_p = sum_d softmax_d(q_p . k_{p+d}) v_{p+d},  rows and columns of d from -floor(n/2) to n - floor(n/2) - 1

    n = window. Keys outside the field take part with logit 0 and value 0; logits are not scaled.

    Args:
        q, k, v: (B, C, H, W), C <= 64, float32, bfloat16, float16 or float64, all of one dtype; any strides.
        window: n, pixels, 1 to 64.

    Returns:
        y (B, C, H, W), channels_last.

    Gradients: q, k and v, to any order (beyond the first by the reference formula). Deterministic, and independent of
    the number of threads, bit for bit. Everything between load and store is float32 (float64 for float64); the log of
    the softmax's sum is all that is kept for the backward. Under autocast q, k and v take its dtype.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or window that does not fit.

    Source: Ma et al. 2022, PrecipLSTM; Dao et al. 2022, FlashAttention, for the running maximum and the recomputation.
    """
    q, k, v = autocast((q, k, v))
    _check(q, k, v, window)
    return call(WINDOW_ATTENTION2D, q, k, v, window)[0]
