# SPDX-License-Identifier: Apache-2.0
"""ConvGRU in the frame of MS-RNN."""

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.gru_reset import gru_reset
from fastds.ops.gru_update import gru_update


class ConvGRU(Cell):
    """[z r] = s(Wx x + Wh h);  n = tanh(Wnx x + Wnh (r h));  h' = z h + (1-z) n. State h.

    Source: Ballas et al. 2016, equations 5 to 8.
    """

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 2 * channels)
        self.candidate = SummedConv3x3((channels, channels), channels)

    def forward(self, x, state, m, previous):
        h = zeros(x) if state is None else state
        z, reset = gru_reset(*self.gates(x, h).chunk(2, 1), h)
        h = gru_update(z, self.candidate(x, reset), h)
        return h, h, None
