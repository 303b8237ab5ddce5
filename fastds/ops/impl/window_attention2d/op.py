# SPDX-License-Identifier: Apache-2.0
"""Implementation of window_attention2d, attention to a window that does not store the attention weights."""

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import DTYPES, cast_for_autocast, check_shape, check_tensor, is_int
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import as_nhwc, empty_map, to_channels_last
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import compute_vjp, define
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.window_attention2d import reference

__all__ = ["window_attention2d"]

MAX_CHANNELS, MAX_WINDOW = 64, 64


def _check(q, k, v, window) -> None:
    check_tensor("q", q, 4, DTYPES, None, "q")
    for name, tensor in (("k", k), ("v", v)):
        check_tensor(name, tensor, 4, (q.dtype,), q.device, "q")
        check_shape(name, tensor, tuple(q.shape))
    if not 1 <= q.shape[1] <= MAX_CHANNELS or 0 in q.shape[2:]:
        raise ValueError(f"q has shape {tuple(q.shape)}, expected 1 to {MAX_CHANNELS} channels, a row and a column")
    if not is_int(window) or not 1 <= window <= MAX_WINDOW:
        raise ValueError(f"window must be an int from 1 to {MAX_WINDOW}, got {window!r}")


def _check_backward(grad_y, q, k, v, y, lse, window, needs_grad) -> None:
    _check(q, k, v, window)
    for name, tensor in (("grad_y", grad_y), ("y", y)):
        check_tensor(name, tensor, 4, (q.dtype,), q.device, "q")
        check_shape(name, tensor, tuple(q.shape))
    check_tensor("lse", lse, 3, (_get_compute_dtype(q.dtype),), q.device, "q")
    check_shape("lse", lse, (q.shape[0], *q.shape[2:]))


def _get_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _describe_map(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride())


def _resolve_signs(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors without lazy negation, in any strides."""
    return [t.resolve_neg() for t in tensors]


def _allocate_workspace(dims, backward: bool, device) -> Tensor:
    size = native.get_module().window_attention2d_workspace(dims, backward)
    return torch.empty(size, dtype=torch.uint8, device=device)


def _fake(q, k, v, window):
    lse = torch.empty((q.shape[0], *q.shape[2:]), dtype=_get_compute_dtype(q.dtype), device=q.device)
    return empty_map(q.shape, q.dtype, q), lse


def _forward(q, k, v, window):
    y, lse = _fake(q, k, v, window)
    if q.shape[0]:
        dims = (native.DTYPE_CODES[q.dtype], *q.shape, window)
        workspace = _allocate_workspace(dims, False, q.device)
        tensors = _resolve_signs(q, k, v)
        maps = (_describe_map(t) for t in (*tensors, y))
        threads = native.get_threads()
        native.get_module().window_attention2d_forward(dims, *maps, lse.data_ptr(), workspace.data_ptr(), threads)
    return y, lse


def _forward_triton(q, k, v, window):
    y, lse = _fake(q, k, v, window)
    triton_loader.load_kernels("window_attention2d").launch_forward(as_nhwc(q), as_nhwc(k), as_nhwc(v), y, lse, window)
    return y, lse


def _reference(q, k, v, window):
    return reference.window_attention2d(q, k, v, window), reference.compute_log_sum_exp(q, k, window)


def _backward_fake(grad_y, q, k, v, y, lse, window, needs_grad):
    empty = (empty_map(q.shape, q.dtype, q) for _ in range(3))
    return [t for t, needed in zip(empty, needs_grad, strict=True) if needed]


def _backward(grad_y, q, k, v, y, lse, window, needs_grad):
    grads = _backward_fake(grad_y, q, k, v, y, lse, window, needs_grad)
    if q.shape[0]:
        dims = (native.DTYPE_CODES[q.dtype], *q.shape, window)
        workspace = _allocate_workspace(dims, True, q.device)
        lse = lse.contiguous()
        given = iter(grads)
        sinks = (_describe_map(next(given) if needed else None) for needed in needs_grad)
        tensors = _resolve_signs(grad_y, q, k, v, y)
        maps = map(_describe_map, tensors)
        arguments = (dims, *maps, lse.data_ptr(), *sinks, workspace.data_ptr(), native.get_threads())
        native.get_module().window_attention2d_backward(*arguments)
    return grads


def _backward_triton(grad_y, q, k, v, y, lse, window, needs_grad):
    grads = _backward_fake(grad_y, q, k, v, y, lse, window, needs_grad)
    given = iter(grads)
    sinks = [next(given) if needed else None for needed in needs_grad]
    grad_y, y = (to_channels_last(t) for t in (grad_y, y))
    maps = (grad_y, as_nhwc(q), as_nhwc(k), as_nhwc(v), y)
    triton_loader.load_kernels("window_attention2d").launch_backward(*maps, lse.contiguous(), *sinks, window)
    return grads


def _backward_reference(grad_y, q, k, v, y, lse, window, needs_grad):
    def function(q, k, v):
        return reference.window_attention2d(q, k, v, window)

    return compute_vjp(function, (q, k, v), (grad_y,), needs_grad)


class _WindowAttention2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, q, k, v, window):
        y, lse = run(q, k, v, window)
        ctx.save_for_backward(q, k, v, y, lse)
        ctx.window = window
        ctx.mark_non_differentiable(lse)
        return y, lse

    @staticmethod
    def backward(ctx, grad_y, _):
        needs_grad = list(ctx.needs_input_grad[1:4])
        grads = iter(WINDOW_ATTENTION2D_BACKWARD.call_unchecked(grad_y, *ctx.saved_tensors, ctx.window, needs_grad))
        return None, *(next(grads) if needed else None for needed in needs_grad), None


WINDOW_ATTENTION2D = define(
    "window_attention2d(Tensor q, Tensor k, Tensor v, int window) -> (Tensor, Tensor)",
    reference=_reference,
    backends={
        "native": Backend(_forward, lambda q, *_: native.unsupported_reason({"cpu": "window_attention2d_forward"}, q)),
        "triton": Backend(_forward_triton, lambda q, *_: triton_loader.unsupported_reason(q)),
    },
    fake=_fake,
    check=_check,
    function=_WindowAttention2d,
)

WINDOW_ATTENTION2D_BACKWARD = define(
    "window_attention2d_backward(Tensor grad_y, Tensor q, Tensor k, Tensor v, Tensor y, Tensor lse, int window, "
    "bool[3] needs_grad) -> Tensor[]",
    reference=_backward_reference,
    backends={
        "native": Backend(
            _backward, lambda _, q, *__: native.unsupported_reason({"cpu": "window_attention2d_backward"}, q)
        ),
        "triton": Backend(_backward_triton, lambda _, q, *__: triton_loader.unsupported_reason(q)),
    },
    fake=_backward_fake,
    check=_check_backward,
)


@planned
def window_attention2d(q: Tensor, k: Tensor, v: Tensor, *, window: int = 30) -> Tensor:
    """Compute the attention of each pixel to a square window around it.

    y_p = sum_d softmax_d(q_p . k_{p+d}) v_{p+d}

    The row and the column of d run from -floor(n/2) to n - floor(n/2) - 1, where n is the window size. Pixels p + d
    outside the image have logit 0 and value 0. The logits are not scaled.

    Args:
        q: (B, C, H, W), C <= 64, float32, bfloat16, float16 or float64; any strides.
        k: shape and dtype of q; any strides.
        v: shape and dtype of q; any strides.
        window: int, n, in pixels, 1 to 64.

    Returns:
        y: (B, C, H, W), dtype of q, channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or window is invalid.

    Gradients exist for q, k and v, to any order (the reference computes orders beyond the first). Results are
    deterministic and do not depend on the number of threads, bit for bit. The computation is in float32 (float64 for
    float64). For the backward pass only the logarithm of the softmax's denominator is saved in addition to the inputs
    and the result. Under autocast q, k and v are cast to the autocast dtype.

    Source: Ma et al. 2022, PrecipLSTM; Dao et al. 2022, FlashAttention, for the running maximum and the recomputation.
    """
    if type(q) is Proxy:
        return record_op(window_attention2d, locals())
    q, k, v = cast_for_autocast((q, k, v))
    return WINDOW_ATTENTION2D(q, k, v, window)[0]
