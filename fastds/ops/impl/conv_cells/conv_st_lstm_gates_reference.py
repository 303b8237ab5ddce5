# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops.impl.conv3x3.reference import conv3x3
from fastds.ops.impl.gates.memory_gates_reference import memory_gates
from fastds.ops.impl.gates.output_gate_reference import output_gate
from fastds.ops.impl.gates.st_lstm_gates_reference import st_lstm_gates


def conv_st_lstm_gates(x, h, c, weight, bias=None):
    """st_lstm_gates(conv3x3([x; h]) + bias, c)."""
    return st_lstm_gates(conv3x3(torch.cat([x, h], 1), weight, bias), c)


def conv_memory_gates(x, x2, c, weight, bias=None):
    """memory_gates(conv3x3([x; x2]) + bias, c)."""
    return memory_gates(conv3x3(torch.cat([x, x2], 1), weight, bias), c)


def conv_output_gate(x, x2, value, weight, bias=None, residual=None):
    """output_gate(conv3x3([x; x2]) + bias + residual, value)."""
    return output_gate(conv3x3(torch.cat([x, x2], 1), weight, bias, residual=residual), value)
