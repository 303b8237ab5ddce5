# SPDX-License-Identifier: Apache-2.0
"""Tests of plans of calls that torch computes: results have the same bits as without plans."""

import threading

import pytest
import torch
from torch.autograd import forward_ad

from fastds import ops
from fastds.ops.core import plans
from fastds.ops.core.function_plans import call_function
from fastds.ops.impl.conv2d import costs, kernels
from fastds.ops.impl.conv2d.op import CONV2D
from tests.support.planned_calls import list_calls

pytestmark = pytest.mark.skipif(plans._module is None, reason="plans are switched off, or torch has no DLPack table")
LAST = torch.channels_last
# batch, channels, height, width, outputs, kernel size, groups: calls for which torch is faster
SHAPES = [(2, 4, 52, 52, 4, 5, 2), (1, 105, 26, 6, 2, 5, 1), (2, 32, 9, 9, 4, 1, 2), (1, 1, 30, 30, 1, 1, 1)]


@pytest.fixture(autouse=True)
def torch_convolves(monkeypatch):
    """Start each test without plans, and let torch compute the convolutions."""
    monkeypatch.setattr(costs, "is_op_faster", lambda *_: False)
    plans.clear()
    yield
    plans.clear()


def draw_arguments(shape, dtype=torch.float32, layout=LAST, seed=0):
    batch, channels, height, width, outputs, size, groups = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(outputs, channels // groups, size, size, generator=generator).to(dtype)
    return x, weight, torch.randn(outputs, generator=generator).to(dtype)


def run_planned(call, *tensors):
    """Return the result of a call, and whether it ran by a plan."""
    before = plans.count_runs()
    return call(*tensors), plans.count_runs() > before


def assert_same(found, expected):
    assert found.dtype == expected.dtype and found.stride() == expected.stride() and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_convolutions_by_torch_have_plans(shape, layout, dtype):
    def convolve(*t):
        return ops.conv2d(*t, groups=shape[-1])

    for repeat in range(5):
        tensors = draw_arguments(shape, dtype, layout, seed=repeat)
        with plans.suspended():
            expected = convolve(*tensors)
        found, by_plan = run_planned(convolve, *tensors)
        assert by_plan == (repeat > 1)
        assert_same(found, expected)


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, False)], ids=str)
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
def test_gradients_are_those_of_torch(layout, needed):
    def convolve(*t):
        return ops.conv2d(*t, groups=2)

    def differentiate(tensors):
        leaves = [
            t.clone(memory_format=torch.preserve_format).requires_grad_(n) for t, n in zip(tensors, needed, strict=True)
        ]
        y, by_plan = run_planned(convolve, *leaves)
        grads = torch.autograd.grad(y.square().sum(), [t for t in leaves if t.requires_grad], create_graph=True)
        more = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves[needed.index(True)])
        return y.grad_fn.name(), by_plan, [y, *grads, *more]

    for repeat in range(4):
        tensors = draw_arguments(SHAPES[0], layout=layout, seed=repeat)
        with plans.suspended():
            name, _, expected = differentiate(tensors)
        found_name, by_plan, found = differentiate(tensors)
        assert by_plan == (repeat > 1) and found_name == name == "ConvolutionBackward0"
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tracked", [False, True])
def test_autocast(dtype, tracked):
    """Casts follow the state of autocast of each call: those of x, and those of the weight by the convolution."""
    for repeat in range(10):
        tensors = [t.requires_grad_(tracked) for t in draw_arguments(SHAPES[0], seed=repeat)]
        with torch.autocast("cpu", dtype, enabled=repeat % 2 == 0):
            with plans.suspended():
                expected = ops.conv2d(*tensors, groups=2)
            found = ops.conv2d(*tensors, groups=2)
            assert found.dtype == (dtype if repeat % 2 == 0 else torch.float32)
            assert_same(found, expected)


def test_a_weight_of_another_dtype():
    for repeat in range(5):
        x, weight, bias = draw_arguments(SHAPES[0], seed=repeat)
        x = x.bfloat16()
        with plans.suspended():
            expected = ops.conv2d(x, weight, bias, groups=2)
        found, by_plan = run_planned(lambda *t: ops.conv2d(*t, groups=2), x, weight, bias)
        assert by_plan == (repeat > 1)
        assert_same(found, expected)


@pytest.mark.parametrize("change", ["in place", "data", "storage"])
def test_changed_weights(change):
    """The filters that are reordered for oneDNN are those of the weight's current values."""
    x, weight, bias = draw_arguments(SHAPES[0])
    for _ in range(3):
        ops.conv2d(x, weight, bias, groups=2)
    for seed in (1, 2):
        new = draw_arguments(SHAPES[0], seed=seed)[1]
        if change == "in place":
            weight.copy_(new)
        elif change == "data":
            weight.data = new
        else:
            weight.untyped_storage().copy_(new.untyped_storage())
        with plans.suspended():
            expected = ops.conv2d(x, new.clone(), bias, groups=2)
        found, by_plan = run_planned(lambda *t: ops.conv2d(*t, groups=2), x, weight, bias)
        assert by_plan
        assert_same(found, expected)


def test_observed_calls_run_no_plan():
    x, weight, bias = draw_arguments(SHAPES[0])

    def convolve(x):
        return ops.conv2d(x, weight, bias, groups=2)

    for _ in range(3):
        expected = convolve(x)
    before = plans.count_runs()
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(convolve(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.vmap(convolve)(x[None])[0], expected, rtol=1e-4, atol=1e-4)
    with forward_ad.dual_level():
        dual = convolve(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(dual).tangent is not None
    assert plans.count_runs() == before
    assert run_planned(convolve, x)[1]


def test_errors_are_those_of_the_op():
    x, weight, bias = draw_arguments(SHAPES[0])
    for _ in range(4):
        ops.conv2d(x, weight, bias, groups=2)
    for groups in (3, 2.0, True):
        with pytest.raises(ValueError, match="groups must be an int that divides"):
            ops.conv2d(x, weight, bias, groups=groups)
    with pytest.raises(ValueError, match="bias has shape"):
        ops.conv2d(x, weight, bias[:3], groups=2)
    x.untyped_storage().resize_(0)
    with pytest.raises((ValueError, RuntimeError)):
        ops.conv2d(x, weight, bias, groups=2)


def test_effects_outside_of_noted_functions_refuse_the_plan():
    """An activation in place, after the function that returned the tensor, would be missing in the plan."""

    @plans.planned
    def convolve_and_activate(x, weight):
        return torch.relu_(call_function(torch.conv2d, x, weight))

    @plans.planned
    def convolve(x, weight):
        return call_function(torch.relu, call_function(torch.conv2d, x, weight))

    for function, planned in ((convolve_and_activate, False), (convolve, True)):
        for repeat in range(4):
            x, weight, _ = draw_arguments((1, 2, 9, 9, 3, 3, 1), seed=repeat)
            found, by_plan = run_planned(function, x.abs(), weight.abs())
            assert by_plan == (planned and repeat > 1)
        found = function(x, weight)
        assert_same(found, torch.relu(torch.conv2d(x, weight)))


def test_threads_run_plans_of_all_kinds():
    """Two threads run plans of the same weights, native ones and those of functions, with and without gradients."""
    calls = [
        *((call, tensors) for name, (call, tensors) in list_calls().items() if name != "deform_conv2d"),
        (lambda *t: ops.conv2d(*t, groups=2), draw_arguments(SHAPES[0])),
    ]

    def compute(call, tensors, tracked):
        leaves = (
            [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors] if tracked else tensors
        )
        results = call(*leaves)
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        return results + (list(torch.autograd.grad(sum(y.sum() for y in results), leaves)) if tracked else [])

    jobs = [(*call, tracked) for call in calls for tracked in (False, True)]
    with plans.suspended():
        expected = [compute(*job) for job in jobs]
    wrong, runs = [], []

    def work(number):
        for repeat in range(12):
            for k in range(len(jobs))[:: 1 if number else -1]:
                if repeat == 6 and k == number:
                    plans.drop_packed_weights()
                found = compute(*jobs[k])
                wrong.extend(k for a, b in zip(found, expected[k], strict=True) if not torch.equal(a, b))
        runs.append(plans.count_runs())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(runs) == 2 and min(runs) > 9 * len(jobs)


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_grouped_filters_of_the_engine_have_a_plan(monkeypatch, groups, layout):
    monkeypatch.setattr(kernels, "is_op_faster", lambda *_: True)
    monkeypatch.setattr(kernels, "_should_use_engine", lambda *_: True)
    if not plans._module.conv3x3_available():
        pytest.skip("no engine for this instruction set in this build")
    x, weight, bias = draw_arguments((2, 6, 9, 7, 12, 5, groups), layout=layout)
    for repeat in range(5):
        if repeat > 2:
            weight[repeat] += 1  # of one group
        with plans.suspended():
            expected = ops.conv2d(x, weight.clone(memory_format=torch.preserve_format), bias, groups=groups)
        found, by_plan = run_planned(lambda *t: ops.conv2d(*t, groups=groups), x, weight, bias)
        assert by_plan == (repeat > 1)
        assert_same(found, expected)


def test_tensors_that_require_gradients_are_another_key_without_a_graph(monkeypatch):
    """Inside an autograd function no graph is recorded, and conv2d chooses an algorithm for trained tensors."""
    if not plans._module.conv3x3_available():
        pytest.skip("no engine for this instruction set in this build")
    chosen = {"forward": True, "grad_x": True, "grad_weight": True, "inference": False}
    monkeypatch.setattr(kernels, "_should_use_engine", lambda direction, *_: chosen[direction])
    x, weight, bias = draw_arguments((2, 3, 9, 7, 4, 5, 1))
    trained = x.clone().requires_grad_(), weight.clone().requires_grad_(), bias
    with torch.no_grad(), plans.suspended():
        expected = CONV2D.call_unchecked(x, weight, bias, 1), CONV2D.call_unchecked(*trained, 1)
    assert not torch.equal(*expected)
    for _ in range(4):
        with torch.no_grad():
            assert torch.equal(CONV2D.call_unchecked(x, weight, bias, 1), expected[0])
            assert torch.equal(CONV2D.call_unchecked(*trained, 1), expected[1])
    monkeypatch.setattr(kernels, "is_op_faster", lambda *_: True)
    for _ in range(4):
        before = plans.count_runs()
        y = ops.conv2d(*trained)
        torch.autograd.grad(y, trained[:2], torch.ones_like(y))
        assert torch.equal(y, expected[1])
    assert plans.count_runs() - before == 3  # the call, its forward pass and its backward pass
