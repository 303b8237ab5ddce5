# SPDX-License-Identifier: Apache-2.0
"""memory_gates: update of one memory of an ST-LSTM-like cell, in one pass over memory."""

from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.gates.memory_gates_reference import memory_gates as reference
from fastds.ops.impl.gates.passes import Input, Pass, PassOps, autocast, choice

PASS = Pass(
    "memory_gates", (Input("pre", 3), Input("c", wide=True)), (1,), reference, "str state_act",
    lambda state_act: ("_tanh" if state_act == "tanh" else "", 0.0, 0.0),
)  # fmt: skip
OPS = PassOps(PASS)


def memory_gates(pre: Tensor, c: Tensor, *, state_act: str = "none") -> Tensor:
    """Gated update of a memory map: what ST-LSTM, causal LSTM, MIM and PrecipLSTM do to each of their memories.

    [i f g] = pre;  c' = sigmoid(f) k(c) + sigmoid(i) tanh(g),  k = identity ("none") or tanh ("tanh")

    Args:
        pre: (B, 3C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32: the memory, or its pre-activation with "tanh".
        state_act: k, "none" or "tanh" (the spatial memory of PredRNN++).

    Returns:
        c' (B, C, H, W) in c's dtype, contiguous when pre is, else channels_last.

    Gradients: pre and c, to any order (beyond the first by the reference formula). Deterministic. Everything between
    load and store is float32 (float64 for float64). Under autocast pre takes its dtype, c is float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or state_act that does not fit.

    Source: Wang et al. 2017, PredRNN, equation 3; Wang et al. 2018, PredRNN++, equation 1.
    """
    choice("state_act", state_act, ("none", "tanh"))
    tensors = autocast((pre, c), wide=(1,))
    PASS.check(tensors)
    return call(OPS.forward, *tensors, state_act)
