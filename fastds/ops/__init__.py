# SPDX-License-Identifier: Apache-2.0
"""The ops: functions on tensors, also registered as torch.ops.fastds.*. One import line per op.

help(fastds.ops.NAME) gives formula, shapes, units, gradients, errors and source. GridSpec and PointSpec say where
inr_query is asked.
"""

from fastds.ops.impl.conv3x3.op import conv3x3
from fastds.ops.impl.conv_cells.conv_gru_cell import conv_gru_cell
from fastds.ops.impl.conv_cells.conv_lstm_cell import conv_lstm_cell
from fastds.ops.impl.conv_cells.conv_st_lstm_gates import conv_memory_gates, conv_output_gate, conv_st_lstm_gates
from fastds.ops.impl.deform_conv2d.op import deform_conv2d
from fastds.ops.impl.gates.gru_reset import gru_reset
from fastds.ops.impl.gates.gru_update import gru_update
from fastds.ops.impl.gates.lstm_gates import lstm_gates
from fastds.ops.impl.gates.memory_gates import memory_gates
from fastds.ops.impl.gates.output_gate import output_gate
from fastds.ops.impl.gates.st_lstm_gates import st_lstm_gates
from fastds.ops.impl.gates.traj_gru_gates import traj_gru_gates
from fastds.ops.impl.inr_query.op import inr_query
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec
from fastds.ops.impl.null_op.op import null_op
from fastds.ops.impl.pixel_shuffle.op import pixel_shuffle, pixel_unshuffle
from fastds.ops.impl.window_attention2d.op import window_attention2d

__all__ = [
    "GridSpec", "PointSpec", "conv3x3", "conv_gru_cell", "conv_lstm_cell", "conv_memory_gates", "conv_output_gate",
    "conv_st_lstm_gates", "deform_conv2d", "gru_reset", "gru_update", "inr_query", "lstm_gates", "memory_gates",
    "null_op", "output_gate", "pixel_shuffle", "pixel_unshuffle", "st_lstm_gates", "traj_gru_gates",
    "window_attention2d",
]  # fmt: skip
