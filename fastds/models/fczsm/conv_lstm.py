# SPDX-License-Identifier: Apache-2.0
"""Bidirectional deformable ConvLSTM over the frame features.

Both time directions share one set of weights and run as one batch of 2B. Everything that depends on the input
features alone (their pyramids and their share of the guides and gates) is computed for all T = 2N-1 frames at once
before the recurrence. Frames are ordered 0, T-1, 1, T-2, ..., N-1, so that the pair of frames a step needs is a
contiguous slice; after the middle step the pairs return in swapped order and the state is swapped once to match.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastds.models.fczsm.aligner import FeaturePyramid, SingleLevel, Way
from fastds.models.fczsm.flow_guidance import state_offsets
from fastds.nn.conv3x3 import Conv1x1, Conv3x3, convolve


@dataclass
class HoistedInput:
    """What an aligner needs of x: its pyramid and its halves of the guides of both ways, all frames or one step's."""

    pyramid: list[Tensor]
    x_half: list[Tensor] | None  # of the way that warps x toward the state
    state_half: list[Tensor]  # of the way that warps the state toward x

    def take(self, pick) -> "HoistedInput":
        x_half = None if self.x_half is None else [pick(z) for z in self.x_half]
        return HoistedInput([pick(z) for z in self.pyramid], x_half, [pick(z) for z in self.state_half])


class StateAligner(nn.Module):
    """Align a recurrent state s with the input x: mix[way1(P(x) -> P(s)), way2(P(s) -> P(x))], mix a 1x1 convolution.

    plain=True is equation 7 to the letter: DCN(s | g[s, x]), only the state is deformed.

    Source: Chen, Qin and Dai 2022, eq. 6-7; Xiang et al. 2020 for both ways and the mix.
    """

    def __init__(self, features: int, groups: int, plain: bool, static_features: int, modulated: bool):
        super().__init__()
        self.plain = plain
        levels = 1 if plain else FeaturePyramid.levels
        self.pyramid = SingleLevel() if plain else FeaturePyramid(features)
        self.state_way = Way(features, groups, levels, static_features, modulated)
        if not plain:
            self.x_way = Way(features, groups, levels, static_features, modulated)
            self.mix = Conv1x1(2 * features, features)

    @property
    def levels(self) -> int:
        return len(self.state_way.levels)

    def hoist(self, x: Tensor, static: list[Tensor] | None) -> HoistedInput:
        """Precompute the x-only part for all frames at once; static: levels of batch 1 or B, or None."""
        pyramid = self.pyramid(x)
        static = None if static is None else static[: self.levels]
        halves = []
        for way, role in ((self.state_way, "target"), (None if self.plain else self.x_way, "source")):
            if way is None:
                halves.append(None)
                continue
            parts = [None if s is None else repeat_batch(s, x.shape[0]) for s in way.static_part(static)]
            halves.append(way.half(pyramid, role, parts))
        return HoistedInput(pyramid, halves[1], halves[0])

    def forward(self, x: HoistedInput, state: Tensor | None, base: tuple[list, list] | None) -> Tensor:
        """Return the aligned state; state None is the zero state, base as flow_guidance.state_offsets gives it."""
        levels = self.pyramid.of_zeros(x.pyramid[0]) if state is None else self.pyramid(state)
        x_base, state_base = (None, None) if base is None else base
        guides = self.state_way.guides_from_half(x.state_half, levels, "source")
        warped_state = self.state_way.align(levels, guides, state_base)
        if self.plain:
            return warped_state
        guides = self.x_way.guides_from_half(x.x_half, levels, "target")
        warped_x = self.x_way.align(x.pyramid, guides, x_base)
        return self.mix(warped_x, warped_state)


class DeformableConvLSTM(nn.Module):
    """Bidirectional ConvLSTM whose hidden and cell state are aligned with the input before every step.

        h~ = align_h(x, h);  c~ = align_c(x, c);  [i f o g] = conv3x3[x, h~]
        c' = sigmoid(f) c~ + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
        H_t = merge[h_forward_t, h_backward_t]    (1x1)

    No peepholes; the zero state of the first step passes the aligners, too.

    Shapes: forward(frames) takes T = 2N-1 maps (B, n, h, w) in time order and returns (T*B, n, h, w), frame-major.

    Source: Chen, Qin and Dai 2022, eq. 6-7; Xiang et al. 2020.
    """

    def __init__(self, features: int, groups: int, plain: bool, static_features: int, modulated: bool):
        super().__init__()
        self.features = features
        self.align_h = StateAligner(features, groups, plain, static_features, modulated)
        self.align_c = StateAligner(features, groups, plain, static_features, modulated)
        self.gates = Conv3x3(2 * features, 4 * features)
        self.merge = Conv1x1(2 * features, features)

    def forward(self, frames: list[Tensor], static: list[Tensor] | None = None, flow: Tensor | None = None) -> Tensor:
        steps, batch, n = len(frames), frames[0].shape[0], self.features
        middle = steps // 2
        order = [k for pair in zip(range(middle), range(steps - 1, middle, -1), strict=True) for k in pair] + [middle]
        x = torch.cat([frames[k] for k in order])
        align_h, align_c = self.align_h.hoist(x, static), self.align_c.hoist(x, static)
        gates_x = convolve(x, self.gates.weight[:, :n], self.gates.bias)
        h = c = None
        hidden = []
        for step in range(steps):
            pick = _pair_picker(min(step, steps - 1 - step), middle, batch)
            forward_first = step <= middle
            if step == middle + 1:
                h, c = _swap_halves(h), _swap_halves(c)
            base = None if flow is None else state_offsets(flow, step, forward_first, self.align_h.levels)
            h = self.align_h(align_h.take(pick), h, base)
            c = self.align_c(align_c.take(pick), c, base)
            pre = convolve(h, self.gates.weight[:, n:], residual=pick(gates_x))
            h, c = lstm_gates(pre, c)
            first, second = h.split(batch)
            hidden.append((first, second) if forward_first else (second, first))
        return torch.cat([self.merge(hidden[t][0], hidden[steps - 1 - t][1]) for t in range(steps)])


def lstm_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c'); pre (B, 4n, H, W) in the order i, f, o, g."""
    i, f, o, g = pre.chunk(4, dim=1)
    c = torch.addcmul(torch.sigmoid(f) * c, torch.sigmoid(i), torch.tanh(g))
    return torch.sigmoid(o) * torch.tanh(c), c


def repeat_batch(z: Tensor, batch: int) -> Tensor:
    """Repeat z (1 or B, ...) along the batch to frame-major (T*B, ...)."""
    return z.expand(batch, -1, -1, -1) if z.shape[0] == 1 else z.repeat(batch // z.shape[0], 1, 1, 1)


def _pair_picker(pair: int, middle: int, batch: int):
    """Slice of the frames [pair, T-1-pair] out of the ordered frames; the middle frame stands for both."""
    if pair < middle:
        return lambda z: z[2 * pair * batch : 2 * (pair + 1) * batch]
    return lambda z: torch.cat([z[2 * middle * batch :]] * 2)


def _swap_halves(z: Tensor) -> Tensor:
    return torch.cat(z.chunk(2)[::-1])
