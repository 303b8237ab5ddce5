# SPDX-License-Identifier: Apache-2.0
"""PredRNN (ST-LSTM) in the frame of MS-RNN."""

from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.models.db_rnn.fold import fold_embedding
from fastds.models.db_rnn.rematerialize import made_again
from fastds.nn.conv3x3 import Conv1x1
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.impl.conv_cells.conv_st_lstm_gates import conv_memory_gates, conv_output_gate, conv_st_lstm_gates
from fastds.ops.impl.gates.output_gate import output_gate


class SpatialMemory(nn.Module):
    """The zigzag half of an ST-LSTM and its output.

    [i f g] = Wx' x + Wm m;  m' = s(f) m + s(i) tanh(g)
    h' = s(q + Wco c' + Wmo m') tanh(W1 [c'; m'])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.memory = SummedConv3x3((channels, channels), 3 * channels)
        self.output = SummedConv3x3((channels, channels), channels)
        self.mix = Conv1x1(2 * channels, channels)

    def update(self, x: Tensor, m: Tensor | None, weight: Tensor | None = None) -> Tensor:
        """m'; weight: of the memory's gates, where it is not the module's own (a folded embedding)."""
        weight, bias = self.memory.weight if weight is None else weight, self.memory.bias.sum(0)
        if m is None:
            return conv_memory_gates(x, None, zeros(x, len(bias) // 3, memory=True), weight, bias)
        return conv_memory_gates(x, m.to(x.dtype), m, weight, bias)

    def emit(self, q: Tensor, c: Tensor, m: Tensor) -> Tensor:
        """h'."""
        c, m = c.to(q.dtype), m.to(q.dtype)
        value = self.mix(c, m)
        with made_again((value, self.mix, c, m)):
            return conv_output_gate(c, m, value, self.output.weight, self.output.bias.sum(0), residual=q)

    def emit_with_gate(self, q: Tensor, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """h' and the pre-activation of its gate."""
        c, m = c.to(q.dtype), m.to(q.dtype)
        gate = self.output(c, m, residual=q)
        return output_gate(gate, self.mix(c, m)), gate


class PredRNN(Cell):
    """ST-LSTM. State (h, c).

        [i f g q] = Wx x + Wh h;  c' = s(f) c + s(i) tanh(g)
        [i' f' g'] = Wx' x + Wm m;  m' = s(f') m + s(i') tanh(g')
        h' = s(q + Wco c' + Wmo m') tanh(W1 [c'; m'])

    Source: Wang et al. 2017, PredRNN, equation 3.
    """

    zigzag = True
    alike = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 4 * channels)
        self.spatial = SpatialMemory(channels)

    def fold(self, embed):
        return fold_embedding(self.gates, embed), fold_embedding(self.spatial.memory, embed)

    def forward(self, x, state, m, previous, folded=None):
        h, c = (None, zeros(x, self.channels, memory=True)) if state is None else state
        weight, memory_weight = (self.gates.weight, None) if folded is None else folded
        c, q = conv_st_lstm_gates(x, h, c, weight, self.gates.bias.sum(0))
        m = self.spatial.update(x, m, memory_weight)
        h = self.spatial.emit(q, c, m)
        return h, (h, c), m
