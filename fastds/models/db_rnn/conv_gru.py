# SPDX-License-Identifier: Apache-2.0
"""ConvGRU in the frame of MS-RNN."""

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.impl.conv_cells.conv_gru_cell import conv_gru_cell


class ConvGRU(Cell):
    """[z r] = s(Wx x + Wh h);  n = tanh(Wnx x + Wnh (r h));  h' = z h + (1-z) n. State h.

    Source: Ballas et al. 2016, equations 5 to 8.
    """

    alike = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 2 * channels)
        self.candidate = SummedConv3x3((channels, channels), channels)

    def forward(self, x, state, m, previous):
        h = zeros(x) if state is None else state
        gates, candidate = self.gates, self.candidate
        h = conv_gru_cell(x, h, gates.weight, gates.bias.sum(0), candidate.weight, candidate.bias.sum(0))
        return h, h, None
