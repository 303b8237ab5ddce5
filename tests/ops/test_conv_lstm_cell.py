# SPDX-License-Identifier: Apache-2.0
"""Tests of conv_lstm_cell against float64."""

import pytest
import torch
import torch.nn.functional as F

import fastds
from fastds.ops import conv_lstm_cell
from fastds.ops.impl.conv_rnn import fused
from fastds.ops.impl.conv_rnn.reference import conv_lstm_cell as reference
from tests.support.thread_cases import assert_same_bits

pytestmark = pytest.mark.usefixtures("native")

SHAPES = [
    (2, 24, 24, 9, 7),
    (1, 3, 24, 5, 18),
    (1, 17, 16, 4, 4),
    (2, 5, 9, 1, 3),
    (1, 40, 33, 6, 5),
    (1, 8, 80, 9, 9),
]  # B, C1, C, H, W


def inputs(shape, dtype=torch.float32, layout=torch.channels_last):
    batch, inputs, channels, height, width = shape
    x = torch.randn(batch, inputs, height, width).to(dtype)
    h = torch.randn(batch, channels, height, width).to(dtype)
    c = torch.randn(batch, channels, height, width, dtype=torch.promote_types(dtype, torch.float32))
    weight = torch.randn(4 * channels, inputs + channels, 3, 3) / (9 * (inputs + channels)) ** 0.5
    tensors = [*(t.contiguous(memory_format=layout) for t in (x, h, c)), weight, torch.randn(4 * channels)]
    tensors = [t.double() for t in tensors] if dtype == torch.float64 else tensors
    return [t.requires_grad_() for t in tensors]


def oracle(x, h, c, weight, bias):
    i, f, g, o = F.conv2d(torch.cat([x, h], 1), weight, bias, padding=1).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def check(tensors, dtype, algorithm="winograd", bias=True):
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    tensors, doubles = (tensors, doubles) if bias else (tensors[:4], doubles[:4])
    with fastds.use_conv_algorithm(algorithm):
        got = conv_lstm_cell(*tensors)
        along = [torch.randn_like(t) for t in got]
        grads = torch.autograd.grad(got, tensors, along)
        with torch.no_grad():
            again = conv_lstm_cell(*tensors)
    expected = oracle(*doubles, *([] if bias else [None]))
    exact = torch.autograd.grad(expected, doubles, [g.double() for g in along])
    unit = {torch.float64: 1e-12, torch.float32: 3e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
    assert got[0].dtype == dtype and got[1].dtype == tensors[2].dtype
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    for a, b in zip((*got, *grads), (*expected, *exact), strict=True):
        assert (a.double() - b).abs().max() <= unit * b.abs().max().clamp_min(1)


@pytest.mark.parametrize("algorithm", ["winograd", "direct", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, algorithm, two_threads):
    check(inputs(shape, dtype), dtype, algorithm)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
def test_layouts_and_no_bias(layout):
    check(inputs(SHAPES[0], layout=layout), torch.float32, bias=False)


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((1, 5, 24, 150, 153), torch.float32),
        ((1, 3, 9, 241, 245), torch.float32),
        ((1, 3, 9, 341, 346), torch.bfloat16),
    ],
    ids=str,
)
def test_pre_activations_with_non_temporal_stores(shape, dtype):
    """The pre-activations exceed 8 MB; choose_store in csrc/conv3x3 then selects non-temporal stores."""
    check(inputs(shape, dtype), dtype)


def test_float64():
    check(inputs(SHAPES[0], torch.float64), torch.float64, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_instruction_set(isa, dtype, native):
    check(inputs(SHAPES[0], dtype), dtype, "winograd" if native.conv3x3_available() else "auto")


@pytest.mark.parametrize("shape", [(2, 24, 24, 33, 21), (1, 64, 70, 9, 14)], ids=["", "shared"])
def test_results_are_bitwise_independent_of_threads(shape):
    tensors = inputs(shape)

    def run():
        got = conv_lstm_cell(*tensors)
        return *got, *torch.autograd.grad(got[0].sum() + got[1].sum(), tensors)

    assert_same_bits(run)


def test_second_derivatives():
    tensors = inputs((1, 16, 16, 6, 5))
    doubles = [t.detach().double().requires_grad_() for t in tensors]

    def penalty(function, tensors):
        h, c = function(*tensors)
        grads = torch.autograd.grad(h.sum() + c.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    for a, b in zip(penalty(conv_lstm_cell, tensors), penalty(oracle, doubles), strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("mask", range(1, 32))
def test_requires_grad_subsets(mask):
    everything = inputs((1, 16, 16, 5, 4))
    expected = torch.autograd.grad(conv_lstm_cell(*everything)[0].sum(), everything)
    tensors = [t.detach().requires_grad_(bool(mask >> i & 1)) for i, t in enumerate(everything)]
    conv_lstm_cell(*tensors)[0].sum().backward()
    for t, g in zip(tensors, expected, strict=True):
        assert (t.grad is None) == (not t.requires_grad)
        if t.grad is not None:
            torch.testing.assert_close(t.grad, g, rtol=1e-5, atol=1e-5)


def test_opcheck_compile_and_transforms():
    tensors = inputs((2, 16, 16, 5, 4))
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    plain = [t.detach() for t in tensors]

    def arguments_of_op(x, h, c, weight, bias):
        return x, h, weight, bias, None, c

    for values, *options in ((plain, "auto", False), (plain, "winograd", True), (tensors, "auto", False)):
        arguments = (*arguments_of_op(*values), *options)
        torch.library.opcheck(torch.ops.fastds.conv_lstm_cell.default, arguments, test_utils=utils)

    def loss(x, *rest):
        h, c = conv_lstm_cell(2 * x, *rest)
        return h.square().sum() + c.sum()

    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors), tensors)
    for a, b in zip(compiled, torch.autograd.grad(loss(*tensors), tensors), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        h, c = conv_lstm_cell(*tensors)
    assert h.dtype == torch.bfloat16 and c.dtype == torch.float32
    h, c = conv_lstm_cell(*(t[:0] if t.dim() == 4 and i < 3 else t for i, t in enumerate(plain)))
    assert h.shape == c.shape == (0, 16, 5, 4)
    with fastds.use_backend("reference"):
        expected = conv_lstm_cell(*plain)
    for a, b, c in zip(conv_lstm_cell(*plain), expected, reference(*plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b, c)


@pytest.mark.parametrize(("channels", "few", "fuses"), [(9, 9 * 63, True), (9, 9 * 63 - 1, False), (8, 0, True)])
def test_odd_channels_use_separate_gates_for_large_inputs(monkeypatch, channels, few, fuses):
    calls, known = [], fused.run_engine
    monkeypatch.setattr(fused, "run_engine", lambda *args: calls.append(args) or known(*args))
    monkeypatch.setattr(fused, "SMALL_MAP_ELEMENTS", few)
    tensors = [t.detach() for t in inputs((1, 30, channels, 9, 7))]
    for found, exact in zip(conv_lstm_cell(*tensors), oracle(*(t.double() for t in tensors)), strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    assert bool(calls) == fuses


def test_error_messages():
    x, h, c, weight, bias = (t.detach() for t in inputs((1, 3, 4, 5, 5)))
    for arguments, error, words in (
        ((1, h, c, weight), TypeError, "x is an int, expected a Tensor"),
        ((x, h.double(), c, weight), TypeError, "h has dtype torch.float64, expected torch.float32"),
        ((x, h, c[:, :3], weight), ValueError, r"c has shape \(1, 3, 5, 5\), expected \(1, 4, 5, 5\)"),
        ((x, h, c, weight[:, :6]), ValueError, r"weight has shape \(16, 6, 3, 3\), expected \(16, 7, 3, 3\)"),
        (
            (x.repeat(1, 2, 1, 1)[:, :5], h[:, :2], c, weight),
            ValueError,
            r"h has shape \(1, 2, 5, 5\), expected \(1, 4, ",
        ),
        ((x[:, :2], None, c, weight), ValueError, r"weight has shape \(16, 3, 3, 3\), expected \(16, 2, 3, 3\)"),
        ((x, h, c, weight, bias[:4]), ValueError, r"bias has shape \(4,\), expected \(16,\)"),
    ):
        with pytest.raises(error, match=words):
            conv_lstm_cell(*arguments)
