# SPDX-License-Identifier: Apache-2.0
"""Plans of calls: the same bits as the Python code, and none where something else decides or observes."""

import gc
import threading

import pytest
import torch

import fastds
from fastds import ops
from fastds.ops.core import native, plans
from fastds.ops.impl.conv3x3.algorithm import assume_height

pytestmark = pytest.mark.skipif(plans._module is None, reason="plans are switched off, or torch has no DLPack table")
CHANNELS = 8


@pytest.fixture(autouse=True)
def empty_table():
    """Start each test without plans, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plans.clear()
    yield
    plans.clear()
    torch.set_num_threads(threads)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_planned(call, *tensors):
    """Return the result of a call, and whether it ran by a plan."""
    before = plans.count_runs()
    return call(*tensors), plans.count_runs() > before


def check(call, *tensors, planned: bool = True):
    """Compare a call with the Python code to the bit."""
    with plans.suspended():
        expected = call(*tensors)
    found, by_plan = run_planned(call, *tensors)
    assert by_plan == planned
    for a, b in zip([found] if isinstance(found, torch.Tensor) else found,
                    [expected] if isinstance(expected, torch.Tensor) else expected, strict=True):  # fmt: skip
        assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)


def convolve(x, weight):
    return ops.conv3x3(x, weight, act="relu", algorithm="winograd")


def record(call, *tensors):
    """Make the two calls after which a plan exists."""
    for _ in range(2):
        call(*tensors)
    assert run_planned(call, *tensors)[1]


def test_third_call_of_a_key_runs_a_plan():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    assert [run_planned(convolve, x, weight)[1] for _ in range(4)] == [False, False, True, True]
    for seed in range(3):
        check(convolve, draw(1, CHANNELS, 9, 7, seed=seed), weight)


def test_new_outputs_each_time():
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    first, second = ops.lstm_gates(x, c), ops.lstm_gates(x + 1, c)
    assert first[0].data_ptr() != second[0].data_ptr() and not torch.equal(first[0], second[0])


@pytest.mark.parametrize("change", ["in place", "data", "new address", "storage"])
def test_changed_weights_are_packed_again(change):
    x, weight = draw(1, CHANNELS, 9, 7), torch.nn.Parameter(draw(CHANNELS, CHANNELS, 3, 3), requires_grad=False)
    record(convolve, x, weight)
    for seed in (5, 6):
        new = draw(CHANNELS, CHANNELS, 3, 3, seed=seed)
        if change == "in place":
            weight.copy_(new)
        elif change == "data":
            weight.data = new
        elif change == "storage":
            weight.untyped_storage().copy_(new.untyped_storage())
        else:
            weight = new
        check(convolve, x, weight)


@pytest.mark.parametrize(
    "block", [lambda: fastds.backend("reference"), lambda: fastds.convolution("planes"), lambda: assume_height(999),
              lambda: torch.autocast("cpu", torch.bfloat16), lambda: native.record_calls([]),
              lambda: torch.profiler.profile()],
    ids=["backend", "convolution", "assume_height", "autocast", "record_calls", "profiler"],
)  # fmt: skip
def test_no_plan_inside(block):
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    record(ops.conv3x3, x, weight) if native.get_module().isa() != "baseline" else pytest.skip("no plan")
    with block():
        assert not run_planned(ops.conv3x3, x, weight)[1]
    assert run_planned(ops.conv3x3, x, weight)[1]


def test_no_plan_for_observed_tensors():
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    before = plans.count_runs()
    torch.func.vmap(ops.lstm_gates)(x[None], c[None])
    torch.func.jvp(ops.lstm_gates, (x, c), (x, c))
    ops.lstm_gates(x.to("meta"), c.to("meta"))
    torch.jit.trace(ops.lstm_gates, (x, c), check_trace=False)
    with torch.autograd.forward_ad.dual_level():
        ops.lstm_gates(x, c)
    assert plans.count_runs() == before


def test_gradients_are_those_without_plans():
    x, c = draw(1, 4 * CHANNELS, 5, 6).requires_grad_(), draw(1, CHANNELS, 5, 6).requires_grad_()

    def step():
        h, new = ops.lstm_gates(x, c)
        return torch.autograd.grad((h * h).sum() + new.sum(), (x, c))

    with plans.suspended():
        expected = step()
    before = plans.count_runs()
    for _ in range(4):
        assert all(map(torch.equal, step(), expected))
    assert plans.count_runs() > before


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x[:, :, ::2],
        lambda x: x.to(torch.bfloat16),
        lambda x: x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x),
        lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
        lambda x: x[:1, :, :1, :1].expand(x.shape),
        lambda x: x.contiguous(memory_format=torch.channels_last),
    ],
    ids=["strides", "dtype", "alignment", "negative", "expanded", "channels_last"],
)
def test_other_tensors_are_other_keys(other):
    x = draw(1, 4 * CHANNELS, 6, 6)
    record(lambda t: ops.pixel_shuffle(t, 2), x)
    changed = other(x)
    with plans.suspended():
        expected = ops.pixel_shuffle(changed, 2)
    for _ in range(4):
        assert torch.equal(ops.pixel_shuffle(changed, 2), expected)


def test_one_tensor_in_two_places_and_then_two():
    x, other, value = draw(1, CHANNELS, 5, 5), draw(1, CHANNELS, 5, 5, seed=1), draw(1, CHANNELS, 5, 5, seed=2)
    for _ in range(4):
        check(ops.gru_reset, x, x, value, planned=False)
    for _ in range(2):
        ops.gru_reset(x, other, value)
    check(ops.gru_reset, x, other, value)
    check(ops.gru_reset, other, x, x)


def test_number_of_threads_and_instruction_set_belong_to_the_key():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    record(convolve, x, weight)
    torch.set_num_threads(2)
    assert not run_planned(convolve, x, weight)[1]
    torch.set_num_threads(1)
    try:
        native.get_module().set_isa("avx2")
    except ValueError:
        return
    try:
        check(convolve, x, weight, planned=False)
    finally:
        native.get_module().set_isa("auto")


def test_threads_have_their_own_plans():
    x, weight = draw(1, CHANNELS, 9, 7), draw(CHANNELS, CHANNELS, 3, 3)
    with plans.suspended():
        expected = convolve(x, weight)
    wrong = []

    def work():
        for _ in range(300):
            if not torch.equal(convolve(x, weight), expected):
                wrong.append(1)
        assert plans.count_runs() > 200

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_errors_are_those_without_plans():
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    for _ in range(3):
        with pytest.raises(ValueError, match="c has shape"):
            ops.lstm_gates(x, c[:, 1:])
        with pytest.raises(TypeError):
            ops.lstm_gates(x, None)


def test_many_shapes_take_little_memory():
    for width in range(4, 4 + 5000):
        x = torch.zeros(1, 4, 1, width % 70 + width // 70)
        ops.pixel_shuffle(x, 2)
    entries, _, _ = plans._module.plans_statistics()
    assert entries <= 4096


def test_an_op_inside_a_finalizer():
    x, c = draw(1, 4 * CHANNELS, 5, 6), draw(1, CHANNELS, 5, 6)
    record(ops.lstm_gates, x, c)
    expected = ops.lstm_gates(x, c)

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            ops.lstm_gates(x + 1, c)

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            Cycle()
            assert all(map(torch.equal, ops.lstm_gates(x, c), expected))
    finally:
        gc.set_threshold(*threshold)
