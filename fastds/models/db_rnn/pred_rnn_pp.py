# SPDX-License-Identifier: Apache-2.0
"""PredRNN++ (causal LSTM and gradient highway) in the frame of MS-RNN."""

import torch
from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, zeros
from fastds.nn.conv3x3 import Conv1x1, Conv3x3, convolve
from fastds.nn.summed_conv import SummedConv3x3
from fastds.ops.impl.gates.gru_update import gru_update
from fastds.ops.impl.gates.memory_gates import memory_gates
from fastds.ops.impl.gates.output_gate import output_gate


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

    def forward(self, x, state, m, previous):
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
