# SPDX-License-Identifier: Apache-2.0
"""Steps of convolutional recurrent cells, with the gates fused into the output stage of the convolution."""

from typing import Any

import torch
from torch import Tensor

from fastds.ops.core.arguments import cast_for_autocast, check_dense, to_float
from fastds.ops.core.function_plans import call_function
from fastds.ops.core.layout import as_nhwc
from fastds.ops.core.plans import planned
from fastds.ops.core.registry import has_active_transforms
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.conv3x3.algorithm import current_algorithm
from fastds.ops.impl.conv_rnn.fused import ConvPointwiseOps, slice_first_source
from fastds.ops.impl.conv_rnn.gru_step import RESET, STEP, UPDATE, get_sources
from fastds.ops.impl.gates.op import LSTM_GATES, MEMORY_GATES, OUTPUT_GATE, ST_LSTM_GATES

__all__ = ["conv_gru_cell", "conv_lstm_cell", "conv_memory_gates", "conv_output_gate", "conv_st_lstm_gates"]

LSTM = ConvPointwiseOps("conv_lstm_cell", LSTM_GATES, sources=("x", "h"), recurrent=True)
ST_LSTM = ConvPointwiseOps("conv_st_lstm_gates", ST_LSTM_GATES, sources=("x", "h"))
MEMORY = ConvPointwiseOps("conv_memory_gates", MEMORY_GATES)
OUTPUT = ConvPointwiseOps("conv_output_gate", OUTPUT_GATE)


@planned
def conv_lstm_cell(
    x: Tensor, h: Tensor | None, c: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute one step of a convolutional LSTM. The pre-activations are stored only if a gradient needs them.

    [i f g o] = conv3x3([x; h]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C, H, W), dtype of x, hidden state. None: zeros; the part of the weight for h is not read.
        c: (B, C, H, W), dtype of x or float32, cell state.
        weight: (4C, C1 + C, 3, 3), dtype of x or float32, outputs in the order i, f, g, o.
        bias: (4C,) or None.

    Returns:
        h' in the dtype of x and c' in the dtype of c, both (B, C, H, W), channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or device is invalid.
        RuntimeError: the algorithm of the enclosing fastds.use_conv_algorithm(...) cannot run.

    Gradients exist for all inputs, to any order. Where the native engine computes the convolution, results are
    deterministic and do not depend on the number of threads, bit for bit. Under autocast x and h are cast to the
    autocast dtype and c to float32. fastds.use_conv_algorithm selects the algorithm of the convolution.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3 without peepholes.
    """
    if type(x) is Proxy:
        return record_op(conv_lstm_cell, locals())
    x, h, c, weight, bias = cast_for_autocast((x, h, c, weight, bias), float32=(2,), keep_float32=(3, 4))
    weight = slice_first_source(weight, x, state=c) if h is None else weight
    return LSTM(x, h, weight, bias, None, c)


@planned
def conv_gru_cell(
    x: Tensor | None, h: Tensor, gates_weight: Tensor, gates_bias: Tensor | None, candidate_weight: Tensor,
    candidate_bias: Tensor | None, *, keep: str = "z", activation: str = "tanh", negative_slope: float = 0.2,
    shares: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Compute one step of a convolutional GRU that resets the state before the convolution of the candidate.

    [z r] = sigmoid(conv3x3([x; h]) + bias);  n = activation(conv3x3([x; r h]) + bias)
    h' = w h + (1 - w) n,  w = z (keep "z") or 1 - z (keep "1-z")

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last. None: the
            convolutions read only h, with weights for h only. x is None if `shares` is given, and for an input of
            zeros.
        h: (B, C, H, W), dtype of x, state.
        gates_weight: (2C, C1 + C, 3, 3), dtype of x or float32, outputs in the order z, r.
        gates_bias: (2C,) or None.
        candidate_weight: (C, C1 + C, 3, 3), dtype of x or float32.
        candidate_bias: (C,) or None.
        keep: "z" or "1-z", the weight w of h.
        activation: "tanh" or "leaky_relu", activation of the candidate.
        negative_slope: float >= 0, slope of leaky_relu.
        shares: convolutions of x for the gates (B, 2C, H, W) and the candidate (B, C, H, W), which a sequence can
            compute for all steps at once. x must then be None, and the weights are for h only, (2C, C, 3, 3) and (C, C,
            3, 3).

    Returns:
        h' (B, C, H, W), channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype, or shares is not a pair.
        ValueError: a shape, device or option is invalid, or both x and shares are given.
        RuntimeError: the algorithm of the enclosing fastds.use_conv_algorithm(...) cannot run.

    Gradients exist for all inputs, to any order. Where the native engine computes the convolutions, results are
    deterministic and do not depend on the number of threads, bit for bit. Under autocast all tensors but float32
    weights and biases are cast to the autocast dtype. fastds.use_conv_algorithm selects the algorithm of the
    convolutions.

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
    options = (keep, activation, to_float("negative_slope", negative_slope))
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
        return STEP(*tensors, *options, current_algorithm())[0]
    try:
        arguments: Any = (*tensors, options)
        return _step_without_gradients(*arguments)
    except (RuntimeError, TypeError, ValueError):  # of the internal ops: check again with the public argument names
        STEP.check(*tensors, *options, current_algorithm())
        check_dense(_GRU_NAMES, tensors)
        raise


def _to_nhwc_once(source):
    """Return a feature map with channel stride 1, as the convolutions and pointwise ops of a GRU read it.

    Values that are not strided tensors with four dimensions are returned unchanged, and so are tensors inside functorch
    transforms, which do not support this layout.
    """
    is_map = isinstance(source, Tensor) and source.dim() == 4 and source.layout is torch.strided
    if not is_map or has_active_transforms() or (source.stride(1) == 1 and source.size(1) > 1):
        return source
    return call_function(as_nhwc, source)


_GRU_NAMES = (
    "h", "x", "gates_weight", "gates_bias", "candidate_weight", "candidate_bias", "shares[0]", "shares[1]",
)  # fmt: skip


def _step_without_gradients(
    h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share, options
):  # fmt: skip
    """Compute a step that stores no intermediate tensors but z and the reset state."""
    z, reset = RESET(*get_sources(x, h), gates_weight, gates_bias, gates_share, h)
    return UPDATE(*get_sources(x, reset), candidate_weight, candidate_bias, candidate_share, z, h, *options)[0]


@planned
def conv_st_lstm_gates(
    x: Tensor, h: Tensor | None, c: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the temporal memory of an ST-LSTM and a part of its output gate.

    [i f g q] = conv3x3([x; h]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g)

    q is the part of the output gate's pre-activation that does not depend on the spatial memory.

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C2, H, W), dtype of x, hidden state. None: zeros; the part of the weight for h is not read.
        c: (B, C, H, W), dtype of x or float32, temporal memory.
        weight: (4C, C1 + C2, 3, 3), dtype of x or float32, outputs in the order i, f, g, q.
        bias: (4C,) or None.

    Returns:
        c' in the dtype of c and q in the dtype of x, both (B, C, H, W), channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or device is invalid.
        RuntimeError: the algorithm of the enclosing fastds.use_conv_algorithm(...) cannot run.

    Gradients exist for all inputs, to any order. Where the native engine computes the convolution, results are
    deterministic and do not depend on the number of threads, bit for bit. Under autocast x and h are cast to the
    autocast dtype and c to float32. fastds.use_conv_algorithm selects the algorithm of the convolution.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(x) is Proxy:
        return record_op(conv_st_lstm_gates, locals())
    x, h, c, weight, bias = cast_for_autocast((x, h, c, weight, bias), float32=(2,), keep_float32=(3, 4))
    weight = slice_first_source(weight, x) if h is None else weight
    return ST_LSTM(x, h, weight, bias, None, c)


@planned
def conv_memory_gates(
    x: Tensor, second_input: Tensor | None, c: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Compute the gated update of a memory. The pre-activations are stored only if a gradient needs them.

    [i f g] = conv3x3([x; second_input]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g)

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        second_input: (B, C2, H, W), dtype of x. None: zeros; the part of the weight for second_input is not read.
        c: (B, C, H, W), dtype of x or float32, memory.
        weight: (3C, C1 + C2, 3, 3), dtype of x or float32, outputs in the order i, f, g.
        bias: (3C,) or None.

    Returns:
        c' (B, C, H, W) in the dtype of c, channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or device is invalid.
        RuntimeError: the algorithm of the enclosing fastds.use_conv_algorithm(...) cannot run.

    Gradients exist for all inputs, to any order. Where the native engine computes the convolution, results are
    deterministic and do not depend on the number of threads, bit for bit. Under autocast x and second_input are cast to
    the autocast dtype and c to float32. fastds.use_conv_algorithm selects the algorithm of the convolution.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(x) is Proxy:
        return record_op(conv_memory_gates, locals())
    x, second_input, c, weight, bias = cast_for_autocast(
        (x, second_input, c, weight, bias), float32=(2,), keep_float32=(3, 4)
    )
    weight = slice_first_source(weight, x) if second_input is None else weight
    return MEMORY(x, second_input, weight, bias, None, c, "none")[0]


@planned
def conv_output_gate(
    x: Tensor,
    second_input: Tensor,
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute the output of a recurrent cell whose gate is a convolution of its memories.

    y = sigmoid(conv3x3([x; second_input]) + bias + residual) tanh(value)

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        second_input: (B, C2, H, W), dtype of x.
        value: (B, C, H, W), dtype of x or float32.
        weight: (C, C1 + C2, 3, 3), dtype of x or float32.
        bias: (C,) or None.
        residual: (B, C, H, W), dtype of x, or None.

    Returns:
        y (B, C, H, W) in the dtype of x, channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or device is invalid.
        RuntimeError: the algorithm of the enclosing fastds.use_conv_algorithm(...) cannot run.

    Gradients exist for all inputs, to any order. Where the native engine computes the convolution, results are
    deterministic and do not depend on the number of threads, bit for bit. Under autocast x, second_input and residual
    are cast to the autocast dtype; a float32 value stays float32. fastds.use_conv_algorithm selects the algorithm of
    the convolution.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(x) is Proxy:
        return record_op(conv_output_gate, locals())
    tensors = (x, second_input, value, residual, weight, bias)
    x, second_input, value, residual, weight, bias = cast_for_autocast(tensors, keep_float32=(2, 4, 5))
    return OUTPUT(x, second_input, weight, bias, residual, value, "sigmoid")[0]
