# SPDX-License-Identifier: Apache-2.0
"""null_op: y = x. The template of an op: copy this file and csrc/null_op to add one.

Top to bottom: validation, native calls, fake, gradients, registration, public function.
"""

import torch
from torch import Tensor

from fastds.ops.core import native as _native
from fastds.ops.core.registry import Backend, call, define, reference_gradients, without_gradients
from fastds.ops.impl.null_op import reference as reference

_KERNELS = {"cpu": "null_op_cpu", "cuda": "null_op_cuda"}


def _validate(x):
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
    if x.dtype not in _native.DTYPES:
        raise TypeError(f"x: expected float32, float64, float16 or bfloat16, got {x.dtype}")


def _copy(x):
    # Every tensor that gives its address stays bound to a name until the call returns.
    dense = x.contiguous()
    y = torch.empty_like(dense)
    module, dtype, n = _native.native(), _native.DTYPES[x.dtype], x.numel()
    if _native.runs_on_cuda(x):
        module.null_op_cuda(dense.data_ptr(), y.data_ptr(), dtype, n, *_native.cuda_launch(x))
    else:
        module.null_op_cpu(dense.data_ptr(), y.data_ptr(), dtype, n, torch.get_num_threads())
    return y


def _fake(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _NullOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return without_gradients(NULL_OP, x)

    @staticmethod
    def backward(ctx, grad_y):
        (x,) = ctx.saved_tensors
        return call(NULL_OP_BACKWARD, grad_y, x)


def _backward_reference(grad_y, x):
    return reference_gradients(reference.null_op, [x], grad_y)[0]


NULL_OP = define(
    "null_op(Tensor x) -> Tensor",
    reference=reference.null_op,
    backends={"native": Backend(_copy, lambda x: _native.refusal(_KERNELS, x))},
    fake=_fake,
    function=_NullOp,
)

NULL_OP_BACKWARD = define(
    "null_op_backward(Tensor grad_y, Tensor x) -> Tensor",
    reference=_backward_reference,
    backends={"native": Backend(lambda grad_y, x: _copy(grad_y), lambda grad_y, x: _native.refusal(_KERNELS, grad_y))},
    fake=lambda grad_y, x: _fake(grad_y),
)


def null_op(x: Tensor) -> Tensor:
    """Copies a tensor through the native module.

    y = x

    Args:
        x: any shape and strides, float32, float64, float16 or bfloat16.

    Returns:
        new contiguous tensor of x's shape and dtype.

    Gradients: x, to any order. Deterministic.

    Raises:
        TypeError: x is no tensor or of another dtype.
    """
    _validate(x)
    return call(NULL_OP, x)
