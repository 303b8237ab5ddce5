# SPDX-License-Identifier: Apache-2.0
"""Sampling at learned displacements, several links of a map at once, weighed and summed: a deformable convolution of
free points."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastds.ops import deform_conv2d


def sample_links(
    x: Tensor, flow: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None, align_corners: bool = False
) -> Tensor:
    """y = bias + sum_{c,l} weight[:, c, l] mask_l S(x_c, p + flow_l), S bilinear with zeros outside.

    Args:
        x: (B, C, H, W).
        flow: (B, 2L, H, W), pixels, pairs (along x, along y) per link.
        weight: (O, C, L). bias: (O,).
        mask: (B, L, H, W) or None.
        align_corners: True samples at p + flow. False is the authors' mix of conventions (positions normalised by W-1,
            denormalised by W): the sample lies at (p + flow) W/(W-1) - 1/2, so that zero flow moves up to half a pixel.

    Returns:
        (B, O, H, W).
    """
    pairs = flow.to(torch.promote_types(flow.dtype, torch.float32)).unflatten(1, (-1, 2)).flip(2)  # (dy, dx)
    if not align_corners:
        pairs = pairs * _scale(x.shape[2:], pairs) + _shift(x.shape[2:], pairs)
    return deform_conv2d(x, pairs.flatten(1, 2), weight.unsqueeze(2), bias, 1, 0, 0, mask)


def _scale(size: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor([n / max(n - 1, 1) for n in size], dtype=like.dtype, device=like.device).view(1, 1, 2, 1, 1)


def _shift(size: Sequence[int], like: Tensor) -> Tensor:
    """Where zero flow lands, minus the pixel itself: p/(n-1) - 1/2 along each axis."""
    along = [torch.arange(n, dtype=like.dtype, device=like.device) * (n / max(n - 1, 1) - 1) - 0.5 for n in size]
    rows, columns = torch.meshgrid(*along, indexing="ij")
    return torch.stack([rows, columns])[None, None]
