# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops.core.wide import wide


def memory_gates(pre, c, state_act="none"):
    """c' = s(f) k(c) + s(i) tanh(g), k = identity or tanh, pre in the order i, f, g."""
    p, state = wide(pre, c)
    i, f, g = p.chunk(3, 1)
    state = torch.tanh(state) if state_act == "tanh" else state
    return (torch.sigmoid(f) * state + torch.sigmoid(i) * torch.tanh(g)).to(c.dtype)
