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
from fastds.ops.core.layout import CHANNELS_LAST, plain

KEPT_BYTES = 256 << 20  # per thread: of the weights used last
OLDEST = 16  # of thousands that small networks, no longer in use, may have left
Entry = tuple[Tensor, Tensor]  # a copy of the weight, and what was made of it


class _Kept(threading.local):
    def __init__(self):
        self.entries: OrderedDict[tuple, Entry] = OrderedDict()
        self.bytes: float = 0


_kept = _Kept()


@contextmanager
def own() -> Iterator[OrderedDict[tuple, Entry]]:
    """A block with entries of its own, which it gives; none of them is thrown away while the dict lives."""
    before = _kept.entries, _kept.bytes
    mine = _kept.entries = OrderedDict()
    _kept.bytes = -math.inf  # never too many
    try:
        yield mine
    finally:
        _kept.entries, _kept.bytes = before


def made_of(weight: Tensor, how: tuple, make: Callable[[Tensor, Entry | None], Entry]) -> Tensor:
    """What `make` made of the weight, now or in an earlier call.

    how: tells apart what is made of one weight. make: gives the new entry of a dense weight and of its last entry, of
    other bytes, whose memory it may take.
    """
    key = (weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, *how)
    if not (weight.is_contiguous() or weight.is_contiguous(memory_format=CHANNELS_LAST)):
        weight = plain(weight)  # the key is of the part itself: copies of it lie anywhere
    entries = _kept.entries
    entry, threads = entries.get(key), torch.get_num_threads()
    same = native.module().same_bytes
    if entry is None or not same(weight.data_ptr(), entry[0].data_ptr(), weight.nbytes, threads):
        new = make(weight, entry)
        _kept.bytes += _bytes(new) - _bytes(entry)
        entry = entries[key] = new
    entries.move_to_end(key)
    while _kept.bytes > KEPT_BYTES and len(entries) > 1:
        _kept.bytes -= _bytes(entries.popitem(last=False)[1])
    return entry[1]


def _bytes(entry: Entry | None) -> int:
    return 0 if entry is None else sum(t.nbytes for t in entry)


def one_of_the_oldest(fits: Callable[[Entry], bool]) -> Entry | None:
    """An entry that fits and is kept no longer, once half of what may be kept is kept.

    Weights that are put together in every pass come from ever new addresses; its memory is mapped already.
    """
    if _kept.bytes > KEPT_BYTES // 2:
        for key, entry in itertools.islice(_kept.entries.items(), OLDEST):
            if fits(entry):
                del _kept.entries[key]
                _kept.bytes -= _bytes(entry)
                return entry
    return None
