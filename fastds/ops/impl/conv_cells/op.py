# SPDX-License-Identifier: Apache-2.0
"""Steps of convolutional recurrent cells, their pointwise passes in the output stage of the Winograd engine."""

import torch
from torch import Tensor

from fastds.ops.core.arguments import cast_for_autocast, check_dense, to_float
from fastds.ops.core.layout import as_nhwc
from fastds.ops.core.registry import has_active_transforms
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.conv3x3.algorithm import current_algorithm
from fastds.ops.impl.conv_cells.fused import ConvPointwiseOps, slice_first_source
from fastds.ops.impl.conv_cells.gru_step import RESET, STEP, UPDATE, get_sources
from fastds.ops.impl.gates.op import LSTM_GATES, MEMORY_GATES, OUTPUT_GATE, ST_LSTM_GATES

__all__ = ["conv_gru_cell", "conv_lstm_cell", "conv_memory_gates", "conv_output_gate", "conv_st_lstm_gates"]

LSTM = ConvPointwiseOps("conv_lstm_cell", LSTM_GATES, sources=("x", "h"), recurrent=True)
ST_LSTM = ConvPointwiseOps("conv_st_lstm_gates", ST_LSTM_GATES, sources=("x", "h"))
MEMORY = ConvPointwiseOps("conv_memory_gates", MEMORY_GATES)
OUTPUT = ConvPointwiseOps("conv_output_gate", OUTPUT_GATE)


def conv_lstm_cell(
    x: Tensor, h: Tensor | None, c: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step of a convolutional LSTM, the pre-activations never written unless a gradient needs them.

    [i f g o] = conv3x3([x; h]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C, H, W), dtype of x. None for zeros: its part of the weight is left out.
        c: (B, C, H, W), dtype of x or float32.
        weight: (4C, C1 + C, 3, 3), dtype of x or float32, outputs in the order i, f, g, o. bias: (4C,) or None.

    Returns:
        h' in x's dtype and c' in c's dtype, both (B, C, H, W), channels_last.

    Gradients: all inputs, to any order. Deterministic, and independent of the number of threads, bit for bit. Under
    autocast x and h take its dtype, c is float32. fastds.convolution chooses the convolution's algorithm.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3 without peepholes.
    """
    if type(x) is Proxy:
        return record_op(conv_lstm_cell, locals())
    x, h, c, weight, bias = cast_for_autocast((x, h, c, weight, bias), float32=(2,), keep_float32=(3, 4))
    weight = slice_first_source(weight, x, state=c) if h is None else weight
    return LSTM(x, h, weight, bias, None, c)


def conv_gru_cell(
    x: Tensor | None, h: Tensor, gates_weight: Tensor, gates_bias: Tensor | None, candidate_weight: Tensor,
    candidate_bias: Tensor | None, *, keep: str = "z", act: str = "tanh", negative_slope: float = 0.2,
    shares: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """One step of a convolutional GRU that resets the state before the candidate's convolution.

    [z r] = sigmoid(conv3x3([x; h]) + bias);  n = act(conv3x3([x; r h]) + bias)
    h' = w h + (1 - w) n,  w = z (keep "z") or 1 - z (keep "1-z")

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last. None where
            `shares` has its part, and for an input of zeros: then the weights are those of h alone, as with shares.
        h: (B, C, H, W), dtype of x.
        gates_weight: (2C, C1 + C, 3, 3), dtype of x or float32, outputs in the order z, r. gates_bias: (2C,) or None.
        candidate_weight: (C, C1 + C, 3, 3). candidate_bias: (C,) or None.
        keep: "z" or "1-z", the weight of h.
        act: "tanh" or "leaky_relu" with negative_slope >= 0.
        shares: x's parts of gates (B, 2C, H, W) and candidate (B, C, H, W), for sequences whose x were convolved at
            once; x is None and the weights are those of h alone, (2C, C, 3, 3) and (C, C, 3, 3).

    Returns:
        h' (B, C, H, W), channels_last.

    Gradients: all inputs, to any order. Deterministic, and independent of the number of threads, bit for bit. Under
    autocast all but weights and biases take its dtype. fastds.convolution chooses the convolutions' algorithm.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or option that does not fit; both of x and shares.

    Source: Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    if type(x) is Proxy:
        return record_op(conv_gru_cell, locals())
    if x is not None and shares is not None:
        raise ValueError("expected x or shares, got both")
    if not isinstance(shares, tuple | list | None) or (shares is not None and len(shares) != 2):
        raise TypeError(f"shares must be a pair of tensors, x's parts of gates and candidate, got {shares!r:.80}")
    gates_share, candidate_share = shares or (None, None)
    h, x = _to_nhwc_once(h), _to_nhwc_once(x)
    tensors = (h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share)
    tensors = cast_for_autocast(tensors, keep_float32=(2, 3, 4, 5))
    options = (keep, act, to_float("negative_slope", negative_slope))
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        return STEP(*tensors, *options, current_algorithm())[0]
    try:
        return _step_without_gradients(*tensors, options)
    except (RuntimeError, TypeError, ValueError):  # of an op that knows its own arguments alone
        STEP.check(*tensors, *options, current_algorithm())
        check_dense(_GRU_NAMES, tensors)
        raise


def _to_nhwc_once(source):
    """A map with its channels side by side, which both convolutions and both passes of a GRU want; vmap knows no such
    layout, and whatever is no map is left to the checks."""
    is_map = isinstance(source, Tensor) and source.dim() == 4 and source.layout is torch.strided
    return as_nhwc(source) if is_map and not has_active_transforms() else source


_GRU_NAMES = (
    "h", "x", "gates_weight", "gates_bias", "candidate_weight", "candidate_bias", "shares[0]", "shares[1]",
)  # fmt: skip


def _step_without_gradients(
    h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share, options
):  # fmt: skip
    """Nothing is kept but z, which both halves of the step need."""
    z, reset = RESET(*get_sources(x, h), gates_weight, gates_bias, gates_share, h)
    return UPDATE(*get_sources(x, reset), candidate_weight, candidate_bias, candidate_share, z, h, *options)[0]


def conv_st_lstm_gates(
    x: Tensor, h: Tensor | None, c: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Temporal memory of an ST-LSTM, and the part of its output gate that waits for the spatial memory.

    [i f g q] = conv3x3([x; h]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g)

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C2, H, W), dtype of x. None for zeros: its part of the weight is left out.
        c: (B, C, H, W), dtype of x or float32.
        weight: (4C, C1 + C2, 3, 3), dtype of x or float32, outputs in the order i, f, g, q. bias: (4C,) or None.

    Returns:
        c' in c's dtype and q in x's, both (B, C, H, W), channels_last.

    Gradients: all inputs, to any order. Deterministic, and independent of the number of threads, bit for bit. Under
    autocast x and h take its dtype, c is float32. fastds.convolution chooses the convolution's algorithm.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(x) is Proxy:
        return record_op(conv_st_lstm_gates, locals())
    x, h, c, weight, bias = cast_for_autocast((x, h, c, weight, bias), float32=(2,), keep_float32=(3, 4))
    weight = slice_first_source(weight, x) if h is None else weight
    return ST_LSTM(x, h, weight, bias, None, c)


def conv_memory_gates(x: Tensor, x2: Tensor | None, c: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gated update of a memory, the pre-activations never written unless a gradient needs them.

    [i f g] = conv3x3([x; x2]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g)

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        x2: (B, C2, H, W), dtype of x. None for zeros: its part of the weight is left out.
        c: (B, C, H, W), dtype of x or float32.
        weight: (3C, C1 + C2, 3, 3), dtype of x or float32, outputs in the order i, f, g. bias: (3C,) or None.

    Returns:
        c' (B, C, H, W) in c's dtype, channels_last.

    Gradients, determinism, autocast, errors: as conv_st_lstm_gates.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(x) is Proxy:
        return record_op(conv_memory_gates, locals())
    x, x2, c, weight, bias = cast_for_autocast((x, x2, c, weight, bias), float32=(2,), keep_float32=(3, 4))
    weight = slice_first_source(weight, x) if x2 is None else weight
    return MEMORY(x, x2, weight, bias, None, c, "none")[0]


def conv_output_gate(
    x: Tensor, x2: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Output of a recurrent cell whose gate is a convolution of its memories.

    y = sigmoid(conv3x3([x; x2]) + bias + residual) tanh(value)

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        x2: (B, C2, H, W), dtype of x.
        value: (B, C, H, W), dtype of x or float32.
        weight: (C, C1 + C2, 3, 3), dtype of x or float32. bias: (C,) or None.
        residual: (B, C, H, W), dtype of x, or None.

    Returns:
        y (B, C, H, W) in x's dtype, channels_last.

    Gradients, determinism, errors: as conv_st_lstm_gates. Under autocast x, x2 and residual take its dtype; value may
    stay in float32.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(x) is Proxy:
        return record_op(conv_output_gate, locals())
    tensors = (x, x2, value, residual, weight, bias)
    x, x2, value, residual, weight, bias = cast_for_autocast(tensors, keep_float32=(2, 4, 5))
    return OUTPUT(x, x2, weight, bias, residual, value, "sigmoid")[0]
