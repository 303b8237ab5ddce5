# SPDX-License-Identifier: Apache-2.0
"""PredRNN, and PredRNN++ with causal LSTM and gradient highway."""

from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, Step, fold_embedding, zeros
from fastds.models.db_rnn.rematerialize import rematerialize
from fastds.nn.convolutions import Conv1x1, Conv3x3, SummedConv3x3, convolve
from fastds.ops import conv_memory_gates, conv_output_gate, conv_st_lstm_gates, gru_update, memory_gates, output_gate


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
        weight, bias = self.memory.weight if weight is None else weight, self.memory.sum_biases()
        if m is None:
            return conv_memory_gates(x, None, zeros(x, len(bias) // 3, memory=True), weight, bias)
        return conv_memory_gates(x, m.to(x.dtype), m, weight, bias)

    def emit(self, q: Tensor, c: Tensor, m: Tensor) -> Tensor:
        """h'."""
        c, m = c.to(q.dtype), m.to(q.dtype)
        value = self.mix(c, m)
        with rematerialize((value, self.mix, c, m)):
            return conv_output_gate(c, m, value, self.output.weight, self.output.sum_biases(), residual=q)

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

    def fold(self, embed: Conv1x1) -> tuple[Tensor, ...]:
        return fold_embedding(self.gates, embed), fold_embedding(self.spatial.memory, embed)

    def forward(
        self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None, folded: tuple[Tensor, ...] | None = None
    ) -> Step:
        h, c = (None, zeros(x, self.channels, memory=True)) if state is None else state
        weight, memory_weight = (self.gates.weight, None) if folded is None else folded
        c, q = conv_st_lstm_gates(x, h, c, weight, self.gates.sum_biases())
        m = self.spatial.update(x, m, memory_weight)
        h = self.spatial.emit(q, c, m)
        return h, (h, c), m


class GradientHighway(nn.Module):
    """[p q] = Ux x + Uz z;  z' = s(q) tanh(p) + (1 - s(q)) z. forward(x, z or None) -> z'."""

    def __init__(self, channels: int):
        super().__init__()
        self.gates = SummedConv3x3((channels, channels), 2 * channels)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        z = zeros(x) if z is None else z
        p, q = self.gates(x, z).chunk(2, 1)
        return gru_update(torch.sigmoid(q), p, z, keep="1-z")


class PredRNNPP(Cell):
    """Causal LSTM, with a gradient highway before the cell of layer 1. State (h, c, z).

        layer 1: x <- z' = highway(x, z)
        [i f g] = Wa [x; h; c];    c' = s(f) c + s(i) tanh(g)
        [i' f' g'] = Wb [x; c'; m];  m' = s(f') tanh(Wm m) + s(i') tanh(g')
        h' = tanh(Wo [x; c'; m']) tanh(W1 [c'; m'])

    Args:
        all_highways: build the highway's convolutions in every layer, as the authors' code does (evaluated in layer 1
            alone), for its count of parameters.

    Source: Wang et al. 2018, PredRNN++, equations 1 and 2.
    """

    zigzag = True

    def __init__(self, channels: int, layer: int, layers: int, all_highways: bool = False):
        super().__init__(channels, layer, layers)
        n = channels
        self.highway = GradientHighway(n) if layer == 1 or all_highways else None
        self.temporal = Conv3x3(3 * n, 3 * n)
        self.spatial = Conv3x3(3 * n, 3 * n)
        self.forget = Conv1x1(n, n)
        self.output = Conv3x3(3 * n, n)
        self.mix = Conv1x1(2 * n, n)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h, c, z = (zeros(x), zeros(x, memory=True), None) if state is None else state
        m = zeros(x, memory=True) if m is None else m
        if self.layer == 1:
            x = z = self.highway(x, z)
        # What x gives to all three convolutions is one convolution.
        n, convs = self.channels, (self.temporal, self.spatial, self.output)
        weight = torch.cat([conv.weight[:, :n] for conv in convs])
        shares = convolve(x, weight, torch.cat([conv.bias for conv in convs])).split([3 * n, 3 * n, n], 1)
        c = memory_gates(self._rest(self.temporal, h, c, shares[0]), c)
        forget = self.forget(m.to(x.dtype))
        m = memory_gates(self._rest(self.spatial, c, m, shares[1]), forget.to(m.dtype), state_act="tanh")
        gate = self._rest(self.output, c, m, shares[2])
        h = output_gate(gate, self.mix(c.to(x.dtype), m.to(x.dtype)), act="tanh")
        return h, (h, c, z), m

    def _rest(self, conv: Conv3x3, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        """The convolution of [x; a; b], given x's share of it."""
        dtype = share.dtype
        return convolve(a.to(dtype), conv.weight[:, self.channels :], x2=b.to(dtype), residual=share)
