# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution of PyTorch operators for export. All taps are sampled at once, so that the graph is small."""

import torch
from torch import Tensor


def deform_conv2d(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None = None, stride=(1, 1), padding=(0, 0),
    dilation=(1, 1), mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute fastds.ops.deform_conv2d by bilinear sampling of all taps and one matrix product.

    Args:
        input: (B, C, H, W).
        offset: (B, 2*G*K, H', W'), pairs (dy, dx) in pixels for G offset groups and K taps.
        weight: (O, C/groups, k_h, k_w).
        bias: (O,) or None.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
        dilation: pair (rows, columns) in pixels.
        mask: (B, G*K, H', W') or None.

    Returns:
        (B, O, H', W').
    """
    batch, channels, height, width = input.shape
    outputs, group_channels, k_h, k_w = weight.shape
    taps, (h_out, w_out) = k_h * k_w, offset.shape[2:]
    groups = offset.shape[1] // (2 * taps)
    shift = offset.reshape(batch, groups, taps, 2, h_out, w_out)
    tap = torch.arange(taps, device=input.device)
    y, x = (
        shift[:, :, :, axis]
        + (k * d - p).to(offset.dtype).view(-1, 1, 1)
        + (torch.arange(n, device=input.device, dtype=offset.dtype) * s).view((-1, 1) if axis == 0 else (1, -1))
        for axis, (k, n, s, p, d) in enumerate(
            zip((tap // k_w, tap % k_w), (h_out, w_out), stride, padding, dilation, strict=True)
        )
    )  # (B, G, K, H', W')
    samples = _sample_bilinear(input.reshape(batch, groups, -1, height * width), y, x, height, width)
    if mask is not None:
        samples = samples * mask.reshape(batch, groups, 1, taps, h_out, w_out)
    blocks = channels // group_channels
    columns = samples.reshape(batch, blocks, group_channels * taps, h_out * w_out)
    y = (weight.reshape(blocks, outputs // blocks, group_channels * taps) @ columns).reshape(
        batch, outputs, h_out, w_out
    )
    return y if bias is None else y + bias.view(-1, 1, 1)


def _sample_bilinear(rows: Tensor, y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Sample at positions in pixels, with zeros outside.

    Args:
        rows: (B, G, C/G, H*W).
        y: (B, G, K, H', W'), rows of the positions.
        x: (B, G, K, H', W'), columns of the positions.
        height: H.
        width: W.

    Returns:
        (B, G, C/G, K, H', W').
    """
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)  # False for NaN
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    top, left = y.floor(), x.floor()
    total = None
    for dy in (0, 1):
        for dx in (0, 1):
            i, j = top.long() + dy, left.long() + dx
            share = (1 - (y - (top + dy)).abs()) * (1 - (x - (left + dx)).abs())
            share = torch.where(inside & (i >= 0) & (i < height) & (j >= 0) & (j < width), share, 0).to(rows.dtype)
            index = (i.clamp(min=0).clamp(max=height - 1) * width + j.clamp(min=0).clamp(max=width - 1)).unsqueeze(2)
            index = index.expand(-1, -1, rows.shape[2], -1, -1, -1)
            part = rows.gather(3, index.flatten(3)).reshape(index.shape) * share.unsqueeze(2)
            total = part if total is None else total + part
    assert total is not None
    return total
