# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops.core.wide import wide


def lstm_gates(pre, c):
    """c' = s(f) c + s(i) tanh(g), h' = s(o) tanh(c'), pre in the order i, f, g, o."""
    p, state = wide(pre, c)
    i, f, g, o = p.chunk(4, 1)
    new = torch.sigmoid(f) * state + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(new)
    return h.to(pre.dtype), new.to(c.dtype)
