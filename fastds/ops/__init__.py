# SPDX-License-Identifier: Apache-2.0
"""The ops: functions on tensors, also registered as torch.ops.fastds.*. One import line per op.

help(fastds.ops.NAME) gives formula, shapes, units, gradients, errors and source. GridSpec and PointSpec say where
inr_query is asked.
"""

from fastds.ops.conv3x3 import conv3x3
from fastds.ops.conv_gru_cell import conv_gru_cell
from fastds.ops.conv_lstm_cell import conv_lstm_cell
from fastds.ops.conv_st_lstm_gates import conv_memory_gates, conv_output_gate, conv_st_lstm_gates
from fastds.ops.deform_conv2d import deform_conv2d
from fastds.ops.gru_reset import gru_reset
from fastds.ops.gru_update import gru_update
from fastds.ops.inr_query import inr_query
from fastds.ops.lstm_gates import lstm_gates
from fastds.ops.memory_gates import memory_gates
from fastds.ops.null_op import null_op
from fastds.ops.output_gate import output_gate
from fastds.ops.pixel_shuffle import pixel_shuffle, pixel_unshuffle
from fastds.ops.st_lstm_gates import st_lstm_gates
from fastds.ops.traj_gru_gates import traj_gru_gates
from fastds.ops.window_attention2d import window_attention2d
from fastds.reference.query_points import GridSpec, PointSpec

__all__ = [
    "GridSpec", "PointSpec", "conv3x3", "conv_gru_cell", "conv_lstm_cell", "conv_memory_gates", "conv_output_gate",
    "conv_st_lstm_gates", "deform_conv2d", "gru_reset", "gru_update", "inr_query", "lstm_gates", "memory_gates",
    "null_op", "output_gate", "pixel_shuffle", "pixel_unshuffle", "st_lstm_gates", "traj_gru_gates",
    "window_attention2d",
]  # fmt: skip
