# SPDX-License-Identifier: Apache-2.0
"""Step-by-step reference of fastds.models.fczsm.middle with operators of torch only."""

import torch
import torch.nn.functional as F

from fastds.models.baselines.interpolation import upsample


def sample(field, position):
    """Sample a field (B, 1, H, W) bilinearly at positions (B, 2, H, W) (row, column); edges are repeated."""
    h, w = field.shape[-2:]
    grid = torch.stack([position[:, 1] / (w - 1) * 2 - 1, position[:, 0] / (h - 1) * 2 - 1], -1)
    return F.grid_sample(field, grid, mode="bilinear", padding_mode="border", align_corners=True)


def make_grid(h, w, dtype):
    return torch.stack(torch.meshgrid(torch.arange(h, dtype=dtype), torch.arange(w, dtype=dtype), indexing="ij"))[None]


def solve_halfway(flow, grid):
    """Two fixed-point steps of d(p) = (b(p - d) - f(p + d)) / 4 from d = -f / 2, with p - d read as p - b / 2."""
    forwards, backwards = flow[:, 0], flow[:, 1]
    to_start, to_end = -forwards / 2, -backwards / 2
    for _ in range(2):
        f = torch.cat([sample(forwards[:, k : k + 1], grid + to_start) for k in (0, 1)], 1)
        b = torch.cat([sample(backwards[:, k : k + 1], grid + to_end) for k in (0, 1)], 1)
        to_start = (b - f) / 4
        to_end = -to_start
    return to_start


def correct_middle(state, r, middle, frames, context, flow):
    """Correct middle frames, see MiddleFrameCorrection.forward, with the tensors of its state_dict."""

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], stride=stride, padding=weight.shape[-1] // 2)

    def block(name, x):
        return x + conv(f"{name}.conv2", conv(f"{name}.conv1", x).relu())

    b, _, h, w = frames.shape
    grid, fine_grid = make_grid(h, w, frames.dtype), make_grid(r * h, r * w, frames.dtype)
    d = solve_halfway(flow, grid)
    known = torch.isfinite(context)
    filled = torch.where(known, context, frames)
    moved = [
        sample(filled[:, :1], grid + 3 * d),
        sample(frames[:, :1], grid + d),
        sample(frames[:, 1:], grid - d),
        sample(filled[:, 1:], grid - 3 * d),
    ]
    blocks = middle.reshape(b, h, r, w, r).permute(0, 2, 4, 1, 3).reshape(b, r * r, h, w)
    x = torch.cat([4 * torch.cat([*moved, blocks], 1), known.to(d.dtype), d / 4], 1)
    x = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate")
    full = block("encoders.0", F.leaky_relu(conv("first", x), 0.1))
    half = block("encoders.1", F.leaky_relu(conv("down.0", full, 2), 0.1))
    quarter = block("encoders.2", F.leaky_relu(conv("down.1", half, 2), 0.1))
    half = block("decoders.0", half + conv("up.0", quarter).repeat_interleave(2, -1).repeat_interleave(2, -2))
    full = block("decoders.1", full + conv("up.1", half).repeat_interleave(2, -1).repeat_interleave(2, -2))
    out = conv("last", full)[..., :h, :w]

    def refine(z):
        return F.interpolate(z, (r * h, r * w), mode="bilinear", align_corners=False)

    first, second = (upsample(frames[:, None, k : k + 1], r, "bicubic")[:, 0] for k in (0, 1))
    fine_d, weight = r * refine(d), torch.sigmoid(refine(out[:, 4:5]))
    start = sample(first, fine_grid + fine_d + r * refine(out[:, 0:2]))
    end = sample(second, fine_grid - fine_d + r * refine(out[:, 2:4]))
    advected = (sample(first, fine_grid + fine_d) + sample(second, fine_grid - fine_d)) / 2
    residual = out[:, 5:].reshape(b, 1, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, 1, r * h, r * w)
    return middle - advected + weight * start + (1 - weight) * end + residual
