# SPDX-License-Identifier: Apache-2.0
"""lstm_gates: everything of an LSTM cell after its convolutions, in one pass over memory."""

from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.gates.lstm_gates_reference import lstm_gates as reference
from fastds.ops.impl.gates.passes import Input, Pass, PassOps, autocast

PASS = Pass("lstm_gates", (Input("pre", 4), Input("c", wide=True)), (0, 1), reference)
OPS = PassOps(PASS)


def lstm_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """LSTM gates: new hidden and cell state from the pre-activations.

    [i f g o] = pre;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        pre: (B, 4C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32.

    Returns:
        h' in pre's dtype and c' in c's dtype, both (B, C, H, W), contiguous when pre is, else channels_last.

    Gradients: pre and c, to any order (beyond the first by the reference formula). Deterministic. Everything between
    load and store is float32 (float64 for float64). Under autocast pre takes its dtype, c is float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3 without peepholes.
    """
    tensors = autocast((pre, c), wide=(1,))
    PASS.check(tensors)
    return call(OPS.forward, *tensors)
