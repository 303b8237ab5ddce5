# SPDX-License-Identifier: Apache-2.0
"""conv_gru_cell: a convolutional GRU step, both of its passes in output stages of the Winograd engine."""

import torch
from torch import Tensor

from fastds.ops.core.registry import call
from fastds.ops.impl.conv3x3.algorithm import current
from fastds.ops.impl.conv_cells.gru_step import RESET, STEP, UPDATE, check, sources
from fastds.ops.impl.gates.gru_update import check_options
from fastds.ops.impl.gates.passes import autocast


def conv_gru_cell(
    x: Tensor | None, h: Tensor, gates_weight: Tensor, gates_bias: Tensor | None, candidate_weight: Tensor,
    candidate_bias: Tensor | None, *, keep: str = "z", act: str = "tanh", negative_slope: float = 0.2,
    shares: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """One step of a convolutional GRU that resets the state before the candidate's convolution.

    [z r] = sigmoid(conv3x3([x; h]) + bias);  n = act(conv3x3([x; r h]) + bias)
    h' = w h + (1 - w) n,  w = z (keep "z") or 1 - z (keep "1-z")

    Args:
        x: (B, C1, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last. None where
            `shares` has its part.
        h: (B, C, H, W), dtype of x.
        gates_weight: (2C, C1 + C, 3, 3), dtype of x or float32, outputs in the order z, r. gates_bias: (2C,) or None.
        candidate_weight: (C, C1 + C, 3, 3). candidate_bias: (C,) or None.
        keep: "z" or "1-z", the weight of h.
        act: "tanh" or "leaky_relu" with negative_slope >= 0.
        shares: x's parts of gates (B, 2C, H, W) and candidate (B, C, H, W), for sequences whose x were convolved at
            once; x is None and the weights are those of h alone, (2C, C, 3, 3) and (C, C, 3, 3).

    Returns:
        h' (B, C, H, W), channels_last.

    Gradients: all inputs, to any order. Deterministic, and independent of the number of threads, bit for bit. Under
    autocast all but weights and biases take its dtype. fastds.convolution chooses the convolutions' algorithm.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or option that does not fit; both of x and shares, or neither.

    Source: Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    check_options(keep, act, negative_slope)
    if (x is None) == (shares is None):
        raise ValueError("expected either x or shares, got " + ("neither" if x is None else "both"))
    x, h, *shares = autocast((x, h, *(shares or (None, None))))
    options = (keep, act, float(negative_slope))
    tensors = (h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, *shares)
    check(*tensors)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return call(STEP, *tensors, *options, current())[0]
    return _without_gradients(*tensors, options)


def _without_gradients(
    h, x, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share, options
):  # fmt: skip
    """Nothing is kept but z, which both halves of the step need."""
    z, reset = RESET(*sources(x, h), gates_weight, gates_bias, gates_share, h)
    return UPDATE(*sources(x, reset), candidate_weight, candidate_bias, candidate_share, z, h, *options)[0]
