# SPDX-License-Identifier: Apache-2.0
"""Latency of communication between two processors through memory, on Linux.

The host of a virtual machine may place two virtual processors on cores that share a cache or on cores that do not, and
may move them while a benchmark runs. The latency, and with it the time of programs with two threads, changes then.
"""

import ctypes
import os

from bench.cpp_libraries import compile_library, find_compiler

SLOW_NS = 200.0  # above the latency of two cores that share a cache and below that of two cores that do not
_REPEATS, _MESSAGES = 3, 2000


def measure_core_latency_ns() -> float:
    """Return the nanoseconds from a message to its answer between the first two processors, the least of some repeats.

    Returns:
        Nanoseconds, or 0.0 if there is one processor, no Linux or no C++ compiler.
    """
    processors = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    if len(processors) < 2 or find_compiler() is None:
        return 0.0
    function = compile_library("core_latency.cpp").core_latency_ns
    function.restype = ctypes.c_double
    return min(function(_MESSAGES, *processors) for _ in range(_REPEATS))
