# SPDX-License-Identifier: Apache-2.0
"""Modulated deformable convolution: validation, registration, gradients and the public function."""

import torch
from torch import Tensor

from fastds.reference.deform_conv2d import deform_conv2d as reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _pair(name: str, value, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise ValueError(f"{name} must be an int or a pair of ints >= {least}, got {value!r}")
    return pair


def _check_tensor(name: str, tensor: Tensor, dims: int, dtypes: tuple, device: torch.device) -> None:
    if tensor.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dict.fromkeys(dtypes))
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected {expected}")
    if tensor.device != device:
        raise ValueError(f"{name} is on device {tensor.device}, expected {device}, the device of input")
    if tensor.dim() != dims:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {dims} dimensions")


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Output length along one axis, in pixels."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def check(input, offset, weight, bias, stride, padding, dilation, mask) -> tuple[int, int, int, int]:
    """Refuses what the kernel cannot take; returns (groups, offset groups, output rows, output columns)."""
    _check_tensor("input", input, 4, DTYPES, input.device)
    _check_tensor("offset", offset, 4, (input.dtype, torch.float32), input.device)
    _check_tensor("weight", weight, 4, (input.dtype,), input.device)
    batch, channels, height, width = input.shape
    out_channels, group_channels, k_h, k_w = weight.shape
    taps = k_h * k_w
    if min(channels, height, width) < 1:
        raise ValueError(f"input has shape {tuple(input.shape)}, expected at least one channel, row and column")
    if min(weight.shape) < 1 or channels % group_channels:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected (O, C/groups, rows, columns) "
            f"with C/groups a divisor of input's {channels} channels"
        )
    groups = channels // group_channels
    if out_channels % groups:
        raise ValueError(f"weight has {out_channels} output channels, expected a multiple of its {groups} groups")
    offset_groups = offset.shape[1] // (2 * taps)
    if offset.shape[1] % (2 * taps) or offset_groups < 1 or channels % offset_groups:
        raise ValueError(
            f"offset has {offset.shape[1]} channels, expected 2 * {taps} taps * offset groups "
            f"with offset groups a divisor of input's {channels} channels"
        )
    h_out = output_size(height, k_h, stride[0], padding[0], dilation[0])
    w_out = output_size(width, k_w, stride[1], padding[1], dilation[1])
    if min(h_out, w_out) < 1:
        raise ValueError(f"output would have size {h_out} x {w_out}: the kernel is larger than the padded input")
    if (offset.shape[0], *offset.shape[2:]) != (batch, h_out, w_out):
        expected = (batch, 2 * offset_groups * taps, h_out, w_out)
        raise ValueError(f"offset has shape {tuple(offset.shape)}, expected {expected}")
    if mask is not None:
        _check_tensor("mask", mask, 4, (input.dtype,), input.device)
        expected = (batch, offset_groups * taps, h_out, w_out)
        if tuple(mask.shape) != expected:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {expected}")
    if bias is not None:
        _check_tensor("bias", bias, 1, (input.dtype,), input.device)
        if bias.shape[0] != out_channels:
            raise ValueError(f"bias has {bias.shape[0]} values, expected {out_channels}, one per output channel")
    return groups, offset_groups, h_out, w_out


def _autocast(input, offset, weight, bias, mask):
    """Casts what autocast covers; the offset keeps its dtype (widened to float32 where the pair would not be allowed)."""
    kind = input.device.type
    if not torch.is_autocast_enabled(kind) or input.dtype == torch.float64:
        return input, offset, weight, bias, mask
    dtype = torch.get_autocast_dtype(kind)
    input, weight, bias, mask = (t if t is None else t.to(dtype) for t in (input, weight, bias, mask))
    if offset.dtype in (torch.float16, torch.bfloat16) and offset.dtype != dtype:
        offset = offset.float()
    return input, offset, weight, bias, mask


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Modulated deformable convolution (DCNv2): every tap reads the input at a position of its own.

    y[b,o,i,j] = bias[o] + sum_{c,k} weight[o,c,k] * mask[b,g(c)*K+k,i,j]
                 * S(input[b,c], i*s_h - p_h + k_h*d_h + offset[b,(g(c)*K+k)*2,i,j],
                                 j*s_w - p_w + k_w*d_w + offset[b,(g(c)*K+k)*2+1,i,j])

    S is bilinear over a zero border: 0 where y <= -1, y >= H, x <= -1 or x >= W; a corner outside counts 0.
    g(c) = c // (C/G). A NaN or infinite offset makes its sample 0. Argument order and numbers are those of
    torchvision.ops.deform_conv2d.

    Args:
        input: (B, C, H, W), float32, bfloat16, float16 or float64; any strides, fastest in channels_last.
        offset: (B, 2*G*K, H', W'), pixels, pairs (dy, dx) per group and tap; dtype of input or float32.
        weight: (O, C/groups, k_h, k_w), dtype of input, as are bias and mask.
        bias: (O,) or None.
        stride: s, pixels, >= 1.
        padding: p, pixels of zeros on each side, >= 0.
        dilation: d, pixels between taps, >= 0; 0 leaves K free points placed by the offset alone.
        mask: (B, G*K, H', W') factors of the samples, or None for 1.

    Returns:
        (B, O, H', W'), dtype of input; channels_last when input is.

    Raises:
        TypeError: a dtype that is not allowed.
        ValueError: a shape, device, stride, padding or dilation that does not fit.

    Source: Zhu et al. 2019, Deformable ConvNets v2, equation 1; Dai et al. 2017.
    """
    stride, padding, dilation = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 0)
    input, offset, weight, bias, mask = _autocast(input, offset, weight, bias, mask)
    check(input, offset, weight, bias, stride, padding, dilation, mask)
    return reference(input, offset, weight, bias, stride, padding, dilation, mask)
