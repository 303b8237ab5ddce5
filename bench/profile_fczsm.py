# SPDX-License-Identifier: Apache-2.0
"""Where the time of an FC-ZSM forward pass goes: `python -m bench.profile_fczsm [--dtype bfloat16] [--size 200]`.

One row per operator and kind of layer: time, share, products actually calculated (Winograd's 36 per tile and pair of
channels) against the rate of the fastest library product of this run, and least traffic (every tensor read or written
once) against the bandwidth of a copy. Medians of some passes, after a warm-up.
"""

import argparse
import statistics
import time
from collections import defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastds
from bench import bench_fczsm
from bench.conftest import copy_rate, matmul_rate
from bench.report import table
from fastds.ops.impl.conv3x3.algorithm import chosen


def direct_flops(x, weight, y) -> int:
    """Of a convolution that gives y (B, O, H, W) from x with weight (O, C, k, k)."""
    return 2 * y.numel() * weight[0].numel()


def conv3x3_row(args, y) -> tuple[str, int]:
    x, weight = args[:2]
    outputs, channels = weight.shape[:2]
    batch, _, height, width = x.shape
    algorithm = chosen("auto", x, channels, outputs, y.dtype, False)
    if algorithm != "winograd":
        return f"conv3x3, {algorithm}, {channels} to {outputs}", 2 * batch * height * width * weight.numel()
    tiles = batch * -(-height // 4) * -(-width // 4)
    return f"conv3x3, Winograd, {channels} to {outputs}", 2 * 36 * tiles * channels * outputs


def describe(function, args, result) -> tuple[str, int]:
    """Name of the row and FLOPs of one call."""
    name = function.name().partition(".")[0].partition("::")[2]
    if name == "conv3x3":
        return conv3x3_row(args, result)
    weights = [a for a in args if isinstance(a, torch.Tensor) and a.ndim == 4 and a.shape[2:] in ((3, 3), (1, 1))]
    if weights and ("conv" in name):
        weight = weights[0]
        kind = f"{name}, {weight.shape[2]}x{weight.shape[3]}"
        return kind, direct_flops(args[0], weight, result if isinstance(result, torch.Tensor) else result[0])
    return name, 0


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


class Recorder(TorchDispatchMode):
    """Adds up time, calls, FLOPs and bytes of every operator; views cost and count nothing."""

    def __init__(self):
        super().__init__()
        self.rows = defaultdict(lambda: [0.0, 0, 0, 0])

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = function(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        if not function.is_view:
            name, flops = describe(function, args, result)
            moved = {t.data_ptr(): t.nbytes for t in tensors_in([args, result])}
            row = self.rows[name]
            for k, value in enumerate((seconds, 1, flops, sum(moved.values()))):
                row[k] += value
        return result


def profile(run, passes: int) -> tuple[dict, float]:
    """Median rows {name: (seconds, calls, FLOPs, bytes)} and the median seconds of a pass that nobody watches."""
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
    parser.add_argument("--size", type=int, default=bench_fczsm.SIZES["forward"], help="of the coarse grid, both sides")
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    fastds.keep_freed_memory()
    bench_fczsm.SIZES["forward"] = options.size
    dtype = getattr(torch, options.dtype)
    peak, bandwidth = matmul_rate(dtype), copy_rate()
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
    watched = sum(seconds for seconds, *_ in rows.values())
    lines.append(("all", "", f"{1e3 * watched:.0f}", f"{100 * watched / whole:.0f}", "", "", ""))
    print(table(("operator", "calls", "ms", "% of time", "% of product rate", "GB", "% of copy"), lines))


if __name__ == "__main__":
    main()
