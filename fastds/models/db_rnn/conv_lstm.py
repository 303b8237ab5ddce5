# SPDX-License-Identifier: Apache-2.0
"""ConvLSTM in the frame of MS-RNN."""

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.models.db_rnn.fold import fold_embedding
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.impl.conv_cells.conv_lstm_cell import conv_lstm_cell


class ConvLSTM(Cell):
    """[i f g o] = Wx x + Wh h;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(c'). State (h, c).

    Source: Shi et al. 2015, equation 3 without peepholes.
    """

    alike = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 4 * channels)

    def fold(self, embed):
        return (fold_embedding(self.gates, embed),)

    def forward(self, x, state, m, previous, folded=None):
        h, c = (None, zeros(x, self.channels, memory=True)) if state is None else state
        weight = self.gates.weight if folded is None else folded[0]
        h, c = conv_lstm_cell(x, h, c, weight, self.gates.bias.sum(0))
        return h, (h, c), None
