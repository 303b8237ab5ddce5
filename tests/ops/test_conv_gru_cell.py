# SPDX-License-Identifier: Apache-2.0
"""Tests of conv_gru_cell against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastds
from fastds.ops import conv_gru_cell
from fastds.ops.impl.conv_rnn.gru_step import RESET, UPDATE
from fastds.ops.impl.conv_rnn.reference import conv_gru_cell as reference
from tests.support.thread_cases import assert_same_bits

pytestmark = pytest.mark.usefixtures("native")

SHAPES = [(2, 24, 24, 9, 7), (1, 3, 24, 5, 18), (2, 5, 9, 1, 3), (1, 40, 33, 6, 5)]  # B, C1, C, H, W
OPTIONS = [{}, {"keep": "1-z"}, {"activation": "leaky_relu", "negative_slope": 0.1}]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def inputs(shape, dtype=torch.float32, layout=torch.channels_last, grad=True):
    batch, inputs, channels, height, width = shape
    weights = []
    for gates in (2, 1):
        weights.append(torch.randn(gates * channels, inputs + channels, 3, 3) / (9 * (inputs + channels)) ** 0.5)
        weights.append(torch.randn(gates * channels))
    maps = [torch.randn(batch, c, height, width).to(dtype).contiguous(memory_format=layout) for c in (inputs, channels)]
    tensors = [*maps, *(w.double() if dtype == torch.float64 else w for w in weights)]
    return [t.requires_grad_(grad) for t in tensors]


def oracle(x, h, gates, gates_bias, candidate, candidate_bias, keep="z", activation="tanh", negative_slope=0.2):
    z, r = F.conv2d(torch.cat([x, h], 1), gates, gates_bias, padding=1).sigmoid().chunk(2, 1)
    n = F.conv2d(torch.cat([x, r * h], 1), candidate, candidate_bias, padding=1)
    n = n.tanh() if activation == "tanh" else F.leaky_relu(n, negative_slope)
    return z * h + (1 - z) * n if keep == "z" else (1 - z) * h + z * n


def close(got, expected, unit):
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).abs().max() <= unit * b.abs().max().clamp_min(1)


def unit_of(dtype):
    return {torch.float64: 1e-12, torch.float32: 3e-5}.get(dtype, 6 * torch.finfo(dtype).eps)


def check(tensors, dtype, algorithm="winograd", **options):
    """Check values with and without autograd, and gradients."""
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    with fastds.use_conv_algorithm(algorithm):
        with torch.no_grad():
            fused = conv_gru_cell(*tensors, **options)
        got = conv_gru_cell(*tensors, **options)
        along = torch.randn_like(got)
        grads = torch.autograd.grad(got, tensors, along)
    expected = oracle(*doubles, **options)
    exact = torch.autograd.grad(expected, doubles, along.double())
    assert fused.dtype == got.dtype == dtype
    close((fused, got, *grads), (expected, expected, *exact), unit_of(dtype))


@pytest.mark.parametrize("algorithm", ["winograd", "direct", "auto"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, algorithm, two_threads):
    check(inputs(shape, dtype), dtype, algorithm)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layouts_and_options(layout, options):
    check(inputs(SHAPES[0], layout=layout), torch.float32, **options)
    check(inputs(SHAPES[0], torch.float64), torch.float64, "auto", **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(isa, dtype, native):
    check(inputs(SHAPES[0], dtype), dtype, "winograd" if native.conv3x3_available() else "auto")


def test_precomputed_input_convolution():
    x, h, gates, gates_bias, candidate, candidate_bias = tensors = inputs((2, 5, 16, 9, 7))
    shares = [fastds.ops.conv3x3(x, w[:, :5], b) for w, b in ((gates, gates_bias), (candidate, candidate_bias))]
    got = conv_gru_cell(None, h, gates[:, 5:], None, candidate[:, 5:], None, shares=shares)
    with torch.no_grad():
        fused = conv_gru_cell(None, h, gates[:, 5:], None, candidate[:, 5:], None, shares=shares)
    expected = conv_gru_cell(*tensors)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)
    along = torch.randn_like(got)
    grads, exact = (torch.autograd.grad(y, tensors, along) for y in (got, expected))
    for a, b in zip(grads, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_results_are_bitwise_independent_of_threads():
    tensors = inputs((2, 24, 24, 33, 21))

    def run():
        got = conv_gru_cell(*tensors)
        with torch.no_grad():
            fused = conv_gru_cell(*tensors)
        return got, fused, *torch.autograd.grad(got.sum(), tensors)

    assert_same_bits(run)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_first_and_second_derivatives(options):
    tensors = inputs((1, 2, 2, 3, 2), torch.float64)
    assert gradcheck(lambda *t: conv_gru_cell(*t, **options), tensors)
    assert gradgradcheck(lambda *t: conv_gru_cell(*t, **options), tensors)


@pytest.mark.parametrize("stages", ["public", "fused ops"])
def test_penalty_on_a_gradient(stages):
    tensors = inputs((1, 16, 16, 6, 5))
    doubles = [t.detach().double().requires_grad_() for t in tensors]

    def by_stages(x, h, gates, gates_bias, candidate, candidate_bias):
        z, reset, _ = RESET.op.overload(x, h, gates, gates_bias, None, h, "winograd", False)
        options = ("z", "tanh", 0.2, "winograd", False)
        return UPDATE.op.overload(x, reset, candidate, candidate_bias, None, z, h, *options)[0]

    def penalty(function, tensors):
        grads = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), tensors)

    function = conv_gru_cell if stages == "public" else by_stages
    for a, b in zip(penalty(function, tensors), penalty(oracle, doubles), strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize("mask", range(1, 64, 3))
def test_requires_grad_subsets(mask):
    everything = inputs((1, 16, 16, 5, 4))
    expected = torch.autograd.grad(conv_gru_cell(*everything).sum(), everything)
    tensors = [t.detach().requires_grad_(bool(mask >> i & 1)) for i, t in enumerate(everything)]
    conv_gru_cell(*tensors).sum().backward()
    for t, g in zip(tensors, expected, strict=True):
        assert (t.grad is None) == (not t.requires_grad)
        if t.grad is not None:
            torch.testing.assert_close(t.grad, g, rtol=1e-5, atol=1e-5)


def test_opcheck_compile_and_transforms():
    tensors = inputs((2, 16, 16, 5, 4))
    plain = [t.detach() for t in tensors]
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    for values, utils in ((plain, quick), (tensors, ("test_aot_dispatch_dynamic",))):
        x, h, gates, bias, candidate, own_bias = values
        for op, arguments in (
            (torch.ops.fastds.conv_gru_reset, (x, h, gates, bias, None, h)),
            (torch.ops.fastds.conv_gru_update, (x, h, candidate, own_bias, None, h, h, "z", "tanh", 0.2)),
        ):
            torch.library.opcheck(op.default, (*arguments, "winograd", False), test_utils=utils)
        step = (h, x, gates, bias, candidate, own_bias, None, None, "z", "tanh", 0.2, "winograd")
        torch.library.opcheck(torch.ops.fastds.conv_gru_step.default, step, test_utils=utils)
        outs = [t.detach() for t in torch.ops.fastds.conv_gru_step(*step)]
        backward = (outs[0], h, x, gates, candidate, *outs[1:], "z", "tanh", 0.2, "winograd", 6 * [True] + 2 * [False])
        torch.library.opcheck(torch.ops.fastds.conv_gru_step_backward.default, backward, test_utils=utils)

    def loss(x, *rest):
        return conv_gru_cell(2 * x, *rest).square().sum()

    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*tensors), tensors)
    for a, b in zip(compiled, torch.autograd.grad(loss(*tensors), tensors), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv_gru_cell(*tensors).dtype == conv_gru_cell(*plain).dtype == torch.bfloat16
    assert conv_gru_cell(plain[0][:0], plain[1][:0], *plain[2:]).shape == (0, 16, 5, 4)
    torch.testing.assert_close(conv_gru_cell(*plain), reference(*plain), rtol=1e-4, atol=1e-4)
    with fastds.use_backend("reference"):
        torch.testing.assert_close(conv_gru_cell(*plain), reference(*plain))


def test_zero_input_skips_the_convolution():
    x, h, gates, bias, candidate, own_bias = inputs((1, 3, 2, 4, 3), grad=False)
    expected = conv_gru_cell(torch.zeros_like(x), h, gates, bias, candidate, own_bias)
    of_h = [t.double() for t in (h, gates[:, 3:], bias, candidate[:, 3:], own_bias)]
    torch.testing.assert_close(conv_gru_cell(None, *of_h).float(), expected)
    torch.autograd.gradcheck(lambda *t: conv_gru_cell(None, *t), [t.requires_grad_() for t in of_h])


def test_error_messages():
    x, h, gates, bias, candidate, own_bias = inputs((1, 3, 4, 5, 5), grad=False)
    for arguments, options, error, words in (
        ((x, h, gates, bias, candidate[:, :6], None), {}, ValueError, r"weight has shape \(4, 6, 3, 3\), expected"),
        ((x, h[:, :3], gates, None, candidate, None), {}, ValueError, r"h has shape \(1, 3, 5, 5\), expected \(1, 4"),
        ((x, h, gates[:7], None, candidate, None), {}, ValueError, "a multiple of 2 outputs"),
        ((x, h, gates, bias.double(), candidate, None), {}, TypeError, "bias has dtype torch.float64, expected"),
        ((None, h, gates, bias, candidate, None), {}, ValueError, r"weight has shape \(8, 7, 3, 3\), expected \(8, 4"),
        ((x, h, gates, bias, candidate, None), {"shares": (h, h)}, ValueError, "expected x or shares, got both"),
        ((x, h, gates, bias, candidate, None), {"keep": "h"}, ValueError, "keep must be one of 'z', '1-z', got 'h'"),
        ((x, h, gates, bias, candidate, None), {"activation": "relu"}, ValueError, "activation must be one of"),
    ):
        with pytest.raises(error, match=words):
            conv_gru_cell(*arguments, **options)
