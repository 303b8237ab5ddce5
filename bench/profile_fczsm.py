# SPDX-License-Identifier: Apache-2.0
"""Profile of the FC-ZSM forward pass: `python -m bench.profile_fczsm [--dtype bfloat16] [--size 200]`.

Prints one row per operator and kind of layer: the median time over some passes, its share, the rate of the products
that are computed compared with the peak rate of torch, and the least memory traffic (every tensor is read or written
once) compared with a copy. Winograd computes 36 products per tile and pair of channels.
"""

import argparse
import statistics
import time
from collections import defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastds
from bench import bench_fczsm
from bench.machine import measure_copy_rate, measure_matmul_rate
from bench.report import format_table
from fastds.ops.impl.conv3x3.algorithm import select_algorithm


def count_direct_flops(weight, y) -> int:
    """Return the FLOPs of a direct convolution with weight (O, C, k, k) and result y (B, O, H, W)."""
    return 2 * y.numel() * weight[0].numel()


def describe_conv3x3(args, y) -> tuple[str, int]:
    """Return the name of the row and the FLOPs of a call of conv3x3 with its result y."""
    x, weight = args[:2]
    outputs, channels = weight.shape[:2]
    batch, _, height, width = x.shape
    algorithm = select_algorithm("auto", x, channels, outputs, y.dtype, False)
    if algorithm != "winograd":
        return f"conv3x3, {algorithm}, {channels} to {outputs}", 2 * batch * height * width * weight.numel()
    tiles = batch * -(-height // 4) * -(-width // 4)
    return f"conv3x3, Winograd, {channels} to {outputs}", 2 * 36 * tiles * channels * outputs


def describe(function, args, result) -> tuple[str, int]:
    """Return the name of the row and the FLOPs of a call of an operator of torch or fastds."""
    name = function.name().partition(".")[0].partition("::")[2]
    if name == "conv3x3":
        return describe_conv3x3(args, result)
    weights = [a for a in args if isinstance(a, torch.Tensor) and a.ndim == 4 and a.shape[2:] in ((3, 3), (1, 1))]
    if weights and ("conv" in name):
        weight = weights[0]
        kind = f"{name}, {weight.shape[2]}x{weight.shape[3]}"
        return kind, count_direct_flops(weight, result if isinstance(result, torch.Tensor) else result[0])
    return name, 0


def iterate_tensors(value):
    """Yield the tensors in nested lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from iterate_tensors(part)


class Recorder(TorchDispatchMode):
    """Dispatch mode that sums time, calls, FLOPs and bytes of every operator, views excepted."""

    def __init__(self):
        super().__init__()
        self.rows = defaultdict(lambda: [0.0, 0, 0, 0])

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        if not function.is_view:
            name, flops = describe(function, args, result)
            moved = {t.data_ptr(): t.nbytes for t in iterate_tensors([args, result])}
            row = self.rows[name]
            for k, value in enumerate((seconds, 1, flops, sum(moved.values()))):
                row[k] += value
        return result


def profile(run, passes: int) -> tuple[dict, float]:
    """Profile a callable.

    Args:
        run: the callable.
        passes: number of calls with the recorder, and of calls without.

    Returns:
        {name: (median seconds, calls, FLOPs, bytes)} of the operators, and the median seconds of a call without the
        recorder.
    """
    run()
    seconds, rows = [], []
    for _ in range(passes):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
        with Recorder() as recorder:
            run()
        rows.append(recorder.rows)
    names = rows[0]
    return {n: (statistics.median(r[n][0] for r in rows), *names[n][1:]) for n in names}, statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--size", type=int, default=bench_fczsm.SIZES["forward"], help="pixels each way; default 200")
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    fastds.memory.set_malloc_retention()
    bench_fczsm.SIZES["forward"] = options.size
    dtype = getattr(torch, options.dtype)
    peak, bandwidth = measure_matmul_rate(dtype), measure_copy_rate()
    rows, whole = profile(bench_fczsm.build("fastds", "forward", dtype), options.passes)
    print(f"FC-ZSM forward (1,2,1,{options.size},{options.size}) {options.dtype}: {whole:.3f} s, "
          f"{torch.get_num_threads()} threads; products {peak:.0f} GFLOP/s, copy {bandwidth:.1f} GB/s\n")  # fmt: skip
    lines = []
    for name, (seconds, calls, flops, moved) in sorted(rows.items(), key=lambda row: -row[1][0]):
        if seconds < 0.003 * whole:
            continue
        lines.append((
            name, str(calls), f"{1e3 * seconds:.0f}", f"{100 * seconds / whole:.0f}",
            f"{100 * flops / seconds / 1e9 / peak:.0f}" if flops else "", f"{moved / 1e9:.2f}",
            f"{100 * moved / seconds / 1e9 / bandwidth:.0f}",
        ))  # fmt: skip
    recorded = sum(seconds for seconds, *_ in rows.values())
    lines.append(("all", "", f"{1e3 * recorded:.0f}", f"{100 * recorded / whole:.0f}", "", "", ""))
    print(format_table(("operator", "calls", "ms", "% of time", "% of product rate", "GB", "% of copy"), lines))


if __name__ == "__main__":
    main()
