# SPDX-License-Identifier: Apache-2.0
"""Memory layout and precision of tensors: channels_last, dense copies, at least float32."""

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.registry import is_batched, observed

CHANNELS_LAST = torch.channels_last
WORTH_A_CALL = 1 << 15  # numbers; torch copies fewer as fast
LEAST_CHANNELS = 4  # of maps that are turned; torch turns two or three in 0.5 to 0.8 of the native kernel's time


def to_multiple(n: int, multiple: int) -> int:
    """What is missing from n to the next multiple; n may be a size that a tracer leaves open, n plus this is then known
    to be a multiple."""
    return (n + multiple - 1) // multiple * multiple - n


def nhwc(tensor: Tensor) -> Tensor:
    """The tensor itself where its channels lie side by side, else a channels_last copy."""
    if tensor.size(1) == 1:
        return tensor.resolve_neg()  # x.conj().imag; its strides are even, so that with more channels it is copied
    return tensor if tensor.stride(1) == 1 else _channels_last(tensor)


def dense(tensor: Tensor) -> Tensor:
    """The tensor in channels_last layout without gaps."""
    return _channels_last(tensor).resolve_neg()


def _channels_last(tensor: Tensor) -> Tensor:
    """torch's contiguous(memory_format=torch.channels_last), 1.5 to 4 times as fast where the native module can."""
    if tensor.is_contiguous(memory_format=CHANNELS_LAST):
        return tensor
    if not (tensor.is_contiguous() and tensor.shape[1] >= LEAST_CHANNELS and _native_pays(tensor)):
        return tensor.contiguous(memory_format=CHANNELS_LAST)
    batch, channels, height, width = tensor.shape
    result = empty_map(tensor.shape, tensor.dtype, tensor)
    _turn(tensor, result, batch, channels, height * width)
    return result


def _native_pays(tensor: Tensor) -> bool:
    """Whether the native kernel is quicker, and torch need not see it: nothing traces or differentiates it."""
    if type(tensor) is not Tensor or not tensor.is_cpu or native.missing() is not None:
        return False
    if tensor.numel() < WORTH_A_CALL or tensor.dtype.itemsize not in (2, 4):
        return False
    tracked = tensor.requires_grad and torch.is_grad_enabled()
    return not (torch.compiler.is_compiling() or tracked or tensor.is_neg() or observed(tensor) or is_batched(tensor))


def _turn(tensor: Tensor, result: Tensor, batch: int, rows: int, columns: int) -> None:
    """Write the matrices (rows, columns) in the tensor's memory into the result's as (columns, rows)."""
    sizes = (batch, rows, columns, tensor.dtype.itemsize, torch.get_num_threads())
    native.module().transpose(tensor.data_ptr(), result.data_ptr(), *sizes)


def plain(tensor: Tensor) -> Tensor:
    """The tensor in contiguous memory, its values as they are: x.conj().imag of one element is contiguous, its sign not
    in memory."""
    turns = tensor.dim() == 4 and tensor.is_contiguous(memory_format=CHANNELS_LAST) and not tensor.is_contiguous()
    if not (turns and tensor.shape[1] >= LEAST_CHANNELS and _native_pays(tensor)):
        return tensor.contiguous().resolve_neg()
    batch, channels, height, width = tensor.shape
    result = torch.empty(tensor.shape, dtype=tensor.dtype)
    _turn(tensor, result, batch, height * width, channels)
    return result


def turned(matrix: Tensor) -> Tensor:
    """The transpose of a dense matrix (rows, columns), dense."""
    if not (matrix.is_contiguous() and _native_pays(matrix)):
        return matrix.t().contiguous()
    result = torch.empty(matrix.shape[::-1], dtype=matrix.dtype)
    _turn(matrix, result, 1, *matrix.shape)
    return result


def channel_sums(maps: Tensor) -> Tensor:
    """Sums of every channel over images and pixels, in float32 at least. torch takes up to 13 times as long
    in channels_last."""
    if not (_native_pays(maps) and maps.is_floating_point() and maps.is_contiguous(memory_format=CHANNELS_LAST)):
        return maps.sum((0, 2, 3), dtype=torch.promote_types(maps.dtype, torch.float32))
    channels, result = maps.shape[1], torch.empty(maps.shape[1])
    sizes = (native.DTYPE_CODES[maps.dtype], maps.numel() // channels, channels)
    native.in_workspace(native.module().column_sums, *sizes, maps.data_ptr(), result.data_ptr())
    return result


def laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """The map in this layout, contiguous or channels_last, without gaps."""
    return dense(tensor) if layout == CHANNELS_LAST else plain(tensor)


def output_format(like: Tensor) -> torch.memory_format:
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


def wide(*tensors):
    """The tensors, 16-bit ones as float32."""
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
