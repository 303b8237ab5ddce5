# SPDX-License-Identifier: Apache-2.0
"""conv2d: grouped convolution of any odd kernel size."""

from typing import Any

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.arguments import DTYPES, check_dense, check_filters, check_shape, check_tensor, is_int
from fastds.ops.core.backends import Backend
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import are_exact_tensors, can_bypass_dispatcher, define, needs_weight_grad
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.conv2d import kernels, reference
from fastds.ops.impl.conv3x3 import library
from fastds.ops.impl.conv3x3.algorithm import current_algorithm, winograd_unsupported_reason
from fastds.ops.impl.conv3x3.op import cast_convolution_inputs, conv3x3, unsupported_reason

__all__ = ["conv2d"]


# ---- checks


def _check(x, weight, bias, groups) -> None:
    check_tensor("x", x, 4, DTYPES, None, "x")
    check_tensor("weight", weight, 4, (x.dtype, torch.float32), x.device, "x")
    if 0 in x.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least one channel, row and column")
    channels, (outputs, _, size, _) = x.shape[1], weight.shape
    if not is_int(groups) or groups < 1 or channels % groups or outputs % groups or outputs < 1:
        counts = f"{channels} channels of x and the {outputs} outputs of weight"
        raise ValueError(f"groups must be an int that divides the {counts}, got {groups!r}")
    if size % 2 == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected an odd size of its last two dimensions")
    check_filters("weight", weight, (outputs, channels // groups, size, size), "every group of x")
    if bias is not None:
        check_tensor("bias", bias, 1, (weight.dtype,), x.device, "x")
        check_shape("bias", bias, (outputs,))


def _check_backward(grad_y, x, weight, groups, needs_grad) -> None:
    _check(x, weight, None, groups)
    check_tensor("grad_y", grad_y, 4, (x.dtype,), x.device, "x")
    check_shape("grad_y", grad_y, (x.shape[0], weight.shape[0], *x.shape[2:]))


# ---- gradients


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, x, weight, bias, groups):
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return run(x, weight, bias, groups)

    @staticmethod
    def backward(ctx, grad_y):
        x, weight = ctx.saved_tensors
        needs_grad = [ctx.needs_input_grad[1], *needs_weight_grad(ctx, weight, grad_y, 2, 3)]
        found = iter(
            CONV2D_BACKWARD.call_unchecked(grad_y, x, weight, ctx.groups, needs_grad) if any(needs_grad) else ()
        )
        return None, *(next(found) if needed else None for needed in needs_grad), None


# ---- registration


CONV2D = define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int groups) -> Tensor",
    reference=reference.conv2d,
    backends={"native": Backend(kernels.forward, unsupported_reason)},
    fake=kernels.forward_fake,
    check=_check,
    function=_Conv2d,
)
CONV2D_BACKWARD = define(
    "conv2d_backward(Tensor grad_y, Tensor x, Tensor weight, int groups, bool[3] needs_grad) -> Tensor[]",
    reference=reference.conv2d_backward,
    backends={"native": Backend(kernels.backward, unsupported_reason)},
    fake=kernels.backward_fake,
    check=_check_backward,
)


# ---- torch's convolution in place of the op, where it is faster

_MAX_SIGNATURES = 4096
_UNKNOWN = object()
_library_cache: dict[tuple, library.LibraryConvolution | None] = {}  # by _make_signature


def _make_signature(x, weight, bias, groups) -> tuple:
    """Return all properties of exact tensors that _select_library depends on."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    made = [(t.dtype, t.device, t.layout, t.shape, t.stride(), t.requires_grad) for t in tensors]
    return *made, groups, torch.is_grad_enabled(), torch._C._get_mkldnn_enabled(), current_algorithm()


def _select_library(x, weight, bias, groups) -> library.LibraryConvolution | None:
    """Return torch's convolution with its settings if it is faster than the op, else None."""
    _check(x, weight, bias, groups)
    check_dense(("x", "weight", "bias"), (x, weight, bias))
    if kernels.is_op_faster(x, weight, groups):
        return None
    return library.plan_convolution(
        x, weight, weight.shape[-1] // 2, library.is_training_call(x, weight, bias), 1, groups
    )


def _get_library(x, weight, bias, groups) -> library.LibraryConvolution | None:
    """Return the result of _select_library, which is cached because it takes as long as a small convolution."""
    try:
        kind = _make_signature(x, weight, bias, groups)
    except RuntimeError:  # nested tensors have no shape
        check_dense(("x", "weight", "bias"), (x, weight, bias))
        raise
    found: Any = _library_cache.get(kind, _UNKNOWN)
    if found is _UNKNOWN:
        if len(_library_cache) == _MAX_SIGNATURES:
            _library_cache.clear()
        found = _library_cache[kind] = _select_library(x, weight, bias, groups)
    return found


def _is_conv3x3(x, weight, groups) -> bool:
    """Return True if conv3x3 computes the call, with its choice of an algorithm."""
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor) and type(groups) is int and groups == 1):
        return False
    if x.is_nested or weight.is_nested or weight.shape[2:] != (3, 3) or current_algorithm() != "auto":
        return False
    return winograd_unsupported_reason(x) is None and native.get_module().isa() != "baseline"


@planned
def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, groups: int = 1) -> Tensor:
    """Apply a grouped k x k convolution of stride 1 with zero padding k // 2, so that the image size is preserved.

    y[b, o, p] = bias[o] + sum over c, i, j of weight[o, c, i, j] x[b, g C/G + c, p + (i, j) - k // 2],
    g = o G // O the group of output o

    Up to rounding errors, the result equals that of torch.nn.functional.conv2d with padding k // 2. On a CPU,
    fastds.ops.conv3x3 computes filters of 3 x 3 taps if there is one group, except for float64. Other filters of 3 x 3
    taps and more run on the Winograd engine of conv3x3 if a cost model expects the engine to be faster than
    torch, as it often is for many pixels and many channels in a group. Filters larger than 3 x 3 are split into filters
    of 3 x 3 taps on shifted inputs. Inside fastds.use_conv_algorithm("winograd") the engine computes all convolutions
    of 3 x 3 taps and more. Inside fastds.use_conv_algorithm with a name other than "winograd" and "auto", torch
    computes all convolutions. Unless they are large, the packed filters of the engine are cached with a copy of the
    weight that detects changes, up to 256 MiB in each Python thread.

    Args:
        x: (B, C, H, W), float32, bfloat16, float16 or float64; any strides.
        weight: (O, C / G, k, k), k odd, dtype of x or float32.
        bias: (O,), dtype of weight, or None.
        groups: int, G, a divisor of C and O.

    Returns:
        (B, O, H, W), dtype of x. The result of the engine is channels_last; the result of torch's convolution may have
        another memory format.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.
        RuntimeError: inside fastds.use_conv_algorithm("winograd"), for k >= 3, the engine cannot run, for example for
            float64, on a GPU or for k > 23.

    Gradients exist for x, weight and bias, to any order. Rounding errors of the engine are those of "winograd" in
    conv3x3. Where the engine runs, results are deterministic and do not depend on the number of threads, bit for bit.
    Under autocast x is cast to the autocast dtype; a float32 weight and bias stay float32.
    """
    if type(x) is Proxy:
        return record_op(conv2d, locals())
    x, weight, bias, _, _ = cast_convolution_inputs(x, weight, bias, None, None, None)
    if _is_conv3x3(x, weight, groups):
        _check(x, weight, bias, groups)
        return conv3x3(x, weight, bias)
    if can_bypass_dispatcher(x, weight) and are_exact_tensors(x, weight, bias) and type(groups) is int:
        torch_convolution = _get_library(x, weight, bias, groups)
        if torch_convolution is not None:
            return torch_convolution.call_noted(x, weight, bias)
    else:
        _check(x, weight, bias, groups)
    return CONV2D.call_unchecked(x, weight, bias, groups)
