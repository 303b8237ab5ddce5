# SPDX-License-Identifier: Apache-2.0
"""What becomes of freed memory: by default glibc gives every block above 32 MB back to the system at once."""

import contextlib
import ctypes
import os
import threading

# Parameters of mallopt and what glibc's own adaption of them ends at, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST_THRESHOLD, _DEFAULT_MMAPS, _NEVER = 32 << 20, 65536, 2**31 - 1
# What a process that is started with these keeps of its memory, all threads from one heap; see keep_freed_memory.
KEEPING_ENVIRONMENT = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_MAX_": 0, "MALLOC_TRIM_THRESHOLD_": _NEVER}
_PROBE_BYTES = 64 << 20  # above every threshold


def keep_freed_memory(keep: bool = True) -> None:
    """Whether this process keeps freed memory for its next tensors, or returns large blocks to the system.

    A fresh block costs a page fault per 4 KB when it is first written: a 3x3 convolution of torch with 40 MB of output
    takes up to twice its time (ours asks for huge pages). With keep, blocks of every size come from one heap that never
    shrinks: the resident memory stays at the largest sum of tensors that lived at once, plus gaps between them. The
    commands of `fastds` switch it on for their process; importing fastds does not.

    Args:
        keep: True keeps freed memory; False frees what is kept and returns blocks above 32 MB again, but for blocks
            that fit into a gap of the heap: those are kept until the next call.

    Raises:
        RuntimeError: memory comes from another allocator than glibc's (musl, macOS, Windows, a preloaded jemalloc or
            tcmalloc), which has its own settings, or the caller is not the main thread. Nothing has changed then.
    """
    reason = refusal()
    if reason is not None:
        raise RuntimeError(f"keep_freed_memory: {reason}")
    libc = _library()
    if keep:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        _fill_cache(libc)
        if not _from_heap(libc):
            keep_freed_memory(False)
            raise RuntimeError("keep_freed_memory: another allocator than glibc's is loaded")
    else:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAPS)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        libc.malloc_trim(0)


def return_freed_memory() -> None:
    """Return what is free and kept now to the system, where the memory is glibc's; see keep_freed_memory."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc; TypeError: Windows
        ctypes.CDLL(None).malloc_trim(0)


def refusal() -> str | None:
    """Why keep_freed_memory cannot be used here, or None."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError):  # no confstr, or a C library that does not know the name
        version = None
    if not version or not version.startswith("glibc"):
        return "the C library of this process is not glibc"
    if threading.current_thread() is not threading.main_thread():
        return "call it from the main thread, other threads have heaps of their own"
    return None


def _library():
    """The C library, or what a preloaded allocator puts in its place."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.sbrk.argtypes = [ctypes.c_ssize_t]
    return libc


def _fill_cache(libc) -> None:
    """Fills the cache of small blocks of this thread.

    Torch's blocks are aligned: malloc cuts them from larger ones, and a cut-off end that goes into that cache keeps
    free neighbours apart, so that the next tensor of the same size does not fit (289 MB held for one of 48 MB, filled
    97 MB). glibc holds 7 blocks of a size.
    """
    for size in range(24, 120, 16):
        for block in [libc.malloc(size) for _ in range(7)]:
            libc.free(block)


def _from_heap(libc) -> bool:
    """Whether a large block lies below the end of the program's heap, where only glibc's malloc puts it."""
    block = libc.malloc(_PROBE_BYTES)  # never written: no page of it becomes resident
    below = block is not None and block < libc.sbrk(0)
    libc.free(block)
    return below
