# SPDX-License-Identifier: Apache-2.0
"""null_op: y = x. The template of an op: copy this file and csrc/null_op to add one.

Top to bottom: validation, native calls, fake, gradients, registration, public function.
"""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import DTYPES, check_tensor
from fastds.ops.core.backends import Backend
from fastds.ops.core.registry import define, vector_jacobian
from fastds.ops.impl.null_op import reference

__all__ = ["null_op"]

_KERNELS = {"cpu": "null_op_cpu", "cuda": "null_op_cuda"}


def _check(x) -> None:
    check_tensor("x", x, None, DTYPES, None, "x")


def _copy(x):
    # Every tensor that gives its address stays bound to a name until the call returns.
    dense = x.contiguous()
    y = torch.empty_like(dense)
    module, dtype, n = native.module(), native.DTYPE_CODES[x.dtype], x.numel()
    if native.runs_on_cuda(x):
        module.null_op_cuda(dense.data_ptr(), y.data_ptr(), dtype, n, *native.cuda_launch(x))
    else:
        module.null_op_cpu(dense.data_ptr(), y.data_ptr(), dtype, n, torch.get_num_threads())
    return y


def _fake(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class _NullOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x):
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx, grad_y):
        (x,) = ctx.saved_tensors
        return None, NULL_OP_BACKWARD.trusted(grad_y, x)


def _backward_reference(grad_y, x):
    return vector_jacobian(reference.null_op, [x], [grad_y], [True])[0]


NULL_OP = define(
    "null_op(Tensor x) -> Tensor",
    reference=reference.null_op,
    backends={"native": Backend(_copy, lambda x: native.refusal(_KERNELS, x))},
    fake=_fake,
    check=_check,
    function=_NullOp,
)

NULL_OP_BACKWARD = define(
    "null_op_backward(Tensor grad_y, Tensor x) -> Tensor",
    reference=_backward_reference,
    backends={"native": Backend(lambda grad_y, x: _copy(grad_y), lambda grad_y, x: native.refusal(_KERNELS, grad_y))},
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
    return NULL_OP(x)
