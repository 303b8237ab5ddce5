# SPDX-License-Identifier: Apache-2.0
"""Gates and recurrent cells composed of operators of PyTorch: the eager peers of the ops of fastds."""

import torch
import torch.nn.functional as F
from torch import Tensor


def update_memory(c: Tensor, i: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Return the memory of an LSTM or ST-LSTM from the previous one and the gate pre-activations."""
    return torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)


def compute_lstm(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden state and cell state of an LSTM from its gate pre-activations, order i, f, g, o."""
    *gates, o = pre.chunk(4, 1)
    c = update_memory(c, *gates)
    return torch.sigmoid(o) * torch.tanh(c), c


def compute_gru(z: Tensor, pre_n: Tensor, h: Tensor) -> Tensor:
    """Return the new state of a GRU; z is the weight of the previous state."""
    return z * h + (1 - z) * torch.tanh(pre_n)


def compute_lstm_cell(
    x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return hidden state and cell state of a ConvLSTM step."""
    return compute_lstm(F.conv2d(torch.cat([x, h], 1), weight, bias, padding=1), c)


def compute_gru_cell(
    x: Tensor, h: Tensor, gates: Tensor, gates_bias: Tensor | None, candidate: Tensor, candidate_bias: Tensor | None
) -> Tensor:
    """Return the new state of a ConvGRU step; arguments as those of fastds.ops.conv_gru_cell."""
    z, r = torch.sigmoid(F.conv2d(torch.cat([x, h], 1), gates, gates_bias, padding=1)).chunk(2, 1)
    return compute_gru(z, F.conv2d(torch.cat([x, r * h], 1), candidate, candidate_bias, padding=1), h)
