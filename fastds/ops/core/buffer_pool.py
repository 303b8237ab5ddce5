# SPDX-License-Identifier: Apache-2.0
"""Pool of memory for feature maps on the CPU, which avoids fragmentation of the heap of glibc.

glibc cuts aligned blocks out of larger ones, so that the gap left by a freed tensor is too small for the next tensor of
the same size. Without the pool a sequence of recurrent steps needs up to one and a half times as much memory.
"""

import math
import threading
import weakref
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from fastds.ops.core.registry import is_intercepted

MIN_POOLED_BYTES = 1 << 20  # glibc reuses the memory of smaller tensors, and the pool costs 5 us a tensor

_current = threading.local()


def reuse_memory(on: bool = True):
    """Return a context manager in which feature maps on the CPU reuse the memory of freed maps of the same size.

    This is for inference over sequences. The context manager has no effect if gradients are enabled when this function
    is called, or under torch.compile. Tracers, dispatch modes and functorch transforms do not use the pool. The memory
    of a map that is still referenced is never reused, neither inside the block nor after it.

    Args:
        on: bool, whether the context manager has an effect.
    """
    off = not on or torch.compiler.is_compiling() or torch.is_grad_enabled()
    return nullcontext() if off else _use_pool()


class Pool:
    """Blocks of memory, each used by at most one tensor at a time."""

    def __init__(self):
        self._free: dict[int, list] = {}  # size in bytes -> free blocks

    def block(self, size: int):
        """Return a uint8 array of `size` bytes, whose memory is free again after the last tensor on it is deleted."""
        free = self._free.setdefault(size, [])
        whole = free.pop() if free else torch.empty(size, dtype=torch.uint8).numpy()
        lent = whole.view()
        weakref.finalize(lent, free.append, whole).atexit = False
        return lent


@contextmanager
def _use_pool():
    before = getattr(_current, "pool", None)
    _current.pool = Pool()
    try:
        yield
    finally:
        _current.pool = before


def _is_pooled(shape: tuple[int, ...], dtype: torch.dtype, like: Tensor) -> bool:
    """Return True if a map of this shape and dtype, on the device of `like`, should be allocated from the pool."""
    if getattr(_current, "pool", None) is None or torch.compiler.is_compiling():
        return False
    if math.prod(shape) * dtype.itemsize < MIN_POOLED_BYTES:
        return False
    return type(like) in (Tensor, torch.nn.Parameter) and like.is_cpu and not is_intercepted(like)


def allocate_maps(shape: tuple[int, int, int, int], dtypes, like: Tensor) -> list[Tensor]:
    """Allocate uninitialized channels_last feature maps, from the pool inside reuse_memory.

    Args:
        shape: (B, C, H, W).
        dtypes: dtype of each map.
        like: tensor that gives the device.

    Returns:
        list of one map for each dtype.
    """
    _, channels, height, width = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return [
        torch.frombuffer(_current.pool.block(math.prod(shape) * dtype.itemsize), dtype=dtype).as_strided(shape, strides)
        if _is_pooled(shape, dtype, like)
        else torch.empty_strided(shape, strides, dtype=dtype, device=like.device)
        for dtype in dtypes
    ]


def allocate_map(shape: tuple[int, int, int, int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """Allocate one uninitialized channels_last feature map, see allocate_maps.

    Args:
        shape: (B, C, H, W).
        dtype: dtype of the map.
        like: tensor that gives the device.

    Returns:
        The map.
    """
    return allocate_maps(shape, (dtype,), like)[0]


def make_out_argument(shape: tuple[int, int, int, int], like: Tensor) -> dict[str, Tensor]:
    """Return {"out": map} with a map from the pool for the result of an operator of torch, or {} outside of the pool.

    The result is also {} for maps that are too small for the pool.

    Args:
        shape: (B, C, H, W), shape of the result.
        like: tensor that gives the dtype and the device.
    """
    return {"out": allocate_map(shape, like.dtype, like)} if _is_pooled(shape, like.dtype, like) else {}
