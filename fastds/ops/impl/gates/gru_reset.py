# SPDX-License-Identifier: Apache-2.0
"""gru_reset: the first pass of a GRU cell, before the candidate's convolution."""

from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.gates.gru_reset_reference import gru_reset as reference
from fastds.ops.impl.gates.passes import Input, Pass, PassOps, autocast

PASS = Pass("gru_reset", (Input("pre_z"), Input("pre_r"), Input("h")), (0, 2), reference, double=True)
OPS = PassOps(PASS)
# The same with both gates side by side, as a convolution gives them.
PACKED = PassOps(
    Pass(
        "gru_reset_packed", (Input("pre", 2), Input("h")), (0, 1), lambda pre, h: reference(*pre.chunk(2, 1), h),
        double=True, formula="gru_reset",
    )
)  # fmt: skip


def gru_reset(pre_z: Tensor, pre_r: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Update gate and reset state of a GRU.

    z = sigmoid(pre_z);  rh = sigmoid(pre_r) h

    Args:
        pre_z, pre_r: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C, H, W), dtype of pre_z.

    Returns:
        z and rh, (B, C, H, W), contiguous when pre_z is, else channels_last.

    Gradients: all inputs, to any order; the first and second are kernels of their own. Deterministic. Everything
    between load and store is float32 (float64 for float64). Under autocast all take its dtype.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Cho et al. 2014; Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    tensors = autocast((pre_z, pre_r, h))
    PASS.check(tensors)
    return call(OPS.forward, *tensors)
