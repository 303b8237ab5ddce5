# SPDX-License-Identifier: Apache-2.0
"""Benchmark rig: ceilings of this machine in this run, a gate on the result, pedantic rounds, peak memory.

Rows keep freed memory, ours and peers' alike, unless they are measured as "returned": in a process without it.

pytest bench --benchmark-only --benchmark-json=results.json
python -m bench.report results.json
"""

import multiprocessing
import os
import pathlib
import re
import sys
import time

import numpy
import pytest
import torch

sys.path.append(str(pathlib.Path(__file__).parents[1]))  # fresh processes import bench; an installed fastds still wins

from bench.elsewhere import Elsewhere  # noqa: E402
from bench.memory import peak_growth  # noqa: E402
from fastds import memory  # noqa: E402

# Without it the rows of large outputs measure page faults. Peak memory is measured without.
KEEPS_FREED_MEMORY = memory.refusal() is None
if KEEPS_FREED_MEMORY:
    memory.keep_freed_memory()

CEILINGS = pytest.StashKey[dict]()
OTHER_ROWS = pytest.StashKey[list]()
ROUNDS_SECONDS = 0.5  # time spent on the rounds of one row


def best_seconds(run, rounds: int = 5) -> float:
    """Shortest of some calls after one warm-up: a ceiling is what the machine can do, not its median."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def matmul_rate(dtype: torch.dtype) -> float:
    """GFLOP/s, the better of a 1536^3 matrix product and a 64 to 64 channel 3x3 convolution in channels_last."""
    a, b = torch.randn(1536, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)
    x = torch.randn(1, 64, 200, 200).to(dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    product = 2 * 1536**3 / best_seconds(lambda: a @ b)
    convolution = 2 * 64 * 64 * 9 * 200 * 200 / best_seconds(lambda: torch.nn.functional.conv2d(x, w, padding=1))
    return max(product, convolution) / 1e9


def copy_rate() -> float:
    """GB/s of a 256 MiB copy, read and write."""
    source, target = torch.zeros(64 << 20), torch.zeros(64 << 20)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source)) / 1e9


@pytest.fixture(scope="session")
def ceilings(request) -> dict:
    """Measured once per run: GB/s of a copy and GFLOP/s per dtype."""
    with torch.no_grad():
        rates = {"float32": matmul_rate(torch.float32), "bfloat16": matmul_rate(torch.bfloat16)}
    request.config.stash[CEILINGS] = {"GB/s": copy_rate()} | rates
    return request.config.stash[CEILINGS]


@pytest.fixture(scope="session")
def fresh_process():
    """Gives a pool of one fresh process; the libraries are imported once, in the server the processes fork from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.preload"])
    return lambda: context.Pool(1)


def tensors(result) -> list[torch.Tensor]:
    parts = [result] if isinstance(result, torch.Tensor | numpy.ndarray) else list(result)
    return [torch.as_tensor(part).double() for part in parts]


def worst_error(result, expected) -> float:
    """Largest difference over all tensors, each relative to the largest value of its expected tensor."""
    got, expected = tensors(result), tensors(expected)
    if [t.shape for t in got] != [t.shape for t in expected]:
        pytest.fail(f"shapes {[tuple(t.shape) for t in got]}, expected {[tuple(t.shape) for t in expected]}")
    errors = [((g - e).abs().max() / e.abs().max()).item() for g, e in zip(got, expected, strict=True)]
    return float("nan") if any(e != e for e in errors) else max(errors)


@pytest.fixture
def measure(benchmark, ceilings, fresh_process):
    """measure(build, args, ...) checks, then times `build(*args)()` and records one row.

    build: module-level function that returns the callable to time (it also runs in a fresh process for the memory).
    expected: float64 results; the largest error relative to the largest value must stay below tolerance.
    op, case, mode, dtype, peer: the row's key; peer "fastds" is ours. flops, bytes: work and least traffic of one call.
    yardstick: the row does other work (a plain convolution) and is no peer.
    memory: freed memory is "kept" as in all of this process, or "returned" as it is by default: then build and calls
    are in a process of their own. patience: seconds for building and the first call there, else the row has no time.
    least_rounds: timed calls where one takes long. median: gives the seconds where rows are measured together
    (bench/in_turn.py), else None.
    """

    def run_case(build, args, *, memory="kept", yardstick=False, patience=None, median=None, **row):
        row |= {"memory": memory, "yardstick": yardstick}
        if memory == "kept":
            run = build(*args)
            return measure_run(run, run, median and (lambda rounds: median()), build, args, **row)
        with fresh_process() as pool:
            run = Elsewhere(pool, build, args, patience)
            try:
                measure_run(run, run.without_result, run.median_seconds, build, args, **row)
            except TimeoutError:
                benchmark.pedantic(lambda: None)  # pytest-benchmark keeps no row without a time
                key = {name: row[name] for name in ("op", "case", "mode", "dtype", "peer", "yardstick", "memory")}
                benchmark.extra_info.update(key, median_ms=None, note=f"no result within {patience:.0f} s")

    def measure_run(
        run, timed, median_seconds, build, args, *, flops, bytes, expected, tolerance, dtype, least_rounds=3, **key
    ):
        start = time.perf_counter()
        result = run()
        once = time.perf_counter() - start
        error = worst_error(result, expected)
        if not error <= tolerance:
            pytest.fail(f"{key} {dtype}: error {error:.2e} exceeds {tolerance:.0e}, not timed")
        if once < 2:  # long runs need no second estimate
            start = time.perf_counter()
            timed()
            once = time.perf_counter() - start
        rounds = min(30, max(least_rounds, int(ROUNDS_SECONDS / once)))
        benchmark.pedantic(timed, rounds=rounds, warmup_rounds=1 if once < 1 else 0, iterations=1)
        seconds = median_seconds(rounds) if median_seconds else benchmark.stats.stats.median
        bound = max(flops / ceilings[dtype], bytes / ceilings["GB/s"]) / 1e9
        with fresh_process() as pool:
            peak = pool.apply(peak_growth, (build, args))
        benchmark.extra_info.update(
            **key, dtype=dtype, median_ms=seconds * 1e3, gflops=flops / seconds / 1e9,
            gbytes=bytes / seconds / 1e9, percent_of_ceiling=100 * bound / seconds, error=error, peak_mib=peak / 2**20,
        )  # fmt: skip

    return run_case


@pytest.fixture
def other_rows(request) -> list:
    """For benchmarks measured by other processes: they join the JSON of this run in place of the test that asked."""
    return request.config.stash.setdefault(OTHER_ROWS, [])


def cpu_name() -> str:
    """With family and model, where there are some: virtual machines of several generations share a name."""
    with open("/proc/cpuinfo") as file:
        found = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+)", file.read(), re.MULTILINE))
    numbers = [f"{word} {found[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if key in found]
    return " ".join([found.get("model name", "CPU"), *numbers])


def pytest_benchmark_update_json(config, benchmarks, output_json) -> None:
    output_json["device"] = f"{cpu_name()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    output_json["torch"] = torch.__version__
    output_json["freed_memory"] = "kept" if KEEPS_FREED_MEMORY else "returned"
    output_json["ceilings"] = config.stash.get(CEILINGS, {})
    own = [row for row in output_json["benchmarks"] if row["extra_info"]]
    output_json["benchmarks"] = own + config.stash.get(OTHER_ROWS, [])
