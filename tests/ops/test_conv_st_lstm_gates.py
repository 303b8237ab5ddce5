# SPDX-License-Identifier: Apache-2.0
"""Tests of the fused convolutions and gates of an ST-LSTM cell against float64."""

import pytest
import torch
import torch.nn.functional as F

import fastds
from fastds.ops import conv_lstm_cell, conv_memory_gates, conv_output_gate, conv_st_lstm_gates
from fastds.ops.impl.conv_rnn import reference
from fastds.ops.impl.conv_rnn.fused import recompute_gates
from tests.support.thread_cases import assert_same_bits

REFERENCES = {
    name: getattr(reference, name) for name in ("conv_st_lstm_gates", "conv_memory_gates", "conv_output_gate")
}
pytestmark = pytest.mark.usefixtures("native")

SHAPES = [(2, 24, 24, 9, 7), (1, 3, 24, 5, 18), (2, 5, 9, 1, 3), (1, 40, 33, 6, 5)]  # B, C1, C, H, W
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def conv(x, x2, weight, bias):
    return F.conv2d(torch.cat([x, x2], 1), weight, bias, padding=1)


def st_lstm(x, x2, c, weight, bias):
    i, f, g, q = conv(x, x2, weight, bias).chunk(4, 1)
    return f.sigmoid() * c + i.sigmoid() * g.tanh(), q


def memory(x, x2, c, weight, bias):
    i, f, g = conv(x, x2, weight, bias).chunk(3, 1)
    return (f.sigmoid() * c + i.sigmoid() * g.tanh(),)


def output(x, x2, value, weight, bias, residual):
    return ((conv(x, x2, weight, bias) + residual).sigmoid() * value.tanh(),)


STAGES = {  # op, oracle, gates
    "conv_st_lstm_gates": (conv_st_lstm_gates, st_lstm, 4), "conv_memory_gates": (conv_memory_gates, memory, 3),
    "conv_output_gate": (conv_output_gate, output, 1),
}  # fmt: skip


def inputs(name, shape, dtype=torch.float32, layout=torch.channels_last):
    batch, inputs, channels, height, width = shape
    gates = STAGES[name][2]
    maps = [torch.randn(batch, c, height, width).to(dtype) for c in (inputs, channels)]
    maps.append(torch.randn(batch, channels, height, width, dtype=torch.promote_types(dtype, torch.float32)))
    weight = torch.randn(gates * channels, inputs + channels, 3, 3) / (9 * (inputs + channels)) ** 0.5
    tensors = [*(t.contiguous(memory_format=layout) for t in maps), weight, torch.randn(gates * channels)]
    if name == "conv_output_gate":
        tensors.append(torch.randn(batch, channels, height, width).to(dtype))
    tensors = [t.double() for t in tensors] if dtype == torch.float64 else tensors
    return [t.requires_grad_() for t in tensors]


def results(name, which, tensors):
    y = STAGES[name][which](*tensors)
    return [y] if isinstance(y, torch.Tensor) else list(y)


def check(name, tensors, dtype, algorithm="winograd"):
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    with fastds.use_conv_algorithm(algorithm):
        with torch.no_grad():
            plain = results(name, 0, tensors)
        got = results(name, 0, tensors)
        along = [torch.randn_like(t) for t in got]
        grads = torch.autograd.grad(got, tensors, along)
    expected = results(name, 1, doubles)
    exact = torch.autograd.grad(expected, doubles, [g.double() for g in along])
    unit = {torch.float64: 1e-12, torch.float32: 3e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
    assert got[0].dtype == (dtype if name == "conv_output_gate" else tensors[2].dtype)
    for a, b in zip((*plain, *got, *grads), (*expected, *expected, *exact), strict=True):
        assert (a.double() - b).abs().max() <= unit * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("mask", range(1, 8))
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", STAGES)
def test_source_shared_by_convolution_and_gates(name, place, mask):
    """The gradient of a tensor that is a convolution input and a gate input is the sum of both gradients."""
    *maps, _, weight, bias = inputs(name, (2, 24, 24, 9, 7))[:5]
    residual = [torch.randn(2, 24, 9, 7)] if name == "conv_output_gate" else []
    maps = [t.detach().requires_grad_(bool(mask >> k & 1)) for k, t in enumerate((*maps, weight))]

    def gradients(which, tensors):
        x, x2, weight = tensors
        y = results(name, which, [x, x2, (x, x2)[place], weight, bias.to(x.dtype), *(t.to(x.dtype) for t in residual)])
        return torch.autograd.grad(sum(t.square().sum() for t in y), [t for t in tensors if t.requires_grad])

    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in maps]
    with fastds.use_conv_algorithm("winograd"):
        got = gradients(0, maps)
    for a, b in zip(got, gradients(1, doubles), strict=True):
        assert (a - b).abs().max() <= 3e-5 * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("algorithm", ["winograd", "direct"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", STAGES)
def test_values_and_gradients(name, shape, dtype, algorithm, two_threads):
    check(name, inputs(name, shape, dtype), dtype, algorithm)


@pytest.mark.parametrize("name", STAGES)
def test_float64_and_contiguous(name):
    check(name, inputs(name, SHAPES[0], torch.float64), torch.float64, "auto")
    check(name, inputs(name, SHAPES[0], layout=torch.contiguous_format), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", STAGES)
def test_every_instruction_set(name, isa, dtype, native):
    check(name, inputs(name, SHAPES[0], dtype), dtype, "winograd" if native.conv3x3_available() else "auto")


@pytest.mark.parametrize("name", STAGES)
def test_results_are_bitwise_independent_of_threads(name):
    tensors = inputs(name, (2, 24, 24, 33, 21))

    def run():
        got = results(name, 0, tensors)
        return *got, *torch.autograd.grad(sum(t.sum() for t in got), tensors)

    assert_same_bits(run)


@pytest.mark.parametrize("name", STAGES)
def test_second_derivatives(name):
    tensors = inputs(name, (1, 16, 16, 6, 5))
    doubles = [t.detach().double().requires_grad_() for t in tensors]

    def penalty(which, tensors):
        grads = torch.autograd.grad(
            sum(y.square().sum() for y in results(name, which, tensors)), tensors, create_graph=True
        )
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    for a, b in zip(penalty(0, tensors), penalty(1, doubles), strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("algorithm", ["winograd", "direct"])
@pytest.mark.parametrize("name", STAGES)
def test_recomputed_gates_have_the_same_gradients(name, algorithm):
    tensors = inputs(name, SHAPES[0])

    def gradients(recompute):
        with fastds.use_conv_algorithm(algorithm), recompute_gates(recompute):
            got = results(name, 0, tensors)
        return torch.autograd.grad([t.sin().sum() for t in got], tensors)

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", [conv_lstm_cell, conv_st_lstm_gates, conv_memory_gates])
def test_missing_state_equals_zero_state(function):
    name = "conv_memory_gates" if function is conv_memory_gates else "conv_st_lstm_gates"
    x, h, c, weight, bias = inputs(name, SHAPES[0])
    y, full = (function(x, state, c, weight, bias) for state in (None, torch.zeros_like(h)))
    y, full = (t if isinstance(t, torch.Tensor) else t[0] for t in (y, full))
    torch.testing.assert_close(y, full, rtol=1e-4, atol=1e-5)
    along = torch.randn_like(y)
    for a, b in zip(*(torch.autograd.grad(t, (x, c, weight, bias), along) for t in (y, full)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STAGES)
def test_opcheck_compile_and_transforms(name):
    tensors = inputs(name, (2, 16, 16, 5, 4))
    x, x2, other, weight, bias, *residual = (t.detach() for t in tensors)
    options = {"conv_st_lstm_gates": (), "conv_memory_gates": ("none",), "conv_output_gate": ("sigmoid",)}[name]
    arguments = (x, x2, weight, bias, *(residual or [None]), other, *options, "winograd", True)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.fastds, name).default, arguments, test_utils=utils)

    def loss(x, *rest):
        return sum(y.square().sum() for y in results(name, 0, (2 * x, *rest)))

    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors), tensors)
    for a, b in zip(compiled, torch.autograd.grad(loss(*tensors), tensors), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(name, 0, tensors)
    assert got[-1].dtype == (torch.float32 if name == "conv_memory_gates" else torch.bfloat16)
    with fastds.use_backend("reference"):
        expected = results(name, 0, tensors)
    for a, b in zip(results(name, 0, tensors), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    plain = REFERENCES[name](*tensors)
    for a, b in zip(expected, [plain] if isinstance(plain, torch.Tensor) else plain, strict=True):
        torch.testing.assert_close(a, b)


def test_error_messages():
    x, h, c, weight, bias = (t.detach() for t in inputs("conv_st_lstm_gates", (1, 3, 4, 5, 5)))
    for arguments, error, words in (
        ((x, h, c, weight[:15]), ValueError, "a multiple of 4 outputs"),
        ((x, h, c[:, :3], weight), ValueError, r"c has shape \(1, 3, 5, 5\), expected \(1, 4, 5, 5\)"),
        ((x, h, c, weight, bias[:4]), ValueError, r"bias has shape \(4,\), expected \(16,\)"),
        ((x, None, c, 1), TypeError, "weight is an int, expected a Tensor"),
    ):
        with pytest.raises(error, match=words):
            conv_st_lstm_gates(*arguments)
