# SPDX-License-Identifier: Apache-2.0
"""Convolutional recurrent cells: 3x3 convolutions of input and state, and the gates in one pass over memory."""

import torch
from torch import Tensor, nn

from fastds.nn.convolutions import Conv3x3, convolve
from fastds.ops import conv_gru_cell, conv_lstm_cell, gru_update, lstm_gates


def zero_state(x: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Zeros (B, channels, H, W) on the device of x (B, C, H, W), channels_last; dtype None is that of x."""
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.zeros(shape, dtype=dtype or x.dtype, device=x.device).to(memory_format=torch.channels_last)


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of a cell state for input x: that of x, but at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def split_sources(conv: Conv3x3, channels: int) -> tuple[Tensor, Tensor]:
    """The weights of a convolution for its first `channels` input channels and for the rest, each dense."""
    return conv.weight[:, :channels].contiguous(), conv.weight[:, channels:].contiguous()


def by_time(x: Tensor) -> Tensor:
    """Fold a sequence (B, T, C, H, W) to time-major (T*B, C, H, W). Raises: ValueError for another shape or T = 0."""
    if x.dim() != 5 or x.shape[1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected a sequence (B, T, C, H, W) of one time or more")
    return x.transpose(0, 1).flatten(0, 1)


def per_time(folded: Tensor, batch: int, times: int) -> tuple[Tensor, ...]:
    """The T maps (B, ...) of what by_time folded; also where B = 0."""
    return folded.unflatten(0, (times, batch)).unbind()


def hoisting_pays(x: Tensor, weight: Tensor, hidden: int) -> bool:
    """Whether one convolution of a sequence x (B, T, C, H, W) beats x's part of every step's, as measured on a CPU.

    It reads its weights once, and its gradients are those of one call; but what it gives, several maps of the state's
    channels for each time, is written and read again, which the steps' fused gates avoid.
    """
    if not x.is_cpu:
        return True
    batch, _, inputs, height, width = x.shape
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return 16 * batch * height * width <= inputs * hidden or (trains and inputs > hidden)


class ConvLSTMCell(nn.Module):
    """Convolutional LSTM, 3x3, no peepholes.

        [i f g o] = conv3x3([x; h]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        in_channels, hidden_channels: C of x and of the state.

    Shapes: forward(x (B, C, H, W), state (h, c) or None for zeros) -> (h', c'), each (B, hidden, H, W). c is float32
    for 16-bit maps.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3.
    """

    def __init__(self, in_channels: int, hidden_channels: int):
        super().__init__()
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.gates = Conv3x3(in_channels + hidden_channels, 4 * hidden_channels)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            pre = convolve(x, self.gates.weight[:, : self.in_channels], self.gates.bias)
            return lstm_gates(pre, zero_state(x, self.hidden_channels, state_dtype(x)))
        h, c = state
        return conv_lstm_cell(x, h, c, self.gates.weight, self.gates.bias)

    def sequence(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over (B, T, C, H, W); where it pays, x's share of the gates is one convolution for all T.

        Returns:
            every h (B, T, hidden, H, W) and the last state.
        """
        folded, every = by_time(x), []
        batch, times = x.shape[:2]
        if not hoisting_pays(x, self.gates.weight, self.hidden_channels):
            for now in per_time(folded, batch, times):
                state = self(now, state)
                every.append(state[0])
            return torch.stack(every, 1), state
        from_x, from_h = split_sources(self.gates, self.in_channels)
        shares = per_time(convolve(folded, from_x, self.gates.bias), batch, times)
        for share in shares:
            if state is None:
                state = lstm_gates(share, zero_state(share, self.hidden_channels, state_dtype(share)))
            else:
                state = lstm_gates(convolve(state[0], from_h, residual=share), state[1])
            every.append(state[0])
        return torch.stack(every, 1), state


class ConvGRUCell(nn.Module):
    """Convolutional GRU, 3x3, reset before the candidate's convolution.

        [z r] = sigmoid(conv3x3([x; h]) + bias);  n = act(conv3x3([x; r h]) + bias)
        h' = w h + (1 - w) n,  w = z or 1 - z

    Args:
        in_channels, hidden_channels: C of x and of the state.
        keep: "z" or "1-z", the weight w of the old state.
        act: of the candidate, "tanh" or "leaky_relu" with negative_slope.

    Shapes: forward(x (B, C, H, W), h (B, hidden, H, W) or None for zeros) -> h'.

    Source: Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """

    def __init__(
        self, in_channels: int, hidden_channels: int, keep: str = "z", act: str = "tanh", negative_slope: float = 0.2
    ):
        super().__init__()
        if keep not in ("z", "1-z"):
            raise ValueError(f"keep must be 'z' or '1-z', got {keep!r}")
        if act not in ("tanh", "leaky_relu"):
            raise ValueError(f"act must be 'tanh' or 'leaky_relu', got {act!r}")
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.options = {"keep": keep, "act": act, "negative_slope": negative_slope}
        self.gates = Conv3x3(in_channels + hidden_channels, 2 * hidden_channels)
        self.candidate = Conv3x3(in_channels + hidden_channels, hidden_channels)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            n = self.in_channels
            share = convolve(x, self.gates.weight[:, :n], self.gates.bias)
            return self.first(share, convolve(x, self.candidate.weight[:, :n], self.candidate.bias))
        weights = (self.gates.weight, self.gates.bias, self.candidate.weight, self.candidate.bias)
        return conv_gru_cell(x, h, *weights, **self.options)

    def first(self, gates: Tensor, candidate: Tensor) -> Tensor:
        """The step from the zero state, where no convolution of the state is needed."""
        z = torch.sigmoid(gates[:, : self.hidden_channels])
        return gru_update(z, candidate, torch.zeros_like(candidate), **self.options)

    def sequence(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run over (B, T, C, H, W); where it pays, x's parts of gates and candidate are one convolution each for all T.

        Returns:
            every h (B, T, hidden, H, W) and the last one.
        """
        folded, every = by_time(x), []
        (batch, times), n = x.shape[:2], self.in_channels
        if not hoisting_pays(x, self.gates.weight, self.hidden_channels):
            for now in per_time(folded, batch, times):
                h = self(now, h)
                every.append(h)
            return torch.stack(every, 1), h
        gates_x, gates_h = split_sources(self.gates, n)
        candidate_x, candidate_h = split_sources(self.candidate, n)
        shares = per_time(convolve(folded, gates_x, self.gates.bias), batch, times)
        candidates = per_time(convolve(folded, candidate_x, self.candidate.bias), batch, times)
        for share, candidate in zip(shares, candidates, strict=True):
            if h is None:
                h = self.first(share, candidate)
            else:
                h = conv_gru_cell(None, h, gates_h, None, candidate_h, None, shares=(share, candidate), **self.options)
            every.append(h)
        return torch.stack(every, 1), h

    def extra_repr(self) -> str:
        return f"keep={self.options['keep']!r}, act={self.options['act']!r}"
