# SPDX-License-Identifier: Apache-2.0
"""The ops: functions on tensors, also registered as torch.ops.fastds.*. One import line per op."""

from fastds.ops.conv3x3 import conv3x3
from fastds.ops.deform_conv2d import deform_conv2d
from fastds.ops.inr_query import inr_query
from fastds.ops.null_op import null_op

__all__ = ["conv3x3", "deform_conv2d", "inr_query", "null_op"]
