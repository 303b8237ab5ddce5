# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F

from fastds.ops.core.wide import wide


def gru_update(z, pre_n, h, keep="z", act="tanh", negative_slope=0.2):
    """h' = w h + (1 - w) act(pre_n), w = z or 1 - z."""
    w, n, state = wide(z, pre_n, h)
    n = torch.tanh(n) if act == "tanh" else F.leaky_relu(n, negative_slope)
    w = w if keep == "z" else 1 - w
    return (w * state + (1 - w) * n).to(h.dtype)
