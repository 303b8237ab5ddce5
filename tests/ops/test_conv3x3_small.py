# SPDX-License-Identifier: Apache-2.0
"""Tests of conv3x3 of one small map, for which "auto" may select the convolution of torch."""

import pytest
import torch

import fastds
from fastds.ops.impl.conv3x3 import costs, library, op
from tests.support.conv3x3_cases import Problem, gradients, leaves, relative_error

pytestmark = pytest.mark.usefixtures("native")

ONE_MAP = {"B": 1, "C1": 5, "C2": 0, "O": 8}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Return a function that sets the processor of the costs."""

    def choose(name: str) -> None:
        monkeypatch.setattr(costs, "cpu_profile", lambda isa, dtype: name)
        costs.select_fastest.cache_clear()

    choose("amd")
    yield choose
    costs.select_fastest.cache_clear()


def name_of_node(problem: Problem, algorithm: str = "auto") -> str:
    """Return the name of the graph node of the convolution."""
    tensors = leaves(problem)
    return problem.run(tensors[:4] + [None], algorithm).grad_fn.name()


@pytest.mark.parametrize("act", [None, "relu", "leaky_relu"], ids=str)
@pytest.mark.parametrize("shuffle", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_small_input_result_and_gradients(act, shuffle, residual, layout, monkeypatch):
    """Compare the result and the gradients with the float64 reference."""
    problem = Problem(**ONE_MAP, act=act, shuffle=shuffle, residual=residual)
    tensors = [t if t is None else t.requires_grad_() for t in problem.tensors(layout=layout)]
    doubles = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
    before = [t if t is None else t.detach().clone() for t in tensors]
    monkeypatch.setattr(type(op.CONV3X3), "__call__", None)  # not called
    y, expected = problem.run(tensors, "auto"), problem.expected(doubles)
    assert relative_error(y, expected) < 1e-6
    grad_y = torch.randn_like(y)
    exact = gradients(expected, doubles, grad_y.double())
    for got, expected_grad in zip(gradients(y, tensors, grad_y), exact, strict=True):
        assert relative_error(got, expected_grad) < 2e-6
    for tensor, original in zip(tensors, before, strict=True):
        assert tensor is None or torch.equal(tensor, original)


@pytest.mark.parametrize(
    "changes",
    [
        {"B": 2},
        {"C1": 1, "H": 1, "W": op.MAX_TORCH_ELEMENTS + 1},
        {"C2": 1},
        {"padding_mode": "replicate"},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_saved_tensors_of_the_op(changes):
    assert name_of_node(Problem(**{**ONE_MAP, **changes})) == "_Conv3x3Backward"


def test_arguments_passed_to_torch():
    largest = Problem(**{**ONE_MAP, "C1": 1, "H": 1, "W": op.MAX_TORCH_ELEMENTS})
    assert name_of_node(Problem(**ONE_MAP)) == name_of_node(largest) == "ConvolutionBackward0"


def test_fallback_on_cpus_with_fast_gemm(machine, monkeypatch):
    problem = Problem(B=1, C1=200, C2=0, O=256, H=5, W=7, residual=False)
    two = Problem(**{**vars(problem), "B": 2})
    batches = []
    monkeypatch.setattr(
        type(op.CONV3X3), "call_unchecked", lambda self, *args: batches.append(args[0].shape[0]) or args[0]
    )
    for name, expected in (("amd", [1, 2]), ("avx512", [2])):
        machine(name)
        for given in (problem, two):
            given.run(leaves(given), "auto")
        assert batches == expected
        batches.clear()


def test_without_gradients_the_result_is_channels_last(machine):
    machine("avx512")
    tensors = Problem(B=1, C1=200, C2=0, O=256, H=5, W=7, residual=False).tensors(layout=torch.contiguous_format)
    with torch.no_grad():
        y = fastds.ops.conv3x3(*tensors[:3])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, torch.nn.functional.conv2d(*[t.double() for t in tensors[:3]], padding=1)) < 2e-6


@pytest.mark.parametrize("maps, outputs, turns", [(1, 256, False), (1, 2, True), (2, 256, True)])
def test_single_contiguous_input_is_not_transposed(maps, outputs, turns):
    plan = library.plan_convolution(torch.randn(maps, 200, 5, 7), torch.randn(outputs, 200, 3, 3), 1, False)
    assert plan.permutes_input == turns and plan.permutes_weight == (turns and outputs > 2)


def test_forced_op_is_used(monkeypatch):
    monkeypatch.setattr(op, "F", None)  # not called
    problem = Problem(**ONE_MAP)
    expected = problem.run(leaves(problem), "winograd")
    with fastds.use_backend("native"):
        torch.testing.assert_close(problem.run(leaves(problem), "auto"), expected)
    with torch.no_grad():
        torch.testing.assert_close(problem.run(leaves(problem), "auto"), expected)
    compiled = torch.compile(problem.run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(leaves(problem), "auto"), expected)


@pytest.mark.parametrize(
    ("k", "shape", "message"),
    [(1, (8, 5, 5, 5), r"weight has shape \(8, 5, 5, 5\), expected"), (4, (1, 8, 9, 6), "residual has shape")],
)
def test_arguments_are_checked(k, shape, message):
    tensors = leaves(Problem(**ONE_MAP))
    tensors[k] = torch.zeros(shape, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        Problem(**ONE_MAP).run(tensors, "auto")


def test_sparse_inputs_are_rejected():
    tensors = leaves(Problem(**ONE_MAP))
    tensors[0] = tensors[0].detach().to_sparse()
    with pytest.raises(TypeError, match="x is a tensor of layout torch.sparse_coo, expected a dense one"):
        Problem(**ONE_MAP).run(tensors, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_activation_gradient_has_the_bits_of_torch(dtype, layout, slope):
    grad, y = torch.randn(2, 2, 5, 7, 9, generator=torch.Generator().manual_seed(0), dtype=dtype)
    y[0, 0, 0, :4] = torch.tensor([float("nan"), 0.0, -0.0, float("inf")])
    grad, y = grad.contiguous(memory_format=layout), y.contiguous(memory_format=layout)
    found = library.backpropagate_epilogue(grad, y, slope, 1)
    expected = torch.ops.aten.leaky_relu_backward(grad, y, slope, True)
    assert found.stride() == expected.stride() and torch.equal(found, expected)
    assert torch.equal(found.signbit(), expected.signbit())
