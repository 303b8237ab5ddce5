# SPDX-License-Identifier: Apache-2.0
"""Implementation of null_op, y = scale * x + other, the template of an op. csrc/README.md explains how to copy it.

The parts from top to bottom are checks, native calls, Triton calls, fakes, gradients, registration, and the public
function.
"""

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import DTYPES, cast_for_autocast, check_shape, check_tensor, to_float
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import to_contiguous
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import compute_vjp, define
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.null_op import reference

__all__ = ["null_op"]

_KERNELS = {"cpu": "null_op_cpu", "cuda": "null_op_cuda"}  # functions of _fastds
_ALIGNMENT = 64  # bytes


# ---- checks, which the registry runs once in each call, also for torch.ops.fastds.null_op


def _check(x, other, scale) -> None:
    check_tensor("x", x, None, DTYPES, None, "x")
    if other is not None:
        check_tensor("other", other, None, (x.dtype,), x.device, "x")
        check_shape("other", other, tuple(x.shape))
    if not abs(scale) < float("inf"):
        raise ValueError(f"scale must be a finite number, got {scale!r}")


def _check_backward(grad_y, x, other, scale, needs_grad) -> None:
    _check(x, other, scale)
    check_tensor("grad_y", grad_y, None, (x.dtype,), x.device, "x")
    check_shape("grad_y", grad_y, tuple(x.shape))


# ---- native calls. A tensor whose address is passed stays referenced until the call returns.


def _to_dense(*tensors: Tensor) -> list[Tensor]:
    """Return contiguous tensors with the values of the given tensors.

    On the CPU the copies of strided tensors are in the thread's cached workspace. One call of get_workspace gives the
    memory for all copies, because the next call would return the same memory.
    """
    if all(tensor.is_contiguous() or not tensor.is_cpu for tensor in tensors):
        return [to_contiguous(tensor) for tensor in tensors]
    memory = native.get_workspace(sum(tensor.nbytes + _ALIGNMENT for tensor in tensors))
    start, dense = 0, []
    for tensor in tensors:
        part = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        dense.append(to_contiguous(tensor) if tensor.is_contiguous() else part.copy_(tensor))
        start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    return dense


def _forward(x: Tensor, other: Tensor | None, scale: float) -> Tensor:
    y, dense = _fake(x, other, scale), _to_dense(*(tensor for tensor in (x, other) if tensor is not None))
    addresses = dense[0].data_ptr(), 0 if other is None else dense[1].data_ptr(), y.data_ptr()
    arguments = *addresses, native.DTYPE_CODES[x.dtype], x.numel(), scale
    if native.runs_on_cuda(x):
        native.get_module().null_op_cuda(*arguments, *native.get_cuda_launch_arguments(x))
    else:
        native.get_module().null_op_cpu(*arguments, native.get_threads())
    return y


def _backward(grad_y, x, other, scale, needs_grad):
    factors = [scale, 1.0]  # derivatives of y by x and by other
    return [_forward(grad_y, None, factor) for factor, needed in zip(factors, needs_grad, strict=True) if needed]


# ---- Triton calls


def _forward_triton(x: Tensor, other: Tensor | None, scale: float) -> Tensor:
    y = _fake(x, other, scale)
    addend = None if other is None else other.contiguous()
    triton_loader.load_kernels("null_op").launch(x.contiguous(), addend, y, scale)
    return y


def _backward_triton(grad_y, x, other, scale, needs_grad):
    factors = [scale, 1.0]
    return [_forward_triton(grad_y, None, factor) for factor, needed in zip(factors, needs_grad, strict=True) if needed]


# ---- fakes: results without values, for tracing


def _fake(x: Tensor, other: Tensor | None, scale: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward_fake(grad_y, x, other, scale, needs_grad):
    return [_fake(x, None, scale) for needed in needs_grad if needed]


# ---- gradients


class _NullOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x, other, scale):
        ctx.save_for_backward(x, other)
        ctx.scale = scale
        return run(x, other, scale)

    @staticmethod
    def backward(ctx, grad_y):
        (x, other), needs_grad = ctx.saved_tensors, list(ctx.needs_input_grad[1:3])  # position 0 is `run`
        grads = iter(NULL_OP_BACKWARD.call_unchecked(grad_y, x, other, ctx.scale, needs_grad))
        return None, *(next(grads) if needed else None for needed in needs_grad), None


def _backward_reference(grad_y, x, other, scale, needs_grad):
    """Differentiate the reference by autograd, so that the result is differentiable, too."""
    return compute_vjp(lambda x, other: reference.null_op(x, other, scale), [x, other], [grad_y], needs_grad)


# ---- registration

NULL_OP = define(
    "null_op(Tensor x, Tensor? other=None, float scale=1.0) -> Tensor",
    reference=reference.null_op,
    backends={
        "native": Backend(_forward, lambda x, *_: native.unsupported_reason(_KERNELS, x)),
        "triton": Backend(_forward_triton, lambda x, *_: triton_loader.unsupported_reason(x)),
    },
    fake=_fake,
    check=_check,
    function=_NullOp,
)
NULL_OP_BACKWARD = define(
    "null_op_backward(Tensor grad_y, Tensor x, Tensor? other, float scale, bool[2] needs_grad) -> Tensor[]",
    reference=_backward_reference,
    backends={
        "native": Backend(_backward, lambda grad_y, *_: native.unsupported_reason(_KERNELS, grad_y)),
        "triton": Backend(_backward_triton, lambda grad_y, *_: triton_loader.unsupported_reason(grad_y)),
    },
    fake=_backward_fake,
    check=_check_backward,
)


@planned
def null_op(x: Tensor, other: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Scale a tensor and add another one through the native module. By default the result is a copy of x.

    y = scale * x + other

    Args:
        x: any shape and strides, float32, bfloat16, float16 or float64.
        other: shape and dtype of x, any strides, or None for zero.
        scale: float, finite.

    Returns:
        new contiguous tensor with the shape and dtype of x.

    Raises:
        TypeError: x or other is not a Tensor or has a wrong dtype, or scale is not a number.
        ValueError: the shape or device of other differs from that of x, or scale is not finite.

    Gradients exist for x and other, to any order. Results are deterministic. Under autocast x and other are cast to the
    autocast dtype.
    """
    if type(x) is Proxy:
        return record_op(null_op, locals())
    return NULL_OP(*cast_for_autocast((x, other)), to_float("scale", scale))
