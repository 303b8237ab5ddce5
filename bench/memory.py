# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a process and of one call, as the resident set size that Linux reports."""

import ctypes
import gc
import re

import torch


def read_resident_bytes(key: str, process: int | str = "self") -> int:
    """Return a resident set size of a process.

    Args:
        key: "VmRSS" for the present size, "VmHWM" for the largest size since the start or the last reset.
        process: process id.

    Returns:
        Bytes, or 0 if the process has just ended.
    """
    with open(f"/proc/{process}/status") as file:
        found = re.search(rf"{key}:\s+(\d+) kB", file.read())
    return int(found.group(1)) * 1024 if found else 0


def measure_peak_growth(build, args) -> int:
    """Return the growth of the resident set from before build(*args) to the peak of the first call of its result.

    Call this function in a fresh process. Inputs, weights, saved tensors, packed weights, results and the workspaces of
    libraries count.

    Returns:
        Bytes, at least 0.
    """
    # Starts the thread pool and initializes oneDNN, which are not part of the call.
    torch.nn.functional.conv2d(torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 3, 3))
    before = read_resident_bytes("VmRSS")
    run = build(*args)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets VmHWM, so that temporary memory of build() does not count
    run()
    return max(read_resident_bytes("VmHWM") - before, 0)
