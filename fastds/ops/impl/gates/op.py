# SPDX-License-Identifier: Apache-2.0
"""Pointwise ops of recurrent cells, each of which computes its formula in one pass over the tensors.

The ops are lstm_gates, st_lstm_gates, memory_gates, output_gate, gru_reset, gru_update and traj_gru_gates.
"""

from torch import Tensor

from fastds.ops.core.arguments import cast_for_autocast, check_choice, check_slope, to_float
from fastds.ops.core.plans import planned
from fastds.ops.core.tracing import Proxy, record_op
from fastds.ops.impl.gates import reference
from fastds.ops.impl.gates.pointwise import Input, PointwiseOp, PointwiseOps

__all__ = [
    "gru_reset", "gru_update", "lstm_gates", "memory_gates", "output_gate", "st_lstm_gates", "traj_gru_gates",
]  # fmt: skip

LSTM_GATES = PointwiseOps(
    PointwiseOp("lstm_gates", (Input("pre", 4), Input("c", allows_float32=True)), (0, 1), reference.lstm_gates)
)


@planned
def lstm_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the new hidden and cell state of an LSTM from the pre-activations of its gates.

    [i f g o] = pre;  c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')

    Args:
        pre: (B, 4C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32, cell state.

    Returns:
        h' in the dtype of pre and c' in the dtype of c, both (B, C, H, W), contiguous if pre is, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or device is invalid.

    Gradients exist for pre and c, to any order (the reference computes orders beyond the first). Results are
    deterministic. The computation is in float32 (float64 for float64). Under autocast pre is cast to the autocast dtype
    and c to float32.

    Source: Shi et al. 2015, Convolutional LSTM Network, equation 3 without peepholes.
    """
    if type(pre) is Proxy:
        return record_op(lstm_gates, locals())
    tensors = cast_for_autocast((pre, c), float32=(1,))
    return LSTM_GATES.forward(*tensors)


ST_LSTM_GATES = PointwiseOps(
    PointwiseOp("st_lstm_gates", (Input("pre", 4), Input("c", allows_float32=True)), (1, 0), reference.st_lstm_gates)
)


@planned
def st_lstm_gates(pre: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the temporal memory of an ST-LSTM and a part of its output gate.

    [i f g q] = pre;  c' = sigmoid(f) c + sigmoid(i) tanh(g)

    q is the part of the output gate's pre-activation that does not depend on the spatial memory.

    Args:
        pre: (B, 4C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32, temporal memory.

    Returns:
        c' in the dtype of c and q in the dtype of pre, both (B, C, H, W), contiguous if pre is, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or device is invalid.

    Gradients exist for pre and c, to any order (the reference computes orders beyond the first). Results are
    deterministic. The computation is in float32 (float64 for float64). Under autocast pre is cast to the autocast dtype
    and c to float32.

    Source: Wang et al. 2017, PredRNN, equation 3.
    """
    if type(pre) is Proxy:
        return record_op(st_lstm_gates, locals())
    tensors = cast_for_autocast((pre, c), float32=(1,))
    return ST_LSTM_GATES.forward(*tensors)


MEMORY_GATES = PointwiseOps(
    PointwiseOp(
        "memory_gates", (Input("pre", 3), Input("c", allows_float32=True)), (1,), reference.memory_gates,
        "str state_act",
        lambda state_act: check_choice("state_activation", state_act, ("none", "tanh")),
        lambda state_act: ("_tanh" if state_act == "tanh" else "", 0.0, 0.0),
    )
)  # fmt: skip


@planned
def memory_gates(pre: Tensor, c: Tensor, *, state_activation: str = "none") -> Tensor:
    """Compute the gated update of a memory, as in ST-LSTM, causal LSTM, MIM and PrecipLSTM.

    [i f g] = pre;  c' = sigmoid(f) k(c) + sigmoid(i) tanh(g),  k = identity ("none") or tanh ("tanh")

    Args:
        pre: (B, 3C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        c: (B, C, H, W), dtype of pre or float32, the memory, to which k is applied.
        state_activation: k, "none" or "tanh" (the spatial memory of PredRNN++).

    Returns:
        c' (B, C, H, W) in the dtype of c, contiguous if pre is, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or state_activation is invalid.

    Gradients exist for pre and c, to any order (the reference computes orders beyond the first). Results are
    deterministic. The computation is in float32 (float64 for float64). Under autocast pre is cast to the autocast dtype
    and c to float32.

    Source: Wang et al. 2017, PredRNN, equation 3; Wang et al. 2018, PredRNN++, equation 1.
    """
    if type(pre) is Proxy:
        return record_op(memory_gates, locals())
    tensors = cast_for_autocast((pre, c), float32=(1,))
    return MEMORY_GATES.forward(*tensors, state_activation)


OUTPUT_GATE = PointwiseOps(
    PointwiseOp(
        "output_gate", (Input("pre"), Input("value", allows_float32=True)), (0,), reference.output_gate, "str act",
        lambda act: check_choice("activation", act, ("sigmoid", "tanh")),
        lambda act: ("_tanh" if act == "tanh" else "", 0.0, 0.0),
    )
)  # fmt: skip


@planned
def output_gate(pre: Tensor, value: Tensor, *, activation: str = "sigmoid") -> Tensor:
    """Compute the gated output of a recurrent cell.

    y = activation(pre) tanh(value)

    Args:
        pre: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        value: (B, C, H, W), dtype of pre or float32.
        activation: "sigmoid" or "tanh" (PredRNN++).

    Returns:
        y (B, C, H, W) in the dtype of pre, contiguous if pre is, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or activation is invalid.

    Gradients exist for pre and value, to any order (the reference computes orders beyond the first). Results are
    deterministic. The computation is in float32 (float64 for float64). Under autocast pre is cast to the autocast
    dtype; a float32 value stays float32.

    Source: Wang et al. 2017, PredRNN, equation 3; Wang et al. 2018, PredRNN++, equation 1.
    """
    if type(pre) is Proxy:
        return record_op(output_gate, locals())
    tensors = cast_for_autocast((pre, value), keep_float32=(1,))
    return OUTPUT_GATE.forward(*tensors, activation)


GRU_RESET = PointwiseOps(
    PointwiseOp("gru_reset", (Input("pre_z"), Input("pre_r"), Input("h")), (0, 2), reference.gru_reset, double=True)
)
# gru_reset with both gates packed in one tensor, as a convolution returns them.
GRU_RESET_PACKED = PointwiseOps(
    PointwiseOp(
        "gru_reset_packed", (Input("pre", 2), Input("h")), (0, 1),
        lambda pre, h: reference.gru_reset(*(*pre.chunk(2, 1), h)), double=True, formula="gru_reset",
    )
)  # fmt: skip


@planned
def gru_reset(pre_z: Tensor, pre_r: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the update gate and the reset state of a GRU.

    z = sigmoid(pre_z);  rh = sigmoid(pre_r) h

    Args:
        pre_z: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        pre_r: (B, C, H, W), dtype of pre_z.
        h: (B, C, H, W), dtype of pre_z, state.

    Returns:
        z and rh, both (B, C, H, W), contiguous if pre_z is, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape or device is invalid.

    Gradients exist for all inputs, to any order; those of the first and second order are computed by kernels. Results
    are deterministic. The computation is in float32 (float64 for float64). Under autocast all inputs are cast to the
    autocast dtype.

    Source: Cho et al. 2014; Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    if type(pre_z) is Proxy:
        return record_op(gru_reset, locals())
    tensors = cast_for_autocast((pre_z, pre_r, h))
    return GRU_RESET.forward(*tensors)


def check_update_options(keep: str, activation: str, negative_slope: float) -> None:
    """Check the options of gru_update.

    Args:
        keep: must be "z" or "1-z".
        activation: must be "tanh" or "leaky_relu".
        negative_slope: slope of leaky_relu.

    Raises:
        ValueError: an option is invalid.
    """
    check_choice("keep", keep, ("z", "1-z"))
    check_choice("activation", activation, ("tanh", "leaky_relu"))
    check_slope(negative_slope)


GRU_UPDATE = PointwiseOps(
    PointwiseOp(
        "gru_update", (Input("z"), Input("pre_n"), Input("h")), (2,), reference.gru_update,
        "str keep, str act, float negative_slope", check_update_options,
        lambda keep, act, slope: ("" if act == "tanh" else "_leaky", float(keep == "z"), slope), double=True,
    )
)  # fmt: skip


@planned
def gru_update(
    z: Tensor, pre_n: Tensor, h: Tensor, *, keep: str = "z", activation: str = "tanh", negative_slope: float = 0.2
) -> Tensor:
    """Compute the new state of a GRU, a weighted mean of the old state and the candidate.

    h' = w h + (1 - w) activation(pre_n),  w = z (keep "z") or 1 - z (keep "1-z")

    Papers differ in the choice of w.

    Args:
        z: (B, C, H, W), update gate after its sigmoid; float32, bfloat16, float16 or float64; any strides, fastest in
            channels_last.
        pre_n: (B, C, H, W), dtype of z, pre-activation of the candidate.
        h: (B, C, H, W), dtype of z, state.
        keep: "z" or "1-z", the weight w of h.
        activation: "tanh" or "leaky_relu", activation of the candidate.
        negative_slope: float >= 0, slope of leaky_relu.

    Returns:
        h' (B, C, H, W), contiguous if z is, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or option is invalid.

    Gradients exist for all inputs, to any order; those of the first and second order are computed by kernels. At pre_n
    = 0 the derivative of leaky_relu is negative_slope, as in torch. Results are deterministic. The computation is in
    float32 (float64 for float64). Under autocast all inputs are cast to the autocast dtype.

    Source: Cho et al. 2014; Ballas et al. 2016, Delving Deeper into Convolutional Networks, equations 5 to 8.
    """
    if type(z) is Proxy:
        return record_op(gru_update, locals())
    tensors = cast_for_autocast((z, pre_n, h))
    return GRU_UPDATE.forward(*tensors, keep, activation, to_float("negative_slope", negative_slope))


TRAJ_GRU_GATES = PointwiseOps(
    PointwiseOp(
        "traj_gru_gates", (Input("x_part", 3), Input("h_part", 3), Input("h")), (2,), reference.traj_gru_gates,
        "float negative_slope", check_slope, lambda slope: ("", 0.0, slope),
    )
)  # fmt: skip


@planned
def traj_gru_gates(x_part: Tensor, h_part: Tensor, h: Tensor, *, negative_slope: float = 0.2) -> Tensor:
    """Compute the new state of a TrajGRU, whose reset gate acts on the convolved state.

    [zx rx nx] = x_part;  [zh rh nh] = h_part;  z = sigmoid(zx + zh);  r = sigmoid(rx + rh)
    n = leaky_relu(nx + r nh);  h' = (1 - z) n + z h

    Args:
        x_part: (B, 3C, H, W), convolution of the input; float32, bfloat16, float16 or float64; any strides, fastest in
            channels_last.
        h_part: (B, 3C, H, W), dtype of x_part, convolution of the warped state.
        h: (B, C, H, W), dtype of x_part, state.
        negative_slope: float >= 0, slope of leaky_relu.

    Returns:
        h' (B, C, H, W), contiguous if x_part is, else channels_last.

    Raises:
        TypeError: an argument is not a Tensor or has a wrong dtype.
        ValueError: a shape, device or slope is invalid.

    Gradients exist for all inputs, to any order (the reference computes orders beyond the first). Where the candidate's
    pre-activation is 0, the derivative of leaky_relu is negative_slope, as in torch. Results are deterministic. The
    computation is in float32 (float64 for float64). Under autocast all inputs are cast to the autocast dtype.

    Source: Shi et al. 2017, Deep Learning for Precipitation Nowcasting, equation 2.
    """
    if type(x_part) is Proxy:
        return record_op(traj_gru_gates, locals())
    tensors = cast_for_autocast((x_part, h_part, h))
    return TRAJ_GRU_GATES.forward(*tensors, to_float("negative_slope", negative_slope))
