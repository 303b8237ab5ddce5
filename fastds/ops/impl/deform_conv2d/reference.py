# SPDX-License-Identifier: Apache-2.0
"""Reference of deform_conv2d in PyTorch, differentiable to any order: it gathers four corners for each tap.

Only the samples of one tap are alive at a time in the forward pass. No branch or shape depends on tensor values, so
that torch.func transforms, forward-mode AD and tracing work.
"""

import torch
from torch import Tensor


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _gather_corner(rows: Tensor, base: Tensor, y: Tensor, x: Tensor, height: int, width: int, inside: Tensor) -> Tensor:
    """Return the values (B, G, P, C/G) of the pixels (y, x).

    The value is 0 for pixels outside the image and where `inside` is false.

    Args:
        rows: (B * G * H * W, C/G), pixels of all images and offset groups.
        base: (B, G, 1), index of the first pixel of each image and group in rows.
        y: (B, G, P) int64, row of each pixel.
        x: (B, G, P) int64, column of each pixel.
        height: H.
        width: W.
        inside: (B, G, P) bool, samples to compute.
    """
    present = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    index = base + y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    values = rows.index_select(0, index.reshape(-1)).reshape(*index.shape, rows.shape[-1])
    return torch.where(present.unsqueeze(-1), values, values.new_zeros(()))


def _sample_bilinear(rows: Tensor, base: Tensor, y: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """Return the bilinear samples S (B, G, P, C/G) at the positions (y, x).

    Args:
        rows: (B * G * H * W, C/G), pixels of all images and offset groups.
        base: (B, G, 1), index of the first pixel of each image and group in rows.
        y: (B, G, P), row in pixels.
        x: (B, G, P), column in pixels.
        height: H.
        width: W.
    """
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)  # False for NaN
    y = torch.where(inside, y, torch.zeros_like(y))  # before floor and cast: no NaN, no overflow, no gradient
    x = torch.where(inside, x, torch.zeros_like(x))
    y0, x0 = y.detach().floor(), x.detach().floor()
    ly, lx = (y - y0).unsqueeze(-1).to(rows.dtype), (x - x0).unsqueeze(-1).to(rows.dtype)
    y0, x0 = y0.long(), x0.long()

    def corner(dy: int, dx: int) -> Tensor:
        return _gather_corner(rows, base, y0 + dy, x0 + dx, height, width, inside)

    top = (1 - lx) * corner(0, 0) + lx * corner(0, 1)
    bottom = (1 - lx) * corner(1, 0) + lx * corner(1, 1)
    return (1 - ly) * top + ly * bottom


def _compute(input, offset, weight, bias, stride, padding, dilation, mask) -> Tensor:
    """Compute the formula of fastds.ops.deform_conv2d."""
    (s_h, s_w), (p_h, p_w), (d_h, d_w) = _pair(stride), _pair(padding), _pair(dilation)
    batch, channels, height, width = input.shape
    out_channels, group_channels, k_h, k_w = weight.shape
    h_out, w_out = offset.shape[-2:]
    taps = k_h * k_w
    groups, offset_groups = channels // group_channels, offset.shape[1] // (2 * taps)
    points = h_out * w_out

    compute_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    device = input.device
    rows = input.to(compute_dtype).reshape(batch, offset_groups, channels // offset_groups, height * width)
    rows = rows.transpose(2, 3).reshape(-1, channels // offset_groups)
    base = torch.arange(batch * offset_groups, device=device).reshape(batch, offset_groups, 1) * (height * width)
    shift = offset.to(torch.promote_types(offset.dtype, compute_dtype)).reshape(batch, offset_groups, taps, 2, points)
    row = torch.arange(h_out, device=device, dtype=shift.dtype).repeat_interleave(w_out) * s_h - p_h
    column = torch.arange(w_out, device=device, dtype=shift.dtype).repeat(h_out) * s_w - p_w
    if mask is not None:
        mask = mask.to(compute_dtype).reshape(batch, offset_groups, taps, points, 1)
    kernel = weight.to(compute_dtype).reshape(groups, out_channels // groups, group_channels, taps)

    total = None
    for k in range(taps):
        y = row + (k // k_w) * d_h + shift[:, :, k, 0]
        x = column + (k % k_w) * d_w + shift[:, :, k, 1]
        samples = _sample_bilinear(rows, base, y, x, height, width)
        if mask is not None:
            samples = samples * mask[:, :, k]
        samples = samples.transpose(1, 2).reshape(batch, points, groups, group_channels)
        part = torch.einsum("bpgc,goc->bpgo", samples, kernel[..., k])
        total = part if total is None else total + part
    assert total is not None
    total = total.reshape(batch, points, out_channels)
    if bias is not None:
        total = total + bias.to(compute_dtype)
    return total.transpose(1, 2).reshape(batch, out_channels, h_out, w_out).to(input.dtype)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    mask: Tensor | None = None,
) -> Tensor:
    """Compute a modulated deformable convolution (DCNv2): see fastds.ops.deform_conv2d.

    16-bit tensors are computed in float32 and rounded once at the end. A sample whose position is outside (-1, H) x
    (-1, W) or not finite is 0 and has no gradient with respect to its offset. The derivative at an integer position is
    the derivative towards larger coordinates. The caller must check the arguments.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        bias: (O,) or None.
        stride: int or pair (rows, columns) in pixels.
        padding: int or pair in pixels.
        dilation: int or pair in pixels.
        mask: (B, G * K, H', W') or None.

    Returns:
        (B, O, H', W'), dtype of input.
    """
    args = (input, offset, weight, bias, stride, padding, dilation, mask)
    if not torch.amp.is_autocast_available(input.device.type):  # meta tensors
        return _compute(*args)
    with torch.autocast(input.device.type, enabled=False):  # the sum stays in float32
        return _compute(*args)
