# SPDX-License-Identifier: Apache-2.0
"""Benchmarks on a GPU: `python -m bench.gpu_bench [--seconds 150] [--out results.csv] [--rows first|others|all]`.

Each row is captured as a CUDA graph and replayed with a cold L2 cache; CUDA events measure the time. The result that is
compared with the float64 reference is that of a replay, whose outputs were filled with NaN before: a kernel that the
graph does not contain, because it was started on another stream, fails the row. Rows that cannot or should not be
captured are timed without a graph, which the output states; torchvision starts its kernels of deform_conv2d on the
default stream of CUDA, and is timed there. The peak rates of the GPU are measured in the same run. If a row fails, or
would start after --seconds, the output has one line about it and the other rows run. The file of results is written
after every row.

--device cpu runs the same code on tiny rows, as a test of the program without a GPU. --device none runs the rows of a
GPU on meta tensors, with kernels that do nothing: all code of Python runs, and shapes and dtypes of the results are
compared with those of the reference. --profile times nothing. It runs the rows of PROFILED between cudaProfilerStart
and cudaProfilerStop, for `ncu --profile-from-start off --clock-control none`.
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
from bench.gpu_rows import MissingPeerError, Row, get_dtype_name
from bench.machine import describe_run
from bench.report import make_ceiling_row
from bench.result_files import save_rows, write_rows

ROUNDS = 40
# Modules of gpu_rows in the order of the part "first", which has their rows with first=True.
FIRST = (
    "deform_conv2d",
    "conv3x3",
    "conv_lstm_cell",
    "conv_gru_cell",
    "conv_st_lstm_gates",
    "gates",
    "fczsm",
    "db_rnn",
)
PROFILED = {  # (op, mode): peers of the rows to profile, in this order
    ("deform_conv2d", "forward"): ("fastds two passes", "fastds fused", "fastds cuda", "fastds triton"),
    ("conv3x3", "forward"): ("fastds window", "fastds implicit_gemm"),
    ("conv_lstm_cell", "forward"): ("fastds window", "fastds triton"),
}
AHEAD_CYCLES = 40_000_000  # of a kernel that waits while the CPU enqueues the calls, about 20 ms
CEILING_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FLUSH_BYTES = 256 << 20  # several times the L2 cache; the time of writing it also lets the CPU enqueue the next call


class CudaTimer:
    """Runs and times callables on the current CUDA device."""

    def __init__(self):
        self.device = "cuda"
        properties = torch.cuda.get_device_properties(0)
        self.name = f"{properties.name}, CUDA {torch.version.cuda}"
        self.stream = torch.cuda.Stream()
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def get_stream(self, timing):
        return torch.cuda.default_stream() if timing == "default stream" else self.stream

    def run(self, function, timing="graph"):
        with torch.cuda.stream(self.get_stream(timing)):
            result = function()
        torch.cuda.synchronize()
        return result

    def prepare(self, run, timing):
        """Prepare a callable for timing.

        Args:
            run: the callable.
            timing: see Row.

        Returns:
            The callable to time, which returns the same tensors, and the note of the row.
        """
        if timing == "graph":
            return self.capture(run)
        if timing == "joined streams":
            return self.join_streams(run), "eager, default stream joined by events"
        return run, "eager, default stream" if timing == "default stream" else "eager"

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

        def replay():
            graph.replay()
            return result

        return replay, "graph"

    def join_streams(self, run):
        """Return a callable that runs on the default stream, after and before the current stream by events."""

        def joined():
            current, default = torch.cuda.current_stream(), torch.cuda.default_stream()
            default.wait_stream(current)
            with torch.cuda.stream(default):
                result = run()
            current.wait_stream(default)
            return result

        return joined

    def measure_ms(self, run, timing="graph") -> list[float]:
        """Return the milliseconds of some calls, each with a cold L2 cache."""
        self.run(run, timing)
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(ROUNDS)]
        with torch.cuda.stream(self.get_stream(timing)):
            if "stream" in timing:  # these rows are compared with graphs, so that the CPU must not limit them
                torch.cuda._sleep(AHEAD_CYCLES)
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

    def measure_peak_mib(self, run, timing) -> float:
        """Return the growth of the allocated memory, in MiB, to its peak during one eager call."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run(run, timing)
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class CpuTimer:
    """The methods of CudaTimer on a CPU, for a test of the program without a GPU."""

    device, name = "cpu", "dry run on a CPU"

    def run(self, function, timing="graph"):
        return function()

    def prepare(self, run, timing):
        return run, "clock"

    def measure_ms(self, run, timing="graph"):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        return times

    def profile(self):
        return contextlib.nullcontext()

    def measure_peak_mib(self, run, timing):
        return 0.0


class NoTimer(CpuTimer):
    """The methods of CudaTimer for rows of a GPU whose kernels do nothing."""

    device, name = "meta", "dry run without kernels"

    def prepare(self, run, timing):
        return run, timing

    def measure_ms(self, run, timing="graph"):
        return [1.0]


def measure_ceilings(timer, small: bool) -> dict:
    """Measure peak rates on random data.

    Args:
        timer: CudaTimer or CpuTimer.
        small: use tiny tensors.

    Returns:
        GB/s of a copy under "GB/s", counting reads and writes, and GFLOP/s of a matrix product by dtype.
    """
    count, size = (1 << 16, 64) if small else (1 << 29, 8192)
    if timer.device == "meta":
        return dict.fromkeys(("GB/s", *map(get_dtype_name, CEILING_DTYPES)), 1.0)
    source = torch.randn(count, device=timer.device)
    target = torch.empty_like(source)
    copy = min(timer.measure_ms(lambda: target.copy_(source)))
    rates = {"GB/s": 2 * source.nbytes / copy / 1e6}
    for dtype in CEILING_DTYPES:
        a, b = (torch.randn(size, size, device=timer.device).to(dtype) for _ in range(2))
        rates[get_dtype_name(dtype)] = 2 * size**3 / min(timer.measure_ms(functools.partial(torch.mm, a, b))) / 1e6
    return rates


def to_tensors(result) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def compute_error(result, expected) -> float:
    """Return the largest difference over all tensors, each relative to the largest value of the expected tensor.

    Returns:
        The error, NaN if a value is NaN. 0 for meta tensors, which have no values.

    Raises:
        AssertionError: if a shape differs.
    """
    errors = []
    for a, e in zip(to_tensors(result), to_tensors(expected), strict=True):
        assert a.shape == e.shape, f"a result has shape {tuple(a.shape)}, expected {tuple(e.shape)}"
        errors.append(0.0 if a.is_meta else ((a.double() - e.double()).abs().max() / e.abs().max()).item())
    return float("nan") if any(e != e for e in errors) else max(errors)


@torch.no_grad()
def poison(tensors, held) -> None:
    """Fill tensors with NaN, except those in the memory of `held`, which are inputs and not results.

    Args:
        tensors: results of a call.
        held: results of another call. Results of two calls that both exist share memory only if they are inputs, as the
            gradient of a sum is the gradient that was given.
    """
    addresses = {t.data_ptr() for t in held}
    for tensor in tensors:
        if tensor.data_ptr() not in addresses:
            tensor.fill_(float("nan"))


def run_poisoned(row: Row, timer, run, replay):
    """Return the results of a call to time after the outputs of the call before were filled with NaN.

    Args:
        row: the row.
        timer: CudaTimer, CpuTimer or NoTimer.
        run: the callable of the row.
        replay: the callable to time, see CudaTimer.prepare().
    """
    if timer.device == "meta":
        return timer.run(replay, row.timing)
    held = to_tensors(timer.run(run, row.timing))
    poison(to_tensors(timer.run(replay, row.timing)), held)
    if row.buffers is not None:
        poison(row.buffers(run), ())
    del held  # an eager call then gets the memory that was filled
    return timer.run(replay, row.timing)


def measure(row: Row, timer, ceilings: dict, references: dict) -> dict:
    """Check and time a row.

    Args:
        row: the row.
        timer: CudaTimer, CpuTimer or NoTimer.
        ceilings: peak rates of measure_ceilings().
        references: expected results by row.reference_key; missing ones are computed and added.

    Returns:
        The row's columns of bench/result_files.py; note is "graph", "eager ..." or "clock".

    Raises:
        AssertionError: if the error exceeds row.tolerance.
    """
    if row.reference_key not in references:
        references[row.reference_key] = row.expected(timer.device)
    run = timer.run(lambda: row.build(timer.device), row.timing)
    peak = timer.measure_peak_mib(run, row.timing)
    replay, note = timer.prepare(run, row.timing)
    error = compute_error(run_poisoned(row, timer, run, replay), references[row.reference_key])
    if not error <= row.tolerance:
        raise AssertionError(f"error {error:.2e} of the call to time exceeds {row.tolerance:.0e}, not timed")
    median = statistics.median(timer.measure_ms(replay, row.timing))
    bound = max(row.flops / ceilings[row.dtype], row.bytes / ceilings["GB/s"]) / 1e6
    return {
        "op": row.op, "case": row.case, "mode": row.mode, "dtype": row.dtype, "peer": row.peer,
        "memory": "kept", "yardstick": row.yardstick, "median_ms": median, "gflops": row.flops / median / 1e6,
        "gbytes": row.bytes / median / 1e6, "percent_of_ceiling": 100 * bound / median, "error": error,
        "peak_mib": peak, "note": note,
    }  # fmt: skip


def make_rows(small: bool, only: str | None, part: str) -> list[Row]:
    """Return the rows of a part in the order in which they run.

    The part "first" has the rows that FIRST and Row.first select. In the others, the first rows of all modules precede
    the second rows of all modules and so on, so that every op has its first rows if the time is over early.

    Args:
        small: tiny rows for a CPU.
        only: comma-separated modules of bench/gpu_rows, or None for all.
        part: "first", "others" or "all".
    """
    modules = sorted(m.name for m in pkgutil.iter_modules(gpu_rows.__path__))
    chosen = [m for m in modules if only is None or m in only.split(",")]
    rows = {m: importlib.import_module(f"bench.gpu_rows.{m}").make_rows(small) for m in chosen}
    first = [row for m in FIRST if m in rows for row in rows[m] if row.first]
    rounds = itertools.zip_longest(
        *([row for row in found if not (row.first and m in FIRST)] for m, found in rows.items())
    )
    others = [row for number in rounds for row in number if row]
    return {"first": first, "others": others, "all": first + others}[part]


def profile(rows: list[Row], timer) -> None:
    """Run the rows of PROFILED, once as a warm-up and once under the profiler."""
    for (op, mode), peers in PROFILED.items():
        found = [row for row in rows if (row.op, row.mode) == (op, mode)]
        for peer in peers[:1] if timer.device == "cpu" else peers:
            row = next((row for row in found if row.peer == peer or timer.device == "cpu"), None)
            if row is None:
                print(f"FAILED profile: there is no row {op} {mode} {peer}", flush=True)
                continue
            run = timer.run(lambda row=row: row.build(timer.device))
            timer.run(run)
            print(f"profiled {format_label(row)}", flush=True)
            with timer.profile():
                timer.run(run)


def format_label(row: Row) -> str:
    return " ".join((row.op, row.case, row.mode, row.dtype, row.peer))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu", "none"), default="cuda")
    parser.add_argument("--seconds", type=float, default=150, help="start no row after this many seconds")
    parser.add_argument("--out", type=pathlib.Path, help="CSV file; default bench/results/gpu.csv")
    parser.add_argument("--only", help="comma-separated modules of bench/gpu_rows")
    parser.add_argument("--rows", choices=("first", "others", "all"), default="all")
    parser.add_argument("--profile", action="store_true", help="run the rows of PROFILED under a profiler")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu tests the program without one")
    if options.device != "none":
        return run_benchmarks(options)
    from bench.gpu_driver import replace_driver  # imports Triton

    with replace_driver():
        return run_benchmarks(options)


def run_benchmarks(options) -> int:
    """Run the rows that the options of the command select, and return the exit status."""
    begin, failed = time.monotonic(), 0
    small = options.device == "cpu"
    timer = {"cpu": CpuTimer, "none": NoTimer, "cuda": CudaTimer}[options.device]()
    rows = make_rows(small, options.only, options.rows)
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
        except MissingPeerError as error:
            print(f"LEFT OUT {label}: {error}", flush=True)
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
    return 0 if measured and not (failed and options.device == "none") else 1


if __name__ == "__main__":
    sys.exit(main())
