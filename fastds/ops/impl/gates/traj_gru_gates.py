# SPDX-License-Identifier: Apache-2.0
"""traj_gru_gates: everything of a TrajGRU cell after its convolutions, in one pass over memory."""

from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.gates.passes import Input, Pass, PassOps, autocast
from fastds.ops.impl.gates.traj_gru_gates_reference import traj_gru_gates as reference

PASS = Pass(
    "traj_gru_gates", (Input("x_part", 3), Input("h_part", 3), Input("h")), (2,), reference, "float negative_slope",
    lambda slope: ("", 0.0, slope),
)  # fmt: skip
OPS = PassOps(PASS)


def traj_gru_gates(x_part: Tensor, h_part: Tensor, h: Tensor, *, negative_slope: float = 0.2) -> Tensor:
    """Gates of TrajGRU, whose reset acts on the state's share of the candidate, behind the convolution.

    [zx rx nx] = x_part;  [zh rh nh] = h_part;  z = sigmoid(zx + zh);  r = sigmoid(rx + rh)
    n = leaky_relu(nx + r nh);  h' = (1 - z) n + z h

    Args:
        x_part, h_part: (B, 3C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C, H, W), same dtype.
        negative_slope: of leaky_relu, >= 0.

    Returns:
        h' (B, C, H, W), contiguous when x_part is, else channels_last.

    Gradients: all inputs, to any order (beyond the first by the reference formula); where the candidate's pre-
    activation is 0, leaky_relu has the derivative negative_slope, as torch's. Deterministic. Everything between load
    and store is float32 (float64 for float64). Under autocast all take its dtype.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or slope that does not fit.

    Source: Shi et al. 2017, Deep Learning for Precipitation Nowcasting, equation 2.
    """
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope must be a finite number >= 0, got {negative_slope!r}")
    tensors = autocast((x_part, h_part, h))
    PASS.check(tensors)
    return call(OPS.forward, *tensors, float(negative_slope))
