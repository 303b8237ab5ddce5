# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one call: growth of the resident set of this (fresh) process."""

import ctypes
import gc
import re


def resident(key: str) -> int:
    """VmRSS (now) or VmHWM (peak since the last reset) in bytes."""
    with open("/proc/self/status") as file:
        return int(re.search(rf"{key}:\s+(\d+) kB", file.read()).group(1)) * 1024


def peak_growth(build, args) -> int:
    """Bytes the second call of build(*args)() adds to the resident set at its peak, results of that call included.

    The first call pays for what stays: kernels loaded and generated, thread pools, packed weights.
    """
    run = build(*args)
    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM
    run()
    return max(resident("VmHWM") - before, 0)
