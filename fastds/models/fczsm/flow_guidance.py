# SPDX-License-Identifier: Apache-2.0
"""Base offsets of the aligners from optical flow (an option beyond the paper).

flow (B, N-1, 2, 2, h, w), (dy, dx) in pixels of the coarse grid per input step: flow[:, i, 0] is the displacement
from frame i to i+1 on the grid of frame i, flow[:, i, 1] that from frame i+1 to i on the grid of frame i+1.

* Interpolation: way 1 samples frame i at p + flow[:, i, 1](p) / 2, way 2 samples frame i+1 at p + flow[:, i, 0](p) / 2.
* Recurrence: the sequence has half steps. Between the states t-1 and t, which lie in pair i = (t-1) // 2, the forward
  direction samples the earlier state at p + flow[:, i, 1](p) / 2 and warps x toward that state by
  p + flow[:, i, 0](p) / 2; the backward direction the opposite. The first step has no state and no displacement.
* Level l = 1, 2, 3 of a pyramid: averaged over 2^(l-1) x 2^(l-1) pixels and divided by 2^(l-1).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def level_offsets(displacement: Tensor, levels: int) -> list[Tensor]:
    """Pyramid of base offsets of a displacement (B, 2, h, w) in pixels of level 1."""
    out = [displacement]
    for _ in range(levels - 1):
        out.append(0.5 * F.avg_pool2d(out[-1], 2))
    return out


def interpolation_offsets(flow: Tensor, levels: int) -> tuple[list[Tensor], list[Tensor]]:
    """Base offsets of both interpolation ways for all pairs, pair-major batch ((N-1)*B, 2, h, w)."""
    half = 0.5 * flow.transpose(0, 1).flatten(0, 1)
    return level_offsets(half[:, 1], levels), level_offsets(half[:, 0], levels)


def state_offsets(flow: Tensor, step: int, forward_first: bool, levels: int) -> tuple[list, list] | None:
    """Base offsets (x toward state, state toward x) of one recurrent step of both directions, batch (2*B, 2, h, w).

    Step s is sequence index s of the forward and 2N-2-s of the backward direction; forward_first gives the order of
    the two in the batch. Step 0 has no previous state: None.
    """
    if step == 0:
        return None
    last = 2 * flow.shape[1]
    earlier = (step - 1) // 2  # pair of the forward direction's states
    later = (last - step) // 2  # pair of the backward direction's states, indices last-step and last-step+1
    to_earlier, to_later = flow[:, earlier, 1], flow[:, later, 0]
    from_earlier, from_later = flow[:, earlier, 0], flow[:, later, 1]
    if not forward_first:
        to_earlier, to_later = to_later, to_earlier
        from_earlier, from_later = from_later, from_earlier
    x_way = 0.5 * torch.cat([from_earlier, from_later])
    state_way = 0.5 * torch.cat([to_earlier, to_later])
    return level_offsets(x_way, levels), level_offsets(state_way, levels)
