# SPDX-License-Identifier: Apache-2.0
"""Interpolation in space and time, without learning."""

import functools
from typing import Any

import numpy as np
import scipy  # its parts are imported at first use
import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops import GridSpec, PointSpec, inr_query
from fastds.ops.core.layout import upcast_half

METHODS = ("bilinear", "bicubic", "lanczos")
ALIGNMENTS = ("center", "grid")


# Kernels of numpy arrays and of tensors: xp is numpy or torch.


def _linear(t, xp):
    return (1.0 - abs(t)).clip(0.0)


def _cubic(t, xp, a: float = -0.5):
    t = abs(t)
    near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * (t**3 - 5 * t**2 + 8 * t - 4)
    return xp.where(t < 1, near, xp.where(t < 2, far, 0.0))


def _lanczos(t, xp, a: int = 3):
    return xp.where(abs(t) < a, xp.sinc(t) * xp.sinc(t / a), 0.0)


KERNELS = {"bilinear": (_linear, 1), "bicubic": (_cubic, 2), "lanczos": (_lanczos, 3)}


def matrix(n: int, r: int, method: str, align: str, device: torch.device | str = "cpu") -> Tensor:
    """(r*n, n) float64: what every fine point of a line takes from the n coarse points, rows summing to one.

    Coarse point k lies at fine coordinate r*k ("grid": decimation keeps every r-th point) or r*k + (r-1)/2 ("center":
    area means). Beyond the outer coarse points their values are repeated. Shared: not to be written to.
    """
    if torch.device(device).type == "cpu":
        return torch.from_numpy(_matrix(n, r, method, align))
    return _weights(n, r, method, align, torch, device=device)  # made there: a copy would end the capture of a graph


@functools.lru_cache(maxsize=64)
def _matrix(n: int, r: int, method: str, align: str) -> np.ndarray:
    """matrix, in numpy: a tensor that is made while torch traces is none to keep."""
    return _weights(n, r, method, align, np)


def _weights(n: int, r: int, method: str, align: str, xp: Any, **where: Any) -> Any:
    """matrix of xp, numpy or torch."""
    kernel, reach = KERNELS[method]
    offset = 0.0 if align == "grid" else (r - 1) / 2
    position = (xp.arange(r * n, dtype=xp.float64, **where) - offset) / r
    near = (xp.floor(position) - reach + 1)[:, None] + xp.arange(2 * reach, dtype=xp.float64, **where)
    weights = kernel(position[:, None] - near, xp)
    weights = weights / weights.sum(1)[:, None]
    column, near = xp.arange(n, dtype=xp.float64, **where), near.clip(0, n - 1)
    return sum(xp.where(near[:, k, None] == column, weights[:, k, None], 0.0) for k in range(2 * reach))


def interpolate(x: Tensor, r: int, method: str = "bicubic", align: str = "center") -> Tensor:
    """Interpolate fields by r in space.

    Args:
        x: (..., h, w), any unit, floating point.
        r: factor, a positive integer.
        method: "bilinear", "bicubic" (a = -0.5) or "lanczos" (a = 3).
        align: where coarse values lie on the fine grid: "center" of their r x r block (right for area means, and the
            convention of image resizing) or "grid": at the block's first row and column (right for decimated fields).

    Returns:
        (..., r*h, r*w), unit of x. Linear in x, differentiable, deterministic.

    Raises:
        ValueError, TypeError: x or an option of another kind.

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
            return _by_phases(_by_phases(x, r, method, align).mT, r, method, align).mT
        rows, columns = (matrix(n, r, method, align, x.device).to(x.dtype) for n in x.shape[-2:])
        return rows @ x @ columns.T


def weights_at(positions: np.ndarray, n: int, method: str, periodic: bool = False) -> "scipy.sparse.csr_array":
    """(P, n) float64, sparse: what values at positions along a line of n points take from these, rows summing to one.

    positions: (P,), 0 at the first point and 1 at the second. method: see interpolate. periodic: the line goes round;
    else the outer points' values are repeated beyond them.
    """
    kernel, reach = KERNELS[method]
    first = np.floor(positions).astype(np.int64) - reach + 1
    near = first[:, None] + np.arange(2 * reach)
    weights = kernel(positions[:, None] - near, np)
    weights /= weights.sum(1, keepdims=True)
    near = near % n if periodic else near.clip(0, n - 1)
    rows = np.repeat(np.arange(len(positions)), 2 * reach)
    kept = weights.ravel() != 0  # a missing value is none where it has no weight
    return scipy.sparse.csr_array((weights.ravel()[kept], (rows[kept], near.ravel()[kept])), shape=(len(positions), n))


def _by_phases(x: Tensor, r: int, method: str, align: str) -> Tensor:
    """interpolate along rows, (..., h, w) -> (..., r*h, w), for sizes that a tracer leaves open: the r fine rows of a
    coarse one weigh the same neighbours everywhere, and beyond the outer rows these are repeated."""
    reach = KERNELS[method][1] + 1
    middle = matrix(2 * reach + 1, r, method, align, x.device)[r * reach : r * (reach + 1)].to(x.dtype)
    flat = F.pad(x.flatten(0, -3)[:, None], (0, 0, reach, reach), mode="replicate")
    fine = F.conv2d(flat, middle[:, None, :, None])  # (B, r, h, w)
    return fine.transpose(1, 2).flatten(1, 2).unflatten(0, x.shape[:-2])


def bilinear_at(
    x: Tensor,
    where: GridSpec | PointSpec,
    edge: tuple[str, str] = ("clamp", "clamp"),
    mask: Tensor | None = None,
) -> Tensor:
    """Bilinear interpolation of (B, C, H, W) at any points: (B, Q, C); the rest as inr_query has it."""
    (x,) = upcast_half(x)
    return inr_query(torch.zeros_like(x), where, skip=x, ensemble="early_area", act="none", edge=edge, mask=mask)


def check_sequence(x: Tensor, r: int) -> None:
    """Raise unless x is a sequence (B, N>=2, C, h, w) of floating point and r a positive integer."""
    if x.ndim != 5 or x.shape[1] < 2:
        raise ValueError(f"x must have shape (B, N, C, h, w) with N >= 2 frames, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {x.dtype}")
    if not isinstance(r, int) or r < 1:
        raise ValueError(f"r must be a positive integer (the factor in space), got {r!r}")


def interleave(frames: Tensor, middles: Tensor) -> Tensor:
    """Put the N-1 middle fields between the N frames: (B, N, ...), (B, N-1, ...) -> (B, 2N-1, ...)."""
    b, n = frames.shape[:2]
    out = frames.new_empty((b, 2 * n - 1, *frames.shape[2:]))
    out[:, 0::2] = frames
    out[:, 1::2] = middles
    return out


def upsample(x: Tensor, r: int, mode: str) -> Tensor:
    """Interpolate every frame of (B, N, C, h, w) by r in space, half-pixel centres; bicubic is cut to [0, 1]."""
    if r == 1:
        return x
    b, n, c, h, w = x.shape
    y = F.interpolate(x.reshape(b * n, c, h, w), (r * h, r * w), mode=mode, align_corners=False)
    if mode == "bicubic":
        y = y.clamp(0.0, 1.0)
    return y.reshape(b, n, c, r * h, r * w)


def trilinear(x: Tensor, r: int = 2) -> Tensor:
    """Interpolate linearly in time and bilinearly in space.

    y[2i] = up(x[i]), y[2i+1] = (up(x[i]) + up(x[i+1])) / 2.

    Args:
        x: (B, N, C, h, w), N >= 2 frames, any unit.
        r: factor in space.

    Returns:
        (B, 2N-1, C, r*h, r*w) at half the time step, unit of x. Differentiable in x, deterministic.

    Raises:
        ValueError, TypeError: x or r of another kind.

    Source: Chen, Qin and Dai 2022 (the baseline called trilinear there).
    """
    check_sequence(x, r)
    y = upsample(x, r, "bilinear")
    return interleave(y, 0.5 * (y[:, :-1] + y[:, 1:]))


def bicubic(x: Tensor, r: int = 2) -> Tensor:
    """Interpolate linearly in time and bicubically in space (a = -0.75), cut to [0, 1].

    Args:
        x: (B, N, C, h, w), N >= 2 frames, normalised to [0, 1].
        r: factor in space.

    Returns:
        (B, 2N-1, C, r*h, r*w) at half the time step, normalised. Differentiable in x, deterministic.

    Raises:
        ValueError, TypeError: x or r of another kind.
    """
    check_sequence(x, r)
    y = upsample(x, r, "bicubic")
    return interleave(y, 0.5 * (y[:, :-1] + y[:, 1:]))
