# SPDX-License-Identifier: Apache-2.0
"""What kernels read in place of a weight, kept for the next call while the weight's bytes stay the same.

Neither the address nor the version counter says whether a weight changed: fused optimisers, p.data and reallocation
leave them as they were. So a copy of the weight lies beside what was made of it, and they are compared. Each thread of
Python keeps its own, so that nobody reads what another thread rewrites.
"""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fastds.ops.core import native
from fastds.ops.core.layout import CHANNELS_LAST, to_contiguous

MAX_CACHE_BYTES = 256 << 20  # per thread: of the weights used last
MAX_EVICTION_CANDIDATES = 16  # of thousands that small networks, no longer in use, may have left
Entry = tuple[Tensor, Tensor]  # a copy of the weight, and what was made of it


class _Cache(threading.local):
    def __init__(self):
        self.entries: OrderedDict[tuple, Entry] = OrderedDict()
        self.bytes: float = 0


_cache = _Cache()


@contextmanager
def private_cache() -> Iterator[OrderedDict[tuple, Entry]]:
    """A block with entries of its own, which it gives; none of them is thrown away while the dict lives."""
    before = _cache.entries, _cache.bytes
    mine = _cache.entries = OrderedDict()
    _cache.bytes = -math.inf  # never too many
    try:
        yield mine
    finally:
        _cache.entries, _cache.bytes = before


def get_packed_weight(weight: Tensor, how: tuple, make: Callable[[Tensor, Entry | None], Entry]) -> Tensor:
    """What `make` made of the weight, now or in an earlier call.

    how: tells apart what is made of one weight. make: gives the new entry of a dense weight and of its last entry, of
    other bytes, whose memory it may take.
    """
    key = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, *how)
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=CHANNELS_LAST)):
        weight = to_contiguous(weight)  # the key is of the part itself: copies of it lie anywhere
    entries = _cache.entries
    entry, threads = entries.get(key), torch.get_num_threads()
    same = native.get_module().same_bytes
    if entry is None or not same(weight.data_ptr(), entry[0].data_ptr(), weight.nbytes, threads):
        new = make(weight, entry)
        _cache.bytes += _count_bytes(new) - _count_bytes(entry)
        entry = entries[key] = new
    entries.move_to_end(key)
    while _cache.bytes > MAX_CACHE_BYTES and len(entries) > 1:
        _cache.bytes -= _count_bytes(entries.popitem(last=False)[1])
    return entry[1]


def _count_bytes(entry: Entry | None) -> int:
    return 0 if entry is None else sum(t.nbytes for t in entry)


def evict_matching(fits: Callable[[Entry], bool]) -> Entry | None:
    """An entry that fits and is kept no longer, once half of what may be kept is kept.

    Weights that are put together in every pass come from ever new addresses; its memory is mapped already.
    """
    if _cache.bytes > MAX_CACHE_BYTES // 2:
        for key, entry in itertools.islice(_cache.entries.items(), MAX_EVICTION_CANDIDATES):
            if fits(entry):
                del _cache.entries[key]
                _cache.bytes -= _count_bytes(entry)
                return entry
    return None
