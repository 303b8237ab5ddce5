# SPDX-License-Identifier: Apache-2.0
"""Native backend of conv2d and of its gradients, for checked arguments.

A convolution runs on the native engine of conv3x3 or on the library (oneDNN or cuDNN), whichever the cost model expects
to be faster. The engine splits a filter of k x k taps into filters of 3 x 3 taps that are applied to shifted inputs.
The shifted inputs are views into one zero-padded copy. Functions named *_fake only allocate the results, for tracing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.layout import CHANNELS_LAST, as_nhwc, empty_map, to_channels_last, to_contiguous
from fastds.ops.impl.conv2d import costs
from fastds.ops.impl.conv3x3 import library, winograd
from fastds.ops.impl.conv3x3.algorithm import current_algorithm, winograd_unsupported_reason

MAX_BLOCKS = 8  # 3 x 3 blocks along one side of a filter; the engine takes up to 64 views


def _unsupported_reason(x: Tensor, size: int) -> str | None:
    """Return the reason why the engine cannot convolve tensors like x with filters of this size, or None if it can."""
    if costs.count_blocks(size) > MAX_BLOCKS:
        return (
            f"the engine takes filters of at most {3 * MAX_BLOCKS - 1} x {3 * MAX_BLOCKS - 1} taps, not {size} x {size}"
        )
    return winograd_unsupported_reason(x)


def _apply_cost_rule(rule: Callable, passes: str | tuple[str, ...], x: Tensor, weight: Tensor, groups: int) -> bool:
    """Apply a rule of costs.py, unless an algorithm is requested.

    Args:
        rule: costs.is_op_faster or costs.is_engine_faster.
        passes: one of costs.PASSES for is_engine_faster, a tuple of them for is_op_faster.
        x: (B, C, H, W), input.
        weight: (O, C / groups, k, k).
        groups: number of groups.

    Returns:
        bool, whether to use the engine.

    Raises:
        RuntimeError: "winograd" is requested for filters of at least 3 x 3 taps, but the engine cannot run.
    """
    algorithm, size = current_algorithm(), weight.shape[-1]
    if size < 3 or algorithm not in ("auto", "winograd"):
        return False
    reason = _unsupported_reason(x, size)
    if algorithm == "winograd" and reason is not None:
        raise RuntimeError(f"conv2d: algorithm 'winograd' was requested, but {reason}")
    if algorithm == "winograd" or reason is not None or (isa := native.get_module().isa()) == "baseline":
        return algorithm == "winograd"
    batch, channels, height, width = x.shape
    group_channels = channels // groups, weight.shape[0] // groups
    return rule(passes, isa, x.dtype, batch, *group_channels, height, width, size, groups)


def is_op_faster(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Return True if the op, with the gradients that autograd will need, should run instead of torch's convolution.

    Args:
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        groups: number of groups.
    """
    tracked = torch.is_grad_enabled()
    passes = costs.PASSES_BY_GRADIENTS[tracked and x.requires_grad, tracked and weight.requires_grad]
    return _apply_cost_rule(costs.is_op_faster, passes, x, weight, groups)


def _should_use_engine(direction: str, x: Tensor, weight: Tensor, groups: int) -> bool:
    """Return True if the engine should run one pass: "forward", "inference", "grad_x" or "grad_weight"."""
    return _apply_cost_rule(costs.is_engine_faster, direction, x, weight, groups)


# ---- native calls. A tensor whose address is passed stays referenced until the call returns.


def _pad_with_zeros(maps: Tensor, size: int) -> Tensor:
    """Return a copy of the maps with the border of zeros that the blocks of a filter of this size read."""
    maps, before = as_nhwc(maps), size // 2
    after = 3 * costs.count_blocks(size) - 1 - before
    batch, channels, height, width = maps.shape
    result = empty_map((batch, channels, height + before + after, width + before + after), maps.dtype, maps)
    strides = maps.stride(0), *maps.stride()[2:]
    native.get_module().conv2d_border(
        maps.data_ptr(), result.data_ptr(), batch, height, width, channels, *strides, before, after,
        maps.dtype.itemsize, native.get_threads(),
    )  # fmt: skip
    return result


def _describe_shifted_views(bordered: Tensor, size: int) -> list[tuple]:
    """Return the arguments of csrc/conv3x3 for the shifted views of all blocks of taps, row by row."""
    at, kind, channels, image_stride, row, column, _ = native.describe_map(bordered)
    starts, item = range(0, size, 3), bordered.dtype.itemsize
    strides = image_stride, row, column, 1
    return [(at + (y * row + x * column) * item, kind, channels, *strides) for y in starts for x in starts]


def _describe_geometry(maps: Tensor) -> tuple:
    """Return the geometry for csrc/conv3x3, without padding because the maps are padded."""
    batch, _, height, width = maps.shape
    return batch, height + 2, width + 2, height, width, 0, 0, 0, 0


def convolve_groups(
    maps: Tensor, weight: Tensor, bias: Tensor | None, groups: int, adjoint: bool, trained: bool
) -> Tensor:
    """Convolve each group of channels with its filters on the engine.

    Args:
        maps: (B, C, H, W), or (B, O, H, W) for the adjoint.
        weight: (O, C / groups, k, k).
        bias: (O,) or None.
        groups: number of groups.
        adjoint: bool, whether to apply the adjoint, with rotated filters whose inputs and outputs are exchanged.
        trained: bool, whether the weight is expected to change between calls.

    Returns:
        (B, O, H, W), or (B, C, H, W) for the adjoint.
    """
    batch, _, height, width = maps.shape
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=CHANNELS_LAST)):
        weight = to_contiguous(weight)
    size, outputs = weight.shape[-1], groups * weight.shape[1] if adjoint else weight.shape[0]
    result = empty_map((batch, outputs, height, width), maps.dtype, maps)
    biases = [None] * groups if bias is None else to_contiguous(bias).chunk(groups)
    maps_of_groups = _pad_with_zeros(maps, size).chunk(groups, 1), result.chunk(groups, 1)
    keep = costs.can_cache_filters(*weight.shape[:3])
    for source, sink, filters, group_bias in zip(*maps_of_groups, weight.chunk(groups), biases, strict=True):
        if keep:
            packed, given, _alive = winograd.get_filter_arguments(
                filters, adjoint, 1, False, (batch, height, width), trained
            )
        else:
            once = winograd.pack_filters_uncached(filters, adjoint)
            packed, given = once.data_ptr(), []
        kind = 0 if group_bias is None else native.DTYPE_CODES[group_bias.dtype]
        native.call_with_workspace(
            native.get_module().conv3x3_run, _describe_geometry(maps), _describe_shifted_views(source, size), 1, 0,
            [native.describe_map(sink)], 1, packed,
            given, native.get_address(group_bias), kind, [], winograd.ACTIVATION_CODES["none"], 0.0, False,
        )  # fmt: skip
    return result


def grad_weight(grad: Tensor, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Compute the gradient of the weight on the engine.

    Args:
        grad: (B, O, H, W), gradient of the result, with channel stride 1.
        x: (B, C, H, W), input.
        weight: (O, C / groups, k, k); only its shape and dtype are used.
        groups: number of groups.
    """
    outputs, channels, size, _ = weight.shape
    result, blocks = torch.empty(weight.shape, dtype=weight.dtype), costs.count_blocks(size)
    code, item, part = native.DTYPE_CODES[weight.dtype], weight.dtype.itemsize, outputs // groups
    found = torch.empty((part, blocks, blocks, channels, 3, 3), dtype=weight.dtype)
    maps_of_groups = _pad_with_zeros(x, size).chunk(groups, 1), grad.chunk(groups, 1)
    for source, group_grad, taps in zip(*maps_of_groups, result.chunk(groups), strict=True):
        native.call_with_workspace(
            native.get_module().conv3x3_grad_weight, _describe_geometry(x), _describe_shifted_views(source, size),
            native.describe_map(group_grad), 1, 0, 0.0, code, found.data_ptr(), 0, False,
        )  # fmt: skip
        native.get_module().conv2d_taps(
            found.data_ptr(), taps.data_ptr(), part, channels, size, item, native.get_threads()
        )
    return result


# ---- the op


def forward(x, weight, bias, groups):
    """Compute conv2d, see fastds.ops.conv2d.

    Args:
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        bias: (O,) or None.
        groups: number of groups.

    Returns:
        (B, O, H, W).
    """
    if x.shape[0] == 0:
        return forward_fake(x, weight, bias, groups)
    trained = library.is_training_call(x, weight, bias)
    if not _should_use_engine("forward" if trained else "inference", x, weight, groups):
        return to_channels_last(library.conv2d(x, weight, bias, groups))
    return convolve_groups(x, weight, bias, groups, False, trained)


def forward_fake(x, weight, bias, groups):
    """Allocate the result of forward.

    Args:
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        bias: (O,) or None.
        groups: number of groups.

    Returns:
        (B, O, H, W), uninitialized.
    """
    return empty_map((x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, x)


def backward(grad_y, x, weight, groups, needs_grad):
    """Compute the gradients of x, weight and bias.

    Args:
        grad_y: (B, O, H, W), gradient of the result.
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        groups: number of groups.
        needs_grad: three bools, one for each gradient.

    Returns:
        The requested gradients, in the order above.
    """
    if x.shape[0] == 0:
        return [g.zero_() for g in backward_fake(grad_y, x, weight, groups, needs_grad)]
    x_by_engine, weight_by_engine = (
        needed and _should_use_engine(direction, x, weight, groups)
        for direction, needed in zip(("grad_x", "grad_weight"), needs_grad, strict=False)
    )
    grad_y = as_nhwc(grad_y)  # one copy for all gradients
    grads = [None, None, library.compute_bias_gradient(grad_y, weight.dtype) if needs_grad[2] else None]
    by_library = needs_grad[0] and not x_by_engine, needs_grad[1] and not weight_by_engine
    if any(by_library):
        grads[:2] = library.conv2d_backward(grad_y, x, weight, groups, *by_library)
    if x_by_engine:
        grads[0] = convolve_groups(grad_y, weight, None, groups, True, True)
    if weight_by_engine:
        grads[1] = grad_weight(grad_y, x, weight, groups)
    return [g for g, needed in zip(grads, needs_grad, strict=True) if needed]


def backward_fake(grad_y, x, weight, groups, needs_grad):
    """Allocate the results of backward.

    Args:
        grad_y: (B, O, H, W), gradient of the result.
        x: (B, C, H, W).
        weight: (O, C / groups, k, k).
        groups: number of groups.
        needs_grad: three bools, one for each gradient.

    Returns:
        Uninitialized tensors, one for each requested gradient.
    """
    makers = (
        lambda: empty_map(x.shape, x.dtype, x),
        lambda: torch.empty(weight.shape, dtype=weight.dtype, device=x.device),
        lambda: torch.empty(weight.shape[:1], dtype=weight.dtype, device=x.device),
    )
    return [make() for make, needed in zip(makers, needs_grad, strict=True) if needed]
