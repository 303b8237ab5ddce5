# SPDX-License-Identifier: Apache-2.0
"""Nowcasts without training: the last field, the last field blurred, the last field moved along its motion."""

import contextlib
import io

import numpy as np
import scipy  # its parts are imported at first use
import torch
from torch import Tensor

from fastds.models.baselines.advection import optical_flow, warp
from fastds.models.baselines.rims import from_outside, trusted_motion
from fastds.models.graph import capturing

# Candidates for the growth of the blur, pixels per step.
_BLUR_GROWTH = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)


def persistence(x: Tensor, steps: int) -> Tensor:
    """Repeat the last field: y[k] = x[-1].

    Args:
        x: (B, N, C, h, w), N >= 1 known fields at equal steps, any unit; NaN where missing.
        steps: number of fields to forecast.

    Returns: (B, steps, C, h, w) on the CPU; missing pixels take the nearest value of their field, 0 where it has none.

    Raises: ValueError, TypeError for x or steps of another kind.
    """
    _check(x, steps, 1)
    return fill_missing(x[:, -1:]).repeat(1, steps, 1, 1, 1)


def blurred_persistence(x: Tensor, steps: int) -> Tensor:
    """Repeat the last field, blurred more and more: y[k] = G(g k) x[-1], k = 1, 2, ...

    G(s) is a Gaussian filter of standard deviation s pixels, edges repeated. The growth g is that of eleven candidates
    from 0 to 8 pixels per step that forecasts the last known field of each sequence best from the ones before:
    it minimises sum_j |G(g j) x[-1-j] - x[-1]|^2. (Errors of persistence come from displacement, which grows with
    lead; on the project's radars the best blur of every lead is nearly proportional to it.)

    x, steps, returns and errors as persistence, N >= 2.
    """
    _check(x, steps, 2)
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
    """Move the last field along its motion, backwards from every pixel: y[k](p) = x[-1](p + d_k(p)).

    d_k = trajectories(flow, steps)[k - 1]; bilinear, once per forecast, so that nothing is smoothed twice.

    Args:
        x: (B, N, C, h, w), N >= 2 fields normalised to [0, 1]; NaN where missing; channel 0 gives the motion.
        steps: number of fields to forecast.
        flow: (B, 2, h, w), see trajectories; None: dense inverse search between the last two fields, see
            trusted_motion.

    Returns: (B, steps, C, h, w). What comes from missing pixels or from outside the grid goes from the nearest value to
        the mean around it, see from_outside. Differentiable in x for a given flow and x without missing values.

    Raises: ValueError, TypeError for x, steps or flow of another kind.

    Source: Germann and Zawadzki 2002 (semi-Lagrangian extrapolation of radar fields).
    """
    _check(x, steps, 2)
    fields = fill_missing(x)
    if flow is None:
        flow = trusted_motion(optical_flow(fields[:, -2:])[:, 0, 1], ~x[:, -1, 0].isnan())
    b, c, h, w = fields[:, -1].shape
    if tuple(flow.shape) != (b, 2, h, w):
        raise ValueError(f"flow must have shape {(b, 2, h, w)} to go with x, got {tuple(flow.shape)}")
    paths = trajectories(flow, steps)
    last = fields[:, -1:].expand(-1, steps, -1, -1, -1)
    moved = warp(last.flatten(0, 1), paths.flatten(0, 1)).reshape(b, steps, c, h, w)
    return from_outside(moved, x[:, -1], paths)


def trajectories(flow: Tensor, steps: int) -> Tensor:
    """Where what arrives at each pixel after 1, 2, ... steps is now: d_1 = b, d_{k+1}(p) = d_k(p) + b(p + d_k(p)).

    Args:
        flow: (B, 2, h, w), b, the displacement (dy, dx) from each pixel to where its echo was one step before, pixels;
            taken as steady.
        steps: number of steps.

    Returns: (B, steps, 2, h, w), pixels. Deterministic.
    """
    paths, d = [], torch.zeros_like(flow)
    for _ in range(steps):
        d = d + warp(flow, d)
        paths.append(d)
    return torch.stack(paths, 1)


def pysteps_extrapolation(x: Tensor, steps: int) -> Tensor:
    """Extrapolation by the package pysteps: Lucas-Kanade motion of all known fields, semi-Lagrangian advection.

    x, steps and returns as extrapolation; what pysteps leaves missing, because it comes from outside, is 0: dry,
    where extrapolation takes the mean echo near the edge.

    Raises: ImportError where pysteps is not installed.

    Source: Pulkkinen et al. 2019.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its configuration is
            from pysteps import motion, nowcasts
    except ImportError:
        raise ImportError("pysteps_extrapolation needs the package pysteps: python -m pip install pysteps") from None
    _check(x, steps, 2)
    fields = fill_missing(x)[:, :, 0].double().numpy()
    forecasts = []
    for sequence in fields:
        velocity = motion.get_method("lucaskanade")(sequence)
        forecasts.append(nowcasts.get_method("extrapolation")(sequence[-1], velocity, steps))
    return torch.from_numpy(np.nan_to_num(np.stack(forecasts))).to(x.dtype)[:, :, None]


def _check(x: Tensor, steps: int, fewest: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor (B, N, C, h, w), got {getattr(x, 'dtype', type(x))}")
    if x.ndim != 5 or x.shape[1] < fewest:
        raise ValueError(f"x must have shape (B, N, C, h, w) with N >= {fewest} fields, got {tuple(x.shape)}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number >= 1, got {steps!r}")


def fill_missing(x: Tensor) -> Tensor:
    """x with every missing pixel at the nearest value of its own field; 0 where a field has none. An exported program
    and a captured graph leave x as it is."""
    if torch.compiler.is_exporting() or capturing():
        return x
    missing = torch.isnan(x)
    if not missing.any():
        return x
    out = x.flatten(0, -3).clone()
    for field, holes in zip(out, missing.flatten(0, -3), strict=True):
        if holes.all():
            field.zero_()
        elif holes.any():
            rows, columns = scipy.ndimage.distance_transform_edt(
                holes.cpu().numpy(), return_distances=False, return_indices=True
            )
            field.copy_(field[torch.from_numpy(rows), torch.from_numpy(columns)])
    return out.reshape(x.shape)


def _blur(x: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return x
    return torch.from_numpy(
        scipy.ndimage.gaussian_filter(x.numpy(), (0.0,) * (x.ndim - 2) + (sigma, sigma), mode="nearest")
    )
