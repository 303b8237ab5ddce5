# SPDX-License-Identifier: Apache-2.0
"""PredRNN (ST-LSTM) in the frame of MS-RNN."""

from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.nn.conv3x3 import Conv1x1
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.memory_gates import memory_gates
from fastds.ops.output_gate import output_gate


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

    def update(self, x: Tensor, m: Tensor | None) -> Tensor:
        """m'."""
        m = zeros(x, memory=True) if m is None else m
        return memory_gates(self.memory(x, m), m)

    def emit(self, q: Tensor, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
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

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 4 * channels)
        self.spatial = SpatialMemory(channels)

    def forward(self, x, state, m, previous):
        h, c = (zeros(x), zeros(x, memory=True)) if state is None else state
        n = self.channels
        gates, q = self.gates(x, h).split([3 * n, n], 1)
        c = memory_gates(gates, c)
        m = self.spatial.update(x, m)
        h, _ = self.spatial.emit(q, c, m)
        return h, (h, c), m
