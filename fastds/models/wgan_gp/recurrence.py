# SPDX-License-Identifier: Apache-2.0
"""Convolutional GRU over the steps of a day."""

from torch import Tensor, nn

from fastds.nn.recurrent import ConvGRUCell


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
        return self.sequence(x)[0]
