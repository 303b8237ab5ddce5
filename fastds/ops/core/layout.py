# SPDX-License-Identifier: Apache-2.0
"""Memory layout and precision of tensors: channels_last, dense copies, at least float32."""

import torch
from torch import Tensor

CHANNELS_LAST = torch.channels_last


def to_multiple(n: int, multiple: int) -> int:
    """What is missing from n to the next multiple; n may be a size that a tracer leaves open, n plus this is then known
    to be a multiple."""
    return (n + multiple - 1) // multiple * multiple - n


def nhwc(tensor: Tensor) -> Tensor:
    """The tensor itself where its channels lie side by side, else a channels_last copy."""
    if tensor.size(1) == 1:
        return tensor.resolve_neg()  # x.conj().imag; its strides are even, so that with more channels it is copied
    if tensor.stride(1) == 1:
        return tensor
    return tensor.contiguous(memory_format=CHANNELS_LAST)


def dense(tensor: Tensor) -> Tensor:
    """The tensor in channels_last layout without gaps."""
    return tensor.contiguous(memory_format=CHANNELS_LAST).resolve_neg()


def plain(tensor: Tensor) -> Tensor:
    """The tensor in contiguous memory, its values as they are: x.conj().imag of one element is contiguous, its sign not
    in memory."""
    return tensor.contiguous().resolve_neg()


def output_format(like: Tensor) -> torch.memory_format:
    """The layout of a result: contiguous where `like` is contiguous, else channels_last."""
    if like.is_contiguous() and not like.is_contiguous(memory_format=CHANNELS_LAST):
        return torch.contiguous_format
    return CHANNELS_LAST


def empty_map(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> Tensor:
    """An unwritten map (B, C, H, W), channels_last, on the device of `like`."""
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=CHANNELS_LAST)


def wide(*tensors):
    """The tensors, 16-bit ones as float32."""
    return [t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in tensors]
