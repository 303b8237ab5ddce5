# SPDX-License-Identifier: Apache-2.0
"""The stages of an ST-LSTM, each a 3x3 convolution with its gates in the output stage of the Winograd engine."""

from torch import Tensor

from fastds.ops.impl.conv_cells.fused import ConvPassOps, of_first
from fastds.ops.impl.gates.memory_gates import OPS as MEMORY_PASS
from fastds.ops.impl.gates.output_gate import OPS as OUTPUT_PASS
from fastds.ops.impl.gates.passes import autocast
from fastds.ops.impl.gates.st_lstm_gates import OPS as ST_LSTM_PASS

ST_LSTM = ConvPassOps("conv_st_lstm_gates", ST_LSTM_PASS, sources=("x", "h"))
MEMORY = ConvPassOps("conv_memory_gates", MEMORY_PASS)
OUTPUT = ConvPassOps("conv_output_gate", OUTPUT_PASS)


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
    x, h, c = autocast((x, h, c), wide=(2,))
    weight = of_first(weight, x) if h is None else weight
    ST_LSTM.check(x, h, weight, bias, None, c)
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
    x, x2, c = autocast((x, x2, c), wide=(2,))
    weight = of_first(weight, x) if x2 is None else weight
    MEMORY.check(x, x2, weight, bias, None, c)
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

    Gradients, determinism, autocast, errors: as conv_st_lstm_gates.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    x, x2, value, residual = autocast((x, x2, value, residual), wide=(2,))
    OUTPUT.check(x, x2, weight, bias, residual, value)
    return OUTPUT(x, x2, weight, bias, residual, value, "sigmoid")[0]
