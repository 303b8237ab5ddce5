# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on a GPU: `python -m bench.gpu_bench [--seconds 150] [--out results.json] [--only deform_conv2d]
[--rows first|others|all]`.

Every row is checked against its float64 oracle, then captured as a CUDA graph and replayed with a cold L2 cache, timed
by CUDA events; a row that cannot or should not be captured is timed as it is and says so. The ceilings are measured in
the same run. A row that fails, or that the time is over for, is one line of the output; the others go on. With --device
cpu the same code runs tiny rows by the clock: a test of the plumbing, not a measurement. --profile times nothing: it
runs one row of each of PROFILED between cudaProfilerStart and cudaProfilerStop, for
`ncu --profile-from-start off --clock-control none`.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import pathlib
import pkgutil
import statistics
import sys
import time

import torch

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from bench import gpu_rows, report  # noqa: E402
from bench.gpu_predictions import PREDICTED_MS  # noqa: E402
from bench.gpu_rows import Row, name_of  # noqa: E402

ROUNDS = 40
FIRST_ROUNDS = 3  # rows of every module, which with those of tiles decide what is done next
PROFILED = {  # the first row of ours of an op
    "conv3x3": "fastds implicit_gemm", "conv_lstm_cell": "fastds triton", "deform_conv2d": "fastds triton",
    "inr_query liif": "fastds triton",
}  # fmt: skip
FLUSH_BYTES = 256 << 20  # several times the L2 cache; writing it also lets the CPU run ahead of the GPU


class Cuda:
    """Runs and times on the current CUDA device."""

    def __init__(self):
        self.device = "cuda"
        properties = torch.cuda.get_device_properties(0)
        self.name = f"{properties.name}, CUDA {torch.version.cuda}"
        self.stream = torch.cuda.Stream()
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def run(self, function):
        with torch.cuda.stream(self.stream):
            result = function()
        torch.cuda.synchronize()
        return result

    def captured(self, run):
        """The run as a replayed graph, or itself where it cannot be captured."""
        graph = torch.cuda.CUDAGraph()
        try:
            self.run(run)
            with torch.cuda.graph(graph, stream=self.stream):
                result = run()
        except RuntimeError as error:
            torch.cuda.synchronize()
            return run, f"eager ({str(error).splitlines()[0][:80]})"
        graph.kept = result
        return graph.replay, "graph"

    def milliseconds(self, run) -> list[float]:
        self.run(run)
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(ROUNDS)]
        with torch.cuda.stream(self.stream):
            for start, end in pairs:
                self.flush.zero_()
                start.record()
                run()
                end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    @contextlib.contextmanager
    def profiled(self):
        torch.cuda.profiler.start()
        yield
        torch.cuda.profiler.stop()

    def peak(self, run) -> float:
        """MiB allocated during one eager run beyond what was there."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run(run)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class Clock:
    """The same on a CPU, for the test of the plumbing."""

    device, name = "cpu", "dry run on a CPU"

    def run(self, function):
        return function()

    def captured(self, run):
        return run, "clock"

    def milliseconds(self, run):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def profiled(self):
        return contextlib.nullcontext()

    def peak(self, run):
        return 0.0


def ceilings(machine, small: bool) -> dict:
    """GB/s of a copy (read and written) and GFLOP/s of a matrix product per dtype, on random data."""
    count, size = (1 << 16, 64) if small else (1 << 29, 8192)
    source = torch.randn(count, device=machine.device)
    target = torch.empty_like(source)
    copy = min(machine.milliseconds(lambda: target.copy_(source)))
    found = {"GB/s": 2 * source.nbytes / copy / 1e6}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(size, size, device=machine.device).to(dtype) for _ in range(2))
        found[name_of(dtype)] = 2 * size**3 / min(machine.milliseconds(functools.partial(torch.mm, a, b))) / 1e6
    return found


def worst_error(result, expected) -> float:
    """Largest difference over all tensors, each relative to the largest value of its expected tensor; NaN stays NaN."""
    pairs = zip(*([t] if isinstance(t, torch.Tensor) else list(t) for t in (result, expected)), strict=True)
    errors = [((a.double() - e.double()).abs().max() / e.abs().max()).item() for a, e in pairs]
    return float("nan") if any(e != e for e in errors) else max(errors)


def measure(row: Row, machine, limits: dict, oracles: dict) -> dict:
    if row.oracle not in oracles:
        oracles[row.oracle] = row.expected(machine.device)
    run = machine.run(lambda: row.build(machine.device))
    error = worst_error(machine.run(run), oracles[row.oracle])
    if not error <= row.tolerance:
        raise AssertionError(f"error {error:.2e} exceeds {row.tolerance:.0e}, not timed")
    peak = machine.peak(run)
    replay, timing = machine.captured(run) if row.graph else (run, "eager")
    times = machine.milliseconds(replay)
    median = statistics.median(times)
    bound = max(row.flops / limits[row.dtype], row.bytes / limits["GB/s"]) / 1e6
    return {
        "op": row.op, "case": row.case, "mode": row.mode, "dtype": row.dtype, "peer": row.peer,
        "yardstick": row.yardstick, "median_ms": median, "gflops": row.flops / median / 1e6,
        "gbytes": row.bytes / median / 1e6, "percent_of_ceiling": 100 * bound / median, "error": error,
        "peak_mib": peak, "timing": timing, "fastest_ms": min(times),
        "predicted_ms": PREDICTED_MS.get((row.op, row.case, row.mode, row.dtype, row.peer)),
    }  # fmt: skip


def all_rows(small: bool, only: str | None) -> list[list[Row]]:
    """Rounds: the first rows of all modules, the second, ... Where the time ends early, every op has its first rows."""
    modules = sorted(m.name for m in pkgutil.iter_modules(gpu_rows.__path__))
    chosen = [m for m in modules if only is None or m in only.split(",")]
    lists = [importlib.import_module(f"bench.gpu_rows.{m}").rows(small) for m in chosen]
    return [[row for row in rows if row] for rows in itertools.zip_longest(*lists)]


def some_rows(rounds: list[list[Row]], part: str) -> list[Row]:
    """ "first", "others" or "all" of them."""
    first = [row for number, rows in enumerate(rounds) for row in rows if number < FIRST_ROUNDS or "tiles" in row.op]
    if part == "first":
        return first
    return [row for rows in rounds for row in rows if part == "all" or row not in first]


def profile(rows: list[Row], machine) -> None:
    """Run the rows of PROFILED, each once before what a profiler counts."""
    wanted = dict(PROFILED)
    for row in rows:
        ours = wanted.get(row.op) == row.peer or (machine.device == "cpu" and row.op in wanted)
        if not (ours and row.mode == "forward"):
            continue
        del wanted[row.op]
        run = machine.run(lambda row=row: row.build(machine.device))
        machine.run(run)
        print(f"profiled {label_of(row)}", flush=True)
        with machine.profiled():
            machine.run(run)


def label_of(row: Row) -> str:
    return " ".join((row.op, row.case, row.mode, row.dtype, row.peer))


def write(result: dict, path: pathlib.Path) -> None:
    """All of it or, if this is stopped, what was there."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(json.dumps(result))
    fresh.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=150, help="start no row after this many seconds")
    parser.add_argument("--out", type=pathlib.Path, help="JSON; bench/results/<device>.json without it")
    parser.add_argument("--only", help="comma-separated modules of bench/gpu_rows")
    parser.add_argument("--rows", choices=("first", "others", "all"), default="all")
    parser.add_argument("--profile", action="store_true", help="run the rows that a profiler is to look at, once")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu tries the plumbing")
    begin, failed = time.monotonic(), 0
    small = options.device == "cpu"
    machine = Clock() if small else Cuda()
    rows = some_rows(all_rows(small, options.only), options.rows)
    if options.profile:
        profile(rows, machine)
        return 0
    limits, oracles = ceilings(machine, small), {}
    result = {"device": machine.name, "torch": torch.__version__, "ceilings": limits, "rows": []}
    for row in rows:
        label = label_of(row)
        if time.monotonic() - begin > options.seconds:
            print(f"LEFT OUT {label}: the time is over")
            continue
        try:
            result["rows"].append(measure(row, machine, limits, oracles))
            if options.out:
                write(result, options.out)  # what is measured stays, whenever this is stopped
            done = result["rows"][-1]
            print(f"{label}: {done['median_ms']:.4f} ms, error {done['error']:.1e}, {done['timing']}", flush=True)
        except Exception as error:  # a peer that is not installed, a kernel that fails: the others go on
            failed += 1
            words = (str(error).splitlines() or [""])[0]
            print(f"FAILED {label}: {type(error).__name__}: {words[:300]}", flush=True)
    if options.out:
        write(result, options.out)
    else:
        options.out = report.save(result)
    print(f"{len(result['rows'])} rows in {options.out}, {failed} failed, {time.monotonic() - begin:.0f} s")
    return 0 if result["rows"] else 1


if __name__ == "__main__":
    sys.exit(main())
