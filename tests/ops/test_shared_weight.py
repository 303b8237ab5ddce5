# SPDX-License-Identifier: Apache-2.0
"""Tests of sequences that compute the weight gradients of several steps together."""

import pytest
import torch

from fastds.nn import ConvGRUCell, ConvLSTMCell
from fastds.ops import conv3x3
from fastds.ops.impl.conv3x3 import shared_weight_grad

pytestmark = pytest.mark.usefixtures("native")
INPUTS = {"share of x in every step": 3, "shares of x at once": 40}  # channels; the second by hoisting_pays
STEPS = 10  # the first from a state of zeros, which no weight is for


@pytest.fixture(params=[ConvLSTMCell, ConvGRUCell], ids=["lstm", "gru"])
def cell(request):
    torch.manual_seed(3)
    return lambda inputs, dtype=torch.float64: request.param(inputs, 4).to(dtype)


def frames(inputs, dtype=torch.float64):
    """Return random feature maps of 2 x 3 x 5 pixels."""
    return torch.randn(2, STEPS, inputs, 3, 5, dtype=dtype, requires_grad=True)


def loss(cell, x):
    return cell.sequence(x)[0].square().sum()


def gradients(cell, x, **options):
    return torch.autograd.grad(loss(cell, x), [x, *cell.parameters()], **options)


@pytest.fixture
def unshared(monkeypatch):
    """Return a function that calls another one with a separate weight gradient for each step."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(shared_weight_grad, "_BATCH_PIXELS", 0)
            return function(*arguments)

    return call


def assert_same(ours, expected, tolerance=1e-12):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize(("pixels", "together"), [(4096, {9}), (240, {8, 1})], ids=["at the end", "once in between"])
def test_shared_weight_gradients(cell, unshared, monkeypatch, inputs, pixels, together):
    cell, x = cell(inputs), frames(inputs)
    expected, found = unshared(gradients, cell, x), set()
    settle = shared_weight_grad._flush_pending

    def counting(node, pending):
        found.add(len(pending.steps))
        settle(node, pending)

    monkeypatch.setattr(shared_weight_grad, "_BATCH_PIXELS", pixels)
    monkeypatch.setattr(shared_weight_grad, "_flush_pending", counting)
    assert_same(gradients(cell, x), expected)
    assert found == together


def test_frozen_weight_or_bias(cell, unshared):
    for name in ("weight", "bias"):
        part = cell(3)
        for conv in part.children():
            getattr(conv, name).requires_grad_(False)
        x, rest = frames(3), [p for p in part.parameters() if p.requires_grad]
        ours = torch.autograd.grad(loss(part, x), rest)
        assert_same(ours, unshared(lambda: torch.autograd.grad(loss(part, x), rest)))  # noqa: B023


def nodes(total):
    """Return all nodes of the autograd graph."""
    found, left = set(), [total.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left += [after for after, _ in node.next_functions]
    return found


def test_backward_that_misses_the_weight(cell, unshared, monkeypatch):
    """A backward pass that does not need the weight computes no gradient of it, and no pass leaves pending terms."""
    cell, x = cell(3), frames(3)
    monkeypatch.setattr(shared_weight_grad, "_BATCH_PIXELS", 240)
    expected, total = unshared(gradients, cell, x), loss(cell, x)
    weights = [node for node in nodes(total) if isinstance(node, shared_weight_grad._SharedWeight._backward_cls)]
    with monkeypatch.context() as patch:
        patch.setattr(shared_weight_grad, "_flush_pending", None)
        (of_x,) = torch.autograd.grad(total, [x], retain_graph=True)
    assert_same([of_x], expected[:1])
    for _ in range(2):
        assert_same(torch.autograd.grad(total, [x, *cell.parameters()], retain_graph=True), expected)
        assert weights and not any(node.pending for node in weights)


def test_failed_backward_leaves_no_state(cell, unshared):
    """The backward pass after a failed one is correct."""
    cell, x = cell(3), frames(3)
    expected, total, calls = unshared(gradients, cell, x), loss(cell, x), []

    def fail_at_the_fifth(grads):
        calls.append(1)
        if len(calls) == 5:
            raise ZeroDivisionError

    steps = [node for node in nodes(total) if node.name() in ("FunctionBackward", "_StepBackward")]
    handles = [node.register_prehook(fail_at_the_fifth) for node in steps]
    with pytest.raises(ZeroDivisionError):
        torch.autograd.grad(total, [x, *cell.parameters()], retain_graph=True)
    for handle in handles:
        handle.remove()
    assert_same(torch.autograd.grad(total, [x, *cell.parameters()]), expected)


def test_other_convolutions_of_the_same_weight():
    tensors = torch.randn(2, 3, 4, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
    x, weight, bias = (t.double().requires_grad_() for t in tensors)

    def both(weight, bias):
        options = {}, {"activation": "relu"}, {"padding_mode": "replicate"}, {"upscale_factor": 2}
        total = sum(conv3x3(x, weight, bias, **o).square().sum() for o in options)
        return torch.autograd.grad(total, [x, *leaves])

    leaves = [weight, bias]
    assert_same(both(shared_weight_grad.share_weight(weight), bias), both(weight, bias))


def test_derivatives_of_gradients(cell, unshared):
    def penalty(cell, x):
        grads = gradients(cell, x, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), [x, *cell.parameters()])

    cell, x = cell(3), frames(3)
    assert_same(penalty(cell, x), unshared(penalty, cell, x), 1e-10)


def test_transforms(cell):
    cell, x = cell(3), frames(3)
    names, values = zip(*_Sequence(cell).named_parameters(), strict=True)

    def of_parameters(*values):
        out, _ = torch.func.functional_call(_Sequence(cell), dict(zip(names, values, strict=True)), (x,))
        return out.square().sum()

    ours = torch.func.grad(of_parameters, argnums=tuple(range(len(values))))(*values)
    assert_same(ours, gradients(cell, x)[1:])


class _Sequence(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        return self.cell.sequence(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(cell, unshared, dtype):
    cell, x = cell(3, torch.float32), frames(3, torch.float32)

    def autocast_gradients():
        with torch.autocast("cpu", dtype):
            total = loss(cell, x)
        return torch.autograd.grad(total, list(cell.parameters()))

    assert_same(autocast_gradients(), unshared(autocast_gradients), 1e-2)


def test_compiled_autograd(cell, unshared):
    from torch._dynamo import compiled_autograd

    cell, x = cell(3), frames(3)
    with compiled_autograd._enable(lambda graph: graph):
        loss(cell, x).backward()
    assert_same([x.grad, *(p.grad for p in cell.parameters())], unshared(gradients, cell, x))
