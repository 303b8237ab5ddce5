# SPDX-License-Identifier: Apache-2.0
"""Memory layout and precision of tensors: channels_last, dense copies, at least float32."""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.registry import is_batched, is_intercepted

CHANNELS_LAST = torch.channels_last
MIN_NATIVE_ELEMENTS = 1 << 15  # numbers; torch copies fewer as fast
MIN_TRANSPOSE_CHANNELS = (
    4  # of maps that are turned; torch turns two or three in 0.5 to 0.8 of the native kernel's time
)


def get_padding_to_multiple(n: int, multiple: int) -> int:
    """What is missing from n to the next multiple; n may be a size that a tracer leaves open, n plus this is then known
    to be a multiple."""
    return (n + multiple - 1) // multiple * multiple - n


def as_nhwc(tensor: Tensor) -> Tensor:
    """The tensor itself where its channels lie side by side, else a channels_last copy."""
    if tensor.size(1) == 1:
        return tensor.resolve_neg()  # x.conj().imag; its strides are even, so that with more channels it is copied
    return tensor if tensor.stride(1) == 1 else _permute_to_channels_last(tensor)


def to_channels_last(tensor: Tensor) -> Tensor:
    """The tensor in channels_last layout without gaps."""
    return _permute_to_channels_last(tensor).resolve_neg()


def _permute_to_channels_last(tensor: Tensor) -> Tensor:
    """torch's contiguous(memory_format=torch.channels_last), 1.5 to 4 times as fast where the native module can."""
    if tensor.is_contiguous(memory_format=CHANNELS_LAST):
        return tensor
    if not (tensor.is_contiguous() and tensor.shape[1] >= MIN_TRANSPOSE_CHANNELS and _can_use_native_kernel(tensor)):
        return tensor.contiguous(memory_format=CHANNELS_LAST)
    batch, channels, height, width = tensor.shape
    result = empty_map(tensor.shape, tensor.dtype, tensor)
    _transpose(tensor, result, batch, channels, height * width)
    return result


def _can_use_native_kernel(tensor: Tensor) -> bool:
    """Whether the native kernel is quicker, and torch need not see it: nothing traces or differentiates it."""
    if type(tensor) is not Tensor or not tensor.is_cpu or native.get_missing_reason() is not None:
        return False
    if tensor.numel() < MIN_NATIVE_ELEMENTS or tensor.dtype.itemsize not in (2, 4):
        return False
    tracked = tensor.requires_grad and torch.is_grad_enabled()
    return not (
        torch.compiler.is_compiling() or tracked or tensor.is_neg() or is_intercepted(tensor) or is_batched(tensor)
    )


def _transpose(tensor: Tensor, result: Tensor, batch: int, rows: int, columns: int) -> None:
    """Write the matrices (rows, columns) in the tensor's memory into the result's as (columns, rows)."""
    sizes = (batch, rows, columns, tensor.dtype.itemsize, torch.get_num_threads())
    native.get_module().transpose(tensor.data_ptr(), result.data_ptr(), *sizes)


def to_contiguous(tensor: Tensor) -> Tensor:
    """The tensor in contiguous memory, its values as they are: x.conj().imag of one element is contiguous, its sign not
    in memory."""
    turns = tensor.dim() == 4 and tensor.is_contiguous(memory_format=CHANNELS_LAST) and not tensor.is_contiguous()
    if not (turns and tensor.shape[1] >= MIN_TRANSPOSE_CHANNELS and _can_use_native_kernel(tensor)):
        return tensor.contiguous().resolve_neg()
    batch, channels, height, width = tensor.shape
    result = torch.empty(tensor.shape, dtype=tensor.dtype)
    _transpose(tensor, result, batch, height * width, channels)
    return result


def transpose_matrix(matrix: Tensor) -> Tensor:
    """The transpose of a dense matrix (rows, columns), dense."""
    if not (matrix.is_contiguous() and _can_use_native_kernel(matrix)):
        return matrix.t().contiguous()
    result = torch.empty(matrix.shape[::-1], dtype=matrix.dtype)
    _transpose(matrix, result, 1, *matrix.shape)
    return result


def sum_per_channel(maps: Tensor) -> Tensor:
    """Sums of every channel over images and pixels, in float32 at least. torch takes up to 13 times as long
    in channels_last."""
    if not (
        _can_use_native_kernel(maps) and maps.is_floating_point() and maps.is_contiguous(memory_format=CHANNELS_LAST)
    ):
        return maps.sum((0, 2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))
    channels, result = maps.shape[1], torch.empty(maps.shape[1])
    sizes = (native.DTYPE_CODES[maps.dtype], maps.numel() // channels, channels)
    native.call_with_workspace(native.get_module().column_sums, *sizes, maps.data_ptr(), result.data_ptr())
    return result


def to_memory_format(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """The map in this layout, contiguous or channels_last, without gaps."""
    return to_channels_last(tensor) if layout == CHANNELS_LAST else to_contiguous(tensor)


def get_output_format(like: Tensor) -> torch.memory_format:
    """The layout of a result: contiguous where `like` is contiguous, else channels_last."""
    if like.is_contiguous() and not like.is_contiguous(memory_format=CHANNELS_LAST):
        return torch.contiguous_format
    return CHANNELS_LAST


def empty_map(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor, layout=CHANNELS_LAST) -> Tensor:
    """An unwritten map (B, C, H, W) in a layout, on the device of `like`."""
    if layout != CHANNELS_LAST:
        return torch.empty(shape, dtype=dtype, device=like.device)
    _, channels, height, width = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return torch.empty_strided(shape, strides, dtype=dtype, device=like.device)  # a third quicker than by its name


def upcast_half(*tensors):
    """The tensors, 16-bit ones as float32."""
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
