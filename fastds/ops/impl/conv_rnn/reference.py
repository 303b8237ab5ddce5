# SPDX-License-Identifier: Apache-2.0
"""References of the cells in PyTorch: the reference convolution followed by the reference of the gates."""

import torch

from fastds.ops.impl.conv3x3.reference import conv3x3
from fastds.ops.impl.gates import reference as gates


def conv_lstm_cell(x, h, c, weight, bias=None):
    """Compute lstm_gates(conv3x3([x; h]) + bias, c).

    Args:
        x: (B, C1, H, W), input.
        h: (B, C, H, W), hidden state.
        c: (B, C, H, W), cell state.
        weight: (4C, C1 + C, 3, 3).
        bias: (4C,) or None.

    Returns:
        h' and c', each (B, C, H, W).
    """
    return gates.lstm_gates(conv3x3(torch.cat([x, h], 1), weight, bias), c)


def conv_gru_cell(
    x, h, gates_weight, gates_bias, candidate_weight, candidate_bias, keep="z", act="tanh", negative_slope=0.2
):
    """Compute gru_reset of conv3x3([x; h]), then gru_update of conv3x3([x; r h]), see fastds.ops.conv_gru_cell.

    Args:
        x: (B, C1, H, W), input.
        h: (B, C, H, W), state.
        gates_weight: (2C, C1 + C, 3, 3).
        gates_bias: (2C,) or None.
        candidate_weight: (C, C1 + C, 3, 3).
        candidate_bias: (C,) or None.
        keep: "z" or "1-z", the weight of h.
        act: "tanh" or "leaky_relu", activation of the candidate.
        negative_slope: float, slope of leaky_relu.

    Returns:
        h' (B, C, H, W).
    """
    pre_z, pre_r = conv3x3(torch.cat([x, h], 1), gates_weight, gates_bias).chunk(2, 1)
    z, reset = gates.gru_reset(pre_z, pre_r, h)
    candidate = conv3x3(torch.cat([x, reset], 1), candidate_weight, candidate_bias)
    return gates.gru_update(z, candidate, h, keep, act, negative_slope)


def conv_st_lstm_gates(x, h, c, weight, bias=None):
    """Compute st_lstm_gates(conv3x3([x; h]) + bias, c).

    Args:
        x: (B, C1, H, W), input.
        h: (B, C2, H, W), hidden state.
        c: (B, C, H, W), temporal memory.
        weight: (4C, C1 + C2, 3, 3).
        bias: (4C,) or None.

    Returns:
        c' and q, each (B, C, H, W), see fastds.ops.conv_st_lstm_gates.
    """
    return gates.st_lstm_gates(conv3x3(torch.cat([x, h], 1), weight, bias), c)


def conv_memory_gates(x, x2, c, weight, bias=None):
    """Compute memory_gates(conv3x3([x; x2]) + bias, c).

    Args:
        x: (B, C1, H, W), input.
        x2: (B, C2, H, W), second input.
        c: (B, C, H, W), memory.
        weight: (3C, C1 + C2, 3, 3).
        bias: (3C,) or None.

    Returns:
        c' (B, C, H, W).
    """
    return gates.memory_gates(conv3x3(torch.cat([x, x2], 1), weight, bias), c)


def conv_output_gate(x, x2, value, weight, bias=None, residual=None):
    """Compute output_gate(conv3x3([x; x2]) + bias + residual, value).

    Args:
        x: (B, C1, H, W), input.
        x2: (B, C2, H, W), second input.
        value: (B, C, H, W).
        weight: (C, C1 + C2, 3, 3).
        bias: (C,) or None.
        residual: (B, C, H, W) or None.

    Returns:
        (B, C, H, W).
    """
    return gates.output_gate(conv3x3(torch.cat([x, x2], 1), weight, bias, residual=residual), value)
