# SPDX-License-Identifier: Apache-2.0
"""Random calls of the launchers of all Triton kernels, with tensors of the CPU."""

import contextlib
import random
from collections.abc import Callable
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from fastds.kernels import (
    conv3x3,
    conv_rnn,
    deform_conv2d,
    deform_conv2d_backward,
    implicit_gemm,
    inr_query,
    null_op,
    resize,
    window_attention2d,
)
from torch import Tensor

MODULES = (
    conv3x3, conv_rnn, deform_conv2d, deform_conv2d_backward, implicit_gemm, inr_query, null_op, resize,
    window_attention2d,
)  # fmt: skip
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
FORMULAS = {  # others, results, gates
    "lstm_gates": (1, 2, 4), "st_lstm_gates": (1, 2, 4), "memory_gates": (1, 1, 3), "output_gate": (1, 1, 1),
    "gru_reset": (1, 2, 2), "gru_update": (2, 1, 1), "gru_update_leaky": (2, 1, 1),
}  # fmt: skip


class Call(NamedTuple):
    """A call of a launcher."""

    launcher: Callable
    args: tuple
    kwargs: dict[str, Any]


class Draw:
    """Random sizes, options and tensors.

    Attributes:
        random: source of all numbers.
        dtype: dtype of most tensors.
        sizes: batch, height and width.
    """

    def __init__(self, seed: int, dtype: torch.dtype | None = None):
        self.random = random.Random(seed)
        self.dtype = dtype or self.random.choice(FLOATS)
        self.sizes = (self.random.choice((1, 2, 3)), self.random.randint(3, 40), self.random.randint(3, 40))

    def choose_channels(self) -> int:
        """Return a number of channels: often a multiple of 16, on which Triton specializes kernels."""
        return self.random.choice((1, 3, 8, 16, 24, 32, 64, self.random.randint(1, 40)))

    def flip(self) -> bool:
        """Return True or False."""
        return self.random.random() < 0.5

    def make_map(self, channels: int, scale: int = 1, dtype: torch.dtype | None = None) -> Tensor:
        """Return a feature map in channels_last memory."""
        batch, height, width = self.sizes
        shape = (batch, channels, height * scale, width * scale)
        return torch.zeros(shape, dtype=dtype or self.dtype).contiguous(memory_format=torch.channels_last)

    def make_slice(self, channels: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a feature map that may be a channel slice of a wider one."""
        extra, before = self.random.choice(((0, 0), (0, 0), (16, 0), (16, 8), (3, 1)))
        return self.make_map(channels + extra, dtype=dtype)[:, before : before + channels]

    def make_weight(self, *shape: int) -> Tensor:
        """Return a weight in channels_last memory."""
        return torch.zeros(shape, dtype=self.dtype).contiguous(memory_format=torch.channels_last)

    def make_vector(self, count: int) -> Tensor | None:
        """Return a vector or None."""
        return torch.zeros(count, dtype=self.dtype) if self.flip() else None


def draw_null_op(d: Draw) -> Call:
    x = torch.zeros(d.random.randint(1, 5000), dtype=d.dtype)
    other = torch.zeros_like(x) if d.flip() else None
    return Call(null_op.launch, (x, other, torch.zeros_like(x), d.random.choice((1.0, 2.5, 0.0, -0.0, 1))), {})


def draw_epilogue(d: Draw) -> Call:
    shuffle, fine = d.random.choice((1, 1, 2)), d.choose_channels()
    y = d.make_map(fine * shuffle**2)
    second, residual = (d.make_map(y.shape[1]) if d.flip() else None for _ in range(2))
    out = y if shuffle == 1 and d.flip() else d.make_map(fine, shuffle)
    slope = d.random.choice((None, 0.0, 0.1))
    return Call(conv3x3.apply_epilogue, (y, out, d.make_vector(y.shape[1]), second, residual, slope, shuffle), {})


def draw_upsample2(d: Draw) -> Call:
    channels = d.choose_channels()
    return Call(resize.upsample2, (d.make_map(channels), d.make_map(channels, 2)), {})


def draw_convolution(d: Draw) -> Call:
    size, shuffle, fine = d.random.choice((1, 3, 5)), d.random.choice((1, 1, 2)), d.choose_channels()
    inputs, inputs2, outputs = d.choose_channels(), d.choose_channels() if d.flip() else 0, fine * shuffle**2
    x, x2 = d.make_slice(inputs), d.make_slice(inputs2) if inputs2 else None
    residual = d.make_slice(outputs) if d.flip() else None
    tensors = (x, x2, d.make_weight(outputs, inputs + inputs2, size, size), d.make_vector(outputs), residual)
    options = {
        "padding_mode": d.random.choice(("zeros", "replicate", "circular_x")), "shuffle": shuffle,
        "slope": d.random.choice((None, 0.0, 0.1)), "use_int64": d.random.choice((None, None, True)),
        "tiles": d.random.choice((None, None, implicit_gemm.Tiles(32, 16, 16, 4, 1))),
    }  # fmt: skip
    return Call(implicit_gemm.launch, (*tensors, d.make_map(fine, shuffle)), options)


def draw_cell(d: Draw) -> Call:
    formula = d.random.choice(tuple(FORMULAS))
    others, results, gates = FORMULAS[formula]
    channels, inputs, inputs2 = d.choose_channels(), d.choose_channels(), d.choose_channels() if d.flip() else 0
    x, x2 = d.make_slice(inputs), d.make_slice(inputs2) if inputs2 else None
    outputs = gates * channels
    residual = d.make_slice(outputs) if d.flip() else None
    convolution = (x, x2, d.make_weight(outputs, inputs + inputs2, 3, 3), d.make_vector(outputs), residual)
    states = [d.make_slice(channels, d.random.choice((d.dtype, torch.float32))) for _ in range(others)]
    made = [d.make_map(channels) for _ in range(results)]
    pre = d.make_map(outputs) if d.flip() else None
    options = (d.random.choice((0, 1)), d.random.choice((0.0, 0.2)))
    return Call(conv_rnn.launch, (formula, *options, convolution, states, made, pre), {})


def _draw_deform(d: Draw) -> tuple[tuple, deform_conv2d.Problem, dict[str, Any]]:
    """Return the tensors x, offset, mask and weight, the problem and the options of all kernels."""
    groups, offset_groups, each = d.random.choice((1, 2)), d.random.choice((1, 2, 4)), d.random.choice((1, 2, 4, 8))
    channels, outputs = 4 * groups * each, groups * d.choose_channels()
    kernel = d.random.choice(((3, 3), (1, 1), (1, 3)))
    taps = kernel[0] * kernel[1]
    offset = d.make_slice(2 * offset_groups * taps, d.random.choice((d.dtype, torch.float32)))
    mask = d.make_slice(offset_groups * taps) if d.flip() else None
    problem = deform_conv2d.Problem(
        kernel, (1, 1), (kernel[0] // 2, kernel[1] // 2), d.random.choice(((1, 1), (2, 2))), groups, offset_groups
    )
    batch, height, width = d.sizes
    options = {"base": torch.zeros(batch, 2, height, width) if d.flip() else None, "sigmoid": d.flip()}
    tensors = (d.make_slice(channels), offset, mask, d.make_weight(outputs, channels // groups, *kernel))
    return tensors, problem, options


def draw_deform_conv2d(d: Draw) -> Call:
    (x, offset, mask, weight), problem, options = _draw_deform(d)
    y, bias = d.make_map(weight.shape[0]), d.make_vector(weight.shape[0])
    options["slope"] = d.random.choice((None, 0.1))
    return Call(deform_conv2d.launch_forward, (x, offset, mask, weight, bias, y, problem), options)


def draw_deform_maps(d: Draw) -> Call:
    (x, offset, mask, weight), problem, options = _draw_deform(d)
    grad_x = d.make_map(x.shape[1], dtype=torch.float32) if d.flip() else None
    grads = [None if t is None or d.flip() else d.make_map(t.shape[1], dtype=t.dtype) for t in (offset, mask)]
    args = (d.make_map(weight.shape[0]), x, offset, mask, weight, grad_x, *grads, problem)
    return Call(deform_conv2d_backward.launch_maps, args, options)


def draw_deform_weight(d: Draw) -> Call:
    (x, offset, mask, weight), problem, options = _draw_deform(d)
    args = (d.make_map(weight.shape[0]), x, offset, mask, weight, problem)
    return Call(deform_conv2d_backward.compute_weight_gradient, args, options)


def draw_attention(d: Draw) -> Call:
    channels, (batch, height, width) = d.choose_channels(), d.sizes
    maps = [d.make_slice(channels) for _ in range(3)]
    args = (*maps, d.make_map(channels), torch.zeros(batch, height, width), d.random.choice((3, 5, 30)))
    return Call(window_attention2d.launch_forward, args, {})


def draw_attention_backward(d: Draw) -> Call:
    channels, (batch, height, width) = d.choose_channels(), d.sizes
    q, k, v = (d.make_slice(channels) for _ in range(3))
    lse, grads = torch.zeros(batch, height, width), [d.make_map(channels) if d.flip() else None for _ in range(3)]
    args = (d.make_map(channels), q, k, v, d.make_map(channels), lse, *grads, d.random.choice((3, 5, 30)))
    return Call(window_attention2d.launch_backward, args, {})


def draw_inr_query(d: Draw) -> Call:
    ensemble = d.random.choice(("late", "early_area", "early_attn"))
    heads, dk = (2, 4) if ensemble == "early_attn" else (1, 0)
    depth, outputs, queries = d.random.choice((64, 128)), d.random.randint(1, 5), d.random.randint(5, 200)
    batch, height, width = d.sizes
    maps = d.make_slice(depth + 2 * heads * dk)
    trunk = [(torch.zeros(depth, depth), torch.zeros(depth))] * d.random.choice((0, 1, 2))
    trunk.append((torch.zeros(outputs, depth), torch.zeros(outputs)))
    axes = [queries, d.random.randint(1, 9), 0, 16, 1, d.random.randint(1, 9), -3, 16] if d.flip() else []
    points = d.random.choice((1, batch))
    base = None if axes else torch.zeros(points, queries, 2, dtype=torch.int32)
    frac = None if axes else torch.zeros(points, queries, 2)
    rho_w, cell_w, bias = (torch.zeros(s) if d.flip() else None for s in ((2, depth), (2, depth), (depth,)))
    cell = None if cell_w is None else torch.zeros(batch, queries, 2) if d.flip() else torch.zeros(batch, 2)
    skip = torch.zeros(batch, height, width, outputs) if d.flip() else None
    query = inr_query.Query(
        maps, trunk, base, frac, axes, rho_w, cell_w, bias, torch.zeros(2, heads) if heads > 1 else None, cell, skip,
        ensemble, heads, dk, d.flip(), (d.flip(), d.flip()),
    )  # fmt: skip
    return Call(inr_query.launch, (query, torch.zeros(batch, queries, outputs)), {})


DRAWN: dict[str, Callable[[Draw], Call]] = {
    "null_op": draw_null_op,
    "apply_epilogue": draw_epilogue,
    "upsample2": draw_upsample2,
    "implicit_gemm": draw_convolution,
    "conv_rnn": draw_cell,
    "deform_conv2d": draw_deform_conv2d,
    "deform_conv2d maps": draw_deform_maps,
    "deform_conv2d weight": draw_deform_weight,
    "window_attention2d": draw_attention,
    "window_attention2d backward": draw_attention_backward,
    "inr_query": draw_inr_query,
}


def list_launchers() -> list[tuple[ModuleType, str, Any]]:
    """Return (module, name, function) of the functions with the decorator `planned`."""

    def is_planned(value: Any, module: ModuleType) -> bool:
        return isinstance(value, FunctionType) and hasattr(value, "__wrapped__") and value.__module__ == module.__name__

    return [(m, name, f) for m in MODULES for name, f in vars(m).items() if is_planned(f, m)]


def find_planned_calls(call: Call) -> list[Call]:
    """Return the calls of planned launchers that a call of a public launcher makes, without making them."""
    launchers = list_launchers()
    if any(call.launcher is function for _, _, function in launchers):
        return [call]
    found: list[Call] = []
    with contextlib.ExitStack() as stack:
        for module, name, function in launchers:
            note = partial(_note_call, found, function)
            stack.enter_context(patch.object(module, name, note))
        call.launcher(*call.args, **call.kwargs)
    return found


def _note_call(found: list[Call], launcher: Callable, *args: Any, **kwargs: Any) -> None:
    found.append(Call(launcher, args, kwargs))
