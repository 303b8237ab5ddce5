# SPDX-License-Identifier: Apache-2.0
"""Bidirectional deformable ConvLSTM over the frame features.

Both time directions share one set of weights and run as one batch of 2B. Everything that does not depend on the
recurrent state (the pyramids of the input features and their contributions to guides and gates) is computed before the
recurrence, for all T = 2N-1 frames at once. The frames are ordered 0, T-1, 1, T-2, ..., N-1, so that the two frames of
a step are a contiguous slice. The steps after the middle use the same pairs with the directions exchanged. Therefore
the states of the two directions are swapped once, after the middle step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastds.models.fczsm.aligner import DirectionalAligner, FeaturePyramid, SingleLevel
from fastds.models.fczsm.guidance import compute_state_offsets
from fastds.nn.chunks import can_chunk, get_frames_per_chunk, split_rows
from fastds.nn.convolutions import Conv1x1, Conv3x3, convolve
from fastds.ops import lstm_gates


@dataclass
class PrecomputedInput:
    """Part of a StateAligner that depends on the input x alone, for all frames or for one step.

    Attributes:
        pyramid: feature pyramid of x.
        x_share: contribution of x to the guides of the aligner that warps x toward the state, or None.
        state_share: contribution of x to the guides of the aligner that warps the state toward x.
    """

    pyramid: list
    x_share: list | None
    state_share: list

    def map(self, function: Callable[[Any], Any]) -> "PrecomputedInput":
        """Apply a function to every tensor and return the results in a new object."""
        x_share = None if self.x_share is None else [function(z) for z in self.x_share]
        return PrecomputedInput([function(z) for z in self.pyramid], x_share, [function(z) for z in self.state_share])


class StateAligner(nn.Module):
    """Align a recurrent state s with the input x.

    The result is mix[x_way(P(x) -> P(s)), state_way(P(s) -> P(x))] with the feature pyramid P, two directional aligners
    and a 1x1 convolution `mix`. With plain=True only the state is deformed, DCN(s | g[s, x]), as in equation 7.

    Args:
        features: number of channels.
        groups: offset groups of the deformable convolutions.
        plain: one pyramid level, see above.
        static_features: channels of the static features, 0 for none.
        modulated: deformable convolutions with a mask.

    Source: Chen, Qin and Dai 2022, eq. 6-7; Xiang et al. 2020 for both directions and the mix.
    """

    def __init__(self, features: int, groups: int, plain: bool, static_features: int, modulated: bool):
        super().__init__()
        self.plain = plain
        levels = 1 if plain else FeaturePyramid.levels
        self.pyramid = SingleLevel() if plain else FeaturePyramid(features)
        self.state_way = DirectionalAligner(features, groups, levels, static_features, modulated)
        if not plain:
            self.x_way = DirectionalAligner(features, groups, levels, static_features, modulated)
            self.mix = Conv1x1(2 * features, features)

    @property
    def levels(self) -> int:
        return len(self.state_way.levels)

    def precompute(self, x: Tensor, static: list[Tensor] | None) -> PrecomputedInput:
        """Compute the feature pyramid of x and its contributions to the guides, for all frames at once.

        The contributions include those of the static features.

        Args:
            x: (T*B, n, h, w).
            static: static features, one tensor of batch size 1 or B per level, or None.
        """
        pyramid = self.pyramid(x)
        static = None if static is None else static[: self.levels]
        shares: list[Any] = []
        for aligner, role in ((self.state_way, "target"), (None if self.plain else self.x_way, "source")):
            if aligner is None:
                shares.append(None)
                continue
            parts = [None if s is None else repeat_batch(s, x.shape[0]) for s in aligner.compute_static_share(static)]
            shares.append(aligner.compute_share(pyramid, role, parts))
        return PrecomputedInput(pyramid, shares[1], shares[0])

    def forward(self, x: PrecomputedInput, state: Tensor | None, base: tuple[list, list] | None) -> Tensor:
        """Align a state.

        Args:
            x: precomputed input of this step.
            state: (B, n, h, w), or None for the zero state.
            base: base offsets, see `guidance.compute_state_offsets`, or None.

        Returns:
            The aligned state, (B, n, h, w).
        """
        levels = self.pyramid.compute_from_zeros(x.pyramid[0]) if state is None else self.pyramid(state)
        x_base, state_base = (None, None) if base is None else base
        guides = self.state_way.complete_guides(x.state_share, levels, "source")
        warped_state = self.state_way.align(levels, guides, state_base)
        if self.plain:
            return warped_state
        assert x.x_share is not None  # unless plain
        guides = self.x_way.complete_guides(x.x_share, levels, "target")
        warped_x = self.x_way.align(x.pyramid, guides, x_base)
        return self.mix(warped_x, warped_state)


class DeformableConvLSTM(nn.Module):
    """Bidirectional ConvLSTM whose hidden and cell state are aligned with the input before every step.

        h~ = align_h(x, h);  c~ = align_c(x, c);  [i f o g] = conv3x3[x, h~]
        c' = sigmoid(f) c~ + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')
        H_t = merge[h_forward_t, h_backward_t]    (1x1)

    There are no peepholes. The zero state of the first step is also passed through the aligners.

    Args:
        features, groups, plain, static_features, modulated: as for StateAligner.

    Shapes: forward(frames) takes T = 2N-1 feature maps (B, n, h, w) in time order and returns (T*B, n, h, w),
    frame-major.

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
        """Run over the frames in both directions of time.

        Args:
            frames: T = 2N-1 feature maps (B, n, h, w) in time order.
            static: static features, one tensor of batch size 1 or B per level, or None.
            flow: (B, N-1, 2, 2, h, w), optical flow as baselines.optical_flow returns it, or None.

        Returns:
            (T*B, n, h, w), frame-major.
        """
        steps, batch = len(frames), frames[0].shape[0]
        middle = steps // 2
        order = [k for pair in zip(range(middle), range(steps - 1, middle, -1), strict=True) for k in pair] + [middle]
        x = torch.cat([frames[k] for k in order])
        aligners = (self.align_h, self.align_c)
        # One split: its gradient is one concatenation, while each slice would have a zero-padded gradient.
        sizes = [2 * batch] * middle + [batch]
        inputs = [aligner.precompute(x, static).map(lambda z: z.split(sizes)) for aligner in aligners]
        from_x, from_h, bias = self.split_gate_parameters()
        gates_x = convolve(x, from_x, bias).split(sizes)
        state: Any = None
        hidden = []
        for step in range(steps):
            forward_first = step <= middle
            if step == middle + 1:
                state = [torch.cat(z.split([batch] * 2)[::-1]) for z in state]
            base = None if flow is None else compute_state_offsets(flow, step, forward_first, self.align_h.levels)
            parts = []
            for rows in split_batch(batch, frames[0]):
                select = _make_frame_selector(min(step, steps - 1 - step), batch, rows)
                old = (None, None) if state is None else (z[rows] for z in state)
                offsets = None if base is None else [[z[rows] for z in levels] for levels in base]
                h, c = (a(x.map(select), z, offsets) for a, x, z in zip(aligners, inputs, old, strict=True))
                parts.append(self.run_cell(h, c, select(gates_x), from_h))
            state = [torch.cat(z) if len(z) > 1 else z[0] for z in zip(*parts, strict=True)]
            first, second = state[0].split([batch] * 2)
            hidden.append((first, second) if forward_first else (second, first))
        return torch.cat([self.merge(hidden[t][0], hidden[steps - 1 - t][1]) for t in range(steps)])

    def split_gate_parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gate weights for x and for h and the bias, in the gate order i, f, g, o of fastds.ops.lstm_gates.

        The parameters of the module have the order i, f, o, g.
        """

        def ordered(z: Tensor) -> Tensor:
            i, f, o, g = z.chunk(4)
            return torch.cat([i, f, g, o])

        bias = self.gates.bias
        assert bias is not None
        from_x, from_h = ordered(self.gates.weight).split(self.features, 1)
        return from_x.contiguous(), from_h.contiguous(), ordered(bias)

    def run_cell(self, h: Tensor, c: Tensor, gates_x: Tensor, from_h: Tensor) -> tuple[Tensor, Tensor]:
        """Run one step.

        Args:
            h: aligned hidden state.
            c: aligned cell state.
            gates_x: contribution of x to the gates.
            from_h: gate weights for h, see `split_gate_parameters`.

        Returns:
            The new states (h, c).
        """
        if not can_chunk(h):
            return apply_gates(convolve(h, from_h, residual=gates_x), c)
        # channels_last, not the strides of the inputs, because a zero state has strides of 0.
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
    """Apply lstm_gates without autocast, in the dtypes of the arguments.

    Under autocast the cell state comes from an aligner and has the autocast dtype.
    """
    with torch.autocast(pre.device.type, enabled=False):
        return lstm_gates(pre, c)


def repeat_batch(z: Tensor, batch: int) -> Tensor:
    """Repeat z along the batch to frame-major order.

    Args:
        z: (1 or B, ...).
        batch: T*B.
    """
    return z.expand(batch, -1, -1, -1) if z.shape[0] == 1 else z.repeat(batch // z.shape[0], 1, 1, 1)


def split_batch(batch: int, frame: Tensor) -> list[slice]:
    """Split the 2B rows of a step into slices that are processed one after the other.

    Args:
        batch: B.
        frame: a feature map, whose size decides how many rows one slice has. Small feature maps give one slice, large
            ones give parts of one direction.
    """
    frames = get_frames_per_chunk(frame)
    if frames is None or frames >= 2 * batch:
        return [slice(0, 2 * batch)]
    frames = min(frames, batch)
    starts = [direction * batch + i for direction in range(2) for i in range(0, batch, frames)]
    return [slice(i, min(i + frames, (i // batch + 1) * batch)) for i in starts]


def _make_frame_selector(pair: int, batch: int, rows: slice) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """Make a function that selects rows of a pair of frames from split tensors.

    Args:
        pair: index of the pair. The last index is the middle frame, which stands for both frames of its pair.
        batch: B.
        rows: slice of the 2B rows.
    """
    requested = rows.stop - rows.start

    def select(parts: tuple[Tensor, ...]) -> Tensor:
        frames = parts[pair]
        found = frames.shape[0]  # not len(), which would fix a symbolic batch size
        if found < requested:
            return torch.cat([frames] * 2)
        start = rows.start % found
        return frames if requested == found else frames[start : start + requested]

    return select
