# SPDX-License-Identifier: Apache-2.0
"""st_lstm_gates: the temporal half of an ST-LSTM behind its convolution, in one pass over memory."""

from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.gates.passes import Input, Pass, PassOps, autocast
from fastds.ops.impl.gates.st_lstm_gates_reference import st_lstm_gates as reference

PASS = Pass("st_lstm_gates", (Input("pre", 4), Input("c", wide=True)), (1, 0), reference)
OPS = PassOps(PASS)


def st_lstm_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Temporal memory of an ST-LSTM, and the part of its output gate that waits for the spatial memory.

    [i f g q] = pre;  c' = sigmoid(f) c + sigmoid(i) tanh(g)

    Args:
        pre: (B, 4C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32.

    Returns:
        c' in c's dtype and q in pre's, both (B, C, H, W), contiguous when pre is, else channels_last.

    Gradients: pre and c, to any order (beyond the first by the reference formula). Deterministic. Everything between
    load and store is float32 (float64 for float64). Under autocast pre takes its dtype, c is float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    tensors = autocast((pre, c), wide=(1,))
    PASS.check(tensors)
    return call(OPS.forward, *tensors)
