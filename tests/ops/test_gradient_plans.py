# SPDX-License-Identifier: Apache-2.0
"""Tests of plans of calls with gradients: the same results, gradients and errors as without plans."""

import ctypes
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastds
from fastds import nn, ops
from fastds.ops.core import native, plans
from fastds.ops.impl.conv3x3 import library
from fastds.ops.impl.conv3x3.op import CONV3X3_BACKWARD
from fastds.ops.impl.conv_rnn.fused import recompute_gates
from tests.support.planned_calls import C, draw, list_calls

pytestmark = pytest.mark.skipif(plans._module is None, reason="plans are switched off, or torch has no DLPack table")
CALLS = list_calls()


@pytest.fixture(autouse=True)
def empty_table():
    """Start each test without plans."""
    plans.clear()
    yield
    plans.clear()


def differentiate(call, tensors, needed=None, order=1):
    """Return the results of a call on new leaves and the gradients of the leaves that need one.

    Args:
        call: function of the tensors.
        tensors: its arguments.
        needed: bool for each tensor, whether it requires a gradient. None: all.
        order: 1, or 2 to also return gradients of the first ones.
    """
    needed = [True] * len(tensors) if needed is None else needed
    leaves = [t.detach().clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
    results = call(*leaves)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    differentiable = [t for t in leaves if t.requires_grad]
    loss = sum((y * y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum() for y in results)
    grads = list(torch.autograd.grad(loss, differentiable, create_graph=order > 1))
    if order > 1:
        grads += torch.autograd.grad(sum((g * g).sum() for g in grads), differentiable, allow_unused=True)
    return [*results, *grads]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or (a.stride() == b.stride() and torch.equal(a, b))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_those_without_plans(name, order):
    call, tensors = CALLS[name]
    with plans.suspended():
        expected = differentiate(call, tensors, order=order)
    for repeat in range(4):
        before = plans.count_runs()
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        call(*leaves)
        assert (plans.count_runs() > before) == (repeat > 1)
    assert_equal(differentiate(call, tensors, order=order), expected)


@pytest.mark.parametrize("name", ["conv_lstm_cell", "conv_gru_cell", "lstm_gates"])
def test_every_native_op_of_a_step_has_a_plan(name):
    """The forward ops and the backward ops run plans from the third step on."""
    call, tensors = CALLS[name]
    for _ in range(3):
        expected = differentiate(call, tensors)
    entries, ready, _ = plans._module.plans_statistics()
    assert entries == ready > 2
    assert_equal(differentiate(call, tensors), expected)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_that_are_added_to_tensors(dtype, layout):
    """An algorithm without fused sums adds by a native kernel, with the bits of torch, and its calls have plans."""
    if not native.get_module().conv3x3_available():
        pytest.skip("no engine for this instruction set in this build")
    tensors = [draw(2, C, 6, 5, seed=k).to(dtype).contiguous(memory_format=layout) for k in range(5)]
    (grad, x, x2, add_x, add_x2), weight = tensors, draw(C, 2 * C, 3, 3).to(dtype)

    def compute(add_x):
        options = (None, 0.0, "zeros", 1, "planes", [True, True, False, True, False], add_x, add_x2)
        return CONV3X3_BACKWARD.call_unchecked(grad, x, weight, x2, *options)

    with plans.suspended(), mock.patch.object(native.get_module(), "add_elements", side_effect=add_by_torch) as add:
        expected = compute(add_x), compute(add_x2)
    assert add.call_count == 4
    for repeat in range(4):
        before = plans.count_runs()
        assert_equal(compute(add_x), expected[0])
        assert (plans.count_runs() > before) == (repeat > 1)
        assert_equal(compute(add_x2), expected[1]) if repeat > 1 else None


def add_by_torch(code, count, addend, result):
    """Compute what the native kernel computes by torch."""
    dtype = next(d for d, c in native.DTYPE_CODES.items() if c == code)
    a, b = (
        torch.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(t), dtype=dtype)
        for t in (addend, result)
    )
    b.add_(a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_sums_in_place(dtype):
    """Sums have the bits of torch in every layout, and subnormal numbers, infinities and large sums are added, too."""
    values = draw(2, C, 5, 7).to(dtype)
    values[0, :5, 0, 0] = torch.tensor([torch.inf, -torch.inf, 1e-40, 6e-8, 65504.0]).to(dtype)
    addends = [
        values.flip(0), values.contiguous(), values.expand(2, C, 5, 7)[:1].expand(2, C, 5, 7),
        torch.complex(values.double(), values.double()).conj().imag.to(dtype), values.float(), values.double(),
        draw(2, C, 5, 14)[..., ::2].to(dtype),
    ]  # fmt: skip
    for addend in addends:
        for start in (values, values.contiguous(), draw(2, C, 5, 14).to(dtype)[..., ::2]):
            y, expected = start.clone(memory_format=torch.preserve_format), start.clone()
            y = y if start.is_contiguous() or start.is_contiguous(memory_format=torch.channels_last) else start
            assert library.add_(y, addend) is y
            assert torch.equal(y.nan_to_num(7.0), expected.add_(addend).nan_to_num(7.0))


@pytest.mark.parametrize("name", CALLS)
def test_tensors_without_gradients_are_another_key(name):
    call, tensors = CALLS[name]
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed % 6)
        needed = [bool(n) for n in torch.randint(2, (len(tensors),), generator=generator)]
        if not any(needed):
            continue
        with plans.suspended():
            expected = differentiate(call, tensors, needed)
        assert_equal(differentiate(call, tensors, needed), expected)
        leaves = [t.detach().clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        results = call(*leaves)
        results = [results] if isinstance(results, torch.Tensor) else results
        assert all(y.requires_grad for y in results)


def test_a_large_weight_is_a_leaf_or_not():
    """The weight of an expensive gradient is wrapped in a view if it is a leaf (registry.Op)."""
    x, weight = draw(4, 64, 120, 120), draw(64, 64, 3, 3).requires_grad_()
    for _ in range(4):
        (grad,) = torch.autograd.grad(ops.conv3x3(x, weight).sum(), weight)
    for _ in range(4):
        (other,) = torch.autograd.grad(ops.conv3x3(x, weight * 1).sum(), weight)
    assert torch.equal(grad, other)


def test_settings_of_later_calls_are_theirs():
    """Blocks that change how an op computes gradients apply to calls with a plan, too."""
    call, tensors = CALLS["conv_lstm_cell"]
    for _ in range(4):
        plain = differentiate(call, tensors)
    saved = []
    with (
        recompute_gates(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        assert_equal(differentiate(call, tensors), plain)
    assert not any(t.shape[1] == 4 * C for t in saved if t.dim() == 4 and t.shape[2:] == (6, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert call(*tensors)[0].dtype == torch.bfloat16


def test_same_errors():
    call = CALLS["conv1x1"][0]
    tensors = [t.clone().requires_grad_() for t in CALLS["conv1x1"][1]]
    for _ in range(4):
        call(*tensors)
    with pytest.raises(ValueError, match="weight has shape"):
        call(tensors[0], draw(C, C, 1, 1).requires_grad_(), *tensors[2:])
    y = call(*tensors)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()
    tensors[0].data.add_(1)
    z = call(*tensors)
    with torch.no_grad():
        tensors[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_hooks_checkpoints_and_batched_gradients():
    call, tensors = CALLS["conv_lstm_cell"]
    leaves = [t.clone().requires_grad_() for t in tensors]
    for _ in range(4):
        call(*leaves)
    seen = []
    leaves[0].register_hook(lambda grad: seen.append(grad))
    h, c = call(*leaves)
    h.register_hook(lambda grad: 2 * grad)
    expected = torch.autograd.grad(2 * h.sum() + c.sum(), leaves[0], retain_graph=True)[0]
    (h.sum() + c.sum()).backward()
    torch.testing.assert_close(
        seen[-1], torch.autograd.grad(2 * call(*leaves)[0].sum() + call(*leaves)[1].sum(), leaves[0])[0]
    )
    assert expected.shape == leaves[0].shape
    found = torch.autograd.grad(checkpoint(call, *leaves, use_reentrant=False)[0].sum(), leaves[3])[0]
    assert torch.equal(found, torch.autograd.grad(call(*leaves)[0].sum(), leaves[3])[0])
    h = call(*leaves)[0]
    many = torch.autograd.grad(
        h, leaves[0], torch.stack([torch.ones_like(h), -torch.ones_like(h)]), is_grads_batched=True
    )[0]
    torch.testing.assert_close(many[0], -many[1])


def test_transforms_after_plans():
    call, tensors = CALLS["gru_update"]
    leaves = [t.clone().requires_grad_() for t in tensors]
    for _ in range(4):
        call(*leaves)
    jacobian = torch.func.jacrev(call)(*tensors)
    _, tangent = torch.func.jvp(call, tuple(tensors), tuple(torch.ones_like(t) for t in tensors))
    assert jacobian.shape == (*tensors[0].shape, *tensors[0].shape) and torch.isfinite(tangent).all()


def test_lists_given_by_the_caller_may_change():
    x, offset, weight = draw(1, C, 9, 9).requires_grad_(), draw(1, 18, 9, 9), draw(C, C, 3, 3)
    padding = [1, 1]
    for _ in range(4):
        y = ops.deform_conv2d(x, offset, weight, padding=padding)
    padding[:] = [0, 0]
    assert torch.equal(ops.deform_conv2d(x, offset, weight, padding=[1, 1]), y)


def test_a_training_gives_the_same_weights():
    def train():
        torch.manual_seed(3)
        cell, out = nn.ConvLSTMCell(3, C), torch.nn.Conv2d(C, 1, 1)
        optimizer = torch.optim.SGD([*cell.parameters(), *out.parameters()], 0.05)
        frames = torch.rand(2, 4, 3, 12, 10)
        for _ in range(8):
            states, _ = cell.sequence(frames)
            optimizer.zero_grad()
            (out(states[:, -1]) - 0.3).square().mean().backward()
            optimizer.step()
        return [*cell.parameters(), *out.parameters()]

    with plans.suspended():
        expected = train()
    assert_equal(train(), expected)


def test_explain_reports_plans_with_gradients():
    x, weight = draw(1, C, 24, 20).requires_grad_(), draw(C, C, 3, 3).requires_grad_()
    for _ in range(3):
        ops.conv3x3(x, weight, algorithm="winograd")
    assert fastds.explain("conv3x3", x, weight, algorithm="winograd")["plan"] == "used"


def test_keys_of_views_wait_for_no_lock():
    """A thread that holds the mutex which torch locks to tell whether a view is a leaf may wait for the GIL."""
    script = """
import sys, threading, time, torch
from fastds import ops
from fastds.ops.core import plans
sys.setswitchinterval(1e-5)
leaf = torch.randn(5, 4)[1:].requires_grad_()
end = time.monotonic() + 2
def repeat(call):
    while time.monotonic() < end:
        for _ in range(100):
            call()
threads = [
    threading.Thread(target=repeat, args=(call,))
    for call in (lambda: plans.has_plan(ops.null_op, (leaf,), {}), lambda: leaf.to(torch.bfloat16))
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
