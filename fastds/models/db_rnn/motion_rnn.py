# SPDX-License-Identifier: Apache-2.0
"""MotionRNN (MIM with MotionGRU and motion highway) in the frame of MS-RNN."""

import torch
from torch import Tensor, nn

from fastds.models.db_rnn.mim import MIM
from fastds.models.db_rnn.warp import sample_links
from fastds.nn.conv3x3 import Conv1x1
from fastds.ops.impl.gates.gru_reset import gru_reset
from fastds.ops.impl.gates.gru_update import gru_update

TREND = 0.5  # alpha, pace of the trend
LINKS = 9  # k^2


class MotionGRU(nn.Module):
    """Moves features along a flow that has a transient and a trend, at half resolution. State (F, V).

        e = We h (2x2, stride 2);  u, r = s([Wu, Wr] [e; F]);  n = tanh(Wz [e; r F])
        V' = V + alpha (F - V);  F' = u n + (1-u) F + V'
        y = Wd [mask_j S(e, p + F'_j)]_j,  mask = s(Wmask e);  hd = Wt y (4x4 transposed, stride 2)
        g = s(Wg [hd; h]);  result g h + (1-g) hd

    Source: Wu et al. 2021, MotionRNN, equations 3 to 7.
    """

    def __init__(self, channels: int, warp_align_corners: bool):
        super().__init__()
        self.warp_align_corners = warp_align_corners
        quarter, flow = channels // 4, 2 * LINKS
        self.encode = nn.Conv2d(channels, quarter, 2, stride=2)
        self.gates = Conv1x1(quarter + flow, 2 * flow)
        self.candidate = Conv1x1(quarter + flow, flow)
        self.mask = Conv1x1(quarter, LINKS)
        self.gather = Conv1x1(quarter * LINKS, quarter)  # input channels: channel major, link minor
        self.decode = nn.ConvTranspose2d(quarter, channels, 4, stride=2, padding=1)
        self.blend = Conv1x1(2 * channels, channels)

    def forward(self, h: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        e = self.encode(h)
        if state is None:
            blank = torch.zeros(e.shape[0], 2 * LINKS, *e.shape[2:], dtype=e.dtype, device=e.device)
            state = (blank, blank)
        flow, trend = (t.to(memory_format=torch.channels_last) for t in state)
        u, reset = gru_reset(*self.gates(e, flow).chunk(2, 1), flow)
        transient = gru_update(u, self.candidate(e, reset), flow, keep="1-z")
        trend = torch.lerp(trend, flow, TREND)
        flow = transient + trend
        weight = self.gather.weight.view(e.shape[1], e.shape[1], LINKS)
        mask = torch.sigmoid(self.mask(e))
        moved = sample_links(e, flow, weight, self.gather.bias, mask, self.warp_align_corners)
        moved = self.decode(moved)
        return torch.lerp(moved, h, torch.sigmoid(self.blend(moved, h))), (flow, trend)


class MotionRNN(MIM):
    """MIM, then MotionGRU and a highway of the input: h' = MotionGRU(h) + (1 - o) x. The last layer has neither.

    State (MIM's state with h' in the place of h, MotionGRU's state).

    Args:
        warp_align_corners: see fastds.models.db_rnn.warp.sample_links.
        difference: see Cell.

    Source: Wu et al. 2021, MotionRNN; sizes of MS-RNN. The authors' code reads flow and links of a batch in another
    order; here every sample has its own flow.
    """

    multiple = 2

    def __init__(
        self, channels: int, layer: int, layers: int, warp_align_corners: bool = False, difference: str = "hidden"
    ):
        super().__init__(channels, layer, layers, difference)
        if channels % 4:
            raise ValueError(f"hidden must be a multiple of 4 for MotionRNN, got {channels}")
        self.motion = MotionGRU(channels, warp_align_corners) if layer < layers - 1 else None

    def forward(self, x, state, m, previous):
        inner, motion = (None, None) if state is None else state
        h, inner, m, gate = self.core(x, inner, m, previous)
        if self.motion is not None:
            moved, motion = self.motion(h, motion)
            h = moved + x - torch.sigmoid(gate) * x
        return h, ((h, *inner[1:]), motion), m
