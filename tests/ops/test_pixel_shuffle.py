# SPDX-License-Identifier: Apache-2.0
"""Tests of pixel_shuffle and pixel_unshuffle."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import fastds
from fastds.ops import pixel_shuffle, pixel_unshuffle
from fastds.ops.impl.pixel_shuffle.reference import pixel_shuffle as reference
from tests.support.thread_cases import assert_same_bits

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FACTORS = [1, 2, 3, 4, 5, 6, 7, 8]
ACTS = [None, "relu", "leaky_relu"]
CL = torch.channels_last


def problem(r, channels=5, size=(3, 4), batch=2, dtype=torch.float64, layout=CL):
    x = torch.randn(batch, channels * r * r, *size, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=layout), torch.randn(channels * r * r, dtype=torch.float64).to(dtype)


def loops(x, r, bias, act, slope):
    """Compute pixel_shuffle in float64 by its definition, one sub-pixel at a time."""
    b, channels, h, w = x.shape
    y = torch.zeros(b, channels // r**2, h * r, w * r, dtype=torch.float64)
    for c in range(y.shape[1]):
        for i in range(r):
            for j in range(r):
                o = c * r * r + i * r + j
                y[:, c, i::r, j::r] = x[:, o].double() + (0 if bias is None else bias[o].double())
    return {None: lambda v: v, "relu": lambda v: v.clamp(min=0)}.get(act, lambda v: torch.where(v > 0, v, slope * v))(y)


@pytest.mark.parametrize("r", FACTORS)
@pytest.mark.parametrize("channels", [1, 3, 16, 21, 37, 64])
def test_permutation_is_exact(r, channels, native):
    for dtype in DTYPES:
        x, _ = problem(r, channels, dtype=dtype)
        y = pixel_shuffle(x, r)
        assert y.dtype == dtype and y.is_contiguous(memory_format=CL)
        assert torch.equal(y, F.pixel_shuffle(x, r)) and torch.equal(pixel_unshuffle(y, r), x)
        y = pixel_shuffle(x.contiguous(), r)
        assert y.is_contiguous() and (channels == 1 or pixel_unshuffle(y, r).is_contiguous())
        assert torch.equal(y, F.pixel_shuffle(x, r)) and torch.equal(pixel_unshuffle(y, r), x)


@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize("r", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(dtype, r, with_bias, act, native):
    x, bias = problem(r, 37, dtype=dtype)
    bias = bias if with_bias else None
    expected = loops(x, r, bias, act, 0.25)
    torch.testing.assert_close(pixel_shuffle(x, r, bias, act, 0.25).double(), expected.to(dtype).double())
    torch.testing.assert_close(reference(x.double(), r, None if bias is None else bias.double(), act or "none", 0.25),
                               expected)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(dtype, isa):
    for r, (channels, size) in itertools.product((1, 2, 3, 4, 8), ((45, (3, 4)), (1, (3, 19)))):
        x, bias = problem(r, channels, size, dtype=dtype)
        assert torch.equal(pixel_unshuffle(pixel_shuffle(x, r), r), x)
        x.requires_grad_(), bias.requires_grad_()
        y = pixel_shuffle(x, r, bias, "leaky_relu")
        with torch.no_grad():
            torch.testing.assert_close(y.double(), loops(x, r, bias, "leaky_relu", 0.1).to(dtype).double())
        grad_x, grad_bias = torch.autograd.grad(y, (x, bias), torch.ones_like(y))
        slopes = torch.tensor([0.1, 1.0], dtype=dtype)[(pixel_unshuffle(y.detach(), r) > 0).long()]
        assert torch.equal(grad_x, slopes)
        torch.testing.assert_close(grad_bias, slopes.double().sum((0, 2, 3)).to(dtype), rtol=0.01, atol=0)


@pytest.mark.parametrize("channels,size", [(1, (3, 5)), (64, (130, 131))], ids=["whole pixels", "streamed"])
@pytest.mark.parametrize("r", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_by_size(dtype, r, channels, size, native):
    if channels > 1:
        size = [n * 2 // r for n in size]
    x, bias = problem(r, channels, size, batch=2, dtype=dtype)
    assert channels == 1 or x.nbytes >= 16 << 20 or dtype == torch.bfloat16
    x.requires_grad_(), bias.requires_grad_()
    y = pixel_shuffle(x, r, bias, "leaky_relu", 0.25)
    expected = F.pixel_shuffle(F.leaky_relu(x.double() + bias.double()[:, None, None], 0.25), r)
    torch.testing.assert_close(y.double(), expected.to(dtype).double())
    grad = torch.randn(y.shape).to(dtype)
    got = torch.autograd.grad(y, (x, bias), grad)
    expected_grads = torch.autograd.grad(expected, (x, bias), grad.double())
    torch.testing.assert_close(got[0], expected_grads[0])
    torch.testing.assert_close(
        got[1].double(), expected_grads[1].double(), atol=0.05 * got[1].abs().max().item(), rtol=0.01
    )
    plain = pixel_shuffle(x.detach(), r)
    assert torch.equal(plain, F.pixel_shuffle(x.detach(), r)) and torch.equal(pixel_unshuffle(plain, r), x.detach())


@pytest.mark.parametrize("layout", [torch.contiguous_format, CL], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_permutation_kernels(dtype, layout, isa):
    shapes = ((1, 131), (3, 101), (12, 67), (40, 50), (2, 32), (2, 5))
    for r, (channels, width) in itertools.product(FACTORS, shapes):
        x, bias = problem(r, channels, (3, width), dtype=dtype, layout=layout)
        assert torch.equal(pixel_shuffle(x, r), F.pixel_shuffle(x, r))
        given = x.requires_grad_(), bias.requires_grad_()
        y = pixel_shuffle(*given[:1], r, bias, "leaky_relu", 0.25)
        assert y.is_contiguous(memory_format=layout)
        exact = F.pixel_shuffle(F.leaky_relu(x.double() + bias.double()[:, None, None], 0.25), r)
        torch.testing.assert_close(y.double(), exact.to(dtype).double())
        grad = torch.randn(y.shape).to(dtype)
        of_x, of_bias = torch.autograd.grad(y, given, grad)
        slopes = torch.where(y > 0, grad, 0.25 * grad)
        assert torch.equal(of_x, F.pixel_unshuffle(slopes, r))
        expected = F.pixel_unshuffle(torch.where(y > 0, 1.0, 0.25) * grad.double(), r).sum((0, 2, 3))
        torch.testing.assert_close(of_bias.double(), expected, rtol=0.01, atol=0.05 * expected.abs().max().item())


def test_special_values(native):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-42, -1e-42]).view(1, 1, 2, 3)
    for act in ACTS:
        torch.testing.assert_close(pixel_shuffle(x, 1, None, act), reference(x, 1, None, act or "none"), equal_nan=True)
    bits = torch.tensor([0x7FC12345, 0x7F800001, -1], dtype=torch.int32).view(torch.float32).view(1, 1, 1, 3)
    assert torch.equal(pixel_shuffle(bits, 1).view(torch.int32), bits.view(torch.int32)), "a permutation moves bits"


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "expanded", "transposed"])
def test_strided_inputs(layout, native):
    x, bias = problem(2, 17, (4, 6), layout=torch.contiguous_format)
    x = {"contiguous": x, "sliced": x[:, :, 1::2, ::3], "expanded": x[:1].expand(3, -1, -1, -1),
         "transposed": x.transpose(2, 3)}[layout]  # fmt: skip
    y = pixel_shuffle(x, 2, bias, "relu")
    assert y.is_contiguous(memory_format=torch.contiguous_format if layout == "contiguous" else CL)
    torch.testing.assert_close(y, loops(x, 2, bias, "relu", 0))
    torch.testing.assert_close(pixel_unshuffle(y, 2), F.pixel_unshuffle(y, 2))


@pytest.mark.parametrize("shape", [(0, 8, 3, 4), (2, 8, 0, 4), (2, 8, 3, 0)], ids=str)
def test_empty(shape, native):
    x, bias = torch.randn(shape, requires_grad=True), torch.randn(8, requires_grad=True)
    y = pixel_shuffle(x, 2, bias, "relu")
    assert tuple(y.shape) == (shape[0], 2, 2 * shape[2], 2 * shape[3])
    y.sum().backward()
    assert x.grad.shape == x.shape and torch.equal(bias.grad, torch.zeros(8))
    assert pixel_unshuffle(y.detach(), 2).shape == x.shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("r", [1, 2, 3, 8])
def test_fused_backward(r, act, dtype, native):
    x, bias = problem(r, 21, (5, 7), dtype=dtype)
    grad_y = torch.randn(2, 21, 5 * r, 7 * r, dtype=torch.float64).to(dtype)
    leaves = [t.detach().requires_grad_() for t in (x, bias)]
    got = torch.autograd.grad(pixel_shuffle(leaves[0], r, leaves[1], act), leaves, grad_y)
    doubles = [t.detach().double().requires_grad_() for t in (x, bias)]
    y = reference(doubles[0], r, doubles[1], act or "none")
    # Half precision rounds the sum x + bias, so the sign of the rounded result selects the branch of the activation.
    stored = pixel_shuffle(x, r, bias, act).double()
    slope = {None: 1.0, "relu": 0.0, "leaky_relu": 0.1}[act]
    factor = torch.where(stored > 0, 1.0, slope).to(torch.float64)
    expected_x = F.pixel_unshuffle(grad_y.double() * factor, r)
    torch.testing.assert_close(got[0].double(), expected_x.to(dtype).double())
    torch.testing.assert_close(got[1].double(), expected_x.sum((0, 2, 3)), rtol=torch.finfo(dtype).eps * 8, atol=2e-5)
    if dtype == torch.float64:
        for a, b in zip(got, torch.autograd.grad(y, doubles, grad_y.double()), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("subset", ["x", "bias"])
def test_subsets_of_gradients(subset, native):
    x, bias = problem(2, 6, dtype=torch.float32)
    grad_y = torch.randn(2, 6, 6, 8)
    full = [t.detach().requires_grad_() for t in (x, bias)]
    expected = torch.autograd.grad(pixel_shuffle(full[0], 2, full[1], "leaky_relu"), full, grad_y)
    one = [x.detach().requires_grad_(subset == "x"), bias.detach().requires_grad_(subset == "bias")]
    pixel_shuffle(one[0], 2, one[1], "leaky_relu").backward(grad_y)
    for leaf, grad in zip(one, expected, strict=True):
        assert torch.equal(leaf.grad, grad) if leaf.requires_grad else leaf.grad is None


@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_gradcheck(r, act, native):
    x, bias = problem(r, 2, (2, 3), batch=1)
    x = torch.where(x.abs() < 0.1, x + 0.3, x).requires_grad_()  # away from the kink of x + 0
    bias = (bias * 0).requires_grad_()

    def function(x, bias):
        return pixel_shuffle(x, r, bias, act)

    assert gradcheck(function, (x, bias)) and gradgradcheck(function, (x, bias))
    y = torch.randn(1, 2, 2 * r, 3 * r, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda y: pixel_unshuffle(y, r), y) and gradgradcheck(lambda y: pixel_unshuffle(y, r), y)


def test_adjoint():
    """<shuffle(x), y> = <x, unshuffle(y)>."""
    for r in FACTORS:
        x, _ = problem(r)
        y = torch.randn(2, 5, 3 * r, 4 * r, dtype=torch.float64)
        torch.testing.assert_close((pixel_shuffle(x, r) * y).sum(), (x * pixel_unshuffle(y, r)).sum())


@pytest.mark.parametrize("act", ACTS, ids=str)
def test_second_order_gradients_of_a_mixed_graph(act, native):
    """Compute second derivatives of a graph that contains f(x) * x and a gradient penalty.

    If the backward pass omitted an input, terms would be missing from these derivatives without an error.
    """
    x, bias = problem(2, 3)
    weight = torch.randn(2, 3, 6, 8, dtype=torch.float64)

    def second(function):
        leaves = [t.detach().requires_grad_() for t in (x, bias, weight)]
        y = function(leaves[0], 2, leaves[1], act) * leaves[2]
        first = torch.autograd.grad((y.square() * y).sum() + (leaves[0] ** 3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    composite = second(lambda x, r, bias, act: reference(x, r, bias, act or "none"))
    for a, b in zip(second(pixel_shuffle), composite, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_are_bitwise_independent_of_threads(dtype, native):
    x, bias = problem(2, 24, (33, 9), dtype=dtype)
    grad_y = torch.randn(2, 24, 66, 18).to(dtype)

    def run():
        leaves = [t.detach().requires_grad_() for t in (x, bias)]
        y = pixel_shuffle(leaves[0], 2, leaves[1], "leaky_relu")
        return y, *torch.autograd.grad(y, leaves, grad_y)

    assert_same_bits(run, (1, 2, 5))


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("layout", [CL, torch.contiguous_format], ids=["channels_last", "contiguous"])
def test_opcheck(layout, native):
    x, bias = problem(2, 3, dtype=torch.float32, layout=layout)
    x, bias = x.requires_grad_(), bias.requires_grad_()
    ops = torch.ops.fastds
    torch.library.opcheck(ops.pixel_shuffle.default, (x, 2, bias, "leaky_relu", 0.1), test_utils=OPCHECKS)
    torch.library.opcheck(ops.pixel_shuffle.default, (x, 2, None, "none", 0.1), test_utils=OPCHECKS)
    y = torch.randn(2, 3, 6, 8)
    torch.library.opcheck(ops.pixel_unshuffle.default, (y.clone().requires_grad_(), 2), test_utils=OPCHECKS)
    for needs_grad in ([True, True], [True, False], [False, True]):
        args = (torch.randn_like(y), y, 2, 0.1, torch.float32, needs_grad)
        torch.library.opcheck(ops.pixel_shuffle_backward.default, args, test_utils=OPCHECKS)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph_with_gradients(dynamic, native):
    torch.compiler.reset()

    def function(x, bias):
        return pixel_unshuffle(pixel_shuffle(2 * x, 2, bias, "leaky_relu").sin(), 2)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    results = []
    for run in (function, compiled):
        torch.manual_seed(1)
        leaves = [t.requires_grad_() for t in problem(2, 3, dtype=torch.float32)]
        y = run(*leaves)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast(native):
    x, bias = problem(2, 3, dtype=torch.float32)
    bias = bias + 2.0**-12  # lost if the bias were cast
    with torch.autocast("cpu", torch.bfloat16):
        y = pixel_shuffle(x, 2, bias)
        assert y.dtype == pixel_unshuffle(x, 1).dtype == torch.bfloat16
        assert pixel_shuffle(x.double(), 2).dtype == torch.float64
    assert torch.equal(y, pixel_shuffle(x.bfloat16(), 2, bias))


def test_transforms(native):
    x, bias = problem(2, 3)
    tangent = torch.randn_like(x)

    def function(x):
        return pixel_shuffle(x, 2, bias, "leaky_relu")

    h = 1e-6
    expected = (function(x + h * tangent) - function(x - h * tangent)) / (2 * h)
    torch.testing.assert_close(torch.func.jvp(function, (x,), (tangent,))[1], expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(
            torch.ops.fastds.pixel_unshuffle(forward_ad.make_dual(x[:, :, :2], tangent[:, :, :2]), 2)
        )
        torch.testing.assert_close(dual.tangent, F.pixel_unshuffle(tangent[:, :, :2], 2))
    stack = torch.stack([x, -x])
    torch.testing.assert_close(torch.vmap(function)(stack), torch.stack([function(x), function(-x)]))


def test_backends_agree_and_meta_gives_shapes(native):
    x, bias = problem(3, 5, dtype=torch.float32)
    with fastds.use_backend("reference"):
        expected = pixel_shuffle(x, 3, bias, "relu")
    with fastds.use_backend("native"):
        assert torch.equal(pixel_shuffle(x, 3, bias, "relu"), expected)
    y = pixel_shuffle(x.to("meta"), 3, bias.to("meta"))
    assert y.device.type == "meta" and tuple(y.shape) == (2, 5, 9, 12)


def test_error_messages():
    x = torch.randn(1, 8, 2, 3)
    for message, error, call in [
        ("x is a list, expected a Tensor", TypeError, lambda: pixel_shuffle([1.0], 2)),
        ("x has dtype torch.int64", TypeError, lambda: pixel_shuffle(x.long(), 2)),
        ("expected 4 dimensions", ValueError, lambda: pixel_shuffle(x[0], 2)),
        ("upscale_factor must be an int from 1 to 8, got 9", ValueError, lambda: pixel_shuffle(x, 9)),
        ("downscale_factor must be an int from 1 to 8, got True", ValueError, lambda: pixel_unshuffle(x, True)),
        ("8 channels, expected a multiple of upscale_factor\\^2 = 9", ValueError, lambda: pixel_shuffle(x, 3)),
        ("bias is an int", TypeError, lambda: pixel_shuffle(x, 2, 1)),
        ("bias has dtype torch.float64", TypeError, lambda: pixel_shuffle(x, 2, torch.zeros(8).double())),
        ("bias has shape \\(2,\\), expected \\(8,\\)", ValueError, lambda: pixel_shuffle(x, 2, torch.zeros(2))),
        ("bias is on device meta", ValueError, lambda: pixel_shuffle(x, 2, torch.zeros(8, device="meta"))),
        ("activation must be None, 'relu' or 'leaky_relu', got 'tanh'", ValueError,
         lambda: pixel_shuffle(x, 2, None, "tanh")),
        ("negative_slope must be a finite number >= 0, got -1", ValueError,
         lambda: pixel_shuffle(x, 2, None, "leaky_relu", -1)),
        ("2 x 3 pixels, expected multiples of downscale_factor = 2", ValueError, lambda: pixel_unshuffle(x, 2)),
        ("at least one channel", ValueError, lambda: pixel_unshuffle(x[:, :0], 1)),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()
