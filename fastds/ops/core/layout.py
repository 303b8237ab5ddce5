# SPDX-License-Identifier: Apache-2.0
"""Conversion of memory formats (channels_last, contiguous) and of precision (at least float32)."""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.registry import is_batched, is_intercepted

CHANNELS_LAST = torch.channels_last
MIN_NATIVE_ELEMENTS = 1 << 15  # torch copies smaller tensors as fast as the native kernel
MIN_TRANSPOSE_CHANNELS = 4  # torch transposes two or three channels faster than the native kernel


def get_padding_to_multiple(n: int, multiple: int) -> int:
    """Return the number to add to n for the next multiple of `multiple`.

    For a symbolic n, torch.compile then knows that the sum is a multiple.
    """
    return (n + multiple - 1) // multiple * multiple - n


def as_nhwc(tensor: Tensor) -> Tensor:
    """Return the tensor if its channel stride is 1 or it has one channel, else a channels_last copy."""
    if tensor.size(1) == 1:
        return tensor.resolve_neg()  # more channels need no such call: x.conj().imag has even strides and is copied
    return tensor if tensor.stride(1) == 1 else _permute_to_channels_last(tensor)


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return the tensor in dense channels_last memory, without a lazy negation."""
    return _permute_to_channels_last(tensor).resolve_neg()


def _permute_to_channels_last(tensor: Tensor) -> Tensor:
    """Return tensor.contiguous(memory_format=torch.channels_last), by the native kernel where that is faster."""
    if tensor.is_contiguous(memory_format=CHANNELS_LAST):
        return tensor
    if not (tensor.is_contiguous() and tensor.shape[1] >= MIN_TRANSPOSE_CHANNELS and _can_use_native_kernel(tensor)):
        return tensor.contiguous(memory_format=CHANNELS_LAST)
    batch, channels, height, width = tensor.shape
    result = empty_map(tensor.shape, tensor.dtype, tensor)
    _transpose(tensor, result, batch, channels, height * width)
    return result


def _can_use_native_kernel(tensor: Tensor, min_elements: int = MIN_NATIVE_ELEMENTS) -> bool:
    """Return True if the native kernel is faster than torch and neither a tracer nor autograd records the operation.

    Args:
        tensor: argument of the operation.
        min_elements: number of elements from which on the native kernel is faster.
    """
    if type(tensor) is not Tensor or not tensor.is_cpu or native.get_missing_reason() is not None:
        return False
    if tensor.numel() < min_elements or tensor.dtype.itemsize not in (2, 4):
        return False
    tracked = tensor.requires_grad and torch.is_grad_enabled()
    return not (
        torch.compiler.is_compiling() or tracked or tensor.is_neg() or is_intercepted(tensor) or is_batched(tensor)
    )


def _transpose(tensor: Tensor, result: Tensor, batch: int, rows: int, columns: int) -> None:
    """Transpose each of the `batch` matrices (rows, columns) in the memory of `tensor` into the memory of `result`."""
    sizes = (batch, rows, columns, tensor.dtype.itemsize, native.get_threads())
    native.get_module().transpose(tensor.data_ptr(), result.data_ptr(), *sizes)


def to_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor in contiguous memory that holds its values, without a lazy negation.

    A lazily negated tensor such as x.conj().imag may be contiguous although its memory holds the opposite sign.
    """
    is_permuted = tensor.dim() == 4 and tensor.is_contiguous(memory_format=CHANNELS_LAST) and not tensor.is_contiguous()
    if not (is_permuted and tensor.shape[1] >= MIN_TRANSPOSE_CHANNELS and _can_use_native_kernel(tensor)):
        return tensor.contiguous().resolve_neg()
    batch, channels, height, width = tensor.shape
    result = torch.empty(tensor.shape, dtype=tensor.dtype)
    _transpose(tensor, result, batch, height * width, channels)
    return result


def transpose_matrix(matrix: Tensor) -> Tensor:
    """Return the transpose of a matrix (rows, columns) in contiguous memory."""
    if not (matrix.is_contiguous() and _can_use_native_kernel(matrix)):
        return matrix.t().contiguous()
    result = torch.empty(matrix.shape[::-1], dtype=matrix.dtype)
    _transpose(matrix, result, 1, *matrix.shape)
    return result


def sum_per_channel(maps: Tensor) -> Tensor:
    """Sum feature maps (B, C, H, W) over images and pixels, in float32 or better: (C,).

    torch is slow for this sum in channels_last. The native kernel also sums small maps, because plans can repeat it.
    """
    if not (
        _can_use_native_kernel(maps, 1) and maps.is_floating_point() and maps.is_contiguous(memory_format=CHANNELS_LAST)
    ):
        return maps.sum((0, 2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))
    channels, result = maps.shape[1], torch.empty(maps.shape[1], dtype=torch.float32)
    sizes = (native.DTYPE_CODES[maps.dtype], maps.numel() // channels, channels)
    native.call_with_workspace(native.get_module().column_sums, *sizes, maps.data_ptr(), result.data_ptr())
    return result


def to_memory_format(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Return the tensor in dense memory of this format, contiguous or channels_last."""
    return to_channels_last(tensor) if layout == CHANNELS_LAST else to_contiguous(tensor)


def get_output_format(like: Tensor) -> torch.memory_format:
    """Return the memory format of a result.

    It is contiguous if `like` is contiguous and not also channels_last, else channels_last.
    """
    if like.is_contiguous() and not like.is_contiguous(memory_format=CHANNELS_LAST):
        return torch.contiguous_format
    return CHANNELS_LAST


def empty_map(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor, layout=CHANNELS_LAST) -> Tensor:
    """Allocate an uninitialized feature map.

    Args:
        shape: (B, C, H, W).
        dtype: dtype of the map.
        like: tensor that gives the device.
        layout: memory format, channels_last or contiguous.
    """
    if layout != CHANNELS_LAST:
        return torch.empty(shape, dtype=dtype, device=like.device)
    _, channels, height, width = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.empty_strided(shape, strides, dtype=dtype, device=like.device)  # faster than with memory_format


def upcast_half(*tensors):
    """Return a list of the tensors, with 16-bit tensors cast to float32."""
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
