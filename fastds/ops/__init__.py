# SPDX-License-Identifier: Apache-2.0
"""The ops: functions on tensors, also registered as torch.ops.fastds.*. One import line per op."""

from fastds.ops.deform_conv2d import deform_conv2d
from fastds.ops.null_op import null_op

__all__ = ["deform_conv2d", "null_op"]
