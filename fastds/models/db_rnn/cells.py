# SPDX-License-Identifier: Apache-2.0
"""Recurrent cells of the DB-RNN family: ConvLSTM, ConvGRU, TrajGRU, PredRNN and variants, MIM, MotionRNN, PrecipLSTM.

In the equations s is the sigmoid function, products of activations are elementwise, and W x is a convolution.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastds.models.db_rnn.activation_checkpointing import checkpoint_activations
from fastds.models.db_rnn.cell_base import Cell, Step, fold_embedding, zeros
from fastds.nn.convolutions import Conv1x1, Conv3x3, MultiInputConv3x3, MultiInputConv5x5, convolve
from fastds.ops import (
    conv_gru_cell,
    conv_lstm_cell,
    conv_memory_gates,
    conv_output_gate,
    conv_st_lstm_gates,
    deform_conv2d,
    gru_reset,
    gru_update,
    memory_gates,
    output_gate,
    st_lstm_gates,
    traj_gru_gates,
    window_attention2d,
)
from fastds.ops.core.settings import ProcessSetting
from fastds.ops.impl.conv_rnn.fused import slice_first_source


def sample_links(
    x: Tensor, flow: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None, align_corners: bool = False
) -> Tensor:
    """Sample a feature map at several learned displacements and return weighted sums of the samples.

        y = bias + sum_{c,l} weight[:, c, l] mask_l S(x_c, p + flow_l)

    S samples bilinearly, with zeros outside. The function calls one deformable convolution.

    Args:
        x: (B, C, H, W).
        flow: (B, 2L, H, W), in pixels: a pair (along x, along y) for each of L links.
        weight: (O, C, L).
        bias: (O,).
        mask: (B, L, H, W) or None.
        align_corners: True samples at p + flow. False reproduces the authors' code, which normalises positions along an
            axis of n pixels by n-1 and denormalises them by n. That code samples at (p + flow) n/(n-1) - 1/2, so that
            even zero flow shifts by up to half a pixel.

    Returns:
        (B, O, H, W).
    """
    dx, dy = flow.to(torch.promote_types(flow.dtype, torch.float32)).unflatten(1, (-1, 2)).unbind(2)
    if not align_corners:
        dy, dx = _shift_convention(dy.mT).mT, _shift_convention(dx)
    return deform_conv2d(x, torch.stack([dy, dx], 2).flatten(1, 2), weight.unsqueeze(2), bias, 1, 0, 0, mask)


def _shift_convention(d: Tensor) -> Tensor:
    """Convert displacements along the last axis so that samples are taken where the authors' code takes them.

    Along an axis of n pixels, pixel p with displacement d is then sampled at (p + d) n/(n-1) - 1/2 instead of p + d.
    """
    n = d.shape[-1]
    scale = n / max(n - 1, 1)
    return d * scale + (torch.arange(n, dtype=d.dtype, device=d.device) * (scale - 1) - 0.5)


class ConvLSTM(Cell):
    """Convolutional LSTM with state (h, c).

        [i f g o] = Wx x + Wh h;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(c')

    Source: Shi et al. 2015, equation 3 without peepholes.
    """

    uniform_sizes = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = MultiInputConv3x3((channels, channels), 4 * channels)

    def fold(self, embed: Conv1x1) -> tuple[Tensor, ...]:
        return (fold_embedding(self.gates, embed),)

    def forward(
        self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None, folded: tuple[Tensor, ...] | None = None
    ) -> Step:
        h, c = (None, zeros(x, self.channels, memory=True)) if state is None else state
        weight = self.gates.weight if folded is None else folded[0]
        h, c = conv_lstm_cell(x, h, c, weight, self.gates.sum_biases())
        return h, (h, c), None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute unscaled attention of each pixel to all pixels.

    Args:
        q: (B, C', H, W), queries.
        k: (B, C', H, W), keys.
        v: (B, C, H, W), values.

    Returns:
        (B, C, H, W).
    """
    q_, k_, v_ = (t.flatten(2).transpose(1, 2).unsqueeze(1) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q_, k_, v_, scale=1.0)
    return y.squeeze(1).transpose(1, 2).unflatten(2, q.shape[2:])


class SelfAttentionMemory(nn.Module):
    """Memory that attends to the whole field.

        Z = Wz [attend(q_h, k_h, v_h); attend(q_h, k_m, v_m)];  i, o = s(W [Z; h]), g = tanh(W [Z; h])
        m' = (1 - i) m + i g;  h' = o m'

    The cost grows with the square of the number of pixels.

    Args:
        channels: number C of channels of h and m. Queries and keys have C / 2 channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = max(channels // 2, 1)
        self.sizes = (half, half, channels)
        self.of_h = Conv1x1(channels, 2 * half + channels)
        self.of_m = Conv1x1(channels, half + channels)
        self.mix = Conv1x1(2 * channels, channels)
        self.gates = MultiInputConv3x3((channels, channels), 3 * channels)

    def forward(self, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        q, k_h, v_h = self.of_h(h).split(self.sizes, 1)
        k_m, v_m = self.of_m(m).split(self.sizes[1:], 1)
        z = self.mix(attend(q, k_h, v_h), attend(q, k_m, v_m))
        i, g, o = self.gates(z, h).chunk(3, 1)
        m = gru_update(torch.sigmoid(i), g, m, keep="1-z")
        return torch.sigmoid(o) * m, m


class SAConvLSTM(Cell):
    """ConvLSTM whose hidden state passes through a self-attention memory. The state is (h, c, memory).

    Source: Lin et al. 2020, Self-Attention ConvLSTM for Spatiotemporal Prediction, equations 3 to 7, with 3x3 gates.
    """

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = MultiInputConv3x3((channels, channels), 4 * channels)
        self.attention = SelfAttentionMemory(channels)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h, c, memory = (zeros(x), zeros(x, memory=True), zeros(x)) if state is None else state
        h, c = conv_lstm_cell(x, h, c, self.gates.weight, self.gates.sum_biases())
        h, memory = self.attention(h, memory)
        return h, (h, c, memory), None


class MKLSTM(Cell):
    """LSTM with one memory for small structures and one for large structures. The state is (h, c, wide).

        [i f g q] = Wx x + Wh h;  c' = s(f) c + s(i) tanh(g)                        (3x3)
        [i' f' g' q'] = Vx x + Vh h;  wide' = s(f') wide + s(i') tanh(g')           (5x5)
        h' = s(q + q' + Wco c' + Vco wide') tanh(W1 [c'; wide'])

    Source: Ma, Zhang and Liu 2023, MS-LSTM: Exploring Spatiotemporal Multiscale Representations in Video Prediction
    Domain.
    """

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        n, pair = channels, (channels, channels)
        self.gates, self.wide_gates = MultiInputConv3x3(pair, 4 * n), MultiInputConv5x5(pair, 4 * n)
        self.output, self.wide_output = Conv3x3(n, n), MultiInputConv5x5((n,), n)
        self.mix = Conv1x1(2 * n, n)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h, c, wide = (zeros(x), zeros(x, memory=True), zeros(x, memory=True)) if state is None else state
        c, q = conv_st_lstm_gates(x, h, c, self.gates.weight, self.gates.sum_biases())
        wide, wide_q = st_lstm_gates(self.wide_gates(x, h), wide)
        small, large = c.to(x.dtype), wide.to(x.dtype)
        gate = self.output(small, residual=self.wide_output(large, residual=q) + wide_q)
        h = output_gate(gate, self.mix(small, large))
        return h, (h, c, wide), None


class ConvGRU(Cell):
    """Convolutional GRU with state h.

        [z r] = s(Wx x + Wh h);  n = tanh(Wnx x + Wnh (r h));  h' = z h + (1-z) n

    Source: Ballas et al. 2016, equations 5 to 8.
    """

    uniform_sizes = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = MultiInputConv3x3((channels, channels), 2 * channels)
        self.candidate = MultiInputConv3x3((channels, channels), channels)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h = zeros(x) if state is None else state
        gates, candidate = self.gates, self.candidate
        h = conv_gru_cell(x, h, gates.weight, gates.sum_biases(), candidate.weight, candidate.sum_biases())
        return h, h, None


TRAJ_GRU_SLOPE = 0.2


class TrajGRU(Cell):
    """GRU whose state is sampled along L learned trajectories. The state is h.

        [zx rx nx] = Wx x;  F = Wf leaky(Wxf x + Whf h);  h_l = S(h, p - F_l);  [zh rh nh] = Wp [h_1; ..; h_L]
        z = s(zx + zh);  r = s(rx + rh);  n = leaky(nx + r nh);  h' = (1-z) n + z h

    Args:
        links: number L of trajectories.
        warp_align_corners: `align_corners` of sample_links.

    Source: Shi et al. 2017, Deep Learning for Precipitation Nowcasting, equation 2; sizes of MS-RNN.
    """

    def __init__(self, channels: int, layer: int, layers: int, links: int = 10, warp_align_corners: bool = False):
        super().__init__(channels, layer, layers)
        self.warp_align_corners = warp_align_corners
        self.input = Conv3x3(channels, 3 * channels)
        self.flow_hidden = MultiInputConv3x3((channels, channels), channels)
        self.flow = Conv3x3(channels, 2 * links)
        self.project_weight = nn.Parameter(torch.empty(3 * channels, channels, links))
        self.project_bias = nn.Parameter(torch.empty(3 * channels))
        bound = 1 / math.sqrt(channels * links)
        nn.init.uniform_(self.project_weight, -bound, bound)
        nn.init.uniform_(self.project_bias, -bound, bound)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h = zeros(x) if state is None else state
        flow = self.flow(F.leaky_relu(self.flow_hidden(x, h), TRAJ_GRU_SLOPE))
        gathered = sample_links(h, -flow, self.project_weight, self.project_bias, align_corners=self.warp_align_corners)
        h = traj_gru_gates(self.input(x), gathered, h, negative_slope=TRAJ_GRU_SLOPE)
        return h, h, None


class SpatialMemory(nn.Module):
    """Zigzag memory of an ST-LSTM, and the output of the ST-LSTM.

    [i f g] = Wx' x + Wm m;  m' = s(f) m + s(i) tanh(g)
    h' = s(q + Wco c' + Wmo m') tanh(W1 [c'; m'])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.memory = MultiInputConv3x3((channels, channels), 3 * channels)
        self.output = MultiInputConv3x3((channels, channels), channels)
        self.mix = Conv1x1(2 * channels, channels)

    def update(self, x: Tensor, m: Tensor | None, weight: Tensor | None = None) -> Tensor:
        """Compute m'.

        Args:
            x: (B, C, H, W), input.
            m: zigzag memory or None for zeros.
            weight: weight of the gates, if the frame embedding is folded into it; None takes the weight of the module.
        """
        weight, bias = self.memory.weight if weight is None else weight, self.memory.sum_biases()
        if m is None:
            return conv_memory_gates(x, None, zeros(x, len(bias) // 3, memory=True), weight, bias)
        return conv_memory_gates(x, m.to(x.dtype), m, weight, bias)

    def emit(self, q: Tensor, c: Tensor, m: Tensor) -> Tensor:
        """Compute the new hidden state h'.

        Args:
            q: contribution of x and h to the pre-activation of the output gate.
            c: new temporal memory c'.
            m: new zigzag memory m'.
        """
        c, m = c.to(q.dtype), m.to(q.dtype)
        value = self.mix(c, m)
        with checkpoint_activations((value, self.mix, c, m)):
            return conv_output_gate(c, m, value, self.output.weight, self.output.sum_biases(), residual=q)

    def emit_with_gate(self, q: Tensor, c: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the new hidden state h' and the pre-activation of the output gate.

        Args:
            q: contribution of x and h to the pre-activation of the output gate.
            c: new temporal memory c'.
            m: new zigzag memory m'.

        Returns:
            h' and the pre-activation.
        """
        c, m = c.to(q.dtype), m.to(q.dtype)
        gate = self.output(c, m, residual=q)
        return output_gate(gate, self.mix(c, m)), gate


class PredRNN(Cell):
    """ST-LSTM with state (h, c).

        [i f g q] = Wx x + Wh h;  c' = s(f) c + s(i) tanh(g)
        [i' f' g'] = Wx' x + Wm m;  m' = s(f') m + s(i') tanh(g')
        h' = s(q + Wco c' + Wmo m') tanh(W1 [c'; m'])

    Source: Wang et al. 2017, PredRNN, equation 3.
    """

    zigzag = True
    uniform_sizes = True

    def __init__(self, channels: int, layer: int, layers: int):
        super().__init__(channels, layer, layers)
        self.gates = MultiInputConv3x3((channels, channels), 4 * channels)
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
    """Gradient highway unit of PredRNN++: forward(x, z or None) -> z'.

    [p q] = Ux x + Uz z;  z' = s(q) tanh(p) + (1 - s(q)) z
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gates = MultiInputConv3x3((channels, channels), 2 * channels)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        z = zeros(x) if z is None else z
        p, q = self.gates(x, z).chunk(2, 1)
        return gru_update(torch.sigmoid(q), p, z, keep="1-z")


class PredRNNPP(Cell):
    """Causal LSTM of PredRNN++, with a gradient highway before the cell of layer 1. The state is (h, c, z).

        layer 1: x <- z' = highway(x, z)
        [i f g] = Wa [x; h; c];    c' = s(f) c + s(i) tanh(g)
        [i' f' g'] = Wb [x; c'; m];  m' = s(f') tanh(Wm m) + s(i') tanh(g')
        h' = tanh(Wo [x; c'; m']) tanh(W1 [c'; m'])

    Args:
        all_highways: True creates a highway in every layer, although only layer 1 uses it. The number of parameters is
            then that of the authors' code.

    Source: Wang et al. 2018, PredRNN++, equations 1 and 2.
    """

    zigzag = True

    def __init__(self, channels: int, layer: int, layers: int, all_highways: bool = False):
        super().__init__(channels, layer, layers)
        n = channels
        self.highway: Any = GradientHighway(n) if layer == 1 or all_highways else None
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
        # The contributions of x to all three convolutions are computed as one convolution.
        n, convs = self.channels, (self.temporal, self.spatial, self.output)
        weight = torch.cat([conv.weight[:, :n] for conv in convs])
        biases: list[Any] = [conv.bias for conv in convs]
        shares = convolve(x, weight, torch.cat(biases)).split([3 * n, 3 * n, n], 1)
        c = memory_gates(self._convolve_rest(self.temporal, h, c, shares[0]), c)
        forget = self.forget(m.to(x.dtype))
        m = memory_gates(
            self._convolve_rest(self.spatial, c, m, shares[1]), forget.to(m.dtype), state_activation="tanh"
        )
        gate = self._convolve_rest(self.output, c, m, shares[2])
        h = output_gate(gate, self.mix(c.to(x.dtype), m.to(x.dtype)), activation="tanh")
        return h, (h, c, z), m

    def _convolve_rest(self, conv: Conv3x3, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
        """Convolve [x; a; b], given the contribution of x."""
        dtype = share.dtype
        return convolve(a.to(dtype), conv.weight[:, self.channels :], second_input=b.to(dtype), residual=share)


_collectors: ContextVar[tuple[list[Tensor], ...]] = ContextVar("memory similarities", default=())
# Replaces the context variable in compiled functions, because Dynamo cannot read context variables.
_last_of_process = ProcessSetting(None, suspends_plans=False)


@contextmanager
def memory_similarities() -> Iterator[list[Tensor]]:
    """Collect the similarity of the two memory increments of all PredRNN-V2 cells that are called in this context.

    Each thread and each asynchronous task has its own contexts, but compiled functions use the last context of the
    process. If several contexts are open, the last one collects. Outside of a context the cells do not compute the
    similarity.

    Yields:
        A list to which each cell appends |cosine|, (B, C), per channel; see `decoupling_loss`.
    """
    similarities: list[Tensor] = []
    _collectors.set((*_collectors.get(), similarities))
    try:
        with _last_of_process.set(similarities):
            yield similarities
    finally:
        _collectors.set(tuple(other for other in _collectors.get() if other is not similarities))


def _get_collector() -> list[Tensor] | None:
    if torch.compiler.is_compiling():
        return _last_of_process.value
    return next(reversed(_collectors.get()), None)


def decoupling_loss(similarities: list[Tensor], steps: int) -> Tensor | float:
    """Compute the memory decoupling loss of PredRNN-V2.

    The loss is the sum of |cosine| over cells and channels, averaged over samples and time steps.

    Args:
        similarities: similarities of all cells and time steps, see `memory_similarities`.
        steps: number of time steps.

    Returns:
        A scalar tensor, or 0.0 for an empty list.

    Source: Wang et al. 2023, PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning, memory
    decoupling.
    """
    return sum(cosine.sum(1).mean() for cosine in similarities) / steps if similarities else 0.0


class PredRNNV2(PredRNN):
    """PredRNN cell that also measures the similarity of the increments of its two memories.

        d = s(i) tanh(g), d' = s(i') tanh(g');  |cos| = |<A d, A d'>| / (|A d| |A d'|), per channel, over the pixels

    A is a 1x1 convolution that all cells of a module share. While similarities are collected, pre-activations are saved
    for the backward even with recompute=True.

    Source: Wang et al. 2023, PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning, memory
    decoupling.
    """

    @classmethod
    def shared(cls, channels):
        return Conv1x1(channels, channels)

    def forward(self, x, state, m, previous, folded=None, shared=None):
        """Run one time step, and collect the similarity of the memory increments if `memory_similarities` is active.

        Args:
            x: (B, C, H, W), input; (B, 2, H, W) with folded weights, see Cell.fold.
            state: (h, c) of the previous step, or None for zeros.
            m: zigzag memory (B, C, H, W), or None for zeros.
            previous: not used.
            folded: result of `fold`, or None.
            shared: 1x1 convolution A of all cells of the module. It is used only while similarities are collected.

        Returns:
            h, the new state (h, c), and the new zigzag memory.
        """
        similarities = _get_collector()
        if similarities is None:
            return super().forward(x, state, m, previous, folded)
        h, c = (None, zeros(x, self.channels, memory=True)) if state is None else state
        weight, memory_weight = (self.gates.weight, self.spatial.memory.weight) if folded is None else folded

        pre = _convolve(x, h, weight, self.gates.sum_biases())
        i, _, g, _ = pre.chunk(4, 1)
        c, q = st_lstm_gates(pre, c)
        added = shared(output_gate(i, g))

        pre = _convolve(x, m, memory_weight, self.spatial.memory.sum_biases())
        i, _, g = pre.chunk(3, 1)
        m = memory_gates(pre, zeros(x, self.channels, memory=True) if m is None else m)
        similarities.append(F.cosine_similarity(added.flatten(2), shared(output_gate(i, g)).flatten(2), dim=2).abs())

        h = self.spatial.emit(q, c, m)
        return h, (h, c), m


def _convolve(x: Tensor, x2: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve [x; x2] with weight and bias. x2 is None for zeros."""
    weight = slice_first_source(weight, x) if x2 is None else weight
    return convolve(x, weight, bias, second_input=x2 if x2 is None else x2.to(x.dtype))


class MemoryInMemory(nn.Module):
    """Cascade of MIM that replaces the forget gate: a non-stationary memory n feeds a stationary memory s.

        [i f g] = Wnx d + Wnn n;  n' = s(f) n + s(i) tanh(g);  D = s(Wno d + Wno2 n') tanh(n')
        [i f g q] = Wsx D + Wsc c;  s' = s(f) s + s(i) tanh(g);  T = s(q + Wso s') tanh(s')

    forward(d, c, n, s) -> (T, n', s').
    """

    def __init__(self, channels: int):
        super().__init__()
        pair = (channels, channels)
        self.changing = MultiInputConv3x3(pair, 3 * channels)
        self.changing_output = MultiInputConv3x3(pair, channels)
        self.steady = MultiInputConv3x3(pair, 4 * channels)
        self.steady_output = Conv3x3(channels, channels)

    def forward(self, d: Tensor, c: Tensor, n: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run one time step.

        Args:
            d: (B, C, H, W), change of the input since the previous step.
            c: (B, C, H, W), temporal memory of the previous step.
            n: (B, C, H, W), non-stationary memory of the previous step.
            s: (B, C, H, W), stationary memory of the previous step.

        Returns:
            T and the new memories n' and s', each (B, C, H, W).
        """

        def weights(module: Any) -> tuple[Tensor, Tensor]:
            return module.weight, module.sum_biases()

        n = conv_memory_gates(d, n.to(d.dtype), n, *weights(self.changing))
        steady_input = conv_output_gate(d, n.to(d.dtype), n, *weights(self.changing_output))
        s, q = conv_st_lstm_gates(steady_input, c.to(d.dtype), s, *weights(self.steady))
        return output_gate(self.steady_output(s.to(d.dtype), residual=q), s), n, s


class MIM(Cell):
    """Memory in memory (MIM): an ST-LSTM in which a cascade of two memories replaces the forget gate.

    Layer 0 is the cell of PredRNN. The other layers compute, with d = x - previous and the cascade MemoryInMemory:

        T = cascade(d, c);  [i g q] = Wx x + Wh h;  c' = T + s(i) tanh(g);  m' and h' as in PredRNN

    The state is (h, c, n, s), with n and s None in layer 0.

    Args:
        difference: see Cell.
        keep_dead: True creates the cascade in layer 0, too, which does not use it. The number of parameters is then
            that of the authors' code.

    Source: Wang et al. 2019, Memory in Memory, equations 2 to 4, without its unused forget gate; sizes of MS-RNN.
    """

    zigzag = True

    def __init__(self, channels: int, layer: int, layers: int, difference: str = "hidden", keep_dead: bool = False):
        super().__init__(channels, layer, layers)
        if difference not in ("hidden", "input"):
            raise ValueError(f"difference must be 'hidden' or 'input', got {difference!r}")
        self.difference = difference if layer else None
        self.gates = MultiInputConv3x3((channels, channels), (3 if layer else 4) * channels)
        self.cascade: Any = MemoryInMemory(channels) if layer or keep_dead else None
        self.spatial = SpatialMemory(channels)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        h, state, m, _ = self.run_core(x, state, m, previous)
        return h, state, m

    def run_core(
        self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        """Run one time step, and also return the pre-activation of the output gate.

        Args:
            x: (B, C, H, W), input.
            state: (h, c, n, s) of the previous step, or None for zeros.
            m: zigzag memory (B, C, H, W), or None for zeros.
            previous: (B, C, H, W), see `difference` of Cell, or None for zeros. Not used in layer 0.

        Returns:
            h, the new state (h, c, n, s), the new zigzag memory, and the pre-activation of the output gate.
        """
        if state is None:
            memories = [zeros(x, memory=True) if k == 0 or self.layer else None for k in range(3)]
            state = (None if self.layer == 0 else zeros(x), *memories)
        h, c, n, s = state
        count = self.channels
        if self.layer == 0:
            c, q = conv_st_lstm_gates(x, h, c, self.gates.weight, self.gates.sum_biases())
        else:
            i, g, q = self.gates(x, h).split(count, 1)
            carried, n, s = self.cascade(x if previous is None else x - previous, c, n, s)
            c = (carried + output_gate(i, g)).to(c.dtype)
        m = self.spatial.update(x, m)
        h, gate = self.spatial.emit_with_gate(q, c, m)
        return h, (h, c, n, s), m, gate


TREND_PACE = 0.5  # alpha of the trend update
MOTION_LINKS = 9  # k^2


class MotionGRU(nn.Module):
    """Warp features along a flow with a transient and a trend component, at half resolution. The state is (F, V).

        e = We h (2x2, stride 2);  u, r = s([Wu, Wr] [e; F]);  n = tanh(Wz [e; r F])
        V' = V + alpha (F - V);  F' = u n + (1-u) F + V'
        y = Wd [mask_j S(e, p + F'_j)]_j,  mask = s(Wmask e);  hd = Wt y (4x4 transposed, stride 2)
        g = s(Wg [hd; h]);  result g h + (1-g) hd

    Source: Wu et al. 2021, MotionRNN, equations 3 to 7.
    """

    def __init__(self, channels: int, warp_align_corners: bool):
        super().__init__()
        self.warp_align_corners = warp_align_corners
        quarter, flow = channels // 4, 2 * MOTION_LINKS
        self.encode = nn.Conv2d(channels, quarter, 2, stride=2)
        self.gates = Conv1x1(quarter + flow, 2 * flow)
        self.candidate = Conv1x1(quarter + flow, flow)
        self.mask = Conv1x1(quarter, MOTION_LINKS)
        self.gather = Conv1x1(quarter * MOTION_LINKS, quarter)  # input channels are ordered by channel, then by link
        self.decode = nn.ConvTranspose2d(quarter, channels, 4, stride=2, padding=1)
        self.blend = Conv1x1(2 * channels, channels)

    def forward(self, h: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        e = self.encode(h)
        if state is None:
            blank = torch.zeros(e.shape[0], 2 * MOTION_LINKS, *e.shape[2:], dtype=e.dtype, device=e.device)
            state = (blank, blank)
        flow, trend = (t.to(memory_format=torch.channels_last) for t in state)
        u, reset = gru_reset(*self.gates(e, flow).chunk(2, 1), flow)  # type: ignore[call-arg]  # two chunks
        transient = gru_update(u, self.candidate(e, reset), flow, keep="1-z")
        trend = torch.lerp(trend, flow, TREND_PACE)
        flow = transient + trend
        weight = self.gather.weight.view(e.shape[1], e.shape[1], MOTION_LINKS)
        mask = torch.sigmoid(self.mask(e))
        assert self.gather.bias is not None
        moved = sample_links(e, flow, weight, self.gather.bias, mask, self.warp_align_corners)
        moved = self.decode(moved)
        return torch.lerp(moved, h, torch.sigmoid(self.blend(moved, h))), (flow, trend)


class MotionRNN(MIM):
    """MIM followed by MotionGRU and a highway of the input: h' = MotionGRU(h) + (1 - o) x. The last layer has neither.

    The state is MIM's state with h' instead of h, and MotionGRU's state.

    Args:
        warp_align_corners: `align_corners` of sample_links.
        difference: see Cell.

    Source: Wu et al. 2021, MotionRNN; sizes of MS-RNN. The authors' code mixes up the flows of samples and links in a
    batch. Here each sample has its own flow, so weights that were trained with the authors' code give different
    results.
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
        h, inner, m, gate = self.run_core(x, inner, m, previous)
        if self.motion is not None:
            moved, motion = self.motion(h, motion)
            h = moved + x - torch.sigmoid(gate) * x
        return h, ((h, *inner[1:]), motion), m


class LocalAttention(nn.Module):
    """Residual attention in a window around each pixel: y = x + Wa attention(Wq x, Wk x, Wv x).

    The convolutions of queries, keys and values have no bias.
    """

    def __init__(self, channels: int, window: int, kernel: int):
        super().__init__()
        self.window = window
        conv = {1: Conv1x1, 3: Conv3x3}[kernel]
        self.qkv = conv(channels, 3 * channels, bias=False)
        self.output = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(window_attention2d(*self.qkv(x).chunk(3, 1), window=self.window), residual=x)


class PrecipLSTM(Cell):
    """LSTM with four memories on locally attended input. The state is (h, c, ms, mt).

        y = attention(x)
        [i f g q] = Wx y + Wh h;  c' = s(f) c + s(i) tanh(g)
        h' = s(q + Wco c' + Wso ms' + Wto mt' + Wmo m') tanh(W1 [c'; ms'; mt'; m'])

    The zigzag memory m, ms and mt are updated as m in PredRNN. Their inputs are y, y and x - previous.

    Args:
        window: size of the attention window in pixels, even.
        qkv_kernel: kernel size of the convolutions of queries, keys and values: 1 (the authors' code) or 3.

    Source: Ma et al. 2022, PrecipLSTM.
    """

    zigzag = True
    difference = "input"

    def __init__(self, channels: int, layer: int, layers: int, window: int = 30, qkv_kernel: int = 1):
        super().__init__(channels, layer, layers)
        if qkv_kernel not in (1, 3):
            raise ValueError(f"qkv_kernel must be 1 or 3, got {qkv_kernel!r}")
        n, pair = channels, (channels, channels)
        self.attention = LocalAttention(n, window, qkv_kernel)
        self.gates = MultiInputConv3x3(pair, 4 * n)
        self.zigzag_gates = MultiInputConv3x3(pair, 3 * n)
        self.spatial_gates = MultiInputConv3x3(pair, 3 * n)
        self.temporal_gates = MultiInputConv3x3(pair, 3 * n)
        self.output = MultiInputConv3x3((n,) * 4, n)
        self.mix = Conv1x1(4 * n, n)

    def forward(self, x: Tensor, state: Any, m: Tensor | None, previous: Tensor | None) -> Step:
        if state is None:
            state = (None, *(zeros(x, memory=True) for _ in range(3)))
        h, c, ms, mt = state
        m = zeros(x, memory=True) if m is None else m
        y = self.attention(x)
        c, q = conv_st_lstm_gates(y, h, c, self.gates.weight, self.gates.sum_biases())

        def update_memory(module: MultiInputConv3x3, source: Tensor, memory: Tensor) -> Tensor:
            weights = module.weight, module.sum_biases()
            return conv_memory_gates(source, memory.to(source.dtype), memory, *weights)

        m, ms = update_memory(self.zigzag_gates, y, m), update_memory(self.spatial_gates, y, ms)
        mt = update_memory(self.temporal_gates, x if previous is None else x - previous, mt)
        memories = [t.to(x.dtype) for t in (c, ms, mt, m)]
        h = output_gate(self.output(*memories, residual=q), self.mix(torch.cat(memories, 1)))
        return h, (h, c, ms, mt), m


CELLS: dict[str, type[Cell]] = {
    "convlstm": ConvLSTM,
    "convgru": ConvGRU,
    "trajgru": TrajGRU,
    "predrnn": PredRNN,
    "predrnn++": PredRNNPP,
    "mim": MIM,
    "motionrnn": MotionRNN,
    "preciplstm": PrecipLSTM,
    "predrnn-v2": PredRNNV2,
    "sa-convlstm": SAConvLSTM,
    "mk-lstm": MKLSTM,
}


def build_cell(name: str, channels: int, layer: int, layers: int, **options: Any) -> Cell:
    """Build a cell by name.

    Args:
        name: key of CELLS.
        channels: number of channels.
        layer: index of the layer.
        layers: number of layers of the module.
        options: further arguments of the cell's class.

    Raises:
        ValueError: If the name is unknown or the cell does not accept an option.
    """
    if name not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {name!r}")
    try:
        return CELLS[name](channels, layer, layers, **options)
    except TypeError as error:
        raise ValueError(f"cell {name!r} does not take the options {options}: {error}") from None
