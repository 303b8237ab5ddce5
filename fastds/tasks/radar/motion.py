# SPDX-License-Identifier: Apache-2.0
"""Optical flow between two radar frames, averaged with the flow of neighbouring pairs of frames."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.baselines import optical_flow
from fastds.models.baselines.advection import warp

_RADIUS = 2  # radius in pixels of the neighbourhood whose echo determines the confidence of the flow


class Motion:
    """Optical flow of two consecutive frames x (2, h, w) in [0, 1], computed at first use.

    Attributes:
        flow: (1, 2, 2, h, w), see optical_flow; zero if both frames are dry.
        confidence: (2, 1, h, w), confidence of the flow: fraction of echo near a pixel of each frame.
    """

    def __init__(self, x: Tensor, fine: bool = True):
        self.x, self.fine = x, fine

    @functools.cached_property
    def flow(self) -> Tensor:
        if not self.x.any():
            return self.x.new_zeros(1, 2, 2, *self.x.shape[-2:])
        return optical_flow(self.x[None], self.fine)[0].float()

    @functools.cached_property
    def confidence(self) -> Tensor:
        around = F.pad((self.x > 0).float()[:, None], (_RADIUS,) * 4)
        return F.avg_pool2d(around, 2 * _RADIUS + 1, 1)


def smooth_flow(this: Motion, before: Motion | None, after: Motion | None) -> Tensor:
    """Return the confidence-weighted temporal mean of the optical flow of neighbouring pairs of frames.

    The flow of the neighbouring pairs is sampled along the trajectory:

    v(p) = (v0(p) + sum_k w_k(p_k) v_k(p_k)) / (1 + sum_k w_k(p_k)), p_k = p -+ v0(p)

    At the beginning and the end of a series, the flow of the pair itself is returned, without the fine search: a
    one-sided mean would be biased in time, and the fine search needs averaging.

    Args:
        this: flow of the pair.
        before: flow of the previous pair, or None.
        after: flow of the next pair, or None.

    Returns:
        (1, 2, 2, h, w).
    """
    if before is None or after is None:
        return Motion(this.x, fine=False).flow if this.fine else this.flow
    flow = this.flow[0]
    # displacement of the same air one interval later, for the flow of each frame
    ahead = torch.stack([flow[0], -flow[1]])
    total = torch.cat([flow, torch.ones_like(this.confidence)], 1)
    for other, where in ((before, -ahead), (after, ahead)):
        total = total + warp(torch.cat([other.confidence * other.flow[0], other.confidence], 1), where)
    return (total[:, :2] / total[:, 2:])[None]


def smooth_pair_flow(before: Tensor | None, this: Tensor, after: Tensor | None) -> Tensor:
    """Compute the optical flow of a pair of frames with smooth_flow.

    Args:
        before: (2, h, w) in [0, 1], previous pair, or None.
        this: (2, h, w) in [0, 1], pair of frames.
        after: (2, h, w) in [0, 1], next pair, or None.

    Returns:
        (1, 2, 2, h, w), see smooth_flow.
    """
    return smooth_flow(Motion(this), *(None if pair is None else Motion(pair) for pair in (before, after)))
