# SPDX-License-Identifier: Apache-2.0
"""Tests of parallel loops on a machine that other processes use: choice of the number of threads, equal bits."""

import pytest
import torch

from fastds import ops
from fastds.ops.core import plans
from fastds.ops.core.native import get_threads
from fastds.ops.core.teams import adapt_threads

US, MS = 1_000, 1_000_000  # ns
QUIET_SHORT, QUIET_LONG = (20 * US, 35 * US), (2 * MS, 4 * MS)  # durations on two threads, on one thread
STALL, LONG_STALL = (8 * MS, 35 * US), (24 * MS, 4 * MS)


def shares(native, loops):
    """Return the part of the time in which loops run on two threads, and the time relative to one thread."""
    threads = native.simulate_teams(loops)
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
    threads = native.simulate_teams([QUIET_LONG] * 100 + [LONG_STALL] + [QUIET_LONG] * 1000)
    assert threads[:101] == [2] * 101 and threads[-900:] == [2] * 900
    assert 0 < 4 * threads.count(1) <= 120  # ms


def test_loops_use_all_threads_again_after_a_busy_time(native):
    threads = native.simulate_teams([LONG_STALL] * 2000 + [QUIET_LONG] * 4000)
    assert threads[1000:2000].count(2) < 50 and threads[-2000:] == [2] * 2000


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


def test_team_mode_is_checked(native):
    with pytest.raises(ValueError, match="team mode must be auto, all or one, got two"):
        native.set_team_mode("two")
