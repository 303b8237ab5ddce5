# SPDX-License-Identifier: Apache-2.0
"""How long two threads take to exchange memory, on Linux.

A host may put two virtual processors on cores that share a cache (50 ns on a Zen 4 EPYC) or on two that do not (300 to
700), and move them within minutes. What threads hand each other takes many times as long then.
"""

import ctypes
import os

from bench.compiled import compiler, library

SLOW_NS = 200.0
_LOOKS, _MESSAGES = 3, 2000


def exchange_ns() -> float:
    """From a message to its answer, of the first two processors, the quickest of a few looks; 0 if it cannot be told:
    there is one processor, no Linux or no compiler."""
    processors = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    if len(processors) < 2 or compiler() is None:
        return 0.0
    function = library("exchange.cpp").exchange_ns
    function.restype = ctypes.c_double
    return min(function(_MESSAGES, *processors) for _ in range(_LOOKS))
