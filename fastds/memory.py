# SPDX-License-Identifier: Apache-2.0
"""Retention of freed memory by glibc's malloc, which by default returns blocks above 32 MB to the system at once."""

import contextlib
import ctypes
import os
import threading

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # options of mallopt, from malloc.h
# Largest value to which glibc raises the threshold of mmap, default of M_MMAP_MAX, and a threshold that is never
# reached.
_LARGEST_THRESHOLD, _DEFAULT_MMAPS, _NEVER = 32 << 20, 65536, 2**31 - 1
# Environment variables that make a new process retain freed memory, with one heap for all threads.
RETENTION_ENVIRONMENT = {"MALLOC_ARENA_MAX": 1, "MALLOC_MMAP_MAX_": 0, "MALLOC_TRIM_THRESHOLD_": _NEVER}
_PROBE_BYTES = 64 << 20  # larger than every threshold


def set_malloc_retention(enabled: bool = True) -> None:
    """Set whether malloc retains freed memory in this process or returns large blocks to the system.

    The first write to a fresh block costs a page fault for every 4 KB. With `enabled`, blocks of all sizes come from
    one heap that never shrinks. The resident memory then stays at the largest sum of tensors that existed at the same
    time, plus gaps between them. The commands of `fastds` enable this for their process; importing fastds does not.

    Args:
        enabled: bool. True: retain freed memory. False: release it now and return blocks above 32 MB from now on;
            blocks that fit into a gap of the heap are retained until the next call.

    Raises:
        RuntimeError: Memory comes from another allocator than that of glibc (musl, macOS, Windows, a preloaded jemalloc
            or tcmalloc), or the caller is not the main thread.
    """
    reason = get_unsupported_reason()
    if reason is not None:
        raise RuntimeError(f"set_malloc_retention: {reason}")
    libc = _load_c_library()
    if enabled:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)
        _fill_thread_cache(libc)
        if not _is_large_block_on_heap(libc):
            set_malloc_retention(False)
            raise RuntimeError("set_malloc_retention: another allocator than glibc's is loaded")
    else:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAPS)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_THRESHOLD)
        libc.malloc_trim(0)


def return_freed_memory() -> None:
    """Return memory that is free now to the system.

    The function has no effect if the allocator is not that of glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # no glibc; TypeError: Windows
        ctypes.CDLL(None).malloc_trim(0)


def get_unsupported_reason() -> str | None:
    """Return the reason why set_malloc_retention cannot be used in this process or thread, or None."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError):  # no confstr, or a C library that does not know the name
        version = None
    if not version or not version.startswith("glibc"):
        return "the C library of this process is not glibc"
    if threading.current_thread() is not threading.main_thread():
        return "call it from the main thread, other threads have heaps of their own"
    return None


def _load_c_library():
    """Return the C library; its malloc may belong to a preloaded allocator."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    libc.sbrk.argtypes = [ctypes.c_ssize_t]
    return libc


def _fill_thread_cache(libc) -> None:
    """Fill this thread's cache of small blocks (tcache), which holds 7 blocks of each size.

    malloc cuts aligned blocks for tensors from larger ones. If a remainder enters the cache, it separates free
    neighbours and prevents their coalescing, so that the next tensor of the same size does not fit.
    """
    for size in range(24, 120, 16):
        for block in [libc.malloc(size) for _ in range(7)]:
            libc.free(block)


def _is_large_block_on_heap(libc) -> bool:
    """Return True if a large block is below the end of the heap, where only the malloc of glibc puts it."""
    block = libc.malloc(_PROBE_BYTES)  # never written, so that no page becomes resident
    below = block is not None and block < libc.sbrk(0)
    libc.free(block)
    return below
