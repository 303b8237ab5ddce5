# SPDX-License-Identifier: Apache-2.0
"""MIM (memory in memory) in the frame of MS-RNN."""

from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.models.db_rnn.pred_rnn import SpatialMemory
from fastds.nn.conv3x3 import Conv3x3
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.impl.conv_cells.conv_st_lstm_gates import conv_memory_gates, conv_output_gate, conv_st_lstm_gates
from fastds.ops.impl.gates.output_gate import output_gate


class MemoryInMemory(nn.Module):
    """The cascade that stands in the place of the forget gate: what changes (N) feeds what stays (S).

        [i f g] = Wnx d + Wnn n;  n' = s(f) n + s(i) tanh(g);  D = s(Wno d + Wno2 n') tanh(n')
        [i f g q] = Wsx D + Wsc c;  s' = s(f) s + s(i) tanh(g);  T = s(q + Wso s') tanh(s')

    forward(d, c, n, s) -> (T, n', s').
    """

    def __init__(self, channels: int):
        super().__init__()
        pair = (channels, channels)
        self.changing = SummedConv3x3(pair, 3 * channels)
        self.changing_output = SummedConv3x3(pair, channels)
        self.steady = SummedConv3x3(pair, 4 * channels)
        self.steady_output = Conv3x3(channels, channels)

    def forward(self, d: Tensor, c: Tensor, n: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def weights(module):
            return module.weight, module.bias.sum(0)

        n = conv_memory_gates(d, n.to(d.dtype), n, *weights(self.changing))
        steady_input = conv_output_gate(d, n.to(d.dtype), n, *weights(self.changing_output))
        s, q = conv_st_lstm_gates(steady_input, c.to(d.dtype), s, *weights(self.steady))
        return output_gate(self.steady_output(s.to(d.dtype), residual=q), s), n, s


class MIM(Cell):
    """ST-LSTM in layer 0; in the others the forget gate of c is a cascade driven by the difference of inputs.

        layer 0: PredRNN's cell.  Others, with d = x - previous:  T = cascade(d, c)
        [i g q] = Wx x + Wh h;  c' = T + s(i) tanh(g);  m' and h' as in PredRNN

    State (h, c, n, s), n and s None in layer 0.

    Args:
        difference: see Cell.
        keep_dead: build the cascade in layer 0, too, where nothing evaluates it, for the authors' count of parameters.

    Source: Wang et al. 2019, Memory in Memory, equations 2 to 4, without its unused forget gate; sizes of MS-RNN.
    """

    zigzag = True

    def __init__(self, channels: int, layer: int, layers: int, difference: str = "hidden", keep_dead: bool = False):
        super().__init__(channels, layer, layers)
        if difference not in ("hidden", "input"):
            raise ValueError(f"difference must be 'hidden' or 'input', got {difference!r}")
        self.difference = difference if layer else None
        self.gates = SummedConv3x3((channels, channels), (3 if layer else 4) * channels)
        self.cascade = MemoryInMemory(channels) if layer or keep_dead else None
        self.spatial = SpatialMemory(channels)

    def forward(self, x, state, m, previous):
        h, state, m, _ = self.core(x, state, m, previous)
        return h, state, m

    def core(self, x, state, m, previous):
        """(h, state, m, pre-activation of the output gate)."""
        if state is None:
            memories = [zeros(x, memory=True) if k == 0 or self.layer else None for k in range(3)]
            state = (None if self.layer == 0 else zeros(x), *memories)
        h, c, n, s = state
        count = self.channels
        if self.layer == 0:
            c, q = conv_st_lstm_gates(x, h, c, self.gates.weight, self.gates.bias.sum(0))
        else:
            i, g, q = self.gates(x, h).split(count, 1)
            kept, n, s = self.cascade(x if previous is None else x - previous, c, n, s)
            c = (kept + output_gate(i, g)).to(c.dtype)
        m = self.spatial.update(x, m)
        h, gate = self.spatial.emit_with_gate(q, c, m)
        return h, (h, c, n, s), m, gate
