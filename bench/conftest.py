# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the benchmarks: check of the result, timing, peak memory, and peak rates of the machine in the same run.

All processes keep freed memory, those of peers too, except for rows of freed memory "returned".

pytest bench --benchmark-only --benchmark-json=results.json
python -m bench.report results.json
"""

import multiprocessing
import pathlib
import sys
import time

import numpy
import pytest
import torch

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # for `import bench` in fresh processes

from bench.machine import describe_cpu_run, measure_copy_rate, measure_matmul_rate
from bench.memory import measure_peak_growth
from bench.subprocess_runner import SubprocessRunner
from fastds import memory
from fastds.ops.core import native

# Otherwise rows with large outputs measure page faults. Peak memory is measured in processes that return freed memory.
KEEPS_FREED_MEMORY = memory.get_unsupported_reason() is None
if KEEPS_FREED_MEMORY:
    memory.set_malloc_retention()

CEILINGS = pytest.StashKey[dict]()
OTHER_ROWS = pytest.StashKey[list]()
ROUNDS_SECONDS = 0.5  # time spent on the rounds of one row


@pytest.fixture(scope="session")
def ceilings(request) -> dict:
    """Return the peak rates, measured once per run: GB/s of a copy under "GB/s", and GFLOP/s by dtype."""
    with torch.no_grad():
        rates = {"float32": measure_matmul_rate(torch.float32), "bfloat16": measure_matmul_rate(torch.bfloat16)}
    request.config.stash[CEILINGS] = {"GB/s": measure_copy_rate()} | rates
    return request.config.stash[CEILINGS]


@pytest.fixture(scope="session")
def fresh_process():
    """Return a function that makes a pool of one process, forked from a server that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.forkserver_preload"])
    return lambda: context.Pool(1)


def list_tensors(result) -> list[torch.Tensor]:
    """Return the tensors or arrays of a result in float64."""
    parts = [result] if isinstance(result, torch.Tensor | numpy.ndarray) else list(result)
    return [torch.as_tensor(part).double() for part in parts]


def compute_error(result, expected) -> float:
    """Return the largest difference over all tensors, each relative to the largest value of the expected tensor.

    Returns:
        The error, NaN if a value is NaN. Other shapes than expected fail the test.
    """
    actual, expected = list_tensors(result), list_tensors(expected)
    if [t.shape for t in actual] != [t.shape for t in expected]:
        pytest.fail(f"shapes {[tuple(t.shape) for t in actual]}, expected {[tuple(t.shape) for t in expected]}")
    errors = [((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True)]
    return float("nan") if any(e != e for e in errors) else max(errors)


@pytest.fixture
def measure(benchmark, ceilings, fresh_process):
    """Return a function that checks and times one row. With --benchmark-disable, rows are checked and not timed.

    A call of this function, measure(build, args, ...), times build(*args)(). Its arguments are:

        build: module-level function that returns the callable to time. A fresh process calls it too, for the memory.
        args: arguments of `build`.
        memory: "kept" if freed memory stays in the process, as in this one, or "returned" if it goes back to the
            system, as by default. Rows of "returned" are built and called in a separate process.
        yardstick: True if the row does other work, for example a plain convolution, and is not a peer.
        timeout: seconds for building and the first call of a row of "returned". A slower row is recorded without a
            time.
        get_median: function that returns the median seconds of a row that bench.interleaved_timing has measured, or
            None to time the row alone.
        op, case, mode, dtype, peer: key of the row; rows of fastds have a peer that begins with "fastds".
        flops: floating-point operations of one call.
        bytes: least memory traffic of one call in bytes.
        expected: float64 result, a tensor or several.
        tolerance: largest error allowed, relative to the largest value.
        least_rounds: least number of timed calls, for rows of slow calls.
    """

    def run_case(build, args, *, memory="kept", yardstick=False, timeout=None, get_median=None, **row):
        row |= {"memory": memory if KEEPS_FREED_MEMORY else "returned", "yardstick": yardstick}
        if memory == "kept":
            run = build(*args)
            return measure_run(run, run, get_median and (lambda rounds: get_median()), build, args, **row)
        with fresh_process() as pool:
            run = SubprocessRunner(pool, build, args, timeout)
            try:
                measure_run(run, run.run_without_result, run.get_median_seconds, build, args, **row)
            except TimeoutError:
                benchmark.pedantic(lambda: None)  # pytest-benchmark drops rows without a time
                key = {name: row[name] for name in ("op", "case", "mode", "dtype", "peer", "yardstick", "memory")}
                key["isa"] = native.get_module().isa()
                benchmark.extra_info.update(key, median_ms=None, note=f"no result within {timeout:.0f} s")

    def measure_run(
        run, timed, get_median_seconds, build, args, *, flops, bytes, expected, tolerance, dtype, least_rounds=3, **key
    ):
        start = time.perf_counter()
        result = run()
        once = time.perf_counter() - start
        error = compute_error(result, expected)
        if not error <= tolerance:
            pytest.fail(f"{key} {dtype}: error {error:.2e} exceeds {tolerance:.0e}, not timed")
        if benchmark.disabled:
            return
        if once < 2:  # a second call, without first-call costs, gives a better estimate
            start = time.perf_counter()
            timed()
            once = time.perf_counter() - start
        rounds = min(30, max(least_rounds, int(ROUNDS_SECONDS / once)))
        benchmark.pedantic(timed, rounds=rounds, warmup_rounds=1 if once < 1 else 0, iterations=1)
        seconds = get_median_seconds(rounds) if get_median_seconds else benchmark.stats.stats.median
        bound = max(flops / ceilings[dtype], bytes / ceilings["GB/s"]) / 1e9
        with fresh_process() as pool:
            peak = pool.apply(measure_peak_growth, (build, args))
        benchmark.extra_info.update(
            **key, dtype=dtype, isa=native.get_module().isa(), median_ms=seconds * 1e3, gflops=flops / seconds / 1e9,
            gbytes=bytes / seconds / 1e9, percent_of_ceiling=100 * bound / seconds, error=error, peak_mib=peak / 2**20,
        )  # fmt: skip

    return run_case


@pytest.fixture
def other_rows(request) -> list:
    """Return the list of benchmarks that another process has measured.

    They replace the calling test in the JSON of this run.
    """
    return request.config.stash.setdefault(OTHER_ROWS, [])


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    output_json["run"] = describe_cpu_run()
    output_json["ceilings"] = config.stash.get(CEILINGS, {})
    measured = [row for row in output_json["benchmarks"] if row["extra_info"]]
    output_json["benchmarks"] = measured + config.stash.get(OTHER_ROWS, [])
