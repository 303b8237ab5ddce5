# SPDX-License-Identifier: Apache-2.0
"""LRU cache of packed weights, which are weights reordered for a kernel, for each thread.

An entry is valid while the bytes of the weight are unchanged. Bytes are compared with a copy because neither the
address nor the version counter detects all changes: fused optimizers, writes through p.data and reallocation leave both
unchanged. Each Python thread has its own cache, so that no thread reads a packed weight while another one rewrites it.
"""

import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from fastds.ops.core import native, plans
from fastds.ops.core.layout import CHANNELS_LAST, to_contiguous

MAX_CACHE_BYTES = 256 << 20  # per thread
MAX_EVICTION_CANDIDATES = 16  # oldest entries that evict_matching checks; small networks may leave thousands
Entry = tuple[Tensor, Tensor]  # copy of the weight, packed weight


class _Cache(threading.local):
    """Entries of the current thread and their total size in bytes."""

    def __init__(self):
        self.entries: OrderedDict[tuple, Entry] = OrderedDict()
        self.bytes: float = 0


_cache = _Cache()


@contextmanager
def private_cache() -> Iterator[OrderedDict[tuple, Entry]]:
    """Use an empty cache without eviction inside the block, and yield its dict of entries."""
    before = _cache.entries, _cache.bytes
    mine = _cache.entries = OrderedDict()
    _cache.bytes = -math.inf  # stays below the limit, so that nothing is evicted
    try:
        with plans.suspended():  # a plan would use weights packed before
            yield mine
    finally:
        _cache.entries, _cache.bytes = before


def get_packed_weight(weight: Tensor, layout: tuple, pack: Callable[[Tensor, Entry | None], Entry]) -> Tensor:
    """Return a packed weight from the cache, packing the weight again if its bytes changed.

    Args:
        weight: Tensor with any strides.
        layout: tuple that identifies the packed format. It is part of the cache key.
        pack: pack(weight, entry) returns the new entry for a dense weight. Its argument `entry` is the outdated entry,
            whose memory it may reuse, or None.

    Returns:
        the packed weight.
    """
    key, given = _make_key(weight, layout), weight
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=CHANNELS_LAST)):
        weight = to_contiguous(weight)  # after the key, because the address of a copy changes
    entries = _cache.entries
    entry, threads = entries.get(key), native.get_threads()
    same = native.get_module().same_bytes
    if entry is None or not same(weight.data_ptr(), entry[0].data_ptr(), weight.nbytes, threads):
        new = pack(weight, entry)
        _cache.bytes += _count_bytes(new) - _count_bytes(entry)
        entry = entries[key] = new
    entries.move_to_end(key)
    if _cache.bytes > MAX_CACHE_BYTES:
        plans.drop_packed_weights()  # they would keep the memory of evicted entries
    while _cache.bytes > MAX_CACHE_BYTES and len(entries) > 1:
        _cache.bytes -= _count_bytes(entries.popitem(last=False)[1])
    plans.note_packed_weight(given, entry, partial(_refresh, layout=layout, pack=pack))
    return entry[1]


def clear_cache() -> None:
    """Remove all entries of this thread."""
    _cache.bytes -= sum(map(_count_bytes, _cache.entries.values()))
    _cache.entries.clear()


def _make_key(weight: Tensor, layout: tuple) -> tuple:
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, *layout


def _refresh(weight: Tensor, layout: tuple, pack: Callable[[Tensor, Entry | None], Entry]) -> Entry:
    get_packed_weight(weight, layout, pack)
    return _cache.entries[_make_key(weight, layout)]


def _count_bytes(entry: Entry | None) -> int:
    return 0 if entry is None else sum(t.nbytes for t in entry)


def evict_matching(fits: Callable[[Entry], bool]) -> Entry | None:
    """Remove and return an old entry whose memory a new entry can reuse.

    Weights that are assembled in each forward pass have new addresses each time, so that their old entries are never
    used again.

    Args:
        fits: fits(entry) returns True if the memory of the entry has the required sizes.

    Returns:
        the entry, or None if the cache is at most half full or none of the oldest entries fits.
    """
    if _cache.bytes > MAX_CACHE_BYTES // 2:
        for key, entry in itertools.islice(_cache.entries.items(), MAX_EVICTION_CANDIDATES):
            if fits(entry):
                del _cache.entries[key]
                _cache.bytes -= _count_bytes(entry)
                return entry
    return None
