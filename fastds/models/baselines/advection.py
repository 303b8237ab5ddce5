# SPDX-License-Identifier: Apache-2.0
"""Advection: frames between two input frames are interpolated along dense optical flow."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.baselines.interpolation import check_sequence, interleave, upsample
from fastds.ops import deform_conv2d

# Pixels. OpenCV's coarse-to-fine pyramid fails or crashes on images with a smaller side.
_MIN_SIDE = 32


def optical_flow(x: Tensor, fine: bool = False) -> Tensor:
    """Estimate the motion between neighbouring frames in both directions with OpenCV's dense inverse search.

    Args:
        x: (B, N, h, w) or (B, N, C, h, w), N >= 2 frames normalised to [0, 1]. Only channel 0 is read.
        fine: True searches at full resolution, too (the preset stops at half resolution), and doubles the number of
            refinement iterations. The flow is more accurate and takes longer.

    Returns:
        Displacements (B, N-1, 2, 2, h, w), float32, on the device of x, in pixels. The fourth dimension is (dy, dx).
        [:, i, 0] is the displacement from frame i to frame i+1 on the grid of frame i. [:, i, 1] is the displacement
        from frame i+1 to frame i on the grid of frame i+1. The result is computed on the CPU and has no gradient.

    Raises:
        ValueError: If x has another shape or contains NaN.

    Source: Kroeger et al. 2016, Fast Optical Flow using Dense Inverse Search (OpenCV DIS, preset medium).
    """
    images = _make_images(x)
    pairs = [pair for i in range(images.shape[1] - 1) for pair in ((i, i + 1), (i + 1, i))]
    return _search_flows(images, pairs, x, fine).unflatten(1, (-1, 2))


def backward_flow(x: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Estimate the displacements from frames back to earlier frames, as optical_flow does for neighbouring frames.

    Args:
        x: see optical_flow.
        pairs: numbers (earlier, later) of the frames of each displacement.

    Returns:
        Displacements (B, P, 2, h, w) from the later to the earlier frame of each pair, float32, (dy, dx) in pixels on
        the grid of the later frame. The result is computed on the CPU and has no gradient.

    Raises:
        ValueError: see optical_flow.
    """
    return _search_flows(_make_images(x), [(later, earlier) for earlier, later in pairs], x)


def _make_images(x: Tensor) -> np.ndarray:
    """Return the images (B, N, H, W) uint8 of frames, padded to the smallest size that OpenCV's search takes.

    Raises:
        ValueError: see optical_flow.
    """
    if x.ndim == 5:
        x = x[:, :, 0]
    if x.ndim != 4 or x.shape[1] < 2:
        raise ValueError(f"x must have shape (B, N, h, w) with N >= 2 frames, got {tuple(x.shape)}")
    frames = x.detach().to(device="cpu", dtype=torch.float32).clamp(0.0, 1.0).numpy()
    if not np.isfinite(frames).all():
        raise ValueError("x must be finite: set missing values to the floor before estimating motion")
    frames *= 255.0  # in place: clamp made a copy
    images = np.rint(frames, out=frames).astype(np.uint8)
    pad = ((0, 0), (0, 0), *((0, max(0, _MIN_SIDE - size)) for size in x.shape[-2:]))
    return np.ascontiguousarray(np.pad(images, pad, mode="edge"))


def _search_flows(images: np.ndarray, pairs: Sequence[tuple[int, int]], x: Tensor, fine: bool = False) -> Tensor:
    """Search the displacements from image `start` to image `end` for all pairs (start, end).

    Args:
        images: see _make_images.
        pairs: numbers of the images.
        x: the frames of which the images were made.
        fine: see optical_flow.

    Returns:
        (B, P, 2, h, w) float32 on the device of x, without the padding of the images.
    """
    import cv2

    create = cast(Any, cv2).DISOpticalFlow_create  # the stubs of OpenCV lack it
    search = create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if fine:
        search.setFinestScale(0)
        search.setVariationalRefinementIterations(2 * search.getVariationalRefinementIterations())
    h, w = x.shape[-2:]
    out = np.empty((len(images), len(pairs), 2, h, w), np.float32)
    for k, frames in enumerate(images):
        for number, (start, end) in enumerate(pairs):
            flow = search.calc(frames[start], frames[end], None)  # (H, W, 2), (dx, dy)
            out[k, number] = flow[:h, :w, ::-1].transpose(2, 0, 1)
    return torch.from_numpy(out).to(x.device)


def warp(x: Tensor, displacement: Tensor) -> Tensor:
    """Sample x at p + displacement(p) for each pixel p by bilinear interpolation.

    Positions outside the grid are moved to its edge. The sampling is a deformable 1x1 convolution with weight one.

    Args:
        x: (B, C, H, W), any unit.
        displacement: (B, 2, H, W), (dy, dx) in pixels.

    Returns:
        (B, C, H, W), unit of x. Differentiable in both arguments.
    """
    h, w = x.shape[-2:]
    rows = torch.arange(h, device=x.device, dtype=displacement.dtype)[:, None]
    columns = torch.arange(w, device=x.device, dtype=displacement.dtype)[None, :]
    dy = (displacement[:, 0] + rows).clamp(0, h - 1) - rows
    dx = (displacement[:, 1] + columns).clamp(0, w - 1) - columns
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would round positions to whole pixels
        return deform_conv2d(x, torch.stack((dy, dx), 1), x.new_ones((x.shape[1], 1, 1, 1)))


def compute_halfway_flow(flow: Tensor) -> Tensor:
    """Compute the displacement d from each pixel p at the middle time to the earlier frame.

    A parcel that is at p at the middle time was at p + d in the earlier frame and is at p - d in the later frame. With
    the forward flow f and the backward flow b, two fixed-point steps solve d(p) = (b(p - d) - f(p + d)) / 4.

    Args:
        flow: (B, 2, 2, h, w), in pixels: the forward flow on the earlier grid, then the backward flow on the later
            grid.

    Returns:
        (B, 2, h, w), in pixels.
    """
    forwards, backwards = flow[:, 0], flow[:, 1]
    to_start, to_end = -0.5 * forwards, -0.5 * backwards
    for _ in range(2):
        to_start = 0.25 * (warp(backwards, to_end) - warp(forwards, to_start))
        to_end = -to_start
    return to_start


class AdvectedPairs(NamedTuple):
    """Pairs of neighbouring frames, moved to the time between them along the optical flow.

    Attributes:
        fine: (B, N, C, r*h, r*w), the frames, interpolated bicubically.
        half: (B * (N-1), 2, h, w), halfway flow in coarse pixels, see `compute_halfway_flow`.
        fine_half: (B * (N-1), 2, r*h, r*w), halfway flow on the fine grid, in fine pixels.
        middles: (B, N-1, C, r*h, r*w), means of the two moved frames of each pair.
    """

    fine: Tensor
    half: Tensor
    fine_half: Tensor
    middles: Tensor


def advect_pairs(x: Tensor, r: int = 2, flow: Tensor | None = None) -> AdvectedPairs:
    """Move the frames of each pair to the time between them. Arguments and errors are those of `advection`."""
    check_sequence(x, r)
    b, n, _, h, w = x.shape
    if flow is None:
        flow = optical_flow(x)
    if tuple(flow.shape) != (b, n - 1, 2, 2, h, w):
        raise ValueError(f"flow must have shape {(b, n - 1, 2, 2, h, w)} to go with x, got {tuple(flow.shape)}")
    fine = upsample(x, r, "bicubic")
    half = fine_half = compute_halfway_flow(flow.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 1))
    if r > 1:
        fine_half = r * F.interpolate(half, (r * h, r * w), mode="bilinear", align_corners=False)
    start = warp(fine[:, :-1].flatten(0, 1), fine_half)
    end = warp(fine[:, 1:].flatten(0, 1), -fine_half)
    return AdvectedPairs(fine, half, fine_half, (0.5 * (start + end)).unflatten(0, (b, n - 1)))


def advection(x: Tensor, r: int = 2, flow: Tensor | None = None) -> Tensor:
    """Interpolate in time along the optical flow, and bicubically in space.

    With u_i = bicubic(x[i]), clipped to [0, 1], and d = compute_halfway_flow(flow[:, i]) on the fine grid:

        y[2i] = u_i;  y[2i+1](p) = (u_i(p + d(p)) + u_{i+1}(p - d(p))) / 2

    Args:
        x: (B, N, C, h, w), N >= 2 frames normalised to [0, 1]. Without `flow`, the motion is estimated from channel 0.
        r: factor in space.
        flow: (B, N-1, 2, 2, h, w), in pixels of the grid of x, as `optical_flow` returns it. None computes it.

    Returns:
        (B, 2N-1, C, r*h, r*w) at half the time step, normalised. Differentiable in x for a given flow.

    Raises:
        ValueError: If x, r or flow has a wrong shape or value.
        TypeError: If x is not floating-point.

    Source: advection correction of radar fields (Nielsen et al. 2014).
    """
    pairs = advect_pairs(x, r, flow)
    return interleave(pairs.fine, pairs.middles)
