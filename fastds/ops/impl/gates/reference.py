# SPDX-License-Identifier: Apache-2.0
"""References of the pointwise ops in PyTorch, differentiable to any order.

In the formulas, s is the sigmoid.
"""

import torch
import torch.nn.functional as F

from fastds.ops.core.layout import upcast_half


def lstm_gates(pre, c):
    """Compute c' = s(f) c + s(i) tanh(g) and h' = s(o) tanh(c'); the order in pre is i, f, g, o."""
    p, state = upcast_half(pre, c)
    i, f, g, o = p.chunk(4, 1)
    new = torch.sigmoid(f) * state + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(new)
    return h.to(pre.dtype), new.to(c.dtype)


def memory_gates(pre, c, state_act="none"):
    """Compute c' = s(f) k(c) + s(i) tanh(g), k = identity or tanh.

    Args:
        pre: (B, 3C, H, W), pre-activations in the order i, f, g.
        c: (B, C, H, W), memory.
        state_act: k, "none" or "tanh".

    Returns:
        c' (B, C, H, W), dtype of c.
    """
    p, state = upcast_half(pre, c)
    i, f, g = p.chunk(3, 1)
    state = torch.tanh(state) if state_act == "tanh" else state
    return (torch.sigmoid(f) * state + torch.sigmoid(i) * torch.tanh(g)).to(c.dtype)


def st_lstm_gates(pre, c):
    """Compute memory_gates of i, f and g, and return q; the order in pre is i, f, g, q."""
    channels = c.shape[1]
    return memory_gates(pre[:, : 3 * channels], c), pre[:, 3 * channels :].clone()


def output_gate(pre, value, act="sigmoid"):
    """Compute act(pre) tanh(value).

    Args:
        pre: (B, C, H, W), pre-activation of the gate.
        value: (B, C, H, W).
        act: "sigmoid" or "tanh".

    Returns:
        (B, C, H, W), dtype of pre.
    """
    a, b = upcast_half(pre, value)
    gate = torch.tanh(a) if act == "tanh" else torch.sigmoid(a)
    return (gate * torch.tanh(b)).to(pre.dtype)


def gru_reset(pre_z, pre_r, h):
    """Compute z = s(pre_z) and s(pre_r) h.

    Args:
        pre_z: (B, C, H, W), pre-activation of the update gate.
        pre_r: (B, C, H, W), pre-activation of the reset gate.
        h: (B, C, H, W), state.

    Returns:
        z and the reset state, each (B, C, H, W).
    """
    a, b, state = upcast_half(pre_z, pre_r, h)
    return torch.sigmoid(a).to(pre_z.dtype), (torch.sigmoid(b) * state).to(h.dtype)


def gru_update(z, pre_n, h, keep="z", act="tanh", negative_slope=0.2):
    """Compute h' = w h + (1 - w) act(pre_n), w = z or 1 - z.

    Args:
        z: (B, C, H, W), update gate after its sigmoid.
        pre_n: (B, C, H, W), pre-activation of the candidate.
        h: (B, C, H, W), state.
        keep: "z" or "1-z", the weight w of h.
        act: "tanh" or "leaky_relu", activation of the candidate.
        negative_slope: float, slope of leaky_relu.

    Returns:
        h' (B, C, H, W), dtype of h.
    """
    w, n, state = upcast_half(z, pre_n, h)
    n = torch.tanh(n) if act == "tanh" else F.leaky_relu(n, negative_slope)
    w = w if keep == "z" else 1 - w
    return (w * state + (1 - w) * n).to(h.dtype)


def traj_gru_gates(x_part, h_part, h, negative_slope=0.2):
    """Compute z = s(zx + zh), r = s(rx + rh), n = leaky_relu(nx + r nh) and h' = (1 - z) n + z h.

    Args:
        x_part: (B, 3C, H, W), convolution of the input in the order z, r, n.
        h_part: (B, 3C, H, W), convolution of the warped state in the order z, r, n.
        h: (B, C, H, W), state.
        negative_slope: float, slope of leaky_relu.

    Returns:
        h' (B, C, H, W), dtype of h.
    """
    x, p, state = upcast_half(x_part, h_part, h)
    (zx, rx, nx), (zh, rh, nh) = x.chunk(3, 1), p.chunk(3, 1)
    z, r = torch.sigmoid(zx + zh), torch.sigmoid(rx + rh)
    n = F.leaky_relu(nx + r * nh, negative_slope)
    return ((1 - z) * n + z * state).to(h.dtype)
