# SPDX-License-Identifier: Apache-2.0
"""output_gate: the gated tanh that ends most recurrent cells, in one pass over memory."""

from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.gates.output_gate_reference import output_gate as reference
from fastds.ops.impl.gates.passes import Input, Pass, PassOps, autocast, choice

PASS = Pass(
    "output_gate", (Input("pre"), Input("value", wide=True)), (0,), reference, "str act",
    lambda act: ("_tanh" if act == "tanh" else "", 0.0, 0.0),
)  # fmt: skip
OPS = PassOps(PASS)


def output_gate(pre: Tensor, value: Tensor, *, act: str = "sigmoid") -> Tensor:
    """Output gate of a recurrent cell.

    y = act(pre) tanh(value)

    Args:
        pre: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        value: (B, C, H, W), dtype of pre or float32.
        act: "sigmoid" or "tanh" (PredRNN++).

    Returns:
        y (B, C, H, W) in pre's dtype, contiguous when pre is, else channels_last.

    Gradients: pre and value, to any order (beyond the first by the reference formula). Deterministic. Everything
    between load and store is float32 (float64 for float64). Under autocast pre takes its dtype, value is float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or act that does not fit.

    Source: Wang et al. 2017, PredRNN, equation 3; Wang et al. 2018, PredRNN++, equation 1.
    """
    choice("act", act, ("sigmoid", "tanh"))
    tensors = autocast((pre, value), wide=(1,))
    PASS.check(tensors)
    return call(OPS.forward, *tensors, act)
