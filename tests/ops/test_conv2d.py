# SPDX-License-Identifier: Apache-2.0
"""Tests of conv2d, in the order of tests/ops/test_null_op.py."""

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import fastds
from fastds.nn import Conv2d
from fastds.ops import conv2d, conv3x3
from fastds.ops.core import packed_weight_cache
from fastds.ops.impl.conv2d import costs, kernels, op, reference
from fastds.ops.impl.conv2d.op import CONV2D_BACKWARD
from fastds.ops.impl.conv3x3 import library, winograd
from fastds.ops.impl.conv3x3.reference import conv3x3 as reference_of_conv3x3

LAST = torch.channels_last
# Tolerance relative to the largest value. Inputs are rounded, sums are computed in float32, and the result is rounded.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=LAST),
    "contiguous": lambda x: x,
    "strided": lambda x: F.pad(x, (1, 2, 1, 1, 1, 1))[:, 1:-1, 1:-1, 1:-2],
    "channels of more": lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)).contiguous(memory_format=LAST)[:, 2:-3],
    "one image": lambda x: x[:1].contiguous(memory_format=LAST).expand(x.shape),
    "negative": lambda x: torch.complex(x, -x).conj().imag,
}


@dataclass(frozen=True)
class Problem:
    batch: int
    groups: int
    inputs: int  # of a group
    outputs: int
    kernel: int
    size: tuple[int, int]
    dtype: torch.dtype
    weight: torch.dtype
    layout: str
    of_weight: torch.memory_format
    bias: bool
    seed: int

    def tensors(self):
        """Return x, weight, bias."""
        generator = torch.Generator().manual_seed(self.seed)

        def numbers(*shape):
            return torch.randn(shape, generator=generator)

        x = LAYOUTS[self.layout](numbers(self.batch, self.groups * self.inputs, *self.size))
        x = x if self.layout == "negative" and self.dtype == torch.float32 else x.to(self.dtype)
        weight = numbers(self.groups * self.outputs, self.inputs, self.kernel, self.kernel)
        weight = (weight / (self.kernel * self.inputs**0.5)).to(self.weight).contiguous(memory_format=self.of_weight)
        bias = numbers(self.groups * self.outputs).to(self.weight)
        return [x, weight, bias if self.bias else None]

    def expected(self, x, weight, bias):
        """Compute the result with torch."""
        return F.conv2d(x, weight, bias, padding=self.kernel // 2, groups=self.groups)


def drawn(count, seed, dtypes=(torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)):
    """Return random problems with all vector remainders."""
    choose = random.Random(seed)
    for k in range(count):
        dtype = choose.choice(dtypes)
        yield Problem(
            choose.choice([1, 1, 2, 3]), choose.choice([1, 1, 2, 3, 4]),
            choose.choice([choose.randint(1, 20), choose.randint(1, 70)]),
            choose.choice([choose.randint(1, 20), choose.randint(1, 70)]), choose.choice([1, 3, 5, 7, 9, 11, 13]),
            (choose.choice([1, choose.randint(1, 9), choose.randint(1, 24)]), choose.randint(1, 24)), dtype,
            dtype if dtype == torch.float64 else choose.choice([dtype, torch.float32]), choose.choice(list(LAYOUTS)),
            choose.choice([LAST, torch.contiguous_format]), choose.random() < 0.7, k,
        )  # fmt: skip


def assert_close(got, want, dtype, *context):
    assert (got.double() - want).abs().max() <= TOLERANCE[dtype] * want.abs().max().clamp_min(1e-3), context


@pytest.fixture(params=["winograd", "direct", "auto"])
def algorithm(request):
    return request.param


@pytest.fixture
def by_engine():
    with fastds.use_conv_algorithm("winograd"):
        yield


def problems_for(algorithm, native, count, seed):
    """Return random problems that the algorithm supports."""
    if algorithm == "winograd" and not native.conv3x3_available():
        pytest.skip("no engine for this instruction set in this build")
    return (p for p in drawn(count, seed) if algorithm != "winograd" or p.dtype != torch.float64)


def test_forward(native, isa, algorithm):
    for problem in problems_for(algorithm, native, 60, 1):
        tensors = problem.tensors()
        with fastds.use_conv_algorithm(algorithm):
            y = conv2d(*tensors, groups=problem.groups)
        assert y.dtype == problem.dtype, problem
        assert algorithm != "winograd" or problem.kernel == 1 or y.is_contiguous(memory_format=LAST), problem
        want = problem.expected(*(t if t is None else t.double() for t in tensors))
        assert_close(y, want, problem.dtype, problem)


def test_gradients(native, isa, algorithm):
    for problem in problems_for(algorithm, native, 40, 2):
        leaves = [t if t is None else t.detach().requires_grad_() for t in problem.tensors()]
        doubles = [t if t is None else t.detach().double().requires_grad_() for t in leaves]
        with fastds.use_conv_algorithm(algorithm):
            y = conv2d(*leaves, groups=problem.groups)
            cotangent = torch.randn(y.shape).to(y.dtype)
            got = torch.autograd.grad(y, [t for t in leaves if t is not None], cotangent)
        given = [t for t in doubles if t is not None]
        want = torch.autograd.grad(problem.expected(*doubles), given, cotangent.double())
        for a, b, leaf in zip(got, want, given, strict=True):
            assert a.shape == leaf.shape, problem
            # The library sums in the dtype of x.
            assert_close(a, b, a.dtype if algorithm == "winograd" else problem.dtype, problem)


def test_threads(native, engine_isa, by_engine):
    """Results and gradients have the same bits with one, two and five threads."""
    for problem in drawn(12, 3, dtypes=(torch.float32, torch.bfloat16)):
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaves = [t if t is None else t.detach().requires_grad_() for t in problem.tensors()]
            y = conv2d(*leaves, groups=problem.groups)
            given = [t for t in leaves if t is not None]
            results.append([y, *torch.autograd.grad(y, given, torch.ones_like(y))])
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other)), problem


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("kernel", [3, 5, 11])
def test_filters_are_packed_in_parts(native, engine_isa, two_threads, by_engine, monkeypatch, kernel, layout):
    """Filters that are packed block by block during the call give the same bits as cached packed filters."""
    x = torch.randn(1, 2 * 19, 9, 7, requires_grad=True)
    weight = (torch.randn(2 * 70, 19, kernel, kernel) / (4 * kernel)).contiguous(memory_format=layout)

    def value_and_gradient():
        y = conv2d(x, weight, groups=2)
        return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

    cached = value_and_gradient()
    monkeypatch.setattr(winograd, "get_uncached_threshold", lambda tiles, trained: 0)
    monkeypatch.setattr(winograd, "get_packed_filters", None)
    for one, other in zip(cached, value_and_gradient(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_read_outside_the_input(native, engine_isa, by_engine, dtype):
    """The columns and channels next to those of x and grad are NaN, so that a read of them shows in the results."""
    wide = torch.full((2, 40, 9, 14), torch.nan, dtype=dtype).contiguous(memory_format=LAST)
    x, grad = wide[:, 3:9, :, 2:11], wide[:, 12:26, :, 2:11]
    x.copy_(torch.rand(x.shape)), grad.copy_(torch.rand(grad.shape))
    weight = torch.rand(14, 3, 5, 5, dtype=dtype)
    results = [conv2d(x, weight, groups=2), *CONV2D_BACKWARD(grad, x, weight, 2, [True] * 3)]
    assert all(result.isfinite().all() for result in results)


def test_large_packed_filters_are_not_cached(native, by_engine, monkeypatch):
    """Results equal those with cached filters bit for bit, and cached filters are not evicted."""
    x, weight = torch.randn(1, 8, 20, 20, requires_grad=True), torch.randn(12, 4, 7, 7).transpose(2, 3)

    def value_and_gradient():
        y = conv2d(x, weight, groups=2)
        return y, torch.autograd.grad(y, x, torch.ones_like(y))[0]

    with packed_weight_cache.private_cache() as cache:
        expected = value_and_gradient()
        assert len(cache) == 4  # for each group: forward, and rotated for the gradient
    monkeypatch.setattr(costs, "MAX_CACHED_ELEMENTS", 36 * 9 * 4 * 12 - 1)
    with packed_weight_cache.private_cache() as cache:
        assert all(map(torch.equal, expected, value_and_gradient())) and not cache
    assert not costs.can_cache_filters(12, 4, 7) and costs.can_cache_filters(11, 4, 7)


def test_weight_modified_in_place(native, by_engine):
    x, weight = torch.randn(1, 8, 20, 20), torch.randn(8, 4, 5, 5)
    conv2d(x, weight, groups=2)
    weight[-1, -1, -1, -1] += 10
    torch.testing.assert_close(conv2d(x, weight, groups=2), F.conv2d(x, weight, padding=2, groups=2), rtol=0, atol=1e-3)


def test_unsupported_by_the_gemm_kernel(native):
    x, weight = torch.randn(1, 2, 30, 9), torch.randn(3, 2, 25, 25)
    torch.testing.assert_close(conv2d(x, weight), F.conv2d(x, weight, padding=12), rtol=0, atol=1e-4)
    with fastds.use_conv_algorithm("winograd"):
        with pytest.raises(RuntimeError, match="conv2d: .* at most 23 x 23 taps, not 25 x 25"):
            conv2d(x, weight)
        with pytest.raises(RuntimeError, match="conv2d: .* the engine computes in float32"):
            conv2d(x.double(), weight[..., :5, :5].double())


def on_a(monkeypatch, kind):
    """Use the costs of a kind of processor."""
    monkeypatch.setattr(costs.conv3x3, "cpu_profile", lambda isa, dtype: kind)
    for rule in ("is_engine_faster", "is_op_faster"):  # past what they remember
        monkeypatch.setattr(costs, rule, getattr(costs, rule).__wrapped__)


def test_fastest_algorithm_is_selected(native, monkeypatch):
    on_a(monkeypatch, "amd")
    taken = []
    monkeypatch.setattr(kernels, "convolve_groups", lambda *args: taken.append("engine"))
    monkeypatch.setattr(kernels.library, "conv2d", lambda x, *args: taken.append("library") or x)
    monkeypatch.setattr(native, "isa", lambda: "avx512")
    many_pixels = torch.empty(1, 256, 64, 64), torch.empty(512, 64, 11, 11)
    few_pixels = torch.empty(2, 153, 7, 17), torch.empty(14, 153, 11, 11)
    for x, weight in (many_pixels, few_pixels):
        kernels.forward(x, weight, None, x.shape[1] // weight.shape[1])
    assert taken == ["engine", "library"]
    sizes = (1, 64, 128, 32, 32, 11, 4)
    costly = {d: costs.is_engine_faster(d, "avx512", torch.float32, *sizes) for d in costs.PASSES}
    assert costly["forward"] and not costly["grad_x"], costly


def test_falls_back_to_torch_if_faster(native, monkeypatch):
    calls = []
    monkeypatch.setattr(costs, "is_op_faster", lambda directions, *args: calls.append(directions))
    monkeypatch.setattr(op, "_library_cache", {})
    x, weight = torch.randn(1, 2, 9, 9), torch.randn(2, 2, 5, 5, requires_grad=True)
    y = conv2d(x, weight)
    assert y.grad_fn.name() == "ConvolutionBackward0"
    x.requires_grad_()
    conv2d(x, weight)
    with torch.no_grad():
        conv2d(x, weight)
    conv2d(x, weight)
    assert calls == [("forward", "grad_weight"), ("forward", "grad_x", "grad_weight"), ("inference",)]
    with fastds.use_backend("native"):
        assert conv2d(x, weight).grad_fn.name() == "_Conv2dBackward"
    assert len(calls) == 3


def test_decisions_are_cached_for_similar_tensors(native, monkeypatch):
    monkeypatch.setattr(op, "_library_cache", {})
    monkeypatch.setattr(kernels, "is_op_faster", lambda *_: op.current_algorithm() == "winograd")
    x, weight, bias = torch.randn(2, 4, 9, 9), torch.randn(4, 4, 3, 3), torch.randn(4)
    for source in (x.contiguous(memory_format=LAST), x, x.mT, x[:, :, :, ::2], x.double()):
        # The weight is trained, because the cached filters of inference give channels_last for every layout of x.
        kernel = weight.to(source.dtype, copy=True).requires_grad_()
        y, expected = conv2d(source, kernel), F.conv2d(source, kernel, padding=1)
        torch.testing.assert_close(y.detach(), expected.detach(), rtol=1e-4, atol=1e-4)
        assert y.is_contiguous(memory_format=LAST) or source.dtype == torch.float64
    assert conv2d(x.clone().requires_grad_(), weight).requires_grad and not conv2d(x, weight).requires_grad
    conv2d(x, weight, bias, groups=1)
    for groups in (True, 1.0, 3):
        with pytest.raises(ValueError, match="groups must be"):
            conv2d(x, weight, bias, groups=groups)
    with pytest.raises(TypeError, match="bias"):
        conv2d(x, weight, bias.double())
    with pytest.raises(ValueError, match="weight has shape"):
        conv2d(x, weight[:, :2], bias)
    for odd, message in (x.to_sparse(), "a tensor of layout"), (torch.nested.nested_tensor([*x]), "a nested tensor"):
        with pytest.raises(TypeError, match=f"x is {message}"):
            conv2d(odd, weight)
    monkeypatch.setattr(op, "_MAX_SIGNATURES", 3), op._library_cache.clear()
    for size in range(5, 12):
        conv2d(torch.randn(2, 4, size, 9), weight)
    assert len(op._library_cache) <= 3
    with fastds.use_conv_algorithm("winograd"):
        assert conv2d(x, weight.clone().requires_grad_()).grad_fn.name() == "_Conv2dBackward"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype)
        for kind in ("avx2", "avx512", "amd", "zen5")
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    + [("amx", torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("direction", costs.PASSES)
def test_costs_exist_for_every_cpu(monkeypatch, kind, dtype, direction):
    on_a(monkeypatch, kind)
    shapes = [(1, 64, 64, size, size, 7, 2) for size in (4, 16, 64, 256)]
    pays = [costs.is_engine_faster(direction, "avx512", dtype, *shape) for shape in shapes]
    assert pays == sorted(pays)
    assert pays[-1] or dtype != torch.float32 or (kind, "float32") not in costs.COSTS


def test_cost_of_grad_x_is_that_of_the_transposed_convolution():
    kind = "avx512", torch.float32
    assert costs.compute_terms("grad_x", *kind, 2, 5, 40, 9, 8, 7, 3) == costs.compute_terms(
        "forward", *kind, 2, 40, 5, 9, 8, 7, 3
    )


@pytest.mark.parametrize("passes, outputs, pays", [
    ("forward", 1, False), ("forward", 64, True), ("grad_weight", 1, False), ("grad_x", 1, True), ("grad_x", 64, True),
])  # fmt: skip
def test_bfloat16_with_few_outputs_on_avx2_falls_back(passes, outputs, pays):
    assert costs.is_op_faster((passes,), "avx2", torch.bfloat16, 2, 255, outputs, 23, 10, 7, 1) is pays


@pytest.mark.parametrize("has_products", [True, False])
def test_float16_falls_back_on_cpus_with_fast_gemm(monkeypatch, has_products):
    on_a(monkeypatch, "amd")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_fp16": has_products}, raising=False)
    assert costs.is_engine_faster("forward", "avx512", torch.float16, 16, 4, 46, 48, 180, 5, 1) is not has_products
    assert costs.is_engine_faster("grad_x", "avx512", torch.float16, 16, 4, 46, 48, 180, 5, 1)


@pytest.mark.parametrize(("outputs", "as_forward"), [(30, True), (32, False)])
@pytest.mark.parametrize("needs_grad", [(True, True), (True, False)])
def test_gradient_of_few_outputs_as_a_forward_convolution(monkeypatch, outputs, as_forward, needs_grad):
    """On AMX tiles, the gradient of few outputs takes less time as a forward convolution with flipped filters."""
    calls, flipped = [], library._flip_filters
    monkeypatch.setattr(library, "has_amx_kernels", lambda dtype: True)
    monkeypatch.setattr(library, "_flip_filters", lambda *args: calls.append(1) or flipped(*args))
    x, weight = torch.randn(2, 6, 9, 7, dtype=torch.float64), torch.randn(outputs, 3, 5, 5, dtype=torch.float64)
    grad = torch.randn(2, outputs, 9, 7, dtype=torch.float64)
    found = library.conv2d_backward(grad, x, weight, 2, *needs_grad)
    exact = reference.conv2d_backward(grad, x, weight, 2, [*needs_grad, False])
    for got, want in zip(found, exact, strict=False):
        torch.testing.assert_close(got, want)
    assert bool(calls) == as_forward


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
def test_gradient_of_few_outputs_with_border_padding(native, monkeypatch, padding_mode):
    monkeypatch.setattr(library, "has_amx_kernels", lambda dtype: True)
    x, weight = torch.randn(2, 6, 9, 7, requires_grad=True), torch.randn(4, 6, 3, 3)
    options = {"padding_mode": padding_mode, "algorithm": "direct"}
    (got,) = torch.autograd.grad(conv3x3(x, weight, **options).square().sum(), x)
    doubles = x.detach().double().requires_grad_()
    y = reference_of_conv3x3(doubles, weight.double(), padding_mode=padding_mode)
    (exact,) = torch.autograd.grad(y.square().sum(), doubles)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())


# ---- gradients of gradients, subsets


@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups):
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 4 // groups, 5, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *t: conv2d(*t, groups=groups), (x, weight, bias))
    assert gradgradcheck(lambda *t: conv2d(*t, groups=groups), (x, weight, bias))


def test_second_order(native, by_engine):
    x, weight = torch.randn(1, 4, 9, 8, requires_grad=True), torch.randn(6, 2, 5, 5, requires_grad=True)

    def second(x, weight, convolution):
        y = convolution(x, weight)
        grads = torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), (x, weight))

    doubles = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = second(*doubles, lambda x, w: F.conv2d(x, w, padding=2, groups=2))
    for got, want in zip(second(x, weight, lambda x, w: conv2d(x, w, groups=2)), expected, strict=True):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("algorithm", ["winograd", "direct"])  # "auto" depends on which gradients are requested
@pytest.mark.parametrize("subset", range(1, 8))
def test_requires_grad_subsets(subset, native, algorithm):
    leaves = [
        torch.randn(s).requires_grad_(bool(subset >> k & 1)) for k, s in enumerate(((2, 4, 6, 7), (4, 2, 5, 5), (4,)))
    ]

    def grads(leaves):
        with fastds.use_conv_algorithm(algorithm):
            conv2d(*leaves, groups=2).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for got, want, leaf in zip(
        grads(leaves), grads([t.detach().requires_grad_() for t in leaves]), leaves, strict=True
    ):
        assert torch.equal(got, want) if leaf.requires_grad else got is None


def test_empty_batch(native):
    x, weight = torch.randn(0, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 5, 5, requires_grad=True)
    y = conv2d(x, weight)
    y.sum().backward()
    assert y.shape == (0, 2, 4, 5) and x.grad.shape == x.shape and (weight.grad == 0).all()


# ---- torch's machinery


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(dtype, native):
    x, weight = torch.randn(2, 4, 4, 5).to(dtype).requires_grad_(), torch.randn(6, 2, 5, 5).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.fastds.conv2d, (x, weight, torch.randn(6).to(dtype).requires_grad_(), 2))
    args = (torch.randn(2, 6, 4, 5).to(dtype), x.detach(), weight.detach(), 2, [True] * 3)
    torch.library.opcheck(torch.ops.fastds.conv2d_backward, args)


def test_compile_with_gradients(native, by_engine):
    x, weight = torch.randn(1, 3, 14, 15, requires_grad=True), torch.randn(2, 3, 5, 5, requires_grad=True)
    compiled = torch.compile(lambda x, w: conv2d(2 * x, w), fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, weight).square().sum(), (x, weight))
    for a, b in zip(got, torch.autograd.grad(conv2d(2 * x, weight).square().sum(), (x, weight)), strict=True):
        torch.testing.assert_close(a, b)


def test_transforms(native):
    x, weight, tangent = torch.randn(3, 1, 4, 6, 5), torch.randn(2, 4, 5, 5), torch.randn(1, 4, 6, 5)
    torch.testing.assert_close(torch.vmap(lambda x: conv2d(x, weight))(x), torch.stack([conv2d(a, weight) for a in x]))
    _, along = torch.func.jvp(lambda x: conv2d(x, weight), (x[0],), (tangent,))
    torch.testing.assert_close(along, conv2d(tangent, weight))


def test_backends_agree(native, by_engine):
    x, weight = torch.randn(2, 6, 14, 15), torch.randn(4, 3, 7, 7)
    with fastds.use_backend("reference"):
        expected = conv2d(x, weight, groups=2)
    with fastds.use_backend("native"):
        torch.testing.assert_close(conv2d(x, weight, groups=2), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, native, algorithm):
    x, weight = torch.randn(1, 3, 4, 5, requires_grad=True), torch.randn(2, 3, 5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype), fastds.use_conv_algorithm(algorithm):
        y = conv2d(x, weight, torch.randn(2))
    with torch.autocast("cpu", dtype):
        assert conv2d(x.double(), weight.double()).dtype == torch.float64
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad.dtype == weight.grad.dtype == torch.float32


def test_layer(native):
    torch.manual_seed(3)
    layer = Conv2d(6, 4, 5, padding=2, groups=2)
    torch.manual_seed(3)
    peer = nn.Conv2d(6, 4, 5, padding=2, groups=2)
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in peer.state_dict().items())
    x = torch.randn(1, 6, 8, 9)
    torch.testing.assert_close(layer(x), peer(x))
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        Conv2d(6, 4, 4, padding=2)


def test_error_messages():
    x, weight = torch.randn(1, 4, 4, 5), torch.randn(6, 2, 5, 5)
    message = "groups must be an int that divides the 4 channels of x and the 6 outputs of weight, got"
    for call, error, words in (
        (lambda: conv2d([1.0], weight), TypeError, "x is a list, expected a Tensor"),
        (lambda: conv2d(x, weight), ValueError, "every group of x has 4 channels, weight takes 2"),
        (lambda: conv2d(x, weight, groups=4), ValueError, f"{message} 4"),
        (lambda: conv2d(x, weight, groups=0), ValueError, f"{message} 0"),
        (lambda: conv2d(x, weight, groups=2.0), ValueError, f"{message} 2.0"),
        (
            lambda: conv2d(x, weight[..., :4], groups=2),
            ValueError,
            r"weight has shape \(6, 2, 5, 4\), expected \(6, 2, 5, 5\)",
        ),
        (
            lambda: conv2d(x, weight[..., :4, :4], groups=2),
            ValueError,
            "expected an odd size of its last two dimensions",
        ),
        (
            lambda: conv2d(x, weight.half(), groups=2),
            TypeError,
            "weight has dtype torch.float16, expected torch.float32",
        ),
        (lambda: conv2d(x, weight, torch.ones(3), groups=2), ValueError, r"bias has shape \(3,\), expected \(6,\)"),
        (lambda: conv2d(x[:, :0], weight, groups=2), ValueError, "expected at least one channel, row and column"),
    ):
        with pytest.raises(error, match=words):
            call()
    with pytest.raises(ValueError, match=r"grad_y has shape \(1, 4, 4, 5\), expected \(1, 6, 4, 5\)"):
        torch.ops.fastds.conv2d_backward(x, x, weight, 2, [True] * 3)
