# SPDX-License-Identifier: Apache-2.0
"""MIM (memory in memory), and MotionRNN, which moves its features along a learned flow."""

from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.db_rnn.cell import Cell, Step, zeros
from fastds.models.db_rnn.pred_rnn import SpatialMemory
from fastds.models.db_rnn.warp import sample_links
from fastds.nn.convolutions import Conv1x1, Conv3x3, SummedConv3x3
from fastds.ops import conv_memory_gates, conv_output_gate, conv_st_lstm_gates, gru_reset, gru_update, output_gate


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
        def weights(module: nn.Module) -> tuple[Tensor, Tensor]:
            return module.weight, module.sum_biases()

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

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h, state, m, _ = self.core(x, state, m, previous)
        return h, state, m

    def core(
        self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        """(h, state, m, pre-activation of the output gate)."""
        if state is None:
            memories = [zeros(x, memory=True) if k == 0 or self.layer else None for k in range(3)]
            state = (None if self.layer == 0 else zeros(x), *memories)
        h, c, n, s = state
        count = self.channels
        if self.layer == 0:
            c, q = conv_st_lstm_gates(x, h, c, self.gates.weight, self.gates.sum_biases())
        else:
            i, g, q = self.gates(x, h).split(count, 1)
            kept, n, s = self.cascade(x if previous is None else x - previous, c, n, s)
            c = (kept + output_gate(i, g)).to(c.dtype)
        m = self.spatial.update(x, m)
        h, gate = self.spatial.emit_with_gate(q, c, m)
        return h, (h, c, n, s), m, gate


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
    order; here every sample has its own flow, so that weights trained with their code give other numbers here.
    """

    multiple = 2

    def __init__(
        self, channels: int, layer: int, layers: int, warp_align_corners: bool = False, difference: str = "hidden"
    ):
        super().__init__(channels, layer, layers, difference)
        if channels % 4:
            raise ValueError(f"hidden must be a multiple of 4 for MotionRNN, got {channels}")
        self.motion = MotionGRU(channels, warp_align_corners) if layer < layers - 1 else None

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        inner, motion = (None, None) if state is None else state
        h, inner, m, gate = self.core(x, inner, m, previous)
        if self.motion is not None:
            moved, motion = self.motion(h, motion)
            h = moved + x - torch.sigmoid(gate) * x
        return h, ((h, *inner[1:]), motion), m
