# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops.impl.conv3x3.reference import conv3x3
from fastds.ops.impl.gates.lstm_gates_reference import lstm_gates


def conv_lstm_cell(x, h, c, weight, bias=None):
    """lstm_gates(conv3x3([x; h]) + bias, c)."""
    return lstm_gates(conv3x3(torch.cat([x, h], 1), weight, bias), c)
