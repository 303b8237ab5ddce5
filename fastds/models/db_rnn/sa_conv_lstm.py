# SPDX-License-Identifier: Apache-2.0
"""Self-attention ConvLSTM in the frame of MS-RNN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.nn.conv3x3 import Conv1x1
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.impl.conv_cells.conv_lstm_cell import conv_lstm_cell
from fastds.ops.impl.gates.gru_update import gru_update


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every pixel to every pixel, unscaled; (B, C', H, W), (B, C', H, W), (B, C, H, W) -> (B, C, H, W)."""
    q_, k_, v_ = (t.flatten(2).transpose(1, 2).unsqueeze(1) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q_, k_, v_, scale=1.0)
    return y.squeeze(1).transpose(1, 2).unflatten(2, q.shape[2:])


class SelfAttentionMemory(nn.Module):
    """A memory that attends to the whole field.

        Z = Wz [attend(q_h, k_h, v_h); attend(q_h, k_m, v_m)];  i, o = s(W [Z; h]), g = tanh(W [Z; h])
        m' = (1 - i) m + i g;  h' = o m'

    Cost grows with the square of the number of pixels.

    Args:
        channels: C of h and m; queries and keys have C / 2.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = max(channels // 2, 1)
        self.sizes = (half, half, channels)
        self.of_h = Conv1x1(channels, 2 * half + channels)
        self.of_m = Conv1x1(channels, half + channels)
        self.mix = Conv1x1(2 * channels, channels)
        self.gates = SummedConv3x3((channels, channels), 3 * channels)

    def forward(self, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        q, k_h, v_h = self.of_h(h).split(self.sizes, 1)
        k_m, v_m = self.of_m(m).split(self.sizes[1:], 1)
        z = self.mix(attend(q, k_h, v_h), attend(q, k_m, v_m))
        i, g, o = self.gates(z, h).chunk(3, 1)
        m = gru_update(torch.sigmoid(i), g, m, keep="1-z")
        return torch.sigmoid(o) * m, m


class SAConvLSTM(Cell):
    """ConvLSTM whose hidden state passes a self-attention memory. State (h, c, memory).

    Source: Lin et al. 2020, Self-Attention ConvLSTM for Spatiotemporal Prediction, equations 3 to 7; 3x3 gates.
    """

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 4 * channels)
        self.attention = SelfAttentionMemory(channels)

    def forward(self, x, state, m, previous):
        h, c, memory = (zeros(x), zeros(x, memory=True), zeros(x)) if state is None else state
        h, c = conv_lstm_cell(x, h, c, self.gates.weight, self.gates.bias.sum(0))
        h, memory = self.attention(h, memory)
        return h, (h, c, memory), None
