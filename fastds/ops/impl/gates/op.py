# SPDX-License-Identifier: Apache-2.0
"""The pointwise passes of recurrent cells: lstm_gates, st_lstm_gates, memory_gates, output_gate, gru_reset, gru_update
and traj_gru_gates, each everything that a cell does behind its convolution, in one pass over memory."""

from torch import Tensor

from fastds.ops.core.arguments import cast_for_autocast, check_choice, check_slope, to_float
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.gates import reference
from fastds.ops.impl.gates.pointwise import Input, PointwiseOp, PointwiseOps

__all__ = [
    "gru_reset", "gru_update", "lstm_gates", "memory_gates", "output_gate", "st_lstm_gates", "traj_gru_gates",
]  # fmt: skip

LSTM_GATES = PointwiseOps(
    PointwiseOp("lstm_gates", (Input("pre", 4), Input("c", wide=True)), (0, 1), reference.lstm_gates)
)


def lstm_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """LSTM gates: new hidden and cell state from the pre-activations.

    [i f g o] = pre;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        pre: (B, 4C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32.

    Returns:
        h' in pre's dtype and c' in c's dtype, both (B, C, H, W), contiguous when pre is, else channels_last.

    Gradients: pre and c, to any order (beyond the first by the reference formula). Deterministic. Everything between
    load and store is float32 (float64 for float64). Under autocast pre takes its dtype, c is float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3 without peepholes.
    """
    if type(pre) is Proxy:
        return record_op(lstm_gates, locals())
    tensors = cast_for_autocast((pre, c), float32=(1,))
    return LSTM_GATES.forward(*tensors)


ST_LSTM_GATES = PointwiseOps(
    PointwiseOp("st_lstm_gates", (Input("pre", 4), Input("c", wide=True)), (1, 0), reference.st_lstm_gates)
)


def st_lstm_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Temporal memory of an ST-LSTM, and the part of its output gate that waits for the spatial memory.

    [i f g q] = pre;  c' = sigmoid(f) c + sigmoid(i) tanh(g)

    Args:
        pre: (B, 4C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32.

    Returns:
        c' in c's dtype and q in pre's, both (B, C, H, W), contiguous when pre is, else channels_last.

    Gradients: pre and c, to any order (beyond the first by the reference formula). Deterministic. Everything between
    load and store is float32 (float64 for float64). Under autocast pre takes its dtype, c is float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(pre) is Proxy:
        return record_op(st_lstm_gates, locals())
    tensors = cast_for_autocast((pre, c), float32=(1,))
    return ST_LSTM_GATES.forward(*tensors)


MEMORY_GATES = PointwiseOps(
    PointwiseOp(
        "memory_gates", (Input("pre", 3), Input("c", wide=True)), (1,), reference.memory_gates, "str state_act",
        lambda state_act: check_choice("state_act", state_act, ("none", "tanh")),
        lambda state_act: ("_tanh" if state_act == "tanh" else "", 0.0, 0.0),
    )
)  # fmt: skip


def memory_gates(pre: Tensor, c: Tensor, *, state_act: str = "none") -> Tensor:
    """Gated update of a memory map: what ST-LSTM, causal LSTM, MIM and PrecipLSTM do to each of their memories.

    [i f g] = pre;  c' = sigmoid(f) k(c) + sigmoid(i) tanh(g),  k = identity ("none") or tanh ("tanh")

    Args:
        pre: (B, 3C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32: the memory, or its pre-activation with "tanh".
        state_act: k, "none" or "tanh" (the spatial memory of PredRNN++).

    Returns:
        c' (B, C, H, W) in c's dtype, contiguous when pre is, else channels_last.

    Gradients: pre and c, to any order (beyond the first by the reference formula). Deterministic. Everything between
    load and store is float32 (float64 for float64). Under autocast pre takes its dtype, c is float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or state_act that does not fit.

    Source: Wang et al. 2017, PredRNN, equation 3; Wang et al. 2018, PredRNN++, equation 1.
    """
    if type(pre) is Proxy:
        return record_op(memory_gates, locals())
    tensors = cast_for_autocast((pre, c), float32=(1,))
    return MEMORY_GATES.forward(*tensors, state_act)


OUTPUT_GATE = PointwiseOps(
    PointwiseOp(
        "output_gate", (Input("pre"), Input("value", wide=True)), (0,), reference.output_gate, "str act",
        lambda act: check_choice("act", act, ("sigmoid", "tanh")),
        lambda act: ("_tanh" if act == "tanh" else "", 0.0, 0.0),
    )
)  # fmt: skip


def output_gate(pre: Tensor, value: Tensor, *, act: str = "sigmoid") -> Tensor:
    """Output gate of a recurrent cell.

    y = act(pre) tanh(value)

    Args:
        pre: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        value: (B, C, H, W), dtype of pre or float32.
        act: "sigmoid" or "tanh" (PredRNN++).

    Returns:
        y (B, C, H, W) in pre's dtype, contiguous when pre is, else channels_last.

    Gradients: pre and value, to any order (beyond the first by the reference formula). Deterministic. Everything
    between load and store is float32 (float64 for float64). Under autocast pre takes its dtype; value may stay in
    float32.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or act that does not fit.

    Source: Wang et al. 2017, PredRNN, equation 3; Wang et al. 2018, PredRNN++, equation 1.
    """
    if type(pre) is Proxy:
        return record_op(output_gate, locals())
    tensors = cast_for_autocast((pre, value), keep_float32=(1,))
    return OUTPUT_GATE.forward(*tensors, act)


GRU_RESET = PointwiseOps(
    PointwiseOp("gru_reset", (Input("pre_z"), Input("pre_r"), Input("h")), (0, 2), reference.gru_reset, double=True)
)
# The same with both gates side by side, as a convolution gives them.
GRU_RESET_PACKED = PointwiseOps(
    PointwiseOp(
        "gru_reset_packed", (Input("pre", 2), Input("h")), (0, 1),
        lambda pre, h: reference.gru_reset(*pre.chunk(2, 1), h), double=True, formula="gru_reset",
    )
)  # fmt: skip


def gru_reset(pre_z: Tensor, pre_r: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Update gate and reset state of a GRU.

    z = sigmoid(pre_z);  rh = sigmoid(pre_r) h

    Args:
        pre_z, pre_r: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C, H, W), dtype of pre_z.

    Returns:
        z and rh, (B, C, H, W), contiguous when pre_z is, else channels_last.

    Gradients: all inputs, to any order; the first and second are kernels of their own. Deterministic. Everything
    between load and store is float32 (float64 for float64). Under autocast all take its dtype.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape or device that does not fit.

    Source: Cho et al. 2014; Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    if type(pre_z) is Proxy:
        return record_op(gru_reset, locals())
    tensors = cast_for_autocast((pre_z, pre_r, h))
    return GRU_RESET.forward(*tensors)


def check_update_options(keep: str, act: str, negative_slope: float) -> None:
    """ValueError for options that the update cannot have."""
    check_choice("keep", keep, ("z", "1-z"))
    check_choice("act", act, ("tanh", "leaky_relu"))
    check_slope(negative_slope)


GRU_UPDATE = PointwiseOps(
    PointwiseOp(
        "gru_update", (Input("z"), Input("pre_n"), Input("h")), (2,), reference.gru_update,
        "str keep, str act, float negative_slope", check_update_options,
        lambda keep, act, slope: ("" if act == "tanh" else "_leaky", float(keep == "z"), slope), double=True,
    )
)  # fmt: skip


def gru_update(
    z: Tensor, pre_n: Tensor, h: Tensor, *, keep: str = "z", act: str = "tanh", negative_slope: float = 0.2
) -> Tensor:
    """New state of a GRU: blend of the old one and the candidate.

    h' = w h + (1 - w) act(pre_n),  w = z (keep "z") or 1 - z (keep "1-z"): papers differ in which side keeps h.

    Args:
        z: (B, C, H, W), the update gate behind its sigmoid; float32, bfloat16, float16 or float64; any strides,
            fastest in channels_last.
        pre_n, h: (B, C, H, W), dtype of z.
        keep: "z" or "1-z", the weight of h.
        act: "tanh" or "leaky_relu" with negative_slope >= 0.

    Returns:
        h' (B, C, H, W), contiguous when z is, else channels_last.

    Gradients: all inputs, to any order; the first and second are kernels of their own. At pre_n = 0 leaky_relu has
    the derivative negative_slope, as torch's. Deterministic. Everything between load and store is float32 (float64
    for float64). Under autocast all take its dtype.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or option that does not fit.

    Source: Cho et al. 2014; Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    if type(z) is Proxy:
        return record_op(gru_update, locals())
    tensors = cast_for_autocast((z, pre_n, h))
    return GRU_UPDATE.forward(*tensors, keep, act, to_float("negative_slope", negative_slope))


TRAJ_GRU_GATES = PointwiseOps(
    PointwiseOp(
        "traj_gru_gates", (Input("x_part", 3), Input("h_part", 3), Input("h")), (2,), reference.traj_gru_gates,
        "float negative_slope", check_slope, lambda slope: ("", 0.0, slope),
    )
)  # fmt: skip


def traj_gru_gates(x_part: Tensor, h_part: Tensor, h: Tensor, *, negative_slope: float = 0.2) -> Tensor:
    """Gates of TrajGRU, whose reset acts on the state's share of the candidate, behind the convolution.

    [zx rx nx] = x_part;  [zh rh nh] = h_part;  z = sigmoid(zx + zh);  r = sigmoid(rx + rh)
    n = leaky_relu(nx + r nh);  h' = (1 - z) n + z h

    Args:
        x_part, h_part: (B, 3C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        h: (B, C, H, W), same dtype.
        negative_slope: of leaky_relu, >= 0.

    Returns:
        h' (B, C, H, W), contiguous when x_part is, else channels_last.

    Gradients: all inputs, to any order (beyond the first by the reference formula); where the candidate's pre-
    activation is 0, leaky_relu has the derivative negative_slope, as torch's. Deterministic. Everything between load
    and store is float32 (float64 for float64). Under autocast all take its dtype.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device or slope that does not fit.

    Source: Shi et al. 2017, Deep Learning for Precipitation Nowcasting, equation 2.
    """
    if type(x_part) is Proxy:
        return record_op(traj_gru_gates, locals())
    tensors = cast_for_autocast((x_part, h_part, h))
    return TRAJ_GRU_GATES.forward(*tensors, to_float("negative_slope", negative_slope))
