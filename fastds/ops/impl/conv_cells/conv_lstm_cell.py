# SPDX-License-Identifier: Apache-2.0
"""conv_lstm_cell: a convolutional LSTM step whose gates run in the output stage of the Winograd engine."""

from torch import Tensor

from fastds.ops.impl.conv_cells.fused import ConvPassOps, of_first
from fastds.ops.impl.gates.lstm_gates import OPS as GATES
from fastds.ops.impl.gates.passes import autocast

CELL = ConvPassOps("conv_lstm_cell", GATES, sources=("x", "h"))


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
    x, h, c = autocast((x, h, c), wide=(2,))
    weight = of_first(weight, x) if h is None else weight
    CELL.check(x, h, weight, bias, None, c)
    return CELL(x, h, weight, bias, None, c)
