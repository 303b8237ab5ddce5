# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops.core.wide import wide


def gru_reset(pre_z, pre_r, h):
    """z = s(pre_z), s(pre_r) h."""
    a, b, state = wide(pre_z, pre_r, h)
    return torch.sigmoid(a).to(pre_z.dtype), (torch.sigmoid(b) * state).to(h.dtype)
