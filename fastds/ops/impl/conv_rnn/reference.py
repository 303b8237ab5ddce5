# SPDX-License-Identifier: Apache-2.0
"""References of the cells in PyTorch: the reference convolution followed by the reference of the gates."""

import torch

from fastds.ops.impl.conv3x3.reference import conv3x3
from fastds.ops.impl.gates import reference as gates


def conv_lstm_cell(x, h, c, weight, bias=None):
    """Compute lstm_gates(conv3x3([x; h]) + bias, c)."""
    return gates.lstm_gates(conv3x3(torch.cat([x, h], 1), weight, bias), c)


def conv_gru_cell(
    x, h, gates_weight, gates_bias, candidate_weight, candidate_bias, keep="z", act="tanh", negative_slope=0.2
):
    """Compute gru_reset of conv3x3([x; h]), then gru_update of conv3x3([x; r h]): see fastds.ops.conv_gru_cell."""
    pre_z, pre_r = conv3x3(torch.cat([x, h], 1), gates_weight, gates_bias).chunk(2, 1)
    z, reset = gates.gru_reset(pre_z, pre_r, h)
    candidate = conv3x3(torch.cat([x, reset], 1), candidate_weight, candidate_bias)
    return gates.gru_update(z, candidate, h, keep, act, negative_slope)


def conv_st_lstm_gates(x, h, c, weight, bias=None):
    """Compute st_lstm_gates(conv3x3([x; h]) + bias, c)."""
    return gates.st_lstm_gates(conv3x3(torch.cat([x, h], 1), weight, bias), c)


def conv_memory_gates(x, x2, c, weight, bias=None):
    """Compute memory_gates(conv3x3([x; x2]) + bias, c)."""
    return gates.memory_gates(conv3x3(torch.cat([x, x2], 1), weight, bias), c)


def conv_output_gate(x, x2, value, weight, bias=None, residual=None):
    """Compute output_gate(conv3x3([x; x2]) + bias + residual, value)."""
    return gates.output_gate(conv3x3(torch.cat([x, x2], 1), weight, bias, residual=residual), value)
