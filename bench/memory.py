# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one call: growth of the resident set of this (fresh) process."""

import ctypes
import gc
import re

import torch


def resident(key: str, process: int | str = "self") -> int:
    """VmRSS (now) or VmHWM (peak since the last reset) in bytes; 0 of a process that has just ended."""
    with open(f"/proc/{process}/status") as file:
        found = re.search(rf"{key}:\s+(\d+) kB", file.read())
    return int(found.group(1)) * 1024 if found else 0


def peak_growth(build, args) -> int:
    """Bytes of resident set at the peak of the first call of build(*args)(), beyond those before build.

    Inputs, weights, saved tensors, packed weights and results count; so does what a library keeps for itself.
    """
    torch.nn.functional.conv2d(torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 3, 3))  # thread pool, oneDNN
    before = resident("VmRSS")
    run = build(*args)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts from here: what build needed for a moment does not count
    run()
    return max(resident("VmHWM") - before, 0)
