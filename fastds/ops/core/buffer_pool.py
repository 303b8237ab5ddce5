# SPDX-License-Identifier: Apache-2.0
"""Buffer pool for equal-sized activations; avoids glibc fragmentation.

glibc cuts an aligned block out of a larger one, so the gap of a freed map is too small for the next map of its size:
without the pool a sequence of recurrent steps takes up to one and a half times as much memory.
"""

import math
import threading
import weakref
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from fastds.ops.core.registry import is_intercepted

MIN_POOLED_BYTES = 1 << 20  # bytes; a pooled map costs 5 us more than glibc's, which finds room for small ones again

_current = threading.local()


def reuse_memory(on: bool = True):
    """A block in which maps on the CPU lie in memory that is kept for the next map of their size once they are freed.

    For sequences without a graph: entered where gradients are on, and under a compiler, a tracer or functorch, nothing
    changes. A map that somebody still holds is never overwritten, neither inside the block nor after it.
    """
    off = not on or torch.compiler.is_compiling() or torch.is_grad_enabled()
    return nullcontext() if off else _use_pool()


class Pool:
    """Blocks of memory, each lent to one tensor at a time."""

    def __init__(self):
        self._free: dict[int, list] = {}  # by their bytes

    def block(self, size: int):
        """An array of so many bytes, free again when the last tensor on it is gone."""
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
    if getattr(_current, "pool", None) is None or torch.compiler.is_compiling():
        return False
    if math.prod(shape) * dtype.itemsize < MIN_POOLED_BYTES:
        return False
    return type(like) in (Tensor, torch.nn.Parameter) and like.is_cpu and not is_intercepted(like)


def allocate_maps(shape: tuple[int, int, int, int], dtypes, like: Tensor) -> list[Tensor]:
    """Unwritten maps (B, C, H, W), one of each dtype, channels_last, on the device of `like`; inside reused_memory in
    kept memory."""
    _, channels, height, width = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return [
        torch.frombuffer(_current.pool.block(math.prod(shape) * dtype.itemsize), dtype=dtype).as_strided(shape, strides)
        if _is_pooled(shape, dtype, like)
        else torch.empty_strided(shape, strides, dtype=dtype, device=like.device)
        for dtype in dtypes
    ]


def allocate_map(shape: tuple[int, int, int, int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """One such map."""
    return allocate_maps(shape, (dtype,), like)[0]


def make_out_argument(shape: tuple[int, int, int, int], like: Tensor) -> dict[str, Tensor]:
    """The argument `out` of an operator that gives a map of this shape and the dtype of `like`; {}: it has none."""
    return {"out": allocate_map(shape, like.dtype, like)} if _is_pooled(shape, like.dtype, like) else {}
