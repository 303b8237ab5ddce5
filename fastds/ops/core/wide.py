# SPDX-License-Identifier: Apache-2.0
"""16-bit tensors are computed in float32 and rounded once."""

import torch


def wide(*tensors):
    """The tensors, 16-bit ones as float32."""
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
