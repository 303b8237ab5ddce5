# SPDX-License-Identifier: Apache-2.0
"""Nowcasts without training: persistence, blurred persistence and semi-Lagrangian extrapolation."""

import contextlib
import io

import numpy as np
import scipy  # its submodules are imported at first use
import torch
from torch import Tensor

from fastds.models.baselines.advection import warp
from fastds.models.baselines.boundary import fill_inflow, fill_missing
from fastds.models.baselines.motion import estimate_backward_flow

# Candidates for the growth of the standard deviation of the blur, in pixels per step.
_BLUR_GROWTH = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def persistence(x: Tensor, steps: int) -> Tensor:
    """Repeat the last frame: y[k] = x[-1].

    Args:
        x: (B, N, C, h, w), N >= 1 input frames at equal time steps, any unit; NaN where missing.
        steps: number of frames to forecast.

    Returns:
        (B, steps, C, h, w). Missing pixels take the nearest value of their frame, or 0 if the frame has no value, but
        stay missing during an export or the capture of a CUDA graph.

    Raises:
        ValueError: If x or steps has a wrong shape or value.
        TypeError: If x is not floating-point.
    """
    _check_input(x, steps, 1)
    return fill_missing(x[:, -1:]).repeat(1, steps, 1, 1, 1)


def blurred_persistence(x: Tensor, steps: int) -> Tensor:
    """Repeat the last frame with a blur that grows with lead time: y[k] = G(g k) x[-1], k = 1, 2, ...

    G(s) is a Gaussian filter with a standard deviation of s pixels and repeated edges. The growth g is selected from
    eleven candidates between 0 and 8 pixels per step. For each sequence, the selected candidate minimises the error of
    blurred earlier frames as forecasts of the last frame: sum_j |G(g j) x[-1-j] - x[-1]|^2.

    Args:
        x: (B, N, C, h, w) on the CPU, N >= 2 input frames at equal time steps, any unit; NaN where missing.
        steps: number of frames to forecast.

    Returns:
        (B, steps, C, h, w). Missing pixels are filled as by `persistence`.

    Raises:
        ValueError: If x or steps has a wrong shape or value.
        TypeError: If x is not floating-point.
    """
    _check_input(x, steps, 2)
    fields = fill_missing(x)
    forecasts = []
    for sequence in fields:
        before, last = sequence[:-1].flip(0), sequence[-1]
        errors = [
            sum((_blur(z, g * (j + 1)) - last).square().sum().item() for j, z in enumerate(before))
            for g in _BLUR_GROWTH
        ]
        growth = _BLUR_GROWTH[int(np.argmin(errors))]
        forecasts.append(torch.stack([_blur(last, growth * k) for k in range(1, steps + 1)]))
    return torch.stack(forecasts)


def extrapolation(x: Tensor, steps: int, flow: Tensor | None = None) -> Tensor:
    """Advect the last frame along its motion by semi-Lagrangian extrapolation: y[k](p) = x[-1](p + d_k(p)).

    The displacement is d_k = compute_trajectories(flow, steps)[k - 1]. Each forecast frame interpolates the last frame
    once, so that repeated interpolation does not smooth it.

    Args:
        x: (B, N, C, h, w), N >= 2 frames normalised to [0, 1]; NaN where missing. The motion is estimated from channel
            0.
        steps: number of frames to forecast.
        flow: (B, 2, h, w), see `compute_trajectories`. None estimates it from the last four frames, or from as many as
            there are, see `estimate_backward_flow`.

    Returns:
        (B, steps, C, h, w). Inflow from missing pixels and from outside the grid is filled as described in
        `fill_inflow`. Differentiable in x if the flow is given and x has no missing values.

    Raises:
        ValueError: If x, steps or flow has a wrong shape or value.
        TypeError: If x is not floating-point.

    Source: Germann and Zawadzki 2002 (semi-Lagrangian extrapolation of radar fields).
    """
    _check_input(x, steps, 2)
    last = fill_missing(x[:, -1:])
    if flow is None:
        flow = estimate_backward_flow(x[:, :, :1])
    b, _, c, h, w = last.shape
    if tuple(flow.shape) != (b, 2, h, w):
        raise ValueError(f"flow must have shape {(b, 2, h, w)} to go with x, got {tuple(flow.shape)}")
    paths = compute_trajectories(flow, steps)
    moved = warp(last.expand(-1, steps, -1, -1, -1).flatten(0, 1), paths.flatten(0, 1)).reshape(b, steps, c, h, w)
    return fill_inflow(moved, x[:, -1], paths)


def compute_trajectories(flow: Tensor, steps: int) -> Tensor:
    """Compute backward trajectories in a steady flow: d_1 = b, d_{k+1}(p) = d_k(p) + b(p + d_k(p)).

    Args:
        flow: b, (B, 2, h, w), the displacement (dy, dx) in pixels from each pixel to the origin of its air one step
            before.
        steps: number of steps.

    Returns:
        (B, steps, 2, h, w), in pixels: the displacement from each pixel to the origin of its air 1, 2, ... steps
        before.
    """
    paths, d = [], torch.zeros_like(flow)
    for _ in range(steps):
        d = d + warp(flow, d)
        paths.append(d)
    return torch.stack(paths, 1)


def pysteps_extrapolation(x: Tensor, steps: int) -> Tensor:
    """Extrapolate with the package pysteps: Lucas-Kanade motion of all input frames and semi-Lagrangian advection.

    Args:
        x: (B, N, C, h, w), N >= 2 frames; only channel 0 is read. NaN where missing.
        steps: number of frames to forecast.

    Returns:
        (B, steps, 1, h, w). Inflow from outside the grid is 0, which means dry.

    Raises:
        ImportError: If pysteps is not installed.
        ValueError: If x or steps has a wrong shape or value.
        TypeError: If x is not floating-point.

    Source: Pulkkinen et al. 2019.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration
            from pysteps import motion, nowcasts
    except ImportError:
        raise ImportError("pysteps_extrapolation needs the package pysteps: python -m pip install pysteps") from None
    _check_input(x, steps, 2)
    fields = fill_missing(x)[:, :, 0].double().numpy()
    forecasts = []
    for sequence in fields:
        velocity = motion.get_method("lucaskanade")(sequence)
        forecasts.append(nowcasts.get_method("extrapolation")(sequence[-1], velocity, steps))
    return torch.from_numpy(np.nan_to_num(np.stack(forecasts))).to(x.dtype)[:, :, None]


def _check_input(x: Tensor, steps: int, fewest: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor (B, N, C, h, w), got {getattr(x, 'dtype', type(x))}")
    if x.ndim != 5 or x.shape[1] < fewest:
        raise ValueError(f"x must have shape (B, N, C, h, w) with N >= {fewest} fields, got {tuple(x.shape)}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")


def _blur(x: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return x
    return torch.from_numpy(
        scipy.ndimage.gaussian_filter(x.numpy(), (0.0,) * (x.ndim - 2) + (sigma, sigma), mode="nearest")
    )
