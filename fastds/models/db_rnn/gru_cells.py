# SPDX-License-Identifier: Apache-2.0
"""Cells around the convolutional GRU: ConvGRU, and TrajGRU with its learned links."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, Step, zeros
from fastds.models.db_rnn.warp import sample_links
from fastds.nn.convolutions import Conv3x3, SummedConv3x3
from fastds.ops import conv_gru_cell, traj_gru_gates


class ConvGRU(Cell):
    """[z r] = s(Wx x + Wh h);  n = tanh(Wnx x + Wnh (r h));  h' = z h + (1-z) n. State h.

    Source: Ballas et al. 2016, equations 5 to 8.
    """

    alike = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = SummedConv3x3((channels, channels), 2 * channels)
        self.candidate = SummedConv3x3((channels, channels), channels)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h = zeros(x) if state is None else state
        gates, candidate = self.gates, self.candidate
        h = conv_gru_cell(x, h, gates.weight, gates.sum_biases(), candidate.weight, candidate.sum_biases())
        return h, h, None


SLOPE = 0.2


class TrajGRU(Cell):
    """GRU whose state is gathered along L learned trajectories. State h.

        [zx rx nx] = Wx x;  F = Wf leaky(Wxf x + Whf h);  h_l = S(h, p - F_l);  [zh rh nh] = Wp [h_1; ..; h_L]
        z = s(zx + zh);  r = s(rx + rh);  n = leaky(nx + r nh);  h' = (1-z) n + z h

    Args:
        links: L.
        warp_align_corners: see fastds.models.db_rnn.warp.sample_links.

    Source: Shi et al. 2017, Deep Learning for Precipitation Nowcasting, equation 2; sizes of MS-RNN.
    """

    def __init__(self, channels: int, layer: int, layers: int, links: int = 10, warp_align_corners: bool = False):
        super().__init__(channels, layer, layers)
        self.warp_align_corners = warp_align_corners
        self.input = Conv3x3(channels, 3 * channels)
        self.flow_hidden = SummedConv3x3((channels, channels), channels)
        self.flow = Conv3x3(channels, 2 * links)
        self.project_weight = nn.Parameter(torch.empty(3 * channels, channels, links))
        self.project_bias = nn.Parameter(torch.empty(3 * channels))
        bound = 1 / math.sqrt(channels * links)
        nn.init.uniform_(self.project_weight, -bound, bound)
        nn.init.uniform_(self.project_bias, -bound, bound)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h = zeros(x) if state is None else state
        flow = self.flow(F.leaky_relu(self.flow_hidden(x, h), SLOPE))
        gathered = sample_links(h, -flow, self.project_weight, self.project_bias, align_corners=self.warp_align_corners)
        h = traj_gru_gates(self.input(x), gathered, h, negative_slope=SLOPE)
        return h, h, None
