# SPDX-License-Identifier: Apache-2.0
"""Interpolation in time and space without motion."""

import torch.nn.functional as F
from torch import Tensor


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
    y = F.interpolate(x.reshape(b * n, c, h, w), scale_factor=r, mode=mode, align_corners=False)
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
