# SPDX-License-Identifier: Apache-2.0
import torch

from fastds.ops.core.wide import wide


def output_gate(pre, value, act="sigmoid"):
    """act(pre) tanh(value)."""
    a, b = wide(pre, value)
    gate = torch.tanh(a) if act == "tanh" else torch.sigmoid(a)
    return (gate * torch.tanh(b)).to(pre.dtype)
