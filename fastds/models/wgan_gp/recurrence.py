# SPDX-License-Identifier: Apache-2.0
"""Convolutional GRU over the steps of a day."""

import torch
from torch import Tensor, nn

from fastds.models.wgan_gp.mixed_conv import once
from fastds.models.wgan_gp.shared_kernel import SharedKernel
from fastds.nn.conv3x3 import convolve
from fastds.nn.recurrent import ConvGRUCell, by_time, per_time
from fastds.ops.impl.gates.gru_reset import gru_reset
from fastds.ops.impl.gates.gru_update import gru_update


class ConvGRU(ConvGRUCell):
    """3x3 convolutional GRU from a zero state, all states returned.

    h <- (1 - z) h + z n, the rest as in ConvGRUCell; weights start Glorot-normal gate by gate, biases at zero.

    Args:
        in_channels, channels: of x and of h.

    Shapes: (B, T, C, H, W) -> (B, T, channels, H, W).

    Source: Ballas et al. 2016 (reset before the candidate's convolution); Li et al. 2024.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__(in_channels, channels, keep="1-z")
        for gate in (*self.gates.weight.data.chunk(2), self.candidate.weight.data):
            nn.init.xavier_normal_(gate)
        for conv in (self.gates, self.candidate):
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        (batch, times), x = x.shape[:2], by_time(x)
        gates_x, from_state, candidate_x, from_reset = once(self, "kernels", self.kernels)
        gates = per_time(convolve(x, gates_x, self.gates.bias), batch, times)
        candidates = per_time(convolve(x, candidate_x, self.candidate.bias), batch, times)
        states = [self.first(gates[0], candidates[0])]
        for gate, candidate in zip(gates[1:], candidates[1:], strict=True):
            h = states[-1]
            z, reset = gru_reset(*from_state(h, residual=gate).chunk(2, 1), h)
            states.append(gru_update(z, from_reset(reset, residual=candidate), h, **self.options))
        return torch.stack(states, 1)

    def kernels(self) -> list[Tensor | SharedKernel]:
        """Of gates and candidate, that of x and that of h."""
        both = []
        for conv in (self.gates, self.candidate):
            of_x, of_h = conv.weight.split([self.in_channels, self.hidden_channels], 1)
            both += [of_x.contiguous(), SharedKernel(of_h.contiguous())]
        return both
