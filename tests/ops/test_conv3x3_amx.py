# SPDX-License-Identifier: Apache-2.0
"""Tests of conv3x3 and of recurrent cells with AMX in bfloat16."""

import random
from dataclasses import replace

import pytest
import torch

from fastds.ops import conv3x3, conv_lstm_cell
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference
from tests.support.conv3x3_cases import Problem, check_values, gradients, leaves, sampled

HALF = torch.bfloat16


@pytest.fixture(autouse=True)
def amx(native):
    if native.isa() != "avx512":
        pytest.skip("matrix tiles come with avx512, which is not the instruction set")
    if not native.conv3x3_amx_available():
        pytest.skip("no matrix tiles in this processor")


def rounded(tensors):
    """Round the weights to bfloat16, as float32 tensors."""
    x, weight, *others = tensors
    return [x, weight.to(HALF).float(), *others]


@pytest.mark.parametrize("part", range(6))
def test_sampled_pixels_agree_with_float64(part):
    for problem in sampled(10, 1000 + part):
        problem = replace(problem, dtype=HALF, out_dtype=None)
        tensors = rounded(problem.tensors())
        check_values(problem, problem.run(tensors, "amx"), problem.expected(tensors))


@pytest.mark.parametrize("inputs", [1, 3, 10, 11, 31, 32, 33, 64, 96, 256, 1024])
@pytest.mark.parametrize("outputs", [1, 16, 17, 33, 48, 300])
def test_channel_counts_not_multiple_of_tile(inputs, outputs):
    problem = Problem(B=3, C1=inputs, C2=0, O=outputs, H=11, W=5, dtype=HALF)  # 18 tiles: two and a part
    tensors = rounded(problem.tensors())
    check_values(problem, problem.run(tensors, "amx"), problem.expected(tensors))


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
@pytest.mark.parametrize("second", [0, 4])
@pytest.mark.parametrize("width", [1, 2, 5, 16, 18, 31])
def test_few_channels(padding_mode, second, width):
    problem = Problem(B=2, C1=6, C2=second, O=20, H=9, W=width, padding_mode=padding_mode, dtype=HALF)
    tensors = rounded(problem.tensors())
    check_values(problem, problem.run(tensors, "amx"), problem.expected(tensors))


@pytest.mark.parametrize("channels", [1, 2, 5, 16, 33, 70])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
def test_inputs_with_strided_channels(channels, padding_mode):
    whole, weight = torch.randn(2, channels + 3, 9, 37).to(HALF), torch.randn(20, channels + 4, 3, 3).to(HALF)
    x, x2 = whole[:, 2 : channels + 2, 1:, 3:36], torch.randn(2, 4, 8, 33).to(HALF)
    copies = [t.contiguous(memory_format=torch.channels_last) for t in (x, x2)]
    options = {"padding_mode": padding_mode, "algorithm": "amx"}
    expected = conv3x3(copies[0], weight, second_input=copies[1], **options)
    assert torch.equal(conv3x3(x, weight, second_input=x2, **options), expected)
    assert torch.equal(conv3x3(x.contiguous(), weight, second_input=copies[1], **options), expected)
    assert torch.equal(conv3x3(copies[0], weight, second_input=x2, **options), expected)


@pytest.mark.parametrize("inputs,size", [(3, (7, 1100)), (200, (5, 300)), (9, (700, 21)), (1, (2, 600)), (33, (1, 90))])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular_x"])
def test_large_fields(inputs, size, padding_mode):
    problem = Problem(2, inputs, 0, 21, *size, padding_mode=padding_mode, act="relu", dtype=HALF)
    tensors = rounded(problem.tensors())
    expected = problem.expected(tensors)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        check_values(problem, problem.run(tensors, "amx"), expected)


@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
@pytest.mark.parametrize("shuffle,outputs", [(1, 24), (2, 24), (1, 7), (2, 8)])
def test_gradients(act, padding_mode, shuffle, outputs):
    """Gradients are rounded to bfloat16 once, after accumulation in float32."""
    problem = Problem(act=act, padding_mode=padding_mode, shuffle=shuffle, dtype=HALF, C1=40, O=outputs, H=13, W=18)
    tensors = [t.detach().requires_grad_() for t in rounded(leaves(problem))]
    y = problem.run(tensors, "amx")
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(HALF)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    linear = replace(problem, act=None).expected(doubles)
    passed = grad_y.double() if act is None else torch.where(y > 0, grad_y, 0).double()
    for grad, exact in zip(gradients(y, tensors, grad_y), gradients(linear, doubles, passed), strict=True):
        bound = 2**-8 * exact.abs() + 1e-4 * exact.pow(2).mean().sqrt()
        assert ((grad.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize(
    "channels,size",
    [(176, (1, 40, 41)), (40, (1, 90, 91)), (9, (6, 5, 7)), (20, (5, 16, 16)), (33, (3, 9, 29)), (33, (3, 7, 31))],
)
def test_gradients_of_the_weight(channels, size):
    batch, *size = size
    problem = Problem(batch, channels, 21, channels + 3, *size, act="relu", dtype=HALF, residual=False)
    tensors = [None if t is None else t.requires_grad_() for t in rounded(problem.tensors())]
    y = problem.run(tensors, "amx")
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(HALF)
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    passed = torch.where(y > 0, grad_y, 0).double()
    exact = gradients(replace(problem, act=None).expected(doubles), doubles[1:3], passed)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        got = gradients(y, tensors[1:3], grad_y, retain_graph=True)
        for grad, expected in zip(got, exact, strict=True):
            assert ((grad.double() - expected).abs() <= 1e-5 * expected.pow(2).mean().sqrt()).all()


def test_slope_of_the_gradient():
    """The slope is a power of two, so that multiplication by it does not round."""
    x, weight = torch.randn(1, 32, 9, 9).to(HALF).requires_grad_(), torch.randn(32, 32, 3, 3).to(HALF) / 17
    y = conv3x3(x, weight, activation="leaky_relu", negative_slope=0.125, algorithm="amx")
    (got,) = torch.autograd.grad(y, x, torch.ones_like(y))
    slopes = torch.where(y > 0, 1.0, 0.125).double()
    leaf = x.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(reference(leaf, weight.double()), leaf, slopes)
    assert ((got.double() - exact).abs() <= 2**-8 * exact.abs() + 1e-3).all()


def test_results_are_bitwise_independent_of_threads_and_batch():
    x, weight = torch.randn(3, 70, 23, 30).to(HALF), torch.randn(90, 70, 3, 3).to(HALF)
    torch.set_num_threads(3)
    y = conv3x3(x, weight, algorithm="amx")
    torch.set_num_threads(1)
    assert torch.equal(conv3x3(x, weight, algorithm="amx"), y)
    assert torch.equal(conv3x3(x[1:2], weight, algorithm="amx"), y[1:2])


@pytest.mark.parametrize("channels", [3, 12, 40])
@pytest.mark.parametrize("column", [0, 6, 11])
def test_nan_matches_the_reference(channels, column):
    x, weight = torch.randn(1, channels, 12, 12).to(HALF), torch.randn(8, channels, 3, 3).to(HALF)
    x[0, 2, 5, column] = torch.nan
    y = conv3x3(x, weight, algorithm="amx").isnan()
    columns = slice(max(column - 1, 0), column + 2)
    assert y[..., 4:7, columns].all() and y.sum() == y[..., 4:7, columns].numel()


@pytest.mark.parametrize("hidden,inputs", [(8, 3), (32, 32), (40, 24)])
def test_lstm_cell(hidden, inputs):
    import fastds

    shapes = [(2, inputs, 13, 10), (2, hidden, 13, 10), (2, hidden, 13, 10)]
    x, h, c = (torch.randn(s).to(HALF) for s in shapes)
    weight = (torch.randn(4 * hidden, inputs + hidden, 3, 3) / (9 * (inputs + hidden)) ** 0.5).to(HALF)
    bias = torch.randn(4 * hidden).to(HALF)
    with fastds.use_conv_algorithm("amx"):
        new_h, new_c = conv_lstm_cell(x, h, c, weight, bias)
    pre = reference(torch.cat([x, h], 1).double(), weight.double(), bias.double())
    i, f, g, o = pre.chunk(4, 1)
    expected_c = f.sigmoid() * c.double() + i.sigmoid() * g.tanh()
    expected_h = o.sigmoid() * expected_c.tanh()
    for got, expected in ((new_h, expected_h), (new_c, expected_c)):
        assert ((got.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-4).all()


def test_unsupported_calls_are_rejected():
    with pytest.raises(RuntimeError, match="'amx' was requested, but AMX tiles compute in torch.bfloat16"):
        conv3x3(torch.randn(1, 4, 5, 5), torch.randn(4, 4, 3, 3), algorithm="amx")
    x, weight = torch.randn(1, 4, 5, 5).to(HALF), torch.randn(4, 4, 3, 3).to(HALF)
    with pytest.raises(RuntimeError, match="'amx' was requested, but AMX tiles compute in .* not torch.float32"):
        conv3x3(x, weight, out_dtype=torch.float32, algorithm="amx")


def test_amx_needs_its_instruction_set(native):
    x, weight = torch.randn(1, 4, 5, 5).to(HALF), torch.randn(4, 4, 3, 3).to(HALF)
    native.set_isa("avx2")
    try:
        with pytest.raises(RuntimeError, match="'amx' was requested, but this processor has no AMX tiles"):
            conv3x3(x, weight, algorithm="amx")
    finally:
        native.set_isa("auto")


def test_amx_state_is_restored_for_other_libraries():
    """Products of torch and of fastds alternate, because both configure the AMX tile registers."""
    x, weight = torch.randn(2, 64, 20, 20).to(HALF), torch.randn(64, 64, 3, 3).to(HALF)
    a = torch.randn(256, 256).to(HALF)
    y, product = conv3x3(x, weight, algorithm="amx"), a @ a
    for _ in range(random.Random(1).randint(20, 30)):
        assert torch.equal(a @ a, product)
        assert torch.equal(conv3x3(x, weight, algorithm="amx"), y)
