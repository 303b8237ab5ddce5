# SPDX-License-Identifier: Apache-2.0
"""Advection: the echo moves along dense optical flow, so the middle field is both frames moved half-way."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.models.baselines.interpolation import check_sequence, interleave, upsample
from fastds.ops import deform_conv2d

# Smallest side given to OpenCV: its coarse-to-fine pyramid refuses or crashes on smaller images.
_MIN_SIDE = 32


def optical_flow(x: Tensor, fine: bool = False) -> Tensor:
    """Estimate the motion between neighbouring frames, both ways, by OpenCV's dense inverse search.

    Args:
        x: (B, N, h, w) or (B, N, C, h, w) (then channel 0 counts), N >= 2 frames normalised to [0, 1].
        fine: search on the frames' own grid, too, where the preset ends at half of it, and relax twice as long: nearer
            to the motion (see fastds.tasks.radar.motion), in 3.5 times the time.

    Returns:
        (B, N-1, 2, 2, h, w) float32 on x's device, pixels of this grid, (dy, dx) in the fourth dimension:
        [:, i, 0] is the displacement from frame i to i+1 on the grid of frame i,
        [:, i, 1] that from frame i+1 to i on the grid of frame i+1.
        Not differentiable; computed on the CPU.

    Raises:
        ValueError: x of another shape, or not finite.

    Source: Kroeger et al. 2016, Fast Optical Flow using Dense Inverse Search (OpenCV DIS, preset medium).
    """
    if x.ndim == 5:
        x = x[:, :, 0]
    if x.ndim != 4 or x.shape[1] < 2:
        raise ValueError(f"x must have shape (B, N, h, w) with N >= 2 frames, got {tuple(x.shape)}")
    with torch.no_grad():
        frames = x.detach().to(device="cpu", dtype=torch.float32).clamp(0.0, 1.0).numpy()
        if not np.isfinite(frames).all():
            raise ValueError("x must be finite: set missing values to the floor before estimating motion")
        frames *= 255.0  # a copy of x since clamp
        images = np.rint(frames, out=frames).astype(np.uint8)
        b, n, h, w = images.shape
        pad = ((0, 0), (0, 0), (0, max(0, _MIN_SIDE - h)), (0, max(0, _MIN_SIDE - w)))
        images = np.ascontiguousarray(np.pad(images, pad, mode="edge"))
        out = np.empty((b, n - 1, 2, 2, h, w), np.float32)
        search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        if fine:
            search.setFinestScale(0)
            search.setVariationalRefinementIterations(2 * search.getVariationalRefinementIterations())
        for k in range(b):
            for i in range(n - 1):
                for way, (start, end) in enumerate(((i, i + 1), (i + 1, i))):
                    flow = search.calc(images[k, start], images[k, end], None)  # (h, w, 2), (dx, dy)
                    out[k, i, way, 0] = flow[:h, :w, 1]
                    out[k, i, way, 1] = flow[:h, :w, 0]
        return torch.from_numpy(out).to(x.device)


def warp(x: Tensor, displacement: Tensor) -> Tensor:
    """Sample x at p + displacement(p), bilinear, positions outside the grid moved to its edge.

    Args:
        x: (B, C, H, W).
        displacement: (B, 2, H, W), (dy, dx) in pixels of this grid.

    Returns:
        (B, C, H, W), x's unit. Differentiable in both arguments; a deform_conv2d with a 1x1 kernel of weight one.
    """
    h, w = x.shape[-2:]
    rows = torch.arange(h, device=x.device, dtype=displacement.dtype)[:, None]
    columns = torch.arange(w, device=x.device, dtype=displacement.dtype)[None, :]
    dy = (displacement[:, 0] + rows).clamp(0, h - 1) - rows
    dx = (displacement[:, 1] + columns).clamp(0, w - 1) - columns
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would round positions to pixels
        return deform_conv2d(x, torch.stack((dy, dx), 1), x.new_ones((x.shape[1], 1, 1, 1)))


def halfway_flow(flow: Tensor) -> Tensor:
    """Find the displacement from every pixel of the middle time to the earlier frame; to the later it is the negative.

    d(p) = (b(p - d) - f(p + d)) / 4 with f, b the flows forwards and backwards, solved by two fixed-point steps:
    a parcel at p half-way was at p + d before and is at p - d after.

    Args:
        flow: (B, 2, 2, h, w), pixels: forwards on the earlier grid, backwards on the later grid.

    Returns:
        (B, 2, h, w), pixels.
    """
    forwards, backwards = flow[:, 0], flow[:, 1]
    to_start, to_end = -0.5 * forwards, -0.5 * backwards
    for _ in range(2):
        to_start = 0.25 * (warp(backwards, to_end) - warp(forwards, to_start))
        to_end = -to_start
    return to_start


def advection(x: Tensor, r: int = 2, flow: Tensor | None = None) -> Tensor:
    """Move the echo along the optical flow for the middle fields, bicubic in space.

    u_i = bicubic(x[i]); y[2i] = u_i; y[2i+1](p) = (u_i(p + d(p)) + u_{i+1}(p - d(p))) / 2, d = halfway_flow.

    Args:
        x: (B, N, C, h, w), N >= 2 frames normalised to [0, 1]; without flow, channel 0 gives the motion.
        r: factor in space.
        flow: as optical_flow returns it, (B, N-1, 2, 2, h, w), pixels of x's grid; None computes it.

    Returns:
        (B, 2N-1, C, r*h, r*w) at half the time step, normalised. Differentiable in x for a given flow.

    Raises:
        ValueError, TypeError: x, r or flow of another kind.

    Source: the common radar practice of advection correction (Nielsen et al. 2014).
    """
    check_sequence(x, r)
    b, n, c, h, w = x.shape
    if flow is None:
        flow = optical_flow(x)
    if tuple(flow.shape) != (b, n - 1, 2, 2, h, w):
        raise ValueError(f"flow must have shape {(b, n - 1, 2, 2, h, w)} to go with x, got {tuple(flow.shape)}")
    up = upsample(x, r, "bicubic")
    half = halfway_flow(flow.float().flatten(0, 1))
    if r > 1:
        half = r * F.interpolate(half, (r * h, r * w), mode="bilinear", align_corners=False)
    start = warp(up[:, :-1].flatten(0, 1), half)
    end = warp(up[:, 1:].flatten(0, 1), -half)
    return interleave(up, (0.5 * (start + end)).reshape(b, n - 1, c, r * h, r * w))
