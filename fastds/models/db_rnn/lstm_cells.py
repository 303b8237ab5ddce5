# SPDX-License-Identifier: Apache-2.0
"""Cells around the convolutional LSTM: ConvLSTM, SA-ConvLSTM, the multi-kernel LSTM of MS-LSTM."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, Step, fold_embedding, zeros
from fastds.nn.convolutions import Conv1x1, Conv3x3, SummedConv3x3, SummedConv5x5
from fastds.ops import conv_lstm_cell, conv_st_lstm_gates, gru_update, output_gate, st_lstm_gates


class ConvLSTM(Cell):
    """[i f g o] = Wx x + Wh h;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(c'). State (h, c).

    Source: Shi et al. 2015, equation 3 without peepholes.
    """

    alike = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 4 * channels)

    def fold(self, embed: Conv1x1) -> tuple[Tensor, ...]:
        return (fold_embedding(self.gates, embed),)

    def forward(
        self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None, folded: tuple[Tensor, ...] | None = None
    ) -> Step:
        h, c = (None, zeros(x, self.channels, memory=True)) if state is None else state
        weight = self.gates.weight if folded is None else folded[0]
        h, c = conv_lstm_cell(x, h, c, weight, self.gates.sum_biases())
        return h, (h, c), None


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

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h, c, memory = (zeros(x), zeros(x, memory=True), zeros(x)) if state is None else state
        h, c = conv_lstm_cell(x, h, c, self.gates.weight, self.gates.sum_biases())
        h, memory = self.attention(h, memory)
        return h, (h, c, memory), None


class MKLSTM(Cell):
    """LSTM with a memory for small and one for large structures. State (h, c, wide).

        [i f g q] = Wx x + Wh h;  c' = s(f) c + s(i) tanh(g)                        (3x3)
        [i' f' g' q'] = Vx x + Vh h;  wide' = s(f') wide + s(i') tanh(g')           (5x5)
        h' = s(q + q' + Wco c' + Vco wide') tanh(W1 [c'; wide'])

    Source: Ma, Zhang and Liu 2023, MS-LSTM: Exploring Spatiotemporal Multiscale Representations in Video Prediction
    Domain.
    """

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        n, pair = channels, (channels, channels)
        self.gates, self.wide_gates = SummedConv3x3(pair, 4 * n), SummedConv5x5(pair, 4 * n)
        self.output, self.wide_output = Conv3x3(n, n), SummedConv5x5((n,), n)
        self.mix = Conv1x1(2 * n, n)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h, c, wide = (zeros(x), zeros(x, memory=True), zeros(x, memory=True)) if state is None else state
        c, q = conv_st_lstm_gates(x, h, c, self.gates.weight, self.gates.sum_biases())
        wide, wide_q = st_lstm_gates(self.wide_gates(x, h), wide)
        small, large = c.to(x.dtype), wide.to(x.dtype)
        gate = self.output(small, residual=self.wide_output(large, residual=q) + wide_q)
        h = output_gate(gate, self.mix(small, large))
        return h, (h, c, wide), None
