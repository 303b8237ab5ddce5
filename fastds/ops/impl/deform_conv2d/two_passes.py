# SPDX-License-Identifier: Apache-2.0
"""Forward pass of deform_conv2d on a GPU in two passes: samples as columns, then their product with the weight.

csrc/deform_conv2d/cuda_sample.cuh writes the columns, and torch multiplies them. The kernel takes any number of taps,
channels and outputs. The memory of the columns is bounded: lines of pixels are computed in chunks, whose columns are at
most half of the L2 cache.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native

MAX_GROUPS = 8  # one product for each
DEFAULT_COLUMN_BYTES = 24 << 20  # where the size of the L2 cache is not known
TILE_LINES = 8  # lines of a tile of the kernel, kSampleTile
MAX_INT32 = 2**31 - 1


def get_unsupported_reason(input, offset, weight, mask, stride, padding) -> str | None:
    """Return the reason why the two passes cannot compute a call, or None if they can.

    Args:
        input: (B, C, H, W), on a GPU.
        offset: (B, 2 * G * K, H', W'), in pixels, for G offset groups and K taps.
        weight: (O, C / groups, k_h, k_w).
        mask: (B, G * K, H', W') or None.
        stride: pair (rows, columns) in pixels.
        padding: pair (rows, columns) in pixels.
    """
    channels, group_channels = input.shape[1], weight.shape[1]
    taps = weight.shape[2] * weight.shape[3]
    offset_channels = channels * 2 * taps // offset.shape[1]  # of one offset group
    if input.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the two passes have no {input.dtype}"
    if input.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "torch.backends.cuda.matmul.allow_tf32 is on, and products of torch in TF32 are less accurate"
    if torch.are_deterministic_algorithms_enabled():
        return "torch.use_deterministic_algorithms is on, which may forbid the matrix product of torch"
    if channels // group_channels > MAX_GROUPS:
        return f"the two passes take at most {MAX_GROUPS} groups, got {channels // group_channels}"
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
    positions = (offset.shape[i] * stride[i - 2] + padding[i - 2] for i in (2, 3))
    if max(image_bytes, *positions, (input.shape[0] * offset.shape[2] + TILE_LINES)) > MAX_INT32:
        return "an image is larger than 32-bit positions reach"
    if offset.shape[3] * taps * channels > MAX_INT32 // (2 * TILE_LINES):
        return "a line of samples is too long"
    return None


def _has_address(tensor: Tensor) -> bool:
    """Return False for fake and meta tensors."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta


@functools.cache
def _get_column_bytes(index: int | None) -> int:
    """Return the largest size of the columns of a chunk in bytes on a CUDA device."""
    if index is None or not torch.cuda.is_available():
        return DEFAULT_COLUMN_BYTES
    return torch.cuda.get_device_properties(index).L2_cache_size // 2


def compute(x, offset, mask, weight, bias, y, dims, base=None, sigmoid: bool = False, slope: float = 1.0) -> None:
    """Write the result of deform_conv2d to y.

    Args:
        x: (B, C, H, W), for which get_unsupported_reason() is None, as for the other arguments.
        offset: (B, 2 * G * K, H', W').
        mask: (B, G * K, H', W') or None.
        weight: (O, C / groups, k_h, k_w), channels_last.
        bias: (O,), contiguous, or None.
        y: (B, O, H', W'), channels_last and dense.
        dims: sizes and strides from make_dims().
        base: (B, 2, H', W'), float32, contiguous, added to all offsets, or None.
        sigmoid: whether `mask` has logits.
        slope: negative slope of a leaky ReLU, 1 for none.
    """
    outputs, group_channels, k_h, k_w = weight.shape
    lines, width = y.shape[0] * y.shape[2], y.shape[3]
    groups, terms = x.shape[1] // group_channels, k_h * k_w * group_channels
    matrix = weight.permute(0, 2, 3, 1).reshape(groups, outputs // groups, terms).transpose(1, 2)
    biases = None if bias is None else bias.view(groups, -1)
    rows = y.permute(0, 2, 3, 1).view(lines * width, groups, outputs // groups)
    step = _count_chunk_lines(lines, width * groups * terms * x.element_size(), x.device.index)
    memory = _allocate_columns(x, min(step, lines) * width * groups * terms)
    tensors = tuple(native.get_address(t) for t in (x, offset, mask, memory, base))
    for first in range(0, lines, step):
        count = min(step, lines - first)
        native.get_module().deform_conv2d_sample_cuda(
            *tensors, sigmoid, dims, first, count, *native.get_cuda_launch_arguments(x)
        )
        columns = memory[: count * width * groups * terms].view(groups, count * width, terms)
        for group in range(groups):
            to = rows[first * width : (first + count) * width, group]
            if biases is None:
                torch.mm(columns[group], matrix[group], out=to)
            else:
                torch.addmm(biases[group], columns[group], matrix[group], out=to)
    if slope != 1:
        F.leaky_relu_(y, slope)


def _allocate_columns(x: Tensor, count: int) -> Tensor:
    """Allocate memory for `count` samples. The kernel writes all of it."""
    return x.new_empty(count)


def _count_chunk_lines(lines: int, line_bytes: int, index: int | None) -> int:
    """Return the number of lines of a chunk: whole tiles of the kernel, and chunks of nearly equal size."""
    most = max(_get_column_bytes(index) // line_bytes // TILE_LINES, 1) * TILE_LINES
    chunks = -(-lines // most)
    return -(-lines // (chunks * TILE_LINES)) * TILE_LINES
