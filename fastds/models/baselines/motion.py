# SPDX-License-Identifier: Apache-2.0
"""Motion of radar echo from the optical flows of several pairs of frames."""

import torch
from torch import Tensor

from fastds.models.baselines.advection import backward_flow
from fastds.models.baselines.boundary import compute_local_mean, fill_missing, inpaint_edge_motion

_PAIR_WEIGHTS = (1 / 6, 5 / 6)  # of the flows of the last two pairs of neighbouring frames
_RECENT_WEIGHT = 0.3  # of the weighted mean of these flows
_SPAN_WEIGHTS = {2: 0.4, 3: 0.3}  # of the mean flows over the last 2 and 3 intervals, where they agree with it
_TOLERANCE = 2.0  # pixels an interval: a flow over several intervals that differs by this much has half its weight
_AGREEMENT_WIDTH = 4  # pixels: standard deviation of the window in which the difference is averaged
MOTION_FRAMES = max(_SPAN_WEIGHTS) + 1  # frames that estimate_backward_flow reads if there are as many


def estimate_backward_flow(frames: Tensor) -> Tensor:
    """Estimate the displacement from each pixel to the origin of its air one step before.

    The flow is a weighted mean of optical flows: of the last two pairs of neighbouring frames, and of the last frame
    with the frames two and three intervals before it, as far as there are such frames. A flow over several intervals is
    less noisy, but the search fails where the echo moves far or changes much. Its weight decreases with its difference
    from the flow of neighbouring frames. Near the coverage edge of the last frame the flow is replaced, see
    `inpaint_edge_motion`.

    Args:
        frames: (B, m >= 2, 1, H, W) in [0, 1], NaN where missing.

    Returns:
        (B, 2, H, W), (dy, dx) in pixels.
    """
    valid = ~frames[:, -1, 0].isnan()
    device, frames = frames.device, fill_missing(frames[:, -MOTION_FRAMES:]).cpu()
    last = frames.shape[1] - 1
    spans = [span for span in _SPAN_WEIGHTS if span <= last]
    pairs = [(k - 1, k) for k in range(max(last - 1, 1), last + 1)]
    flows = backward_flow(frames, pairs + [(last - span, last) for span in spans])
    weights = flows.new_tensor(_PAIR_WEIGHTS[-len(pairs) :]).view(-1, 1, 1, 1)
    # no matrix product, which autocast would round
    recent = (flows[:, : len(pairs)] * (weights / weights.sum())).sum(1)
    total, shares = _RECENT_WEIGHT * recent, torch.full_like(recent[:, :1], _RECENT_WEIGHT)
    for number, span in enumerate(spans, len(pairs)):
        flow = flows[:, number] / span
        difference = compute_local_mean((flow - recent).square().sum(1).sqrt(), _AGREEMENT_WIDTH)[:, None]
        share = _SPAN_WEIGHTS[span] / (1 + (difference / _TOLERANCE).square())
        total, shares = total + share * flow, shares + share
    return inpaint_edge_motion((total / shares).to(device), valid)
