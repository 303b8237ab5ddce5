# SPDX-License-Identifier: Apache-2.0
"""Layouts of tensors that the sampling kernels of deform_conv2d take (csrc/deform_conv2d/cuda_sample.cuh)."""

import torch
from torch import Tensor

TILE_LINES = 8  # lines of a tile of the kernels, kSampleTile
MAX_INT32 = 2**31 - 1


def get_unsupported_reason(input, offset, weight, mask, stride, padding) -> str | None:
    """Return the reason why the kernels cannot load the samples of a call, or None if they can.

    Args:
        input: (B, C, H, W), on a GPU.
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        mask: (B, G * K, H', W') or None.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
    """
    channels, group_channels = input.shape[1], weight.shape[1]
    offset_channels = channels * 2 * weight.shape[2] * weight.shape[3] // offset.shape[1]  # of one offset group
    pack = 16 // input.element_size()
    if group_channels % pack or offset_channels % pack:
        return f"the channels of a group must be a multiple of {pack}"
    if input.stride(1) != 1 or any(input.stride(i) % pack for i in (0, 2, 3)):
        return f"the input must be channels_last with strides that are multiples of {pack}"
    if offset.stride(1) != 1 or any(offset.stride(i) % 2 for i in (0, 2, 3)):
        return "the offsets must be channels_last with even strides"
    if mask is not None and mask.shape[1] > 1 and mask.stride(1) != 1:
        return "the mask must be channels_last"
    if _has_address(input) and (input.data_ptr() % 16 or offset.data_ptr() % (2 * offset.element_size())):
        return "the memory of input and offset must be aligned"
    height, width = input.shape[2:]
    image_bytes = ((height + 1) * input.stride(2) + (width + 1) * input.stride(3)) * input.element_size()
    positions = [offset.shape[i] * stride[i - 2] + padding[i - 2] for i in (2, 3)]
    positions += [input.shape[0] * offset.shape[2] + TILE_LINES, channels * (height + 1) * (width + 1)]
    if max(image_bytes, *positions) > MAX_INT32:
        return "an image is larger than 32-bit positions reach"
    return None


def _has_address(tensor: Tensor) -> bool:
    """Return False for fake and meta tensors."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta
