# SPDX-License-Identifier: Apache-2.0
"""deform_conv2d on a GPU in two passes: samples as columns, then their product with the weight.

csrc/deform_conv2d/cuda_sample.cuh writes the columns, and torch multiplies them. The kernel takes any number of taps,
channels and outputs. The memory of the columns is bounded: lines of pixels are computed in chunks, whose columns are at
most half of the L2 cache.

The backward pass computes the columns again and multiplies them by the gradient of the result, which gives the
gradient of the weight. In the same memory it computes the gradients of the columns, which
csrc/deform_conv2d/cuda_scatter.cuh turns into the gradients of input, offset and mask.
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.impl.deform_conv2d import sample_layout
from fastds.ops.impl.deform_conv2d.sample_layout import MAX_INT32, TILE_LINES

MAX_GROUPS = 8  # one product for each
DEFAULT_COLUMN_BYTES = 24 << 20  # where the size of the L2 cache is not known


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
    if input.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the two passes have no {input.dtype}"
    if input.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "torch.backends.cuda.matmul.allow_tf32 is on, and products of torch in TF32 are less accurate"
    if torch.are_deterministic_algorithms_enabled():
        return "torch.use_deterministic_algorithms is on, which may forbid the matrix product of torch"
    if channels // group_channels > MAX_GROUPS:
        return f"the two passes take at most {MAX_GROUPS} groups, got {channels // group_channels}"
    if (reason := sample_layout.get_unsupported_reason(input, offset, weight, mask, stride, padding)) is not None:
        return reason
    if offset.shape[3] * taps * channels > MAX_INT32 // (2 * TILE_LINES):
        return "a line of samples is too long"
    return None


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
    matrices = _to_matrices(x, weight)
    biases = None if bias is None else bias.view(len(matrices), -1)
    for lines, columns, rows in _split_lines(matrices, x, y):
        _write_columns(x, offset, mask, columns, base, sigmoid, dims, lines)
        for group, matrix in enumerate(matrices.transpose(1, 2)):
            if biases is None:
                torch.mm(columns[group], matrix, out=rows[group])
            else:
                torch.addmm(biases[group], columns[group], matrix, out=rows[group])
    if slope != 1:
        F.leaky_relu_(y, slope)


def compute_gradients(
    grad_y, x, offset, mask, weight, grad_x, grad_offset, grad_mask, dims, needs_weight, base=None, sigmoid=False
) -> Tensor | None:
    """Compute the gradients of deform_conv2d, except that of bias.

    Args:
        grad_y: (B, O, H', W'), gradient of the result, channels_last and dense.
        x: (B, C, H, W), for which get_unsupported_reason() is None, as for the other arguments.
        offset: (B, 2 * G * K, H', W').
        mask: (B, G * K, H', W') or None.
        weight: (O, C / groups, k_h, k_w), channels_last.
        grad_x: like x, float32, channels_last and dense, to which the gradient is added, or None.
        grad_offset: like offset, in the dtype of x or float32, to which the gradient is written, or None. It is
            channels_last and dense or a slice of the channels of such a tensor.
        grad_mask: the same for mask.
        dims: sizes and strides from make_dims().
        needs_weight: bool, whether to compute the gradient of weight.
        base: (B, 2, H', W'), float32, contiguous, added to all offsets, or None.
        sigmoid: whether `mask` has logits.

    Returns:
        The gradient of weight, float32, or None.
    """
    matrices, grad_weight = _to_matrices(x, weight), None
    for lines, columns, rows in _split_lines(matrices, x, grad_y):
        if needs_weight:
            _write_columns(x, offset, mask, columns, base, sigmoid, dims, lines)
            part = _multiply_in_float32(rows.transpose(1, 2), columns)
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
        if grad_x is not None or grad_offset is not None or grad_mask is not None:
            torch.bmm(rows, matrices, out=columns)
            _add_map_gradients(x, offset, mask, columns, base, sigmoid, grad_x, grad_offset, grad_mask, dims, lines)
    if grad_weight is None:
        return None
    outputs, group_channels, k_h, k_w = weight.shape
    return grad_weight.view(outputs, k_h, k_w, group_channels).permute(0, 3, 1, 2)


def _to_matrices(x: Tensor, weight: Tensor) -> Tensor:
    """View a channels_last weight as (groups, O / groups, K * C / groups)."""
    groups = x.shape[1] // weight.shape[1]
    return weight.permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)


def _split_lines(matrices: Tensor, x: Tensor, y: Tensor) -> Iterator[tuple[tuple[int, int], Tensor, Tensor]]:
    """Divide the lines of pixels into chunks, which use the same memory of columns.

    Args:
        matrices: the weight, from _to_matrices().
        x: (B, C, H, W).
        y: (B, O, H', W'), channels_last and dense.

    Yields:
        (number of the first line, number of lines), the columns (groups, pixels, K * C / groups), and a view of y
        (groups, pixels, O / groups).
    """
    groups, outputs, terms = matrices.shape
    count, width = y.shape[0] * y.shape[2], y.shape[3]
    step = _count_chunk_lines(count, width * groups * terms * x.element_size(), x.device.index)
    memory = _allocate_columns(x, min(step, count) * width * groups * terms)
    rows = y.permute(0, 2, 3, 1).view(count * width, groups, outputs).transpose(0, 1)
    for first in range(0, count, step):
        lines = min(step, count - first)
        columns = memory[: lines * width * groups * terms].view(groups, lines * width, terms)
        yield (first, lines), columns, rows[:, first * width : (first + lines) * width]


def _write_columns(x, offset, mask, columns, base, sigmoid, dims, lines) -> None:
    """Write the samples of lines of pixels; see compute() and _split_lines() for the arguments."""
    addresses = (native.get_address(t) for t in (x, offset, mask, columns, base))
    launch = native.get_cuda_launch_arguments(x)
    native.get_module().deform_conv2d_sample_cuda(*addresses, sigmoid, dims, *lines, *launch)


def _add_map_gradients(x, offset, mask, columns, base, sigmoid, grad_x, grad_offset, grad_mask, dims, lines) -> None:
    """Add to grad_x and write grad_offset and grad_mask for lines of pixels, from the gradients of their columns."""
    addresses = (native.get_address(t) for t in (x, offset, mask, columns, base))
    outputs = [native.get_address(grad_x)]
    for grad in (grad_offset, grad_mask):
        layout = (0, False) if grad is None else (grad.stride(3), grad.dtype == torch.float32)
        outputs += [native.get_address(grad), *layout]
    launch = native.get_cuda_launch_arguments(x)
    native.get_module().deform_conv2d_scatter_cuda(*addresses, sigmoid, *outputs, dims, *lines, *launch)


def _multiply_in_float32(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right in float32, for long sums, which torch may otherwise add in parts rounded to 16 bits."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.bmm(left, right, out_dtype=torch.float32)
    left, right = left.float(), right.float()  # torch has no such product on a CPU, on which the emulator runs
    return torch.bmm(left, right, out=left.new_empty(left.shape[0], left.shape[1], right.shape[2]))


def _allocate_columns(x: Tensor, count: int) -> Tensor:
    """Allocate memory for `count` samples. The kernel writes all of it."""
    return x.new_empty(count)


def _count_chunk_lines(lines: int, line_bytes: int, index: int | None) -> int:
    """Return the number of lines of a chunk: whole tiles of the kernel, and chunks of nearly equal size."""
    most = max(_get_column_bytes(index) // line_bytes // TILE_LINES, 1) * TILE_LINES
    chunks = -(-lines // most)
    return -(-lines // (chunks * TILE_LINES)) * TILE_LINES
