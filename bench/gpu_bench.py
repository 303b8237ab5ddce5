# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on a GPU: `python -m bench.gpu_bench [--seconds 150] [--out results.csv] [--rows first|others|all]`.

Each row is compared with a float64 reference, captured as a CUDA graph and replayed with a cold L2 cache; CUDA events
measure the time. Rows that cannot or should not be captured are timed without a graph, which the output states. The
peak rates of the GPU are measured in the same run. If a row fails, or would start after --seconds, the output has one
line about it and the other rows run.

--device cpu runs the same code on tiny rows, as a test of the program without a GPU. --profile times nothing. It runs
one row of each op in PROFILED between cudaProfilerStart and cudaProfilerStop, for `ncu --profile-from-start off
--clock-control none`.
"""

import argparse
import contextlib
import functools
import importlib
import itertools
import pathlib
import pkgutil
import statistics
import sys
import time

import torch

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from bench import gpu_rows
from bench.gpu_rows import Row, get_dtype_name
from bench.machine import describe_run
from bench.report import make_ceiling_row
from bench.result_files import save_rows, write_rows

ROUNDS = 40
FIRST_ROUNDS = 3  # the first rows of every module; with the rows of tile sizes they are the part "first"
PROFILED = {  # op: peer of the row to profile
    "conv3x3": "fastds implicit_gemm", "conv_lstm_cell": "fastds triton", "deform_conv2d": "fastds triton",
    "inr_query liif": "fastds triton",
}  # fmt: skip
FLUSH_BYTES = 256 << 20  # several times the L2 cache; the time of writing it also lets the CPU enqueue the next call


class CudaTimer:
    """Runs and times callables on the current CUDA device."""

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

    def capture(self, run):
        """Capture a callable as a CUDA graph.

        Returns:
            The replay and "graph", or the callable and "eager (REASON)" if it cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            self.run(run)
            with torch.cuda.graph(graph, stream=self.stream):
                result = run()
        except RuntimeError as error:
            torch.cuda.synchronize()
            return run, f"eager ({str(error).splitlines()[0][:80]})"
        graph.result = result  # keeps the memory of the result allocated
        return graph.replay, "graph"

    def measure_ms(self, run) -> list[float]:
        """Return the milliseconds of some calls, each with a cold L2 cache."""
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
    def profile(self):
        """Context manager: profilers record the kernels inside."""
        torch.cuda.profiler.start()
        yield
        torch.cuda.profiler.stop()

    def measure_peak_mib(self, run) -> float:
        """Return the growth of the allocated memory, in MiB, to its peak during one eager call."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run(run)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class CpuTimer:
    """The methods of CudaTimer on a CPU, for a test of the program without a GPU."""

    device, name = "cpu", "dry run on a CPU"

    def run(self, function):
        return function()

    def capture(self, run):
        return run, "clock"

    def measure_ms(self, run):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def profile(self):
        return contextlib.nullcontext()

    def measure_peak_mib(self, run):
        return 0.0


def measure_ceilings(timer, small: bool) -> dict:
    """Measure peak rates on random data.

    Args:
        timer: CudaTimer or CpuTimer.
        small: use tiny tensors.

    Returns:
        GB/s of a copy under "GB/s", counting reads and writes, and GFLOP/s of a matrix product by dtype.
    """
    count, size = (1 << 16, 64) if small else (1 << 29, 8192)
    source = torch.randn(count, device=timer.device)
    target = torch.empty_like(source)
    copy = min(timer.measure_ms(lambda: target.copy_(source)))
    rates = {"GB/s": 2 * source.nbytes / copy / 1e6}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(size, size, device=timer.device).to(dtype) for _ in range(2))
        rates[get_dtype_name(dtype)] = 2 * size**3 / min(timer.measure_ms(functools.partial(torch.mm, a, b))) / 1e6
    return rates


def compute_error(result, expected) -> float:
    """Return the largest difference over all tensors, each relative to the largest value of the expected tensor.

    Returns:
        The error, NaN if a value is NaN.
    """
    pairs = zip(*([t] if isinstance(t, torch.Tensor) else list(t) for t in (result, expected)), strict=True)
    errors = [((a.double() - e.double()).abs().max() / e.abs().max()).item() for a, e in pairs]
    return float("nan") if any(e != e for e in errors) else max(errors)


def measure(row: Row, timer, ceilings: dict, references: dict) -> dict:
    """Check and time a row.

    Args:
        row: the row.
        timer: CudaTimer or CpuTimer.
        ceilings: peak rates of measure_ceilings().
        references: expected results by row.reference_key; missing ones are computed and added.

    Returns:
        The row's columns of bench/result_files.py; note is "graph", "eager ..." or "clock".

    Raises:
        AssertionError: if the error exceeds row.tolerance.
    """
    if row.reference_key not in references:
        references[row.reference_key] = row.expected(timer.device)
    run = timer.run(lambda: row.build(timer.device))
    error = compute_error(timer.run(run), references[row.reference_key])
    if not error <= row.tolerance:
        raise AssertionError(f"error {error:.2e} exceeds {row.tolerance:.0e}, not timed")
    peak = timer.measure_peak_mib(run)
    replay, note = timer.capture(run) if row.graph else (run, "eager")
    median = statistics.median(timer.measure_ms(replay))
    bound = max(row.flops / ceilings[row.dtype], row.bytes / ceilings["GB/s"]) / 1e6
    return {
        "op": row.op, "case": row.case, "mode": row.mode, "dtype": row.dtype, "peer": row.peer,
        "memory": "kept", "yardstick": row.yardstick, "median_ms": median, "gflops": row.flops / median / 1e6,
        "gbytes": row.bytes / median / 1e6, "percent_of_ceiling": 100 * bound / median, "error": error,
        "peak_mib": peak, "note": note,
    }  # fmt: skip


def make_rounds(small: bool, only: str | None) -> list[list[Row]]:
    """Return the first rows of all modules, the second rows of all modules, and so on.

    The rows run in this order, so that every op has its first rows if the time is over early.

    Args:
        small: tiny rows for a CPU.
        only: comma-separated modules of bench/gpu_rows, or None for all.
    """
    modules = sorted(m.name for m in pkgutil.iter_modules(gpu_rows.__path__))
    chosen = [m for m in modules if only is None or m in only.split(",")]
    lists = [importlib.import_module(f"bench.gpu_rows.{m}").make_rows(small) for m in chosen]
    return [[row for row in rows if row] for rows in itertools.zip_longest(*lists)]


def select_rows(rounds: list[list[Row]], part: str) -> list[Row]:
    """Return the rows of a part: "first", "others" or "all"."""
    first = [row for number, rows in enumerate(rounds) for row in rows if number < FIRST_ROUNDS or "tiles" in row.op]
    if part == "first":
        return first
    return [row for rows in rounds for row in rows if part == "all" or row not in first]


def profile(rows: list[Row], timer) -> None:
    """Run the rows of PROFILED, once as a warm-up and once under the profiler."""
    remaining = dict(PROFILED)
    for row in rows:
        is_profiled = remaining.get(row.op) == row.peer or (timer.device == "cpu" and row.op in remaining)
        if not (is_profiled and row.mode == "forward"):
            continue
        del remaining[row.op]
        run = timer.run(lambda row=row: row.build(timer.device))
        timer.run(run)
        print(f"profiled {format_label(row)}", flush=True)
        with timer.profile():
            timer.run(run)


def format_label(row: Row) -> str:
    return " ".join((row.op, row.case, row.mode, row.dtype, row.peer))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=150, help="start no row after this many seconds")
    parser.add_argument("--out", type=pathlib.Path, help="CSV file; default bench/results/gpu.csv")
    parser.add_argument("--only", help="comma-separated modules of bench/gpu_rows")
    parser.add_argument("--rows", choices=("first", "others", "all"), default="all")
    parser.add_argument("--profile", action="store_true", help="run the rows of PROFILED under a profiler")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu tests the program without one")
    begin, failed = time.monotonic(), 0
    small = options.device == "cpu"
    timer = CpuTimer() if small else CudaTimer()
    rows = select_rows(make_rounds(small, options.only), options.rows)
    if options.profile:
        profile(rows, timer)
        return 0
    ceilings, references = measure_ceilings(timer, small), {}
    shared = {"device": timer.name} | describe_run()
    results = [shared | make_ceiling_row(name, rate) for name, rate in ceilings.items()]
    for row in rows:
        label = format_label(row)
        if time.monotonic() - begin > options.seconds:
            print(f"LEFT OUT {label}: the time is over")
            continue
        try:
            result = shared | measure(row, timer, ceilings, references)
            results.append(result)
            if options.out:
                write_rows(options.out, results)  # after every row, so that a stopped run loses none
            print(f"{label}: {result['median_ms']:.4f} ms, error {result['error']:.1e}, {result['note']}", flush=True)
        except Exception as error:  # a peer that is not installed or a kernel that fails; the other rows go on
            failed += 1
            message = (str(error).splitlines() or [""])[0]
            print(f"FAILED {label}: {type(error).__name__}: {message[:300]}", flush=True)
    if options.out:
        write_rows(options.out, results)
    else:
        (options.out,) = save_rows(results)
    measured = len(results) - len(ceilings)
    print(f"{measured} rows in {options.out}, {failed} failed, {time.monotonic() - begin:.0f} s")
    return 0 if measured else 1


if __name__ == "__main__":
    sys.exit(main())
