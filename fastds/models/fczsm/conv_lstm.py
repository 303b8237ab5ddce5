# SPDX-License-Identifier: Apache-2.0
"""Bidirectional deformable ConvLSTM over the frame features.

Both time directions share one set of weights and run as one batch of 2B. Everything that depends on the input
features alone (their pyramids and their share of the guides and gates) is computed for all T = 2N-1 frames at once
before the recurrence. Frames are ordered 0, T-1, 1, T-2, ..., N-1, so that the pair of frames a step needs is a
contiguous slice; after the middle step the pairs return in swapped order and the state is swapped once to match.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.fczsm.aligner import FeaturePyramid, SingleLevel, Way
from fastds.models.fczsm.guidance import state_offsets
from fastds.nn.chunks import can_chunk, get_frames_per_chunk, split_rows
from fastds.nn.convolutions import Conv1x1, Conv3x3, convolve
from fastds.ops import lstm_gates


@dataclass
class HoistedInput:
    """What an aligner needs of x: its pyramid and its halves of the guides of both ways, all frames or one step's."""

    pyramid: list
    x_half: list | None  # of the way that warps x toward the state
    state_half: list  # of the way that warps the state toward x

    def map(self, function: Callable[[Any], Any]) -> "HoistedInput":
        """The same with function applied to every map."""
        x_half = None if self.x_half is None else [function(z) for z in self.x_half]
        return HoistedInput([function(z) for z in self.pyramid], x_half, [function(z) for z in self.state_half])


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
        steps, batch = len(frames), frames[0].shape[0]
        middle = steps // 2
        order = [k for pair in zip(range(middle), range(steps - 1, middle, -1), strict=True) for k in pair] + [middle]
        x = torch.cat([frames[k] for k in order])
        aligners = (self.align_h, self.align_c)
        # Split once: the gradient of a split is one concatenation, that of slices a zeroed map each.
        sizes = [2 * batch] * middle + [batch]
        hoisted = [aligner.hoist(x, static).map(lambda z: z.split(sizes)) for aligner in aligners]
        from_x, from_h, bias = self.gate_parameters()
        gates_x = convolve(x, from_x, bias).split(sizes)
        state = None
        hidden = []
        for step in range(steps):
            forward_first = step <= middle
            if step == middle + 1:
                state = [torch.cat(z.split([batch] * 2)[::-1]) for z in state]
            base = None if flow is None else state_offsets(flow, step, forward_first, self.align_h.levels)
            parts = []
            for rows in batch_pieces(batch, frames[0]):
                pick = _picker(min(step, steps - 1 - step), batch, rows)
                old = (None, None) if state is None else (z[rows] for z in state)
                offsets = None if base is None else [[z[rows] for z in levels] for levels in base]
                h, c = (a(x.map(pick), z, offsets) for a, x, z in zip(aligners, hoisted, old, strict=True))
                parts.append(self.cell(h, c, pick(gates_x), from_h))
            state = [torch.cat(z) if len(z) > 1 else z[0] for z in zip(*parts, strict=True)]
            first, second = state[0].split([batch] * 2)
            hidden.append((first, second) if forward_first else (second, first))
        return torch.cat([self.merge(hidden[t][0], hidden[steps - 1 - t][1]) for t in range(steps)])

    def gate_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of x's and of h's share of the gates and the bias, in the order i, f, g, o of fastds.ops.lstm_gates.

        The parameters themselves are in the order i, f, o, g.
        """

        def ordered(z: Tensor) -> Tensor:
            i, f, o, g = z.chunk(4)
            return torch.cat([i, f, g, o])

        from_x, from_h = ordered(self.gates.weight).split(self.features, 1)
        return from_x.contiguous(), from_h.contiguous(), ordered(self.gates.bias)

    def cell(self, h: Tensor, c: Tensor, gates_x: Tensor, from_h: Tensor) -> tuple[Tensor, Tensor]:
        """One step from the aligned states and the x-share of the gates; from_h as gate_parameters gives it."""
        if not can_chunk(h):
            return apply_gates(convolve(h, from_h, residual=gates_x), c)
        # Not laid out as they are: a zero state has strides of 0.
        h_out, c_out = (torch.empty_like(z, memory_format=torch.channels_last) for z in (h, c))
        row_bytes = from_h.shape[0] * h.shape[3] * h.element_size()
        for i in range(h.shape[0]):
            one = slice(i, i + 1)
            for first, last, start, stop in split_rows(h.shape[2], row_bytes, 4):
                band = slice(first, last)
                pre = convolve(h[one, :, start:stop], from_h)[:, :, first - start : last - start]
                pre += gates_x[one, :, band]
                h_out[one, :, band], c_out[one, :, band] = apply_gates(pre, c[one, :, band])
        return h_out, c_out


def apply_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """lstm_gates in the dtypes given: under autocast the cell state comes from an aligner, in the autocast dtype."""
    with torch.autocast(pre.device.type, enabled=False):
        return lstm_gates(pre, c)


def repeat_batch(z: Tensor, batch: int) -> Tensor:
    """Repeat z (1 or B, ...) along the batch to frame-major (T*B, ...)."""
    return z.expand(batch, -1, -1, -1) if z.shape[0] == 1 else z.repeat(batch // z.shape[0], 1, 1, 1)


def batch_pieces(batch: int, frame: Tensor) -> list[slice]:
    """Slices of the 2B rows of a step to work on together: all, or parts of one direction where a frame is large."""
    frames = get_frames_per_chunk(frame)
    if frames is None or frames >= 2 * batch:
        return [slice(0, 2 * batch)]
    frames = min(frames, batch)
    starts = [way * batch + i for way in range(2) for i in range(0, batch, frames)]
    return [slice(i, min(i + frames, (i // batch + 1) * batch)) for i in starts]


def _picker(pair: int, batch: int, rows: slice) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """Take `rows` of the 2B frames of a pair out of the split maps; the middle frame, alone, stands for both."""
    wanted = rows.stop - rows.start

    def pick(pieces: tuple[Tensor, ...]) -> Tensor:
        frames = pieces[pair]
        found = frames.shape[0]  # len() would fix the size of a batch that a tracer leaves open
        if found < wanted:
            return torch.cat([frames] * 2)
        start = rows.start % found
        return frames if wanted == found else frames[start : start + wanted]

    return pick
