# SPDX-License-Identifier: Apache-2.0
"""conv_gru_cell: a convolutional GRU step, both of its passes in output stages of the Winograd engine.

Where a gradient is wanted the step consists of conv3x3, gru_reset and gru_update, whose graphs know their own
derivatives to any order: WGAN-GP's penalty differentiates the first backward, and a fused step would compute its
forward again there (111 against 76 ms for two steps of (8,64,32,32)). The first backward takes as long either way.
"""

import torch
from torch import Tensor

from fastds._registry import call
from fastds.ops._conv_gates import ConvPassOps
from fastds.ops._gates import autocast
from fastds.ops.conv3x3 import conv3x3
from fastds.ops.gru_reset import PACKED as RESET_PASS
from fastds.ops.gru_update import OPS as UPDATE_PASS
from fastds.ops.gru_update import check_options

RESET = ConvPassOps("conv_gru_reset", RESET_PASS)
UPDATE = ConvPassOps("conv_gru_update", UPDATE_PASS, at=1)


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
    weights = (gates_weight, gates_bias, candidate_weight, candidate_bias)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h, *weights, *shares))
    return (_composed if wanted else _fused)(x, h, *weights, *shares, options)


def _fused(x, h, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share, options):
    first, second = (h, None) if x is None else (x, h)
    RESET.check(first, second, gates_weight, gates_bias, gates_share, h)
    z, reset = RESET(first, second, gates_weight, gates_bias, gates_share, h)
    first, second = (reset, None) if x is None else (x, reset)
    UPDATE.check(first, second, candidate_weight, candidate_bias, candidate_share, z, h)
    return UPDATE(first, second, candidate_weight, candidate_bias, candidate_share, z, h, *options)[0]


def _composed(x, h, gates_weight, gates_bias, candidate_weight, candidate_bias, gates_share, candidate_share, options):
    first, second = (h, None) if x is None else (x, h)
    RESET.check(first, second, gates_weight, gates_bias, gates_share, h)
    pre = conv3x3(first, gates_weight, gates_bias, x2=second, residual=gates_share)
    z, reset = call(RESET_PASS.forward, pre, h)
    first, second = (reset, None) if x is None else (x, reset)
    UPDATE.check(first, second, candidate_weight, candidate_bias, candidate_share, z, h)
    pre = conv3x3(first, candidate_weight, candidate_bias, x2=second, residual=candidate_share)
    return call(UPDATE_PASS.forward, z, pre, h, *options)
