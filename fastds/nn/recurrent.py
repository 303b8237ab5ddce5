# SPDX-License-Identifier: Apache-2.0
"""Convolutional recurrent cells: 3x3 convolutions of input and state with fused gates."""

from typing import Any

import torch
from torch import Tensor, nn

from fastds.nn.convolutions import Conv3x3, convolve, get_parameters
from fastds.ops import conv_gru_cell, conv_lstm_cell, gru_update, lstm_gates
from fastds.ops.core.arguments import cast_floating, check_positive_ints, get_autocast_dtype
from fastds.ops.core.function_plans import call_function, slice_channels
from fastds.ops.core.plans import planned
from fastds.ops.core.tracing import Proxy, record_layer
from fastds.ops.impl.conv3x3.algorithm import current_algorithm, select_algorithm
from fastds.ops.impl.conv3x3.costs import ENGINES
from fastds.ops.impl.conv3x3.shared_weight_grad import maybe_share_weight


def make_zero_state(x: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return a state of zeros (B, channels, H, W) in channels_last for input x (B, C, H, W).

    Args:
        x: input.
        channels: channels of the state.
        dtype: dtype of the state. None: that of x.
    """
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.zeros(shape, dtype=dtype or x.dtype, device=x.device).to(memory_format=torch.channels_last)


def get_state_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a cell state for input x: float64 for float64, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def fold_time(x: Tensor) -> Tensor:
    """Fold a sequence (B, T, C, H, W) to time-major (T*B, C, H, W).

    Raises:
        ValueError: x does not have five dimensions, or T = 0.
    """
    if x.dim() != 5 or x.shape[1] < 1:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected a sequence (B, T, C, H, W) with T >= 1")
    return x.transpose(0, 1).flatten(0, 1)


def unfold_time(folded: Tensor, batch: int, times: int) -> tuple[Tensor, ...]:
    """Split a tensor that was folded by fold_time into its time steps, also if B = 0.

    Args:
        folded: (T*B, ...).
        batch: number B of samples.
        times: number T of time steps.

    Returns:
        T tensors (B, ...).
    """
    return folded.unflatten(0, (times, batch)).unbind()


def is_hoisting_faster(x: Tensor, weight: Tensor, hidden: int) -> bool:
    """Return True if one convolution of x for all steps is faster than convolving x in each step.

    The single convolution reads its weights once and has one weight gradient. However, its result is written and read
    again, which the fused gates of a step avoid. The rule was fitted to measurements on a CPU.

    Args:
        x: (B, C, H, W), input of one step.
        weight: (O, C + hidden, 3, 3), weight of the gates.
        hidden: channels of the state.
    """
    if not x.is_cpu:
        return True
    batch, inputs, height, width = x.shape
    is_training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return 16 * batch * height * width <= inputs * hidden or (is_training and inputs > hidden)


class ConvLSTMCell(nn.Module):
    """Convolutional LSTM cell with 3x3 kernels, without peepholes.

        [i f g o] = conv3x3([x; h]) + bias;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        in_channels: int, C, channels of x.
        hidden_channels: int, channels of h and c.

    Shapes: forward(x (B, C, H, W), state (h, c) or None for zeros) -> (h', c'), each (B, hidden, H, W). c is float32
    for 16-bit x.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3.
    """

    def __init__(self, in_channels: int, hidden_channels: int):
        super().__init__()
        check_positive_ints(in_channels=in_channels, hidden_channels=hidden_channels)
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.gates = Conv3x3(in_channels + hidden_channels, 4 * hidden_channels)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Compute one step.

        Args:
            x: (B, C, H, W).
            state: (h, c), each (B, hidden, H, W), or None for zeros.

        Returns:
            (h', c'), each (B, hidden, H, W).
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, x, state)
        weight, bias = get_parameters(self.gates)
        if state is None:
            return _first_lstm_step(x, weight, bias)
        h, c = state
        return conv_lstm_cell(x, h, c, weight, bias)

    def sequence(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the cell over a sequence. Where it is faster, x is convolved for all steps at once.

        Args:
            x: (B, T, C, H, W).
            state: (h, c), each (B, hidden, H, W), or None for zeros.

        Returns:
            h of all steps (B, T, hidden, H, W), and the last state (h, c).
        """
        h, c = (None, None) if state is None else state
        states, h, c = _run_lstm_sequence(x, h, c, *get_parameters(self.gates))
        return states, (h, c)


def _first_lstm_step(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the first step of a convolutional LSTM, from a state of zeros.

    Args:
        x: (B, C, H, W), input.
        weight: (4 * hidden, C + hidden, 3, 3).
        bias: (4 * hidden,) or None.
    """
    hidden = weight.shape[0] // 4
    pre = convolve(x, slice_channels(weight, 0, weight.shape[1] - hidden), bias)
    return lstm_gates(pre, call_function(make_zero_state, x, hidden, get_state_dtype(x)))


@planned
def _run_lstm_sequence(
    x: Tensor, h: Tensor | None, c: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a convolutional LSTM over a sequence.

    Args:
        x: (B, T, C, H, W).
        h: (B, hidden, H, W), or None for a state of zeros.
        c: (B, hidden, H, W), or None for a state of zeros.
        weight: (4 * hidden, C + hidden, 3, 3).
        bias: (4 * hidden,) or None.

    Returns:
        h of all steps (B, T, hidden, H, W), and the last h and c.
    """
    folded, states = call_function(fold_time, x), []
    batch, times = x.shape[:2]
    maps, hidden = call_function(unfold_time, folded, batch, times), weight.shape[0] // 4
    state = None if h is None or c is None else (h, c)
    if not is_hoisting_faster(maps[0], weight, hidden):
        step_parameters = _prepare_step_weights(maps[0], (weight, bias), gated=True, joined=True)
        for current in maps:
            state = (
                _first_lstm_step(current, weight, bias)
                if state is None
                else conv_lstm_cell(current, *state, *step_parameters)
            )
            states.append(state[0])
    else:
        inputs = weight.shape[1] - hidden
        pre = convolve(folded, _make_contiguous(slice_channels(weight, 0, inputs)), bias)
        state_weight, _ = _prepare_step_weights(maps[0], (slice_channels(weight, inputs), None), passes=1)
        for input_share in call_function(unfold_time, pre, batch, times):
            if state is None:
                dtype = get_state_dtype(input_share)
                state = lstm_gates(input_share, call_function(make_zero_state, input_share, hidden, dtype))
            else:
                state = lstm_gates(convolve(state[0], state_weight, residual=input_share), state[1])
            states.append(state[0])
    assert state is not None  # a sequence has at least one step
    return call_function(torch.stack, states, 1), *state


class ConvGRUCell(nn.Module):
    """Convolutional GRU cell with 3x3 kernels, which resets the state before the convolution of the candidate.

        [z r] = sigmoid(conv3x3([x; h]) + bias);  n = activation(conv3x3([x; r h]) + bias)
        h' = w h + (1 - w) n,  w = z or 1 - z

    Args:
        in_channels: int, C, channels of x.
        hidden_channels: int, channels of h.
        keep: "z" or "1-z", the weight w of the old state.
        activation: "tanh" or "leaky_relu", activation of the candidate.
        negative_slope: float >= 0, slope of leaky_relu.

    Raises:
        ValueError: an option is invalid, or a number of channels is not a positive integer.

    Shapes: forward(x (B, C, H, W), h (B, hidden, H, W) or None for zeros) -> h' (B, hidden, H, W).

    Source: Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        *,
        keep: str = "z",
        activation: str = "tanh",
        negative_slope: float = 0.2,
    ):
        super().__init__()
        if keep not in ("z", "1-z"):
            raise ValueError(f"keep must be 'z' or '1-z', got {keep!r}")
        if activation not in ("tanh", "leaky_relu"):
            raise ValueError(f"activation must be 'tanh' or 'leaky_relu', got {activation!r}")
        check_positive_ints(in_channels=in_channels, hidden_channels=hidden_channels)
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.options: dict[str, Any] = {"keep": keep, "activation": activation, "negative_slope": negative_slope}
        self.gates = Conv3x3(in_channels + hidden_channels, 2 * hidden_channels)
        self.candidate = Conv3x3(in_channels + hidden_channels, hidden_channels)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        """Compute one step.

        Args:
            x: (B, C, H, W).
            h: (B, hidden, H, W), or None for zeros.

        Returns:
            h' (B, hidden, H, W).
        """
        if type(x) is Proxy and x.tracer.root is not self:  # type: ignore[attr-defined]  # of a Proxy
            return record_layer(self, x, h)
        parameters = get_parameters(self.gates), get_parameters(self.candidate)
        if h is None:
            return _first_step(parameters, x, self.in_channels, self.options)
        return conv_gru_cell(x, h, *parameters[0], *parameters[1], **self.options)

    def sequence(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the cell over a sequence. Where it is faster, x is convolved for all steps at once.

        Args:
            x: (B, T, C, H, W).
            h: (B, hidden, H, W), or None for zeros.

        Returns:
            h of all steps (B, T, hidden, H, W), and the last h.
        """
        parameters = *get_parameters(self.gates), *get_parameters(self.candidate)
        return _run_gru_sequence(x, h, *parameters, **self.options)

    def extra_repr(self) -> str:
        return f"keep={self.options['keep']!r}, activation={self.options['activation']!r}"


def run_gru(
    gates: Conv3x3, candidate: Conv3x3, x: Tensor, h: Tensor | None, times: int, **options: Any
) -> list[Tensor]:
    """Run a convolutional GRU over a sequence. Where it is faster, x is convolved for all steps at once.

    Args:
        gates: convolution of [x; h] for the gates.
        candidate: convolution of [x; r h] for the candidate.
        x: (T*B, C, H, W), folded by fold_time.
        h: (B, hidden, H, W), or None for zeros.
        times: T.
        **options: keep, activation and negative_slope of fastds.ops.conv_gru_cell.

    Returns:
        list of the T states.
    """
    return _run_gru_steps(x, h, get_parameters(gates), get_parameters(candidate), times, options)


@planned
def _run_gru_sequence(
    x: Tensor,
    h: Tensor | None,
    gates_weight: Tensor,
    gates_bias: Tensor | None,
    candidate_weight: Tensor,
    candidate_bias: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Run a convolutional GRU over a sequence.

    Args:
        x: (B, T, C, H, W).
        h: (B, hidden, H, W), or None for zeros.
        gates_weight: (2 * hidden, C + hidden, 3, 3).
        gates_bias: (2 * hidden,) or None.
        candidate_weight: (hidden, C + hidden, 3, 3).
        candidate_bias: (hidden,) or None.
        **options: keep, activation and negative_slope of fastds.ops.conv_gru_cell.

    Returns:
        h of all steps (B, T, hidden, H, W), and the last h.
    """
    gates, candidate = (gates_weight, gates_bias), (candidate_weight, candidate_bias)
    states = _run_gru_steps(call_function(fold_time, x), h, gates, candidate, x.shape[1], options)
    return call_function(torch.stack, states, 1), states[-1]


def _run_gru_steps(
    x: Tensor, h: Tensor | None, gates: tuple, candidate: tuple, times: int, options: dict[str, Any]
) -> list[Tensor]:
    """Run a convolutional GRU over a sequence: see run_gru.

    Args:
        x: (T*B, C, H, W).
        h: (B, hidden, H, W), or None for zeros.
        gates: weight (2 * hidden, C + hidden, 3, 3) and bias of the gates.
        candidate: weight (hidden, C + hidden, 3, 3) and bias of the candidate.
        times: T.
        options: keyword arguments of conv_gru_cell.
    """
    parameters, batch, hidden = (gates, candidate), x.shape[0] // times, candidate[0].shape[0]
    states, n = [], gates[0].shape[1] - hidden
    maps = call_function(unfold_time, x, batch, times)
    if times == 1 or not is_hoisting_faster(maps[0], gates[0], hidden):
        step_parameters = _prepare_step_weights(maps[0], *parameters, gated=True, joined=True)
        for current in maps:
            h = (
                _first_step(parameters, current, n, options)
                if h is None
                else conv_gru_cell(current, h, *step_parameters, **options)
            )
            states.append(h)
        return states
    shares = (convolve(x, _make_contiguous(slice_channels(weight, 0, n)), bias) for weight, bias in parameters)
    step_parameters = _prepare_step_weights(
        maps[0], *((slice_channels(weight, n), None) for weight, _ in parameters), gated=True, passes=1
    )
    unfolded = (call_function(unfold_time, part, batch, times) for part in shares)
    for gates_share, candidate_share in zip(*unfolded, strict=True):
        if h is None:
            h = compute_first_state(gates_share, candidate_share, hidden, options)
        else:
            h = conv_gru_cell(None, h, *step_parameters, shares=(gates_share, candidate_share), **options)
        states.append(h)
    return states


def _make_contiguous(tensor: Tensor) -> Tensor:
    """Return tensor.contiguous(), and note the copy if this thread records a call."""
    return tensor if tensor.is_contiguous() else call_function(Tensor.contiguous, tensor)


def _prepare_step_weights(
    maps: Tensor, *parameters: tuple[Tensor, Tensor | None], **selector_options: Any
) -> list[Any]:
    """Prepare recurrent weights and biases once for a sequence.

    The weights become contiguous. Weights and biases are cast to the compute dtype here, unless the native engine
    computes the convolution or the call is compiled: then the op casts them.

    Args:
        maps: (B, C, H, W), input of one step.
        *parameters: pairs (weight, bias or None).
        **selector_options: keyword arguments of select_algorithm for the convolutions of a step.

    Returns:
        flat list [weight, bias, weight, bias, ...]. In training, maybe_share_weight may replace a weight.
    """
    found = []
    for weight, bias in parameters:
        if not torch.compiler.is_compiling():  # in a graph the op casts
            dtype, (outputs, inputs) = get_autocast_dtype(maps) or maps.dtype, weight.shape[:2]
            if (
                select_algorithm(current_algorithm(), maps, inputs, outputs, dtype, False, **selector_options)
                not in ENGINES
            ):
                weight, bias = cast_floating(weight, dtype), cast_floating(bias, dtype)
        found += [maybe_share_weight(_make_contiguous(weight), maps), bias]
    return found


def _first_step(parameters: tuple, x: Tensor, inputs: int, options: dict) -> Tensor:
    """Compute the first step of a convolutional GRU, from a state of zeros.

    Args:
        parameters: (weight, bias) of the gates and of the candidate.
        x: (B, C, H, W), input.
        inputs: C.
        options: keyword arguments of gru_update.
    """
    gates, candidate = (convolve(x, slice_channels(weight, 0, inputs), bias) for weight, bias in parameters)
    return compute_first_state(gates, candidate, candidate.shape[1], options)


def compute_first_state(gates: Tensor, candidate: Tensor, hidden: int, options: dict) -> Tensor:
    """Compute the first state of a convolutional GRU from the convolutions of x, for a state of zeros.

    Args:
        gates: (B, 2 * hidden, H, W), convolution of x for the gates.
        candidate: (B, hidden, H, W), convolution of x for the candidate.
        hidden: channels of the state.
        options: keyword arguments of gru_update.
    """
    z = call_function(torch.sigmoid, slice_channels(gates, 0, hidden))
    return gru_update(z, candidate, call_function(torch.zeros_like, candidate), **options)


def run_gru_without_input(gates: Conv3x3, candidate: Conv3x3, h: Tensor, times: int, **options: Any) -> list[Tensor]:
    """Run a convolutional GRU over a sequence of zeros, without convolving the zeros.

    Args:
        gates: convolution of [x; h] for the gates.
        candidate: convolution of [x; r h] for the candidate.
        h: (B, hidden, H, W), state.
        times: T.
        **options: keyword arguments of conv_gru_cell.

    Returns:
        list of the T states.
    """
    parameters = get_parameters(gates), get_parameters(candidate)
    state_parameters = ((weight[:, -candidate.out_channels :], bias) for weight, bias in parameters)
    step_parameters, states = _prepare_step_weights(h, *state_parameters, gated=True), []
    for _ in range(times):
        h = conv_gru_cell(None, h, *step_parameters, **options)
        states.append(h)
    return states
