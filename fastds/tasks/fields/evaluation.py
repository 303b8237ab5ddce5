# SPDX-License-Identifier: Apache-2.0
"""Errors of arbitrary-scale networks and of interpolation on fields whose fine truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastds.data.samples.degradation import area_mean
from fastds.metrics import detail_ratio, psnr
from fastds.models.baselines.interpolation import bilinear_at
from fastds.ops import GridSpec


def coarse_and_fine(truth: Tensor, scale: float | tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Area mean of (B, C, H, W) by `scale`, and truth cut to the whole fine size that belongs to it."""
    pair = scale if isinstance(scale, tuple) else (scale, scale)
    coarse = [int(n / s + 1e-6) for n, s in zip(truth.shape[2:], pair, strict=True)]
    fine = [round(n * s) for n, s in zip(coarse, pair, strict=True)]
    truth = truth[..., : fine[0], : fine[1]]
    return area_mean(truth, coarse), truth


def resize_bicubic(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) interpolated to cells of `size`, a = -0.5: the kernel that torch uses where it would smooth."""
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) interpolated to cells of `size`."""
    return bilinear_at(x, GridSpec.cells(tuple(x.shape[2:]), size)).unflatten(1, size).permute(0, 3, 1, 2)


def resize_bicubic_torch(x: Tensor, size: tuple[int, int]) -> Tensor:
    """bicubic with a = -0.75, torch's default: better for rough fields, worse for smooth ones."""
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False)


def scored_margin(scale: float) -> int:
    """Fine pixels along each edge that are not scored."""
    return math.ceil(scale) + 6


def scores(
    model: torch.nn.Module,
    truth: Tensor,
    scales: Sequence[float],
    value_range: Tensor,
    static: Tensor | None = None,
) -> dict[str, float]:
    """PSNR and the ratio of unresolved power, of the model and of bicubic interpolation, per variable and scale.

    model: with forward(x, size). truth: (B, C, H, W), averaged to the coarse input. scales: factors. value_range: (C,).
    static: (S, H, W) on the grid of truth, for a model that reads its area means.
    """
    result = {}
    for scale in scales:
        x, y = coarse_and_fine(truth, scale)
        shave = scored_margin(scale)
        beside = {} if static is None else {"static": coarse_and_fine(static[None], scale)[0]}
        ours = model(x, size=tuple(y.shape[2:]), **beside)
        for name, prediction in (("model", ours), ("bicubic", resize_bicubic(x, tuple(y.shape[2:])))):
            for c in range(y.shape[1]):
                inner = [t[:, c, shave:-shave, shave:-shave] for t in (prediction, y)]
                result[f"{name}/psnr/x{scale:g}/{c}"] = psnr(*inner, float(value_range[c]))["psnr"]
                result[f"{name}/detail/x{scale:g}/{c}"] = detail_ratio(*inner, scale)
    return result
