# SPDX-License-Identifier: Apache-2.0
"""Multi-kernel LSTM in the frame of MS-RNN: together they are MS-LSTM, which DB-RNN is compared with."""

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.nn.conv3x3 import Conv1x1, Conv3x3
from fastds.nn.summed_conv import SummedConv3x3, SummedConv5x5
from fastds.ops.impl.conv_cells.conv_st_lstm_gates import conv_st_lstm_gates
from fastds.ops.impl.gates.output_gate import output_gate
from fastds.ops.impl.gates.st_lstm_gates import st_lstm_gates


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

    def forward(self, x, state, m, previous):
        h, c, wide = (zeros(x), zeros(x, memory=True), zeros(x, memory=True)) if state is None else state
        c, q = conv_st_lstm_gates(x, h, c, self.gates.weight, self.gates.bias.sum(0))
        wide, wide_q = st_lstm_gates(self.wide_gates(x, h), wide)
        small, large = c.to(x.dtype), wide.to(x.dtype)
        gate = self.output(small, residual=self.wide_output(large, residual=q) + wide_q)
        h = output_gate(gate, self.mix(small, large))
        return h, (h, c, wide), None
