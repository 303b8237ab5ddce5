# SPDX-License-Identifier: Apache-2.0
"""PrecipLSTM in the frame of MS-RNN."""

from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, Step, zeros
from fastds.nn.convolutions import Conv1x1, Conv3x3, SummedConv3x3
from fastds.ops import conv_memory_gates, conv_st_lstm_gates, output_gate, window_attention2d


class LocalAttention(nn.Module):
    """y = x + Wa attention(Wq x, Wk x, Wv x) in a window around each pixel; q, k and v without bias."""

    def __init__(self, channels: int, window: int, kernel: int):
        super().__init__()
        self.window = window
        conv = {1: Conv1x1, 3: Conv3x3}[kernel]
        self.qkv = conv(channels, 3 * channels, bias=False)
        self.output = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(window_attention2d(*self.qkv(x).chunk(3, 1), window=self.window), residual=x)


class PrecipLSTM(Cell):
    """LSTM with four memories over locally attended input. State (h, c, ms, mt).

        y = attention(x)
        [i f g q] = Wx y + Wh h;  c' = s(f) c + s(i) tanh(g)
        m' from (y, m), ms' from (y, ms), mt' from (x - previous, mt), each [i f g] = Wx' . + Wm' .
        h' = s(q + Wco c' + Wso ms' + Wto mt' + Wmo m') tanh(W1 [c'; ms'; mt'; m'])

    Args:
        window: of the attention in pixels, even.
        qkv_kernel: 1 (the authors' code) or 3.

    Source: Ma et al. 2022, PrecipLSTM.
    """

    zigzag = True
    difference = "input"

    def __init__(self, channels: int, layer: int, layers: int, window: int = 30, qkv_kernel: int = 1):
        super().__init__(channels, layer, layers)
        if qkv_kernel not in (1, 3):
            raise ValueError(f"qkv_kernel must be 1 or 3, got {qkv_kernel!r}")
        n, pair = channels, (channels, channels)
        self.attention = LocalAttention(n, window, qkv_kernel)
        self.gates = SummedConv3x3(pair, 4 * n)
        self.zigzag_gates = SummedConv3x3(pair, 3 * n)
        self.spatial_gates = SummedConv3x3(pair, 3 * n)
        self.temporal_gates = SummedConv3x3(pair, 3 * n)
        self.output = SummedConv3x3((n,) * 4, n)
        self.mix = Conv1x1(4 * n, n)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        if state is None:
            state = (None, *(zeros(x, memory=True) for _ in range(3)))
        h, c, ms, mt = state
        m = zeros(x, memory=True) if m is None else m
        y = self.attention(x)
        c, q = conv_st_lstm_gates(y, h, c, self.gates.weight, self.gates.sum_biases())

        def updated(module: SummedConv3x3, source: Tensor, memory: Tensor) -> Tensor:
            weights = module.weight, module.sum_biases()
            return conv_memory_gates(source, memory.to(source.dtype), memory, *weights)

        m, ms = updated(self.zigzag_gates, y, m), updated(self.spatial_gates, y, ms)
        mt = updated(self.temporal_gates, x if previous is None else x - previous, mt)
        memories = [t.to(x.dtype) for t in (c, ms, mt, m)]
        h = output_gate(self.output(*memories, residual=q), self.mix(torch.cat(memories, 1)))
        return h, (h, c, ms, mt), m
