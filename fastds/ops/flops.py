# SPDX-License-Identifier: Apache-2.0
"""FLOP counts of the ops for torch.utils.flop_counter.FlopCounterMode.

As in torch's own formulas for convolutions and matrix products, a multiplication and its addition count as two
operations. Activations, gates and interpolation are not counted.
"""

import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor

from fastds._import_hooks import run_after_import
from fastds.ops.core.registry import OPS, Op
from fastds.ops.impl.inr_query.query import Query

_CORNERS_PER_QUERY = 4


def _count_pixels(maps: Tensor) -> int:
    """Return B * H * W for feature maps (B, C, H, W)."""
    return maps.shape[0] * maps.shape[2] * maps.shape[3]


def _count_convolution(weight: Tensor, maps: Tensor, channels: int | None = None) -> int:
    """Return the operations of a convolution.

    Args:
        weight: (O, C, k, k), the filters.
        maps: (B, ., H, W), any tensor with as many pixels as the result.
        channels: number of the C input channels that are used. None: all.
    """
    used = weight.shape[1] if channels is None else channels
    return 2 * weight.numel() // max(weight.shape[1], 1) * used * _count_pixels(maps)


def _count_channels(*sources: Tensor | None) -> int:
    return sum(source.shape[1] for source in sources if source is not None)


def _count_conv_gradients(call: SimpleNamespace) -> int:
    """Count the operations of the gradients of a convolution. needs_grad is for x, weight, bias, x2 and residual."""
    channels = _count_channels(call.x if call.needs_grad[0] else None, call.x2 if call.needs_grad[3] else None)
    return _count_convolution(call.weight, call.x, channels) + call.needs_grad[1] * _count_convolution(
        call.weight, call.x
    )


def _count_weight_gradient(call: SimpleNamespace) -> int:
    return 2 * 9 * call.grad.shape[1] * _count_channels(call.x, call.x2) * _count_pixels(call.grad)


def _count_gates(call: SimpleNamespace) -> int:
    """Count the operations of the convolution of a recurrent cell. Its second source is named x2 or h."""
    second = getattr(call, "x2", None) if hasattr(call, "x2") else call.h
    return _count_convolution(call.weight, call.x, _count_channels(call.x, second))


def _count_gru_step(call: SimpleNamespace) -> int:
    channels = _count_channels(call.h, call.x)
    return sum(_count_convolution(w, call.h, channels) for w in (call.gates_weight, call.candidate_weight))


def _count_gru_step_gradients(call: SimpleNamespace) -> int:
    """Count the operations of the gradients of a GRU step.

    needs_grad is for h, x, each weight with its bias, and both shares.
    """
    sources = _count_channels(call.h, call.x if call.needs_grad[1] else None)
    channels, parts = _count_channels(call.h, call.x), (call.gates_weight, call.candidate_weight)
    found = sum(_count_convolution(w, call.h, sources) for w in parts)
    for weight, needed in zip(parts, call.needs_grad[2:5:2], strict=True):
        found += needed * _count_convolution(weight, call.h, channels)
    return found


def _count_deform_gradients(call: SimpleNamespace) -> int:
    """Count the operations of the gradients of deform_conv2d. needs_grad is for input, offset, weight, bias and mask.

    The gradients of input, offset and mask come from one matrix product, which counts once.
    """
    sampled = call.needs_grad[0] or call.needs_grad[1] or call.needs_grad[4]
    return (sampled + call.needs_grad[2]) * _count_convolution(call.weight, call.grad_y)


def _count_guided_gradients(call: SimpleNamespace) -> int:
    """Count the operations of the gradients of guided_deform_conv2d.

    needs_grad is for input, raw, weight, bias and base_offset.
    """
    sampled = call.needs_grad[0] or call.needs_grad[1] or call.needs_grad[4]
    return (sampled + call.needs_grad[2]) * _count_convolution(call.weight, call.grad_y)


def _count_query(call: SimpleNamespace) -> int:
    """Count the operations of the trunk and, with attention, of the products with keys and contents of four corners."""
    query = Query(*(getattr(call, name) for name in Query._fields))
    places = query.maps.shape[0] * query.queries
    rows = places * query.rows_per_query
    found = 2 * rows * sum(weight.numel() for weight in query.weights)
    if query.feature == "dot":
        found += 2 * places * query.outputs * query.depth
    if query.ensemble == "early_attn":
        found += 2 * places * _CORNERS_PER_QUERY * (query.heads * query.dk + query.depth)
    return found


def _count_attention(call: SimpleNamespace) -> int:
    """Count the operations of the products with the keys and the values of each window."""
    return 2 * 2 * call.q.shape[1] * call.window**2 * _count_pixels(call.q)


# Formula of each op, which returns the number of operations for the arguments (by name) and the result.
FORMULAS: dict[str, Callable[[SimpleNamespace, Any], int]] = {
    "conv3x3": lambda call, out: _count_convolution(call.weight, call.x),
    "conv3x3_backward": lambda call, out: _count_conv_gradients(call),
    "conv3x3_grad_x": lambda call, out: _count_convolution(call.weight, call.grad),
    "conv3x3_grad_weight": lambda call, out: _count_weight_gradient(call),
    "conv1x1": lambda call, out: _count_convolution(call.weight, call.x),
    "conv1x1_backward": lambda call, out: _count_conv_gradients(call),
    "conv2d": lambda call, out: _count_convolution(call.weight, out),
    "conv2d_backward": lambda call, out: sum(call.needs_grad[:2]) * _count_convolution(call.weight, call.grad_y),
    "deform_conv2d": lambda call, out: _count_convolution(call.weight, out),
    "deform_conv2d_backward": lambda call, out: _count_deform_gradients(call),
    "guided_deform_conv2d": lambda call, out: _count_convolution(call.weight, out),
    "guided_deform_conv2d_backward": lambda call, out: _count_guided_gradients(call),
    "conv_gru_step": lambda call, out: _count_gru_step(call),
    "conv_gru_step_backward": lambda call, out: _count_gru_step_gradients(call),
    "inr_query": lambda call, out: _count_query(call),
    "inr_query_backward": lambda call, out: 2 * _count_query(call),
    "window_attention2d": lambda call, out: _count_attention(call),
    # One product recomputes the scores and four give the gradients, as in torch's formula for attention.
    "window_attention2d_backward": lambda call, out: 5 * _count_attention(call) // 2,
} | {
    name: lambda call, out: _count_gates(call)
    for name in (
        "conv_gru_reset", "conv_gru_update", "conv_lstm_cell", "conv_st_lstm_gates", "conv_memory_gates",
        "conv_output_gate",
    )
}  # fmt: skip


def _make_formula(op: Op) -> Callable[..., int]:
    count = FORMULAS[op.name]

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        call = SimpleNamespace(**dict(zip(op.arguments, op.bind(args, kwargs), strict=True)))
        return int(count(call, out_val))

    return formula


def _register(counter: ModuleType) -> None:
    import torch

    importlib.import_module("fastds.ops.impl.deform_conv2d.guided")  # registers its ops at import
    for name in FORMULAS:
        counter.register_flop_formula(getattr(torch.ops.fastds, name), get_raw=True)(_make_formula(OPS[name]))


def register_formulas() -> None:
    """Register the formulas with torch's FlopCounterMode when torch.utils.flop_counter is imported, now or later.

    The import is deferred because that module imports triton, which takes longer than importing fastds.ops.
    """
    run_after_import("torch.utils.flop_counter", _register)
