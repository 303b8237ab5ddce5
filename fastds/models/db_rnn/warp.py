# SPDX-License-Identifier: Apache-2.0
"""Sampling at learned displacements, several links of a map at once, weighed and summed: a deformable convolution of
free points."""

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
    dx, dy = flow.to(torch.promote_types(flow.dtype, torch.float32)).unflatten(1, (-1, 2)).unbind(2)
    if not align_corners:
        dy, dx = _mixed(dy.mT).mT, _mixed(dx)
    return deform_conv2d(x, torch.stack([dy, dx], 2).flatten(1, 2), weight.unsqueeze(2), bias, 1, 0, 0, mask)


def _mixed(d: Tensor) -> Tensor:
    """(p + d) n/(n-1) - 1/2 less the pixel p itself, along the last axis of n pixels."""
    n = d.shape[-1]
    scale = n / max(n - 1, 1)
    return d * scale + (torch.arange(n, dtype=d.dtype, device=d.device) * (scale - 1) - 0.5)
