# SPDX-License-Identifier: Apache-2.0
"""What torch.utils.flop_counter.FlopCounterMode counts for our ops, by torch's own rule for convolutions and products:
two operations for every product of a number and a weight, none for activations, gates and interpolation."""

import importlib
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor

from fastds._import_hooks import run_after_import
from fastds.ops.core.registry import OPS, Op
from fastds.ops.impl.inr_query.query import Query

_CORNERS = 4  # that a place has


def _pixels(maps: Tensor) -> int:
    """Of all maps (B, C, H, W) of a batch."""
    return maps.shape[0] * maps.shape[2] * maps.shape[3]


def _convolution(weight: Tensor, maps: Tensor, channels: int | None = None) -> int:
    """Of a convolution by a weight (O, C, k, k) at the pixels of maps; channels: those of the C that are there."""
    used = weight.shape[1] if channels is None else channels
    return 2 * weight.numel() // max(weight.shape[1], 1) * used * _pixels(maps)


def _channels(*sources: Tensor | None) -> int:
    return sum(source.shape[1] for source in sources if source is not None)


def _gradients(call: SimpleNamespace) -> int:
    """Of a convolution of x and x2; wanted: those of x, weight, bias, x2 and residual."""
    channels = _channels(call.x if call.wanted[0] else None, call.x2 if call.wanted[3] else None)
    return _convolution(call.weight, call.x, channels) + call.wanted[1] * _convolution(call.weight, call.x)


def _grad_weight(call: SimpleNamespace) -> int:
    return 2 * 9 * call.grad.shape[1] * _channels(call.x, call.x2) * _pixels(call.grad)


def _gates(call: SimpleNamespace) -> int:
    """Of the convolution of x and the second source, which has other names, behind which gates come."""
    second = getattr(call, "x2", None) if hasattr(call, "x2") else call.h
    return _convolution(call.weight, call.x, _channels(call.x, second))


def _gru_step(call: SimpleNamespace) -> int:
    channels = _channels(call.h, call.x)
    return sum(_convolution(w, call.h, channels) for w in (call.gates_weight, call.candidate_weight))


def _gru_step_gradients(call: SimpleNamespace) -> int:
    """wanted: h, x, and of gates and candidate weight and bias, then their shares."""
    sources = _channels(call.h, call.x if call.wanted[1] else None)
    channels, parts = _channels(call.h, call.x), (call.gates_weight, call.candidate_weight)
    found = sum(_convolution(w, call.h, sources) for w in parts)
    for weight, want in zip(parts, call.wanted[2:5:2], strict=True):
        found += want * _convolution(weight, call.h, channels)
    return found


def _deform_gradients(call: SimpleNamespace) -> int:
    """wanted: input, offset, weight, bias and mask; all but those of the weight are made of the same product."""
    sampled = call.wanted[0] or call.wanted[1] or call.wanted[4]
    return (sampled + call.wanted[2]) * _convolution(call.weight, call.grad_y)


def _guided_gradients(call: SimpleNamespace) -> int:
    """wanted: input, raw, weight, bias and base_offset."""
    sampled = call.wanted[0] or call.wanted[1] or call.wanted[4]
    return (sampled + call.wanted[2]) * _convolution(call.weight, call.grad_y)


def _query(call: SimpleNamespace) -> int:
    """Of the trunk, and of attention the products with keys and contents of the corners."""
    query = Query(*(getattr(call, name) for name in Query._fields))
    places = query.maps.shape[0] * query.queries
    rows = places * query.rows_per_query
    found = 2 * rows * sum(weight.numel() for weight in query.weights)
    if query.feature == "dot":
        found += 2 * places * query.outputs * query.depth
    if query.ensemble == "early_attn":
        found += 2 * places * _CORNERS * (query.heads * query.dk + query.depth)
    return found


def _attention(call: SimpleNamespace) -> int:
    """Of products with the keys of a window, and as many with its values."""
    return 2 * 2 * call.q.shape[1] * call.window**2 * _pixels(call.q)


# Op: how many operations, from its arguments by name and its result.
FORMULAS: dict[str, Callable[[SimpleNamespace, Any], int]] = {
    "conv3x3": lambda call, out: _convolution(call.weight, call.x),
    "conv3x3_backward": lambda call, out: _gradients(call),
    "conv3x3_grad_x": lambda call, out: _convolution(call.weight, call.grad),
    "conv3x3_grad_weight": lambda call, out: _grad_weight(call),
    "conv1x1": lambda call, out: _convolution(call.weight, call.x),
    "conv1x1_backward": lambda call, out: _gradients(call),
    "conv2d": lambda call, out: _convolution(call.weight, out),
    "conv2d_backward": lambda call, out: sum(call.wanted[:2]) * _convolution(call.weight, call.grad_y),
    "deform_conv2d": lambda call, out: _convolution(call.weight, out),
    "deform_conv2d_backward": lambda call, out: _deform_gradients(call),
    "guided_deform_conv2d": lambda call, out: _convolution(call.weight, out),
    "guided_deform_conv2d_backward": lambda call, out: _guided_gradients(call),
    "conv_gru_step": lambda call, out: _gru_step(call),
    "conv_gru_step_backward": lambda call, out: _gru_step_gradients(call),
    "inr_query": lambda call, out: _query(call),
    "inr_query_backward": lambda call, out: 2 * _query(call),
    "window_attention2d": lambda call, out: _attention(call),
    # The scores are made again, and four products give the gradients, as torch counts for its own attention.
    "window_attention2d_backward": lambda call, out: 5 * _attention(call) // 2,
} | {
    name: lambda call, out: _gates(call)
    for name in (
        "conv_gru_reset", "conv_gru_update", "conv_lstm_cell", "conv_st_lstm_gates", "conv_memory_gates",
        "conv_output_gate",
    )
}  # fmt: skip


def _counting(op: Op) -> Callable[..., int]:
    count = FORMULAS[op.name]

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        call = SimpleNamespace(**dict(zip(op.arguments, op.bind(args, kwargs), strict=True)))
        return int(count(call, out_val))

    return formula


def _register(counter: ModuleType) -> None:
    import torch

    importlib.import_module("fastds.ops.impl.deform_conv2d.guided")  # whose ops are registered at first use
    for name in FORMULAS:
        counter.register_flop_formula(getattr(torch.ops.fastds, name), get_raw=True)(_counting(OPS[name]))


def register_formulas() -> None:
    """Let torch's FlopCounterMode count our ops, whether it is imported already or later: it imports triton, which
    takes longer than all of ours, and few need it."""
    run_after_import("torch.utils.flop_counter", _register)
