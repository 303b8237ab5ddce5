# SPDX-License-Identifier: Apache-2.0
"""Tests of parallel loops on a machine that other processes use: choice of the number of threads, equal bits."""

import ctypes
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fastds import ops
from fastds.ops.core import plans
from fastds.ops.core.native import get_threads
from fastds.ops.core.teams import adapt_threads

US, MS = 1_000, 1_000_000  # ns
QUIET_SHORT, QUIET_LONG = (20 * US, 35 * US), (2 * MS, 4 * MS)  # durations on two threads, on one thread
STALL, LONG_STALL = (8 * MS, 35 * US), (24 * MS, 4 * MS)


def simulate(native, loops, idle=False):
    """Return the number of threads of each loop on a machine on which a core is idle or not."""
    return [own for own, _ in native.simulate_teams([(*loop, idle) for loop in loops])]


def shares(native, loops, idle=False):
    """Return the part of the time in which loops run on two threads, and the time relative to one thread."""
    threads = simulate(native, loops, idle)
    times = [loop[0] if n == 2 else loop[1] for loop, n in zip(loops, threads, strict=True)]
    parallel = sum(time for time, n in zip(times, threads, strict=True) if n == 2)
    return parallel / sum(times), sum(times) / sum(loop[1] for loop in loops)


@pytest.mark.parametrize("loop", [QUIET_SHORT, QUIET_LONG], ids=["short", "long"])
def test_quiet_machine_uses_all_threads(native, loop):
    assert shares(native, [loop] * 5000) == (1, pytest.approx(loop[0] / loop[1]))


@pytest.mark.parametrize(("quiet", "stall"), [(QUIET_SHORT, STALL), (QUIET_LONG, LONG_STALL)], ids=["short", "long"])
def test_stalled_loops_run_on_one_thread(native, quiet, stall):
    """Every other loop waits for a thread: the loops take at most 5 % longer than on one thread."""
    count = 20 * 1000 * MS // (2 * quiet[1])
    parallel, relative = shares(native, [quiet, stall] * count)
    assert parallel < 0.05 and relative < 1.05


def test_one_stall_costs_a_tenth_of_a_second(native):
    threads = simulate(native, [QUIET_LONG] * 100 + [LONG_STALL] + [QUIET_LONG] * 1000)
    assert threads[:101] == [2] * 101 and threads[-900:] == [2] * 900
    assert 0 < 4 * threads.count(1) <= 120  # ms


def test_loops_use_all_threads_again_after_a_busy_time(native):
    threads = simulate(native, [LONG_STALL] * 2000 + [QUIET_LONG] * 4000)
    assert threads[1000:2000].count(2) < 50 and threads[-2000:] == [2] * 2000


def test_loops_use_all_threads_when_a_core_becomes_idle(native):
    """A process that is busy in half of each 10 ms: the loops of the other half run on two threads."""
    busy, idle = [(8 * MS, 2 * MS, False)], [(MS, 2 * MS, True)] * 5
    threads = [own for own, _ in native.simulate_teams((busy * 2 + idle) * 1000)]
    assert sum(n == 2 for n, k in zip(threads, range(7 * 1000), strict=True) if k % 7 > 1) >= 4 * 1000


def test_torch_uses_one_thread_while_threads_stall(native):
    """Loops here are faster on two threads in spite of stalls, and torch, which waits for each thread, uses one thread.

    After the last stall torch uses all threads again.
    """
    fast, stall, draws = (100 * US, 190 * US, False), (3 * MS, 190 * US, False), random.Random(0)
    busy = [stall if draws.random() < 1 / 150 else fast for _ in range(50000)]
    quiet = [fast] * 30000
    threads = native.simulate_teams(busy + quiet)
    assert sum(own == 2 for own, _ in threads[: len(busy)]) > 0.6 * len(busy)
    assert sum(of_torch == 2 for _, of_torch in threads[: len(busy)]) < 0.2 * len(busy)
    assert {of_torch for _, of_torch in threads[-10000:]} == {2}
    assert {of_torch for _, of_torch in native.simulate_teams(quiet)} == {2}


def test_slow_threads_on_an_idle_machine_run_on_one_thread(native):
    """Under a quota, threads wait although a core of the machine is idle."""
    parallel, relative = shares(native, [QUIET_SHORT, STALL] * 300_000, idle=True)
    assert parallel < 0.05 and relative < 1.05


def test_sleeping_threads_are_not_woken_for_short_loops(native):
    """Waking a thread takes longer than the loop."""
    parallel, relative = shares(native, [(70 * US, 35 * US)] * 100_000)
    assert parallel < 0.05 and relative < 1.05


def test_long_loops_after_short_ones_use_all_threads(native):
    """The duration of a long loop is not compared with that of the short loop before it on one thread."""
    assert shares(native, [QUIET_SHORT, QUIET_SHORT, QUIET_LONG] * 2000)[0] == 1


def calls():
    torch.manual_seed(5)
    x, image = torch.rand(2, 24, 33, 29), torch.rand(1, 3, 21, 40).contiguous(memory_format=torch.channels_last)
    offset, mask = torch.randn(2, 18, 33, 29), torch.rand(2, 9, 33, 29)
    weight, few, point = torch.randn(16, 24, 3, 3), torch.randn(5, 3, 3, 3), torch.randn(40, 24, 1, 1)
    state = torch.rand(2, 24, 33, 29), torch.rand(2, 24, 33, 29)
    gates = torch.randn(96, 48, 3, 3)
    return {
        "conv3x3": (ops.conv3x3, (x, weight)),
        "conv3x3 of few channels": (ops.conv3x3, (image, few)),
        "conv1x1": (ops.conv1x1, (x, point)),
        "conv2d": (ops.conv2d, (x, torch.randn(8, 24, 5, 5))),
        "deform_conv2d": (
            lambda x, o, w, m: ops.deform_conv2d(x, o, w, mask=m, padding=1),
            (x, offset, weight, mask),
        ),
        "lstm_gates": (ops.lstm_gates, (torch.randn(2, 96, 33, 29), x)),
        "conv_lstm_cell": (lambda x, h, c, w: ops.conv_lstm_cell(x, h, c, w, None), (x, *state, gates)),
        "pixel_shuffle": (lambda x: ops.pixel_shuffle(x, 2), (x,)),
        "pixel_unshuffle": (lambda x: ops.pixel_unshuffle(x, 2), (torch.rand(2, 6, 34, 28),)),
    }


def outputs(function, arguments):
    """Return the results of a call and all gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    results = function(*leaves)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    cotangents = [torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype) for y in results]
    return [*results, *torch.autograd.grad(results, leaves, cotangents, allow_unused=True)]


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_bits_do_not_depend_on_the_team(native, name, dtype):
    """Loops that were planned for three threads give the same bits on one thread."""
    function, arguments = calls()[name]
    arguments = [t.to(dtype) for t in arguments]
    before, found = torch.get_num_threads(), {}
    try:
        torch.set_num_threads(3)
        with plans.suspended():
            for mode in ("all", "one", "auto"):
                native.set_team_mode(mode)
                found[mode] = outputs(function, arguments)
    finally:
        native.set_team_mode("auto")
        torch.set_num_threads(before)
    for mode in ("one", "auto"):
        for a, b in zip(found[mode], found["all"], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


def test_bits_do_not_depend_on_late_threads(native):
    """More threads than cores: some start late, and others compute their shares, in two Python threads at once."""
    x, g = torch.rand(2, 16, 40, 36), torch.rand(2, 96, 33, 29)
    before = torch.get_num_threads()

    def compute():
        native.set_team_mode("all")
        return [(ops.pixel_shuffle(x, 4), *ops.lstm_gates(g, g[:, :24])) for _ in range(50)]

    try:
        torch.set_num_threads(1)
        expected = ops.pixel_shuffle(x, 4), *ops.lstm_gates(g, g[:, :24])
        torch.set_num_threads(9)
        with ThreadPoolExecutor(2) as pool:
            found = [result for future in [pool.submit(compute) for _ in range(2)] for result in future.result()]
    finally:
        native.set_team_mode("auto")
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in found for a, b in zip(result, expected, strict=True))


def test_threads_keep_their_cores(native):
    """A thread that leaves the core of the first thread may use all cores afterwards."""
    x, allowed, before = torch.rand(4, 16, 128, 128), os.sched_getaffinity(0), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for _ in range(20):
            ops.pixel_shuffle(x, 4)
            time.sleep(0.005)
    finally:
        torch.set_num_threads(before)
    assert all(os.sched_getaffinity(int(task)) == allowed for task in os.listdir("/proc/self/task"))


def test_scope_restores_the_number_of_threads(native):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with adapt_threads():
            torch.set_num_threads(1)  # as the scope does while several threads are slower
            assert get_threads() == 2
            with adapt_threads():
                assert get_threads() == 2
        torch.set_num_threads(2)
        assert get_threads() == 2
        with adapt_threads(False):
            torch.set_num_threads(1)
            assert get_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_scope_sets_all_libraries_of_torch(native):
    """MKL has its own number of threads after a call of torch.set_num_threads."""
    before = torch.get_num_threads()
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    count_mkl_threads = getattr(library, "MKL_Get_Max_Threads", torch.get_num_threads)
    try:
        torch.set_num_threads(2)
        native.set_team_mode("one")
        with adapt_threads():
            assert (torch.get_num_threads(), count_mkl_threads()) == (1, 1)
        assert (torch.get_num_threads(), count_mkl_threads()) == (2, 2)
        native.set_team_mode("all")
        with adapt_threads():
            assert (torch.get_num_threads(), count_mkl_threads()) == (2, 2)
    finally:
        native.set_team_mode("auto")
        torch.set_num_threads(before)


def test_team_mode_is_checked(native):
    with pytest.raises(ValueError, match="team mode must be auto, all or one, got two"):
        native.set_team_mode("two")
