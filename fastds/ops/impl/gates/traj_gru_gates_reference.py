# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F

from fastds.ops.core.wide import wide


def traj_gru_gates(x_part, h_part, h, negative_slope=0.2):
    """z = s(zx + zh), r = s(rx + rh), n = leaky(nx + r nh), h' = (1 - z) n + z h; parts in the order z, r, n."""
    x, p, state = wide(x_part, h_part, h)
    (zx, rx, nx), (zh, rh, nh) = x.chunk(3, 1), p.chunk(3, 1)
    z, r = torch.sigmoid(zx + zh), torch.sigmoid(rx + rh)
    n = F.leaky_relu(nx + r * nh, negative_slope)
    return ((1 - z) * n + z * state).to(h.dtype)
