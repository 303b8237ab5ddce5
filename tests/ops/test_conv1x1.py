# SPDX-License-Identifier: Apache-2.0
"""Tests of conv1x1, in the order of tests/ops/test_null_op.py."""

import itertools
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import fastds
from fastds.ops import conv1x1
from fastds.ops.impl.conv1x1.reference import conv1x1 as reference

LAST = torch.channels_last
# Tolerance relative to the largest value. Inputs are rounded, sums are computed in float32, and the result is rounded.
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def strided(x):
    """Return a view of x whose rows are not adjacent in memory."""
    wide = F.pad(x, (1, 2, 1, 1, 1, 1))
    return wide[:, 1:-1, 1:-1, 1:-2]


LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=LAST),
    "contiguous": lambda x: x,
    "strided": strided,
    "rows of pixels": lambda x: x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3),
    "one image": lambda x: x[:1].contiguous(memory_format=LAST).expand(x.shape),
    "negative": lambda x: torch.complex(x, -x).conj().imag,
}


@dataclass(frozen=True)
class Problem:
    batch: int
    inputs: int
    more: int
    outputs: int
    size: tuple[int, int]
    dtype: torch.dtype
    weight: torch.dtype
    layout: str
    act: str | None
    bias: bool
    residual: bool
    seed: int

    def tensors(self):
        """Return x, weight, bias, x2, residual."""
        generator = torch.Generator().manual_seed(self.seed)

        def numbers(*shape):
            return torch.randn(shape, generator=generator)

        def image(channels):
            made = LAYOUTS[self.layout](numbers(self.batch, channels, *self.size))
            return made if self.layout == "negative" and self.dtype == torch.float32 else made.to(self.dtype)

        weight = numbers(self.outputs, self.inputs + self.more, 1, 1) / (self.inputs + self.more) ** 0.5
        x, x2 = image(self.inputs), image(self.more) if self.more else None
        bias, residual = numbers(self.outputs), image(self.outputs)
        weight, bias = weight.to(self.weight), bias.to(self.weight)
        return [x, weight, bias if self.bias else None, x2, residual if self.residual else None]

    def run(self, x, weight, bias, x2, residual):
        return conv1x1(x, weight, bias, second_input=x2, residual=residual, activation=self.act)

    def expected(self, tensors):
        """Compute the result in float64."""
        return reference(*(t if t is None else t.double() for t in tensors), self.act or "none", 0.1)


def drawn(count, seed):
    """Return random problems with all vector remainders."""
    choose = random.Random(seed)
    for k in range(count):
        dtype = choose.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64])
        yield Problem(
            choose.choice([1, 1, 2, 3]), choose.choice([choose.randint(1, 20), choose.randint(1, 130)]),
            choose.choice([0, choose.randint(1, 20), choose.randint(1, 70)]),
            choose.choice([choose.randint(1, 24), choose.randint(1, 150)]),
            (choose.choice([1, choose.randint(1, 9), choose.randint(1, 30)]), choose.randint(1, 30)), dtype,
            dtype if dtype == torch.float64 else choose.choice([dtype, torch.float32]), choose.choice(list(LAYOUTS)),
            choose.choice([None, "relu", "leaky_relu"]), choose.random() < 0.7, choose.random() < 0.4, k,
        )  # fmt: skip


def assert_close(got, want, dtype):
    assert (got.double() - want).abs().max() <= TOLERANCE[dtype] * want.abs().max().clamp_min(1e-3)


def test_forward(native, isa):
    for problem in drawn(60, 1):
        tensors = problem.tensors()
        y = problem.run(*tensors)
        assert y.dtype == problem.dtype and y.is_contiguous(memory_format=LAST), problem
        assert_close(y, problem.expected(tensors), problem.dtype)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "strided"])
def test_few_outputs(native, isa, layout):
    choose = random.Random(5)
    for outputs in (1, 2, 3, 4):
        for k in range(6):
            dtype = choose.choice([torch.float32, torch.bfloat16, torch.float16])
            inputs, more = choose.randint(20, 150), choose.choice([0, 0, choose.randint(1, 90)])
            size = choose.choice([(1, 1), (3, 5), (8, 8), (9, 9), (24, 25)])
            options = dict(
                layout=layout, act=choose.choice([None, "relu"]), bias=k % 2 > 0, residual=k % 3 == 0, seed=k
            )
            problem = Problem(choose.choice([1, 3]), inputs, more, outputs, size, dtype, torch.float32, **options)
            tensors = problem.tensors()
            assert_close(problem.run(*tensors), problem.expected(tensors), dtype)


@pytest.mark.parametrize("size", [(128, 128), (129, 131)], ids=str)
@pytest.mark.parametrize("inputs", [17, 129])
def test_large_planes(native, isa, inputs, size):
    problem = Problem(1, inputs, 0, 21, size, torch.float32, torch.float32, "contiguous", "relu", True, False, seed=3)
    tensors = problem.tensors()
    torch.testing.assert_close(problem.run(*tensors).double(), problem.expected(tensors), rtol=0, atol=2e-5)


@pytest.mark.parametrize("inputs, outputs", [(1, 1), (2, 9), (17, 24), (24, 17), (5, 130), (130, 3), (33, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weight_gradient_reads_only_its_channels(native, isa, inputs, outputs, dtype):
    """The memory around both tensors is NaN, so that a read outside them shows in the gradient."""
    for shape in ((1, 3, 5), (2, 16, 17), (3, 20, 40)):
        batch, height, width = shape
        wide = torch.full((batch, inputs + outputs + 40, height, width), torch.nan, dtype=dtype)
        wide = wide.contiguous(memory_format=LAST)
        x, grad = wide[:, 3 : 3 + inputs], wide[:, 20 + inputs : 20 + inputs + outputs]
        x.copy_(torch.rand(x.shape)), grad.copy_(torch.rand(grad.shape))
        weight = torch.randn(outputs, inputs, 1, 1, requires_grad=True)
        got = torch.autograd.grad(conv1x1(x, weight), weight, grad)[0]
        want = torch.einsum("bohw,bihw->oi", grad.double(), x.double())[:, :, None, None]
        assert_close(got, want, dtype)


def test_strided_channels_with_one_pixel(native):
    x, weight = torch.randn(2, 6, 1, 1)[:, ::2], torch.randn(4, 3, 1, 1)
    torch.testing.assert_close(conv1x1(x, weight), F.conv2d(x, weight))
    x = torch.randn(2, 6, 1, 5)[:, ::2, :, 2:3]
    torch.testing.assert_close(conv1x1(x, weight), F.conv2d(x, weight))


def test_gradients(native, isa):
    """Compare gradients with float64.

    Activations are used only with float32 and float64: a pre-activation near 0 may change its sign when it is rounded
    to 16 bits.
    """
    for problem in drawn(60, 2):
        if problem.act is not None and problem.dtype not in (torch.float32, torch.float64):
            continue
        tensors = [t if t is None else t.detach().requires_grad_() for t in problem.tensors()]
        doubles = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
        y = problem.run(*tensors)
        along = torch.randn(y.shape).to(y.dtype)
        got = torch.autograd.grad(y, [t for t in tensors if t is not None], along)
        want = torch.autograd.grad(problem.expected(doubles), [t for t in doubles if t is not None], along.double())
        for a, b, leaf in zip(got, want, [t for t in tensors if t is not None], strict=True):
            assert a.dtype == leaf.dtype and a.shape == leaf.shape
            assert_close(a, b, problem.dtype)


def test_results_do_not_depend_on_threads_or_other_pixels(native):
    before = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16):
        x, x2 = torch.randn(2, 37, 19, 23).to(dtype), torch.randn(2, 5, 19, 23).to(dtype)
        weight = torch.randn(70, 42, 1, 1).requires_grad_()
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = conv1x1(x, weight, second_input=x2)
            results.append((y, *torch.autograd.grad(y, weight, torch.ones_like(y))))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
        rows = slice(4, 11)
        with torch.no_grad():
            assert torch.equal(conv1x1(x[:, :, rows], weight, second_input=x2[:, :, rows]), results[0][0][:, :, rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [3, 8, 33])
def test_non_finite_values_stay_in_their_pixel(dtype, channels, native, isa):
    if isa == "baseline" and dtype == torch.bfloat16:
        return  # torch's own product, which runs there, multiplies numbers of the next pixel by zero
    x = torch.randn(1, channels, 5, 30).to(dtype).contiguous(memory_format=LAST)
    x[0, 0, 2, 7], x[0, channels - 1, 3, 0] = float("nan"), float("inf")
    y = conv1x1(x, torch.rand(4, channels, 1, 1) + 0.1, activation="relu")
    assert y[0, :, 2, 7].isnan().all() and y[0, :, 3, 0].isinf().all()
    y[0, :, 2, 7] = y[0, :, 3, 0] = 0
    assert y.isfinite().all()
    assert (conv1x1(torch.full_like(x, -float("inf")), torch.ones(2, channels, 1, 1), activation="relu") == 0).all()


def test_no_write_outside_the_result(native, monkeypatch):
    """The kernel may write whole vectors past the end of a row, but not past the end of the last row."""
    from fastds.ops.impl.conv1x1 import kernels

    made = []

    def framed(shape, dtype, like):
        batch, channels, height, width = shape
        size = batch * channels * height * width
        made.append(torch.full((size + 128,), 7.0, dtype=dtype))
        strides = (height * width * channels, 1, width * channels, channels)
        return made[-1][64 : 64 + size].as_strided(shape, strides, 64)

    monkeypatch.setattr(kernels, "empty_map", framed)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for inputs, outputs in itertools.product((5, 40), (1, 3, 16, 17, 63, 65)):
            x = torch.randn(2, inputs, 7, 9).to(dtype)
            y = conv1x1(x, torch.randn(outputs, inputs, 1, 1), activation="relu" if outputs % 2 else None)
            assert (made[-1][:64] == 7).all() and (made[-1][64 + y.numel() :] == 7).all(), (dtype, inputs, outputs)


def test_sums_of_many_channels_and_pixels(native):
    generator = torch.Generator().manual_seed(9)
    before = torch.get_num_threads()
    for inputs, outputs, size in ((600, 48, (9, 17)), (544, 300, (3, 5)), (33, 17, (31, 33)), (64, 40, (16, 2))):
        x = torch.randn(2, inputs, *size, generator=generator).bfloat16().requires_grad_()
        weight = (torch.randn(outputs, inputs, 1, 1, generator=generator) / inputs**0.5).bfloat16().requires_grad_()
        along = torch.randn(2, outputs, *size, generator=generator).bfloat16()
        results = []
        for threads, layout in itertools.product((1, 2), (LAST, torch.contiguous_format)):
            torch.set_num_threads(threads)
            y = conv1x1(x.contiguous(memory_format=layout), weight)
            results.append((y, *torch.autograd.grad(y, (x, weight), along)))
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
        wide = [t.detach().double().requires_grad_() for t in (x, weight)]
        y = F.conv2d(*wide)
        for a, b in zip(results[0], (y, *torch.autograd.grad(y, wide, along.double())), strict=True):
            assert_close(a, b, torch.bfloat16)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
@pytest.mark.parametrize("act", [None, "leaky_relu"], ids=str)
def test_numerical_derivatives(check, act):
    shapes = ((2, 3, 2, 3), (4, 5, 1, 1), (4,), (2, 2, 2, 3), (2, 4, 2, 3))
    leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert check(lambda x, w, b, x2, r: conv1x1(x, w, b, second_input=x2, residual=r, activation=act), leaves)


def test_second_derivatives_in_float32(native):
    x, weight = torch.randn(2, 6, 5, 4, requires_grad=True), torch.randn(3, 6, 1, 1, requires_grad=True)

    def second(x, weight, function):
        y = function(x, weight)
        grads = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight))

    doubles = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = second(*doubles, F.conv2d)
    for got, want in zip(second(x, weight, conv1x1), expected, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("subset", range(1, 32))
def test_requires_grad_subsets(subset, native):
    shapes = ((2, 3, 2, 3), (4, 5, 1, 1), (4,), (2, 2, 2, 3), (2, 4, 2, 3))
    leaves = [torch.randn(shape).requires_grad_(bool(subset >> k & 1)) for k, shape in enumerate(shapes)]

    def grads(leaves):
        x, weight, bias, x2, residual = leaves
        conv1x1(x, weight, bias, second_input=x2, residual=residual, activation="relu").square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for got, want, leaf in zip(
        grads(leaves), grads([t.detach().requires_grad_() for t in leaves]), leaves, strict=True
    ):
        assert torch.equal(got, want) if leaf.requires_grad else got is None


def test_empty_batch(native):
    x, weight = torch.randn(0, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 1, 1, requires_grad=True)
    y = conv1x1(x, weight)
    y.sum().backward()
    assert y.shape == (0, 2, 4, 5) and x.grad.shape == x.shape and (weight.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype, native):
    x, weight = torch.randn(2, 3, 4, 5).to(dtype).requires_grad_(), torch.randn(4, 5, 1, 1).to(dtype).requires_grad_()
    x2, residual = torch.randn(2, 2, 4, 5).to(dtype), torch.randn(2, 4, 4, 5).to(dtype)
    args = (x, weight, torch.randn(4).to(dtype).requires_grad_(), x2, residual, "leaky_relu", 0.2)
    torch.library.opcheck(torch.ops.fastds.conv1x1, args)
    args = (residual, x.detach(), weight.detach(), x2, residual, 0.2, [True] * 5)
    torch.library.opcheck(torch.ops.fastds.conv1x1_backward, args)


def test_compile_with_gradients(native):
    x, weight = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 1, 1, requires_grad=True)
    compiled = torch.compile(lambda x, w: conv1x1(2 * x, w), fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, weight).square().sum(), (x, weight))
    for a, b in zip(got, torch.autograd.grad(conv1x1(2 * x, weight).square().sum(), (x, weight)), strict=True):
        torch.testing.assert_close(a, b)


def test_transforms(native):
    x, weight, tangent = torch.randn(3, 1, 4, 2, 5), torch.randn(2, 4, 1, 1), torch.randn(1, 4, 2, 5)
    torch.testing.assert_close(
        torch.vmap(lambda x: conv1x1(x, weight))(x), torch.stack([conv1x1(a, weight) for a in x])
    )
    _, along = torch.func.jvp(lambda x: conv1x1(x, weight), (x[0],), (tangent,))
    torch.testing.assert_close(along, conv1x1(tangent, weight))


def test_backends_agree(native):
    x, weight = torch.randn(2, 7, 4, 5), torch.randn(3, 7, 1, 1)
    with fastds.use_backend("reference"):
        expected = conv1x1(x, weight, activation="relu")
    with fastds.use_backend("native"):
        torch.testing.assert_close(conv1x1(x, weight, activation="relu"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, native):
    x, weight = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 1, 1, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = conv1x1(x, weight, torch.randn(2))
        assert conv1x1(x.double(), weight.double()).dtype == torch.float64
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_error_messages():
    x, weight = torch.randn(1, 3, 4, 5), torch.randn(2, 3, 1, 1)
    for call, error, words in (
        (lambda: conv1x1([1.0], weight), TypeError, "x is a list, expected a Tensor"),
        (lambda: conv1x1(x, weight[:, :2]), ValueError, r"weight has shape \(2, 2, 1, 1\), expected \(2, 3, 1, 1\)"),
        (lambda: conv1x1(x, weight.half()), TypeError, "weight has dtype torch.float16, expected torch.float32"),
        (lambda: conv1x1(x, weight, torch.ones(3)), ValueError, r"bias has shape \(3,\), expected \(2,\)"),
        (lambda: conv1x1(x, weight, second_input=x[:, :1, :2]), ValueError, r"second_input has shape \(1, 1, 2, 5\)"),
        (lambda: conv1x1(x, weight, residual=x), ValueError, r"residual has shape .* expected \(1, 2, 4, 5\)"),
        (lambda: conv1x1(x, weight, activation="gelu"), ValueError, "activation must be None, 'relu' or 'leaky_relu'"),
        (lambda: conv1x1(x, weight, negative_slope="a"), TypeError, "negative_slope is a str"),
    ):
        with pytest.raises(error, match=words):
            call()
    backward = torch.ops.fastds.conv1x1_backward
    with pytest.raises(ValueError, match=r"grad_y has shape \(1, 3, 4, 5\), expected \(1, 2, 4, 5\)"):
        backward(x, x, weight, None, None, 0.0, [True] * 3 + [False] * 2)
    with pytest.raises(ValueError, match="needs_grad requests the gradient of x2, but x2 is None"):
        backward(x[:, :2], x, weight, None, None, 0.0, [True] * 5)
