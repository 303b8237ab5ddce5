# SPDX-License-Identifier: Apache-2.0
"""conv2d and its gradients for checked arguments: by the engine of conv3x3 where that costs less, else by the library;
and empty results.

A filter of k x k taps is a sum of filters of 3 x 3 taps on shifted maps. The engine takes maps side by side, so it
takes the shifted ones as views into one map with a border of zeros, and transforms the sum once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.layout import CHANNELS_LAST, dense, empty_map, nhwc, plain
from fastds.ops.impl.conv2d import costs
from fastds.ops.impl.conv3x3 import direct, engine
from fastds.ops.impl.conv3x3.algorithm import current, winograd_refusal

MOST_BLOCKS = 8  # each way: views that the engine takes


def _refusal(x: Tensor, size: int) -> str | None:
    """Why the engine cannot convolve tensors like x with filters of this size, or None."""
    if costs.blocks_of(size) > MOST_BLOCKS:
        return f"the engine takes filters of at most {3 * MOST_BLOCKS - 1} taps each way, not of {size}"
    return winograd_refusal(x)


def _pays(rule: Callable, of: str | tuple[str, ...], x: Tensor, weight: Tensor, groups: int) -> bool:
    """The rule of costs.py for one pass or several; without it where an algorithm is asked for."""
    algorithm, size = current(), weight.shape[-1]
    if size < 3 or algorithm not in ("auto", "winograd"):
        return False
    reason = _refusal(x, size)
    if algorithm == "winograd" and reason is not None:
        raise RuntimeError(f"conv2d: algorithm 'winograd' was asked for, but {reason}")
    if algorithm == "winograd" or reason is not None or (isa := native.module().isa()) == "baseline":
        return algorithm == "winograd"
    batch, channels, height, width = x.shape
    parts = channels // groups, weight.shape[0] // groups
    return rule(of, isa, x.dtype, batch, *parts, height, width, size, groups)


def op_pays(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether the op takes less time than torch's convolution, with the gradients that will be asked for."""
    tracked = torch.is_grad_enabled()
    passes = costs.PASSES_WANTED[tracked and x.requires_grad, tracked and weight.requires_grad]
    return _pays(costs.op_pays, passes, x, weight, groups)


def _by_engine(direction: str, x: Tensor, weight: Tensor, groups: int) -> bool:
    return _pays(costs.engine_pays, direction, x, weight, groups)


# ---- native calls. Every tensor that gives its address stays bound to a name until the call returns.


def _bordered(maps: Tensor, size: int) -> Tensor:
    """The maps with zeros around them, as far as the blocks of a filter of this size reach."""
    maps, before = nhwc(maps), size // 2
    after = 3 * costs.blocks_of(size) - 1 - before
    batch, channels, height, width = maps.shape
    result = empty_map((batch, channels, height + before + after, width + before + after), maps.dtype, maps)
    strides = maps.stride(0), *maps.stride()[2:]
    native.module().conv2d_border(
        maps.data_ptr(), result.data_ptr(), batch, height, width, channels, *strides, before, after,
        maps.dtype.itemsize, torch.get_num_threads(),
    )  # fmt: skip
    return result


def _shifted(bordered: Tensor, size: int) -> list[tuple]:
    """The views of all blocks of taps, row by row."""
    at, kind, channels, of_image, row, column, _ = native.view(bordered)
    starts, item = range(0, size, 3), bordered.dtype.itemsize
    strides = of_image, row, column, 1
    return [(at + (y * row + x * column) * item, kind, channels, *strides) for y in starts for x in starts]


def _geometry(maps: Tensor) -> tuple:
    """Without padding: the border is there."""
    batch, _, height, width = maps.shape
    return batch, height + 2, width + 2, height, width, 0, 0, 0, 0


def convolution(maps: Tensor, weight: Tensor, bias: Tensor | None, groups: int, adjoint: bool, trained: bool) -> Tensor:
    """Of each group of channels with its filters, (adjoint) turned round and with the outputs as inputs."""
    batch, _, height, width = maps.shape
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=CHANNELS_LAST)):
        weight = plain(weight)
    size, outputs = weight.shape[-1], groups * weight.shape[1] if adjoint else weight.shape[0]
    result = empty_map((batch, outputs, height, width), maps.dtype, maps)
    biases = [None] * groups if bias is None else plain(bias).chunk(groups)
    maps_of_groups = _bordered(maps, size).chunk(groups, 1), result.chunk(groups, 1)
    keep = costs.keeps_filters(*weight.shape[:3])
    for source, sink, filters, of_sum in zip(*maps_of_groups, weight.chunk(groups), biases, strict=True):
        if keep:
            packed, given, _alive = engine.filters_of(filters, adjoint, 1, False, (batch, height, width), trained)
        else:
            once = engine.packed_once(filters, adjoint)
            packed, given = once.data_ptr(), []
        kind = 0 if of_sum is None else native.DTYPE_CODES[of_sum.dtype]
        native.in_workspace(
            native.module().conv3x3_run, _geometry(maps), _shifted(source, size), 1, 0, [native.view(sink)], 1, packed,
            given, native.address(of_sum), kind, [], engine.ACT["none"], 0.0, False,
        )  # fmt: skip
    return result


def grad_weight(grad: Tensor, x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """grad: channels side by side."""
    outputs, channels, size, _ = weight.shape
    result, blocks = torch.empty(weight.shape, dtype=weight.dtype), costs.blocks_of(size)
    code, item, part = native.DTYPE_CODES[weight.dtype], weight.dtype.itemsize, outputs // groups
    found = torch.empty((part, blocks, blocks, channels, 3, 3), dtype=weight.dtype)
    maps_of_groups = _bordered(x, size).chunk(groups, 1), grad.chunk(groups, 1)
    for source, of_sum, taps in zip(*maps_of_groups, result.chunk(groups), strict=True):
        native.in_workspace(
            native.module().conv3x3_grad_weight, _geometry(x), _shifted(source, size), native.view(of_sum), 1, 0, 0.0,
            code, found.data_ptr(), 0, False,
        )  # fmt: skip
        native.module().conv2d_taps(
            found.data_ptr(), taps.data_ptr(), part, channels, size, item, torch.get_num_threads()
        )
    return result


# ---- the op


def forward(x, weight, bias, groups):
    if x.shape[0] == 0:
        return forward_fake(x, weight, bias, groups)
    trained = direct.is_trained(x, weight, bias)
    if not _by_engine("forward" if trained else "inference", x, weight, groups):
        return dense(direct.conv2d(x, weight, bias, groups))
    return convolution(x, weight, bias, groups, False, trained)


def forward_fake(x, weight, bias, groups):
    return empty_map((x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, x)


def backward(grad_y, x, weight, groups, wanted):
    if x.shape[0] == 0:
        return [g.zero_() for g in backward_fake(grad_y, x, weight, groups, wanted)]
    x_by_engine, weight_by_engine = (
        want and _by_engine(direction, x, weight, groups)
        for direction, want in zip(("grad_x", "grad_weight"), wanted, strict=False)
    )
    grad_y = nhwc(grad_y)  # once for all that read it
    grads = [None, None, direct.bias_gradient(grad_y, weight.dtype) if wanted[2] else None]
    left = wanted[0] and not x_by_engine, wanted[1] and not weight_by_engine
    if any(left):
        grads[:2] = direct.conv2d_backward(grad_y, x, weight, groups, *left)
    if x_by_engine:
        grads[0] = convolution(grad_y, weight, None, groups, True, True)
    if weight_by_engine:
        grads[1] = grad_weight(grad_y, x, weight, groups)
    return [g for g, want in zip(grads, wanted, strict=True) if want]


def backward_fake(grad_y, x, weight, groups, wanted):
    makers = (
        lambda: empty_map(x.shape, x.dtype, x),
        lambda: torch.empty(weight.shape, dtype=weight.dtype, device=x.device),
        lambda: torch.empty(weight.shape[:1], dtype=weight.dtype, device=x.device),
    )
    return [make() for make, want in zip(makers, wanted, strict=True) if want]
