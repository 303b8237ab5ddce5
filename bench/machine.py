# SPDX-License-Identifier: Apache-2.0
"""The machine, the checkout and the date of a measurement, and the peak rates of the processor."""

import datetime
import os
import pathlib
import re
import subprocess
import time
from collections.abc import Callable

import torch

from fastds.ops.core import native


def get_cpu_name() -> str:
    """Return the name of the processor with its family and model.

    The name alone is not enough, because clouds give several generations the same name.
    """
    with open("/proc/cpuinfo") as file:
        found = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)", file.read(), re.MULTILINE))
    numbers = [f"{word} {found[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in found]
    return " ".join([found.get("model name", "CPU"), *numbers])


def get_commit() -> str:
    """Return the abbreviated commit of the checkout, with + if files are modified, or "" outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def describe_run() -> dict[str, str]:
    """Return the columns that all rows of one run share on any device: torch, commit and date."""
    return {"torch": torch.__version__, "commit": get_commit(), "date": datetime.date.today().isoformat()}


def describe_cpu_run() -> dict:
    """Return the columns that all rows of one run on a CPU share."""
    threads = {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    return {"device": get_cpu_name()} | threads | {"isa": native.get_module().isa()} | describe_run()


def measure_shortest_call(run: Callable[[], object], calls: int = 5) -> float:
    """Return the seconds of the fastest of several calls, after one call that is not timed."""
    run()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_matmul_rate(dtype: torch.dtype) -> float:
    """Return the peak GFLOP/s of torch, measured with a matrix product and a 3x3 convolution."""
    a, b = torch.randn(1536, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)
    x = torch.randn(1, 64, 200, 200).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    product = 2 * 1536**3 / measure_shortest_call(lambda: a @ b)
    convolve = torch.nn.functional.conv2d
    convolution = 2 * 64 * 64 * 9 * 200 * 200 / measure_shortest_call(lambda: convolve(x, w, padding=1))
    return max(product, convolution) / 1e9


def measure_copy_rate() -> float:
    """Return the GB/s of a copy of 256 MiB, counting the bytes read and the bytes written."""
    source, target = torch.zeros(64 << 20), torch.zeros(64 << 20)
    return 2 * source.nbytes / measure_shortest_call(lambda: target.copy_(source)) / 1e9
