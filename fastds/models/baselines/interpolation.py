# SPDX-License-Identifier: Apache-2.0
"""Interpolation in space and time."""

import functools
from typing import Any

import numpy as np
import scipy  # its submodules are imported at first use
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops import GridSpec, PointSpec, inr_query
from fastds.ops.core.layout import upcast_half

METHODS = ("bilinear", "bicubic", "lanczos")
ALIGNMENTS = ("center", "grid")


# Interpolation kernels for numpy arrays and for tensors: xp is numpy or torch.


def _linear(t, xp):
    return (1.0 - abs(t)).clip(0.0)


def _cubic(t, xp, a: float = -0.5):
    t = abs(t)
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return xp.where(t < 1, near, xp.where(t < 2, far, 0.0))


def _lanczos(t, xp, a: int = 3):
    return xp.where(abs(t) < a, xp.sinc(t) * xp.sinc(t / a), 0.0)


KERNELS = {"bilinear": (_linear, 1), "bicubic": (_cubic, 2), "lanczos": (_lanczos, 3)}


def build_interpolation_matrix(n: int, r: int, method: str, align: str, device: torch.device | str = "cpu") -> Tensor:
    """Build the matrix that interpolates a line of n coarse points to r*n fine points.

    With align="grid" coarse point k lies at fine coordinate r*k (decimated fields). With align="center" coarse point k
    lies at r*k + (r-1)/2 (area means). Beyond the ends the outer values are repeated.

    Args:
        n: number of coarse points.
        r: factor.
        method: one of METHODS.
        align: one of ALIGNMENTS.
        device: device of the result.

    Returns:
        (r*n, n) float64, rows with sum one. On a CPU the memory is shared between calls and must not be modified.
    """
    if torch.device(device).type == "cpu":
        return torch.from_numpy(_build_cached_matrix(n, r, method, align))
    return _build_matrix(
        n, r, method, align, torch, device=device
    )  # a copy from the CPU would abort the capture of a graph


@functools.lru_cache(maxsize=64)
def _build_cached_matrix(n: int, r: int, method: str, align: str) -> np.ndarray:
    """Build the matrix in numpy, because a tensor that is built while torch traces cannot be cached."""
    return _build_matrix(n, r, method, align, np)


def _build_matrix(n: int, r: int, method: str, align: str, xp: Any, **where: Any) -> Any:
    """Build the interpolation matrix (r n, n) in float64.

    Args:
        n: number of coarse values.
        r: factor.
        method: method of `interpolate`.
        align: alignment of `interpolate`.
        xp: module that makes the matrix, numpy or torch.
        **where: device, for torch.
    """
    kernel, radius = KERNELS[method]
    offset = 0.0 if align == "grid" else (r - 1) / 2
    position = (xp.arange(r * n, dtype=xp.float64, **where) - offset) / r
    near = (xp.floor(position) - radius + 1)[:, None] + xp.arange(2 * radius, dtype=xp.float64, **where)
    weights = kernel(position[:, None] - near, xp)
    weights = weights / weights.sum(1)[:, None]
    column, near = xp.arange(n, dtype=xp.float64, **where), near.clip(0, n - 1)
    return sum(xp.where(near[:, k, None] == column, weights[:, k, None], 0.0) for k in range(2 * radius))


def interpolate(x: Tensor, r: int, method: str = "bicubic", align: str = "center") -> Tensor:
    """Interpolate fields by a whole factor in space.

    Args:
        x: (..., h, w), any unit, floating-point.
        r: factor, a positive integer.
        method: "bilinear", "bicubic" (a = -0.5) or "lanczos" (a = 3).
        align: position of the coarse values on the fine grid. "center" is the centre of the r x r block, which fits
            area means and is the convention of image resizing. "grid" is the first row and column of the block, which
            fits decimated fields.

    Returns:
        (..., r*h, r*w), unit of x. Linear in x, differentiable, deterministic.

    Raises:
        ValueError: If r, method or align has a wrong value.
        TypeError: If x is not floating-point or has fewer than two dimensions.

    Source: Keys 1981 (bicubic); Duchon 1979 (Lanczos).
    """
    if x.ndim < 2 or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor (..., h, w), got {x.dtype} of shape {tuple(x.shape)}")
    if not isinstance(r, int) or r < 1:
        raise ValueError(f"r must be a positive integer (the factor in space), got {r!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if align not in ALIGNMENTS:
        raise ValueError(f"align must be one of {ALIGNMENTS}, got {align!r}")
    with torch.autocast(x.device.type, enabled=False):
        if any(isinstance(n, torch.SymInt) for n in x.shape[-2:]):
            return _interpolate_rows_by_phase(_interpolate_rows_by_phase(x, r, method, align).mT, r, method, align).mT
        rows, columns = (build_interpolation_matrix(n, r, method, align, x.device).to(x.dtype) for n in x.shape[-2:])
        return rows @ x @ columns.T


def compute_interpolation_weights(
    positions: np.ndarray, n: int, method: str, periodic: bool = False
) -> "scipy.sparse.csr_array":
    """Compute the sparse matrix that interpolates a line of n points to arbitrary positions.

    Args:
        positions: (P,), in units of the point spacing: 0 at the first point, 1 at the second.
        n: number of points.
        method: see `interpolate`.
        periodic: whether the line is periodic. Otherwise the outer values are repeated beyond the ends.

    Returns:
        (P, n) float64, sparse, rows with sum one.
    """
    kernel, radius = KERNELS[method]
    first = np.floor(positions).astype(np.int64) - radius + 1
    near = first[:, None] + np.arange(2 * radius)
    weights = kernel(positions[:, None] - near, np)
    weights /= weights.sum(1, keepdims=True)
    near = near % n if periodic else near.clip(0, n - 1)
    rows = np.repeat(np.arange(len(positions)), 2 * radius)
    nonzero = weights.ravel() != 0  # drop zero weights, which would spread missing values (NaN * 0)
    return scipy.sparse.csr_array(
        (weights.ravel()[nonzero], (rows[nonzero], near.ravel()[nonzero])), shape=(len(positions), n)
    )


def _interpolate_rows_by_phase(x: Tensor, r: int, method: str, align: str) -> Tensor:
    """Interpolate to r times as many rows, (..., h, w) -> (..., r*h, w), for sizes that a tracer leaves symbolic.

    A convolution with the same r rows of weights at each coarse row replaces the matrix of interpolation weights, whose
    size would have to be known. Beyond the first and last row the values are repeated.
    """
    radius = KERNELS[method][1] + 1
    middle = build_interpolation_matrix(2 * radius + 1, r, method, align, x.device)[r * radius : r * (radius + 1)].to(
        x.dtype
    )
    flat = F.pad(x.flatten(0, -3)[:, None], (0, 0, radius, radius), mode="replicate")
    fine = F.conv2d(flat, middle[:, None, :, None])  # (B, r, h, w)
    return fine.transpose(1, 2).flatten(1, 2).unflatten(0, x.shape[:-2])


def interpolate_at(
    x: Tensor,
    where: GridSpec | PointSpec,
    edge: tuple[str, str] = ("clamp", "clamp"),
    mask: Tensor | None = None,
) -> Tensor:
    """Interpolate fields bilinearly at arbitrary points.

    Args:
        x: (B, C, H, W).
        where: grid or points with Q queries, in pixels of x.
        edge: boundary handling of rows and of columns, each "clamp" or "wrap".
        mask: valid pixels or None, see fastds.ops.inr_query.

    Returns:
        (B, Q, C).
    """
    (x,) = upcast_half(x)
    return inr_query(torch.zeros_like(x), where, skip=x, ensemble="early_area", activation="none", edge=edge, mask=mask)


def check_sequence(x: Tensor, r: int) -> None:
    """Check that x is a sequence (B, N >= 2, C, h, w) and r a positive integer.

    Raises:
        ValueError: If x has another shape or r another value.
        TypeError: If x is not floating-point.
    """
    if x.ndim != 5 or x.shape[1] < 2:
        raise ValueError(f"x must have shape (B, N, C, h, w) with N >= 2 frames, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
    if not isinstance(r, int) or r < 1:
        raise ValueError(f"r must be a positive integer (the factor in space), got {r!r}")


def interleave(frames: Tensor, middles: Tensor) -> Tensor:
    """Insert the N-1 intermediate frames between the N frames: (B, N, ...), (B, N-1, ...) -> (B, 2N-1, ...)."""
    b, n = frames.shape[:2]
    out = frames.new_empty((b, 2 * n - 1, *frames.shape[2:]))
    out[:, 0::2] = frames
    out[:, 1::2] = middles
    return out


def upsample(x: Tensor, r: int, mode: str) -> Tensor:
    """Interpolate each frame of a sequence by r in space, with half-pixel centres.

    Bicubic results for r > 1 are clipped to [0, 1].

    Args:
        x: (B, N, C, h, w).
        r: factor in space.
        mode: "bilinear" or "bicubic", as for torch.nn.functional.interpolate.

    Returns:
        (B, N, C, r*h, r*w).
    """
    if r == 1:
        return x
    b, n, c, h, w = x.shape
    y = F.interpolate(x.reshape(b * n, c, h, w), (r * h, r * w), mode=mode, align_corners=False)
    if mode == "bicubic":
        y = y.clamp(0.0, 1.0)
    return y.reshape(b, n, c, r * h, r * w)


def trilinear(x: Tensor, r: int = 2) -> Tensor:
    """Interpolate linearly in time and bilinearly in space.

    With the bilinear interpolation `up`: y[2i] = up(x[i]), y[2i+1] = (up(x[i]) + up(x[i+1])) / 2.

    Args:
        x: (B, N, C, h, w), N >= 2 frames, any unit.
        r: factor in space.

    Returns:
        (B, 2N-1, C, r*h, r*w) at half the time step, unit of x. Differentiable in x, deterministic.

    Raises:
        ValueError: If x has another shape or r another value.
        TypeError: If x is not floating-point.

    Source: Chen, Qin and Dai 2022 (their baseline "trilinear").
    """
    check_sequence(x, r)
    y = upsample(x, r, "bilinear")
    return interleave(y, 0.5 * (y[:, :-1] + y[:, 1:]))


def bicubic(x: Tensor, r: int = 2) -> Tensor:
    """Interpolate linearly in time and bicubically (a = -0.75) in space, clipped to [0, 1].

    Args:
        x: (B, N, C, h, w), N >= 2 frames, normalised to [0, 1].
        r: factor in space.

    Returns:
        (B, 2N-1, C, r*h, r*w) at half the time step, normalised. Differentiable in x, deterministic.

    Raises:
        ValueError: If x has another shape or r another value.
        TypeError: If x is not floating-point.
    """
    check_sequence(x, r)
    y = upsample(x, r, "bicubic")
    return interleave(y, 0.5 * (y[:, :-1] + y[:, 1:]))
