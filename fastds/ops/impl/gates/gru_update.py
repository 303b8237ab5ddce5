# SPDX-License-Identifier: Apache-2.0
"""gru_update: the second pass of a GRU cell, after the candidate's convolution."""

from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.gates.gru_update_reference import gru_update as reference
from fastds.ops.impl.gates.passes import Input, Pass, PassOps, autocast, choice

PASS = Pass(
    "gru_update", (Input("z"), Input("pre_n"), Input("h")), (2,), reference,
    "str keep, str act, float negative_slope",
    lambda keep, act, slope: ("" if act == "tanh" else "_leaky", float(keep == "z"), slope), double=True,
)  # fmt: skip
OPS = PassOps(PASS)


def check_options(keep: str, act: str, negative_slope: float) -> None:
    """ValueError for options that the update cannot have."""
    choice("keep", keep, ("z", "1-z"))
    choice("act", act, ("tanh", "leaky_relu"))
    if not 0 <= negative_slope < float("inf"):
        raise ValueError(f"negative_slope must be a finite number >= 0, got {negative_slope!r}")


def gru_update(
    z: Tensor, pre_n: Tensor, h: Tensor, *, keep: str = "z", act: str = "tanh", negative_slope: float = 0.2
) -> Tensor:
    """New state of a GRU: blend of the old one and the candidate.

    h' = w h + (1 - w) act(pre_n),  w = z (keep "z") or 1 - z (keep "1-z"): papers differ in which side keeps h.

    Args:
        z: (B, C, H, W), the update gate behind its sigmoid; float32, bfloat16, float16 or float64; any strides,
            fastest in channels_last.
        pre_n, h: (B, C, H, W), dtype of z.
        keep: "z" or "1-z", the weight of h.
        act: "tanh" or "leaky_relu" with negative_slope >= 0.

    Returns:
        h' (B, C, H, W), contiguous when z is, else channels_last.

    Gradients: all inputs, to any order; the first and second are kernels of their own. At pre_n = 0 leaky_relu has
    the derivative negative_slope, as torch's. Deterministic. Everything between load and store is float32 (float64
    for float64). Under autocast all take its dtype.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or option that does not fit.

    Source: Cho et al. 2014; Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    check_options(keep, act, negative_slope)
    tensors = autocast((z, pre_n, h))
    PASS.check(tensors)
    return call(OPS.forward, *tensors, keep, act, float(negative_slope))
