# SPDX-License-Identifier: Apache-2.0
"""Time of the host for launches of Triton kernels, without a GPU: `python -m bench.launches [--networks] [--csv FILE]`.

A launch is timed from the call of the launcher to the C function that passes the kernel to CUDA, which is replaced by
one that does nothing. Launches without plans and by plans are timed interleaved (fastds/kernels/launch_plans.py). With
`--networks`, the forward passes of three networks are timed on a device that computes nothing (bench/idle_cuda.py),
under bfloat16 autocast and without gradients: without plans, and with plans of launches and, as with FASTDS_PLANS=gpu,
of ops (fastds/ops/core/gpu_plans.py). A time is the least CPU time of the thread over many short
rounds, with one thread.

The time of a network contains the Python code of the network, of fastds and of Triton, and in C++ the dispatch, shape
computation and allocation of torch's operators. It does not contain CUDA's driver, which takes microseconds for each
launch, cuDNN and cuBLAS, CUDA's caching allocator, the compilation of kernels, and the first call, which records plans.
"""

import argparse
import contextlib
import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.calls import time_calls
from fastds.ops.core import triton_loader

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # of kernels that are not compiled; Triton warns without it

SIZE = 32  # pixels each way; the time of the host does not depend on it
# Input shapes as in bench/gpu_rows: two times of FC-ZSM, four sequences of DB-ConvLSTM, one sequence of nowcast-small.
NETWORKS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "fczsm": ((1, 2, 1, SIZE, SIZE), ()),
    "db-convlstm": ((4, 5, 1, SIZE, SIZE), (5,)),
    "nowcast-small": ((1, 5, 1, SIZE, SIZE), (12,)),
}


@contextlib.contextmanager
def without_launch_plans() -> Iterator[None]:
    """Run launchers without plans inside the block."""
    from tests.support.launch_cases import list_launchers

    launchers = list_launchers()
    for module, name, function in launchers:
        setattr(module, name, function.__wrapped__)
    try:
        yield
    finally:
        for module, name, function in launchers:
            setattr(module, name, function)


def time_launchers() -> list[dict[str, Any]]:
    """Return a row for each launcher: its calls with a random call of many tensors, in bfloat16."""
    from tests.support.idle_driver import idle_driver
    from tests.support.launch_cases import DRAWN, Draw, find_planned_calls

    rows = []
    triton_loader.load_kernels("launch_plans")  # with the native part of keys
    with idle_driver() as driver:
        for name, draw in DRAWN.items():
            drawn = [find_planned_calls(draw(Draw(seed, torch.bfloat16)))[0] for seed in range(20)]
            call = max(drawn, key=lambda c: sum(isinstance(v, torch.Tensor) for v in (*c.args, *c.kwargs.values())))
            before, after = call.launcher.__wrapped__, call.launcher
            driver.launches = []
            before(*call.args, **call.kwargs)
            kernels, driver.launches = len(driver.launches), None
            runs: list[Callable[[], None]] = [
                lambda call=call, function=function: function(*call.args, **call.kwargs) for function in (before, after)
            ]
            tensors = sum(isinstance(v, torch.Tensor) for v in (*call.args, *call.kwargs.values()))
            rows.append({"name": name, "kernels": kernels, "tensors": tensors, "times": time_calls(runs)})
    return rows


def time_network(name: str) -> dict[str, Any]:
    """Return the row of the forward pass of a network, on the device of idle_cuda."""
    from bench.idle_cuda import move_to_idle_cuda
    from fastds import models
    from fastds.ops.core import plans
    from tests.support.idle_driver import idle_driver

    shape, options = NETWORKS[name]
    model = move_to_idle_cuda(models.create(name).eval().to(memory_format=torch.channels_last))
    given: list[Any] = [torch.empty(shape, device="cuda"), *options]
    if name.startswith("nowcast"):
        given.append(torch.empty(shape[0], 2, SIZE, SIZE, device="cuda"))  # optical flow, which runs on the CPU

    def run() -> None:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            model(*given)

    def run_without() -> None:
        with plans.suspended(), without_launch_plans():
            run()

    plans.gpu_plans_enabled = True  # as with FASTDS_PLANS=gpu
    with idle_driver() as driver:
        driver.device, driver.launches = 0, []
        run()
        kernels, driver.launches = len(driver.launches), None
        return {"name": name, "kernels": kernels, "times": time_calls([run_without, run])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", action="store_true", help="time forward passes of networks instead of launchers")
    parser.add_argument("--csv", type=Path, help="file to write the rows to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.networks:
        from bench.idle_cuda import use_idle_cuda

        use_idle_cuda()
        rows = [time_network(name) for name in NETWORKS]
    else:
        rows = time_launchers()
    print(f"{'microseconds':30}{'kernels':>10}{'tensors':>10}{'no plans':>12}{'plans':>12}")
    table = []
    for row in rows:
        before, after = row["times"]
        print(f"{row['name']:30}{row['kernels']:>10}{row.get('tensors', ''):>10}{before:>12.1f}{after:>12.1f}")
        table.append({k: v for k, v in row.items() if k != "times"} | {"no_plans_us": before, "plans_us": after})
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
