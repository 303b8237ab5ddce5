# SPDX-License-Identifier: Apache-2.0
"""Implementation of null_op, y = x, which is the template of an op. csrc/README.md explains how to copy it.

The parts from top to bottom are checks, native calls, Triton calls, fakes, gradients, registration, and the public
function.
"""

import torch
from torch import Tensor

from fastds.ops.core import native, triton_loader
from fastds.ops.core.arguments import DTYPES, cast_for_autocast, check_shape, check_tensor
from fastds.ops.core.backends import Backend
from fastds.ops.core.layout import to_contiguous
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import compute_vjp, define
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.null_op import reference

__all__ = ["null_op"]

_KERNELS = {"cpu": "null_op_cpu", "cuda": "null_op_cuda"}  # functions of _fastds


# ---- checks, which the registry runs once in each call, also for torch.ops.fastds.null_op


def _check(x) -> None:
    check_tensor("x", x, None, DTYPES, None, "x")


def _check_backward(grad_y, x, needs_grad) -> None:
    _check(x)
    check_tensor("grad_y", grad_y, None, (x.dtype,), x.device, "x")
    check_shape("grad_y", grad_y, tuple(x.shape))


# ---- native calls. A tensor whose address is passed stays referenced until the call returns.


def _to_dense(x: Tensor) -> Tensor:
    """Return x if it is contiguous, else a contiguous copy. On the CPU the copy is in the thread's cached workspace."""
    if x.is_contiguous() or not x.is_cpu:
        return to_contiguous(x)
    return native.get_workspace(x.nbytes)[: x.nbytes].view(x.dtype).view(x.shape).copy_(x)


def _copy(x: Tensor) -> Tensor:
    y, dense = _fake(x), _to_dense(x)
    dtype, n = native.DTYPE_CODES[x.dtype], x.numel()
    if native.runs_on_cuda(x):
        native.get_module().null_op_cuda(dense.data_ptr(), y.data_ptr(), dtype, n, *native.get_cuda_launch_arguments(x))
    else:
        native.get_module().null_op_cpu(dense.data_ptr(), y.data_ptr(), dtype, n, native.get_threads())
    return y


def _backward(grad_y, x, needs_grad):
    return [_copy(grad_y)] if needs_grad[0] else []


# ---- Triton calls


def _copy_triton(x: Tensor) -> Tensor:
    y = _fake(x)
    triton_loader.load_kernels("null_op").launch(x.contiguous(), y)
    return y


def _backward_triton(grad_y, x, needs_grad):
    return [_copy_triton(grad_y)] if needs_grad[0] else []


# ---- fakes: results without values, for tracing


def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _backward_fake(grad_y, x, needs_grad):
    return [_fake(x)] if needs_grad[0] else []


# ---- gradients


class _NullOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x):
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx, grad_y):
        (x,), needs_grad = ctx.saved_tensors, [ctx.needs_input_grad[1]]  # position 0 is `run`
        grads = iter(NULL_OP_BACKWARD.call_unchecked(grad_y, x, needs_grad))
        return None, *(next(grads) if needed else None for needed in needs_grad)


def _backward_reference(grad_y, x, needs_grad):
    """Differentiate the reference by autograd, so that the result is differentiable, too."""
    return compute_vjp(reference.null_op, [x], [grad_y], needs_grad)


# ---- registration

NULL_OP = define(
    "null_op(Tensor x) -> Tensor",
    reference=reference.null_op,
    backends={
        "native": Backend(_copy, lambda x: native.unsupported_reason(_KERNELS, x)),
        "triton": Backend(_copy_triton, triton_loader.unsupported_reason),
    },
    fake=_fake,
    check=_check,
    function=_NullOp,
)
NULL_OP_BACKWARD = define(
    "null_op_backward(Tensor grad_y, Tensor x, bool[1] needs_grad) -> Tensor[]",
    reference=_backward_reference,
    backends={
        "native": Backend(_backward, lambda grad_y, *_: native.unsupported_reason(_KERNELS, grad_y)),
        "triton": Backend(_backward_triton, lambda grad_y, *_: triton_loader.unsupported_reason(grad_y)),
    },
    fake=_backward_fake,
    check=_check_backward,
)


@planned
def null_op(x: Tensor) -> Tensor:
    """Copy a tensor through the native module.

    y = x

    Args:
        x: any shape and strides, float32, bfloat16, float16 or float64.

    Returns:
        new contiguous tensor with the shape and dtype of x.

    Raises:
        TypeError: x is not a Tensor or has a wrong dtype.

    Gradients exist for x, to any order. Results are deterministic. Under autocast x is cast to the autocast dtype.
    """
    if type(x) is Proxy:
        return record_op(null_op, locals())
    return NULL_OP(*cast_for_autocast((x,)))
