# SPDX-License-Identifier: Apache-2.0
"""Tests of the values and gradients of conv3x3."""

import ctypes
import ctypes.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastds
from fastds.ops import conv3x3
from fastds.ops.core import native
from tests.support.conv3x3_cases import TOLERANCE, Problem, check_values, gradients, leaves, relative_error, sampled

pytestmark = pytest.mark.usefixtures("native")

ALGORITHMS = ["winograd", "planes", "product", "direct"]


def pairs_of_gradients(problem, tensors, y):
    """Return pairs of a gradient and its float64 reference.

    Both use the sign of the float32 result y for the derivative of the activation, because a value near 0 may have the
    other sign in float64.
    """
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    doubles = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
    slope = {None: 1.0, "relu": 0.0, "leaky_relu": 0.1}[problem.act]
    linear = replace(problem, act=None).expected(doubles)
    expected = gradients(linear, doubles, torch.where(y > 0, grad_y, slope * grad_y.double()))
    return zip(gradients(y, tensors, grad_y), expected, strict=True)


def check_gradients(problem, tensors, y):
    for grad, exact in pairs_of_gradients(problem, tensors, y):
        stored = 0 if grad.dtype == torch.float32 else TOLERANCE[grad.dtype] * exact.abs()
        bound = 4e-5 * exact.pow(2).mean().sqrt() + 1e-6 + stored
        excess = (grad.double() - exact).abs() / bound
        assert excess.max() <= 1, f"{problem}: gradient {tuple(grad.shape)} {excess.max():.2f} times the bound"


@pytest.mark.parametrize("part", range(10))
def test_sampled_pixels_agree_with_float64(engine_isa, two_threads, part):
    for index, problem in enumerate(sampled(10, 100 * len(engine_isa) + part)):
        backward = index % 3 == 0
        tensors = leaves(problem) if backward else problem.tensors()
        y = problem.run(tensors)
        check_values(problem, y.detach(), problem.expected([t if t is None else t.detach() for t in tensors]))
        if backward:
            check_gradients(problem, tensors, y)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("part", range(4))
def test_planes_algorithm(engine_isa, two_threads, part, side):
    """One side, inputs or outputs, has 1 to 20 channels."""
    layout = (torch.channels_last, torch.contiguous_format)[part % 2]
    for index, problem in enumerate(sampled(5, 1000 + 10 * part + len(engine_isa))):
        few = 5 * part + index + 1
        problem = replace(problem, C1=few) if side == "inputs" else replace(problem, O=few, shuffle=1)
        given = problem.tensors(layout=layout)
        tensors = [t if t is None else t.requires_grad_() for t in given]
        y = problem.run(tensors, "planes")
        check_values(problem, y.detach(), problem.expected([t if t is None else t.detach() for t in tensors]))
        check_gradients(problem, tensors, y)


def test_planes_algorithm_with_large_inputs(engine_isa, two_threads):
    problem = Problem(B=2, C1=18, C2=3, O=3, H=131, W=203, padding_mode="circular_x")
    tensors = leaves(problem)
    y = problem.run(tensors, "planes")
    check_values(problem, y.detach(), problem.expected([t.detach() for t in tensors]))
    check_gradients(problem, tensors, y)


def test_planes_algorithm_does_not_spread_nan(engine_isa):
    x, weight = torch.ones(1, 3, 20, 20), torch.ones(2, 3, 3, 3)
    x[0, 1, 9, 11] = float("nan")
    y = conv3x3(x, weight, activation="relu", algorithm="planes")
    around = torch.zeros(20, 20, dtype=torch.bool)
    around[8:11, 10:13] = True
    assert torch.equal(y.isnan(), around.expand_as(y))


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
@pytest.mark.parametrize("act", [None, "relu", "leaky_relu"], ids=str)
@pytest.mark.parametrize("shuffle", [1, 2], ids=["plain", "shuffled"])
def test_epilogues_and_paddings(engine_isa, padding_mode, act, shuffle):
    problem = Problem(act=act, padding_mode=padding_mode, shuffle=shuffle)
    tensors = problem.tensors()
    check_values(problem, problem.run(tensors), problem.expected(tensors))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (4, 4), (5, 13)], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular_x"])
def test_gradients_of_small_fields(engine_isa, size, padding_mode):
    problem = Problem(H=size[0], W=size[1], padding_mode=padding_mode, shuffle=2)
    tensors = leaves(problem)
    check_gradients(problem, tensors, problem.run(tensors))


@pytest.mark.parametrize("height", [12, 37], ids=["blocks of sums", "two stretches"])
@pytest.mark.parametrize(
    "channels", [(176, 0, 176), (150, 29, 172), (9, 7, 330)], ids=["whole vectors", "tails", "many outputs"]
)
def test_gradients_of_wide_layers(engine_isa, two_threads, height, channels):
    problem = Problem(B=1, C1=channels[0], C2=channels[1], O=channels[2], H=height, W=38)
    tensors, found = leaves(problem), []
    check_gradients(problem, tensors, problem.run(tensors))
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = problem.run(tensors)
        found.append(gradients(y, tensors, torch.ones_like(y)))
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("outputs", [40, 64], ids=["staged", "aligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_larger_than_the_caches(engine_isa, outputs, dtype):
    """Large outputs are stored past the caches, by a separate code path."""
    problem = Problem(B=1, C1=16, C2=0, O=outputs, H=515, W=257, act="relu", dtype=dtype)
    tensors = problem.tensors()
    check_values(problem, problem.run(tensors), problem.expected(tensors))


@pytest.mark.parametrize("channels,outputs", [(64, 64), (48, 96), (128, 64), (256, 264), (24, 24), (16, 16), (1, 1)])
def test_error_on_unit_variance_input(engine_isa, channels, outputs):
    problem = Problem(B=1, C1=channels, C2=0, O=outputs, H=50, W=51, bias=False, residual=False)
    tensors = problem.tensors()
    assert relative_error(problem.run(tensors), problem.expected(tensors)) <= 2e-5


def test_large_outputs_use_huge_pages(engine_isa):
    """The output is larger than a huge page, and its mapping must have the flag "hg" in /proc/self/smaps."""
    smaps, settings = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not smaps.exists() or not settings.exists() or "[never]" in settings.read_text():
        pytest.skip("no Linux with transparent huge pages")
    y = conv3x3(torch.zeros(1, 16, 736, 736), torch.zeros(16, 16, 3, 3), algorithm="winograd")
    middle = y.data_ptr() + y.nbytes // 2
    ranges = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags:(.*?)$", smaps.read_text(), re.MULTILINE | re.DOTALL)
    (flags,) = [flags for begin, end, flags in ranges if int(begin, 16) <= middle < int(end, 16)]
    assert "hg" in flags.split()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_error_scales_with_filters_and_inputs(engine_isa, scale, mean):
    """The error is compared with the largest sum of |weight| * |x| in a window of 13 x 13 pixels."""
    problem = Problem(C1=48, C2=0, O=33, H=21, W=22, bias=False, residual=False)
    x, weight, *rest = problem.tensors()
    x = x * torch.logspace(-2, 2, 48)[:, None, None] + mean
    weight = weight * scale * torch.logspace(-1, 1, 33)[:, None, None, None]
    tensors = [x.contiguous(memory_format=torch.channels_last), weight, *rest]
    error = (problem.run(tensors).double() - problem.expected(tensors)).abs()
    size = problem.expected([x.abs(), weight.abs(), *rest])
    assert (error <= 3e-6 * F.max_pool2d(size, 13, 1, 6)).all()


def test_missing_values_stay_in_their_tiles(engine_isa):
    problem = Problem(B=1, C1=16, C2=0, O=16, H=20, W=20, bias=False, residual=False)
    x, *rest = problem.tensors()
    for value in (float("nan"), float("inf")):
        x[0, 3, 9, 11] = value  # rows 7-12 and columns 7-12 or 11-16 are read by the tiles that see it
        y = problem.run([x, *rest])
        tiles, around = torch.zeros(2, 20, 20, dtype=torch.bool)
        tiles[8:12, 8:16] = True
        around[8:11, 10:13] = True
        affected = ~y[0].isfinite().all(0)
        assert (affected | ~around).all() and not (affected & ~tiles).any()


def test_activation_propagates_nan():
    x = torch.full((1, 16, 8, 8), float("nan"))
    for act in ("relu", "leaky_relu"):
        assert conv3x3(x, torch.ones(16, 16, 3, 3), activation=act, algorithm="winograd").isnan().all()


@pytest.mark.parametrize("act", ["relu", "leaky_relu"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_activation_gradient_propagates_nan(native, algorithm, act):
    """The gradient of y is infinite, and infinity times the slope 0 of ReLU is NaN."""
    x, weight = torch.ones(1, 8, 4, 4), torch.full((8, 8, 3, 3), -1.0)
    y = torch.tensor([-1.0, float("nan"), 1.0, 0.0]).expand(1, 8, 4, 4).contiguous()
    grad = torch.full_like(y, float("inf"))
    arguments = (grad, x, weight, None, y, 0.0 if act == "relu" else 0.1, "zeros", 1)
    needs_grad = [False, False, False, False, True]
    with fastds.use_backend("reference"):
        (expected,) = torch.ops.fastds.conv3x3_backward(*arguments, algorithm, needs_grad)
    (got,) = torch.ops.fastds.conv3x3_backward(*arguments, algorithm, needs_grad)
    assert torch.equal(got.isnan(), expected.isnan()) and torch.equal(got.nan_to_num(), expected.nan_to_num())


def strided(x):
    """Yield views of x with other strides."""
    wide = torch.zeros(x.shape[0], x.shape[1] + 7, x.shape[2] + 2, 2 * x.shape[3]).to(memory_format=torch.channels_last)
    window = wide[:, 3 : 3 + x.shape[1], 1:-1, ::2]
    window.copy_(x)
    yield "channel slice", window
    yield "contiguous", x.contiguous()
    yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    yield "transposed", x.transpose(2, 3).contiguous().transpose(2, 3)
    yield (
        "misaligned",
        torch.cat([torch.zeros(1), x.permute(0, 2, 3, 1).flatten()])[1:]
        .view(x.shape[0], *x.shape[2:], x.shape[1])
        .permute(0, 3, 1, 2),
    )


@pytest.mark.parametrize("algorithm", ["winograd", "planes"])
def test_input_strides(engine_isa, algorithm):
    problem = Problem()
    x, weight, bias, x2, residual = problem.tensors()

    def run(*tensors):
        return problem.run(tensors, algorithm)

    expected = run(x, weight, bias, x2, residual)
    for name, view in strided(x):
        assert torch.equal(run(view, weight, bias, x2, residual), expected), name
    for name, view in strided(residual):
        assert torch.equal(run(x, weight, bias, x2, view), expected), name
    transposed = weight.transpose(0, 1).contiguous().transpose(0, 1)
    for view in (weight.contiguous(memory_format=torch.channels_last), transposed):
        assert torch.equal(run(x, view, bias, x2, residual), expected)
    batch, part = x[:1].expand(3, *x.shape[1:]), weight[:, :20]
    assert torch.equal(conv3x3(batch, part, algorithm=algorithm)[2:], conv3x3(x[:1], part, algorithm=algorithm))


@pytest.mark.parametrize("channels", [1, 20])
@pytest.mark.parametrize("algorithm", ["winograd", "planes"])
def test_gradient_with_any_strides(algorithm, channels):
    problem = Problem(act="relu", residual=False, C1=channels, C2=0)
    x, weight, bias, _, _ = leaves(problem)
    y = problem.run([x, weight, bias, None, None], algorithm)
    grad_y = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, weight, bias), grad_y, retain_graph=True)
    for name, view in [*strided(grad_y), ("expanded", grad_y[:, :1, :1, :1].expand_as(grad_y))]:
        got = torch.autograd.grad(y, (x, weight, bias), view, retain_graph=True)
        if name == "expanded":
            expected = torch.autograd.grad(y, (x, weight, bias), view.contiguous(), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular_x"])
@pytest.mark.parametrize("sources", [(24, 24), (5, 40), (33, 0)], ids=str)
def test_gradient_of_residual_and_skip(engine_isa, sources, padding_mode, dtype):
    problem = Problem(C1=sources[0], C2=sources[1], O=40, dtype=dtype)
    x, weight, _, x2, grad = problem.tensors()
    strided = torch.randn_like(torch.cat([x, x], 1))[:, : x.shape[1]]
    needs_grad = [True, False, False, x2 is not None, False]

    def run(algorithm, *added):
        arguments = (grad, x, weight, x2, None, 0.0, padding_mode, 1, algorithm, needs_grad, *added)
        return torch.ops.fastds.conv3x3_backward(*arguments)

    for algorithm in ALGORITHMS:
        plain = run(algorithm)
        for added in ((strided, None), (None, x2), (x, x2)):
            for got, gradient, more in zip(run(algorithm, *added), plain, added, strict=False):
                expected = gradient.double() if more is None else gradient.double() + more.double()
                assert (got.double() - expected).abs().max() <= 2 * TOLERANCE[dtype] * expected.abs().max()
    with pytest.raises(ValueError, match="add_x has shape"):
        run("direct", x[:, 1:])
    needs_grad[0] = False
    with pytest.raises(ValueError, match="add_x is given, but"):
        run("direct", x)


@pytest.mark.parametrize("channels", [21, 24])
def test_gradients_larger_than_the_caches(engine_isa, channels):
    problem = Problem(B=2, C1=channels, C2=48 - channels, O=24, H=161, W=162)
    x, weight, _, x2, grad = problem.tensors()
    arguments = (grad, x, weight, x2, None, 0.0, "zeros", 1)
    got = torch.ops.fastds.conv3x3_backward(*arguments, "winograd", [True, False, False, True, False], x, x2)
    expected = F.conv_transpose2d(grad.double(), weight.double(), padding=1) + torch.cat([x, x2], 1)
    for part, exact in zip(got, expected.split([channels, 48 - channels], 1), strict=True):
        assert (part - exact).abs().max() <= 2e-5 * exact.abs().max()


# In the last two, there are few tiles and many filters, and all threads work on each tile.
@pytest.mark.parametrize(
    ("algorithm", "sizes"),
    [
        ("winograd", {"B": 2, "C1": 40, "C2": 9, "O": 72, "H": 37, "W": 30}),
        ("planes", {"B": 2, "C1": 40, "C2": 9, "O": 72, "H": 37, "W": 30}),
        ("winograd", {"B": 1, "C1": 40, "C2": 9, "O": 72, "H": 18, "W": 13}),
        ("winograd", {"B": 2, "C1": 128, "C2": 9, "O": 264, "H": 9, "W": 14}),
        ("winograd", {"B": 1, "C1": 128, "C2": 9, "O": 144, "H": 18, "W": 21}),
    ],
    ids=["winograd", "planes", "two lanes of few tiles", "shared", "shared by more than a block"],
)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_results_are_bitwise_independent_of_threads(engine_isa, threads, algorithm, sizes):
    problem = Problem(**sizes, act="leaky_relu", shuffle=2)

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            tensors = leaves(problem)
            y = problem.run(tensors, algorithm)
            return [y.detach(), *gradients(y, tensors, torch.ones_like(y))]
        finally:
            torch.set_num_threads(before)

    for a, b in zip(run(threads), run(5), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("algorithm", ["winograd", "planes"])
@pytest.mark.parametrize("sizes", [(1, 16, 16, 8, 8), (2, 37, 70, 9, 11), (1, 128, 256, 8, 8), (1, 5, 1, 4, 4)])
def test_results_do_not_depend_on_uninitialised_memory(engine_isa, algorithm, sizes, monkeypatch, threads_of_torch):
    """Kernels must not compute with uninitialised memory, even if the results are discarded.

    Denormal numbers in the memory would slow them down. The memory is filled with signalling NaNs, which set the
    invalid-operation flag of the processor if they are used.
    """
    monkeypatch.undo()  # filling what torch.empty gives raises the flag, too
    torch.set_num_threads(1)  # it is a thread's own
    libm, invalid = ctypes.CDLL(ctypes.util.find_library("m")), 1
    batch, inputs, outputs, height, width = sizes
    x = torch.randn(batch, inputs, height, width).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(outputs, inputs, 3, 3).requires_grad_()
    y = conv3x3(x, weight, algorithm=algorithm)
    along = torch.ones_like(y)
    runs = [lambda: conv3x3(x.detach(), weight.detach(), algorithm=algorithm)]
    runs += [lambda leaf=leaf: torch.autograd.grad(y, leaf, along, retain_graph=True) for leaf in (x, weight)]
    for run in runs:
        run()
        held = native.get_cached_workspace()
        held[: held.numel() // 4 * 4].view(torch.int32).fill_(0x7FA00000)
        libm.feclearexcept(invalid)
        run()
        assert not libm.fetestexcept(invalid)


def test_tile_results_do_not_depend_on_the_surrounding_field():
    """A crop is compared with the whole field. Its origin is a multiple of 4, the size of a Winograd tile."""
    problem = Problem(B=1, C1=32, C2=0, O=48, H=64, W=64, residual=False)
    x, *rest = problem.tensors()
    whole, part = problem.run([x, *rest]), problem.run([x[..., 16:48, 32:64], *rest])
    assert torch.equal(part[..., 1:-1, 1:-1], whole[..., 17:47, 33:63])


def test_direct_equals_the_library(native):
    x, weight, bias, *_ = Problem(C1=25, C2=0).tensors()
    assert torch.equal(conv3x3(x, weight, bias, algorithm="direct"), F.conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize("outputs", [1, 16])
def test_direct_with_one_channel(outputs):
    """With one channel, the strides of x match both memory formats. The result is channels_last."""
    x, weight, bias, *_ = Problem(B=2, C1=1, C2=0, O=outputs, H=7, W=9).tensors()
    for given in (x, x.contiguous(), x.transpose(2, 3)):
        y = conv3x3(given, weight, bias, algorithm="direct")
        torch.testing.assert_close(y, F.conv2d(given, weight, bias, padding=1))
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_context_selects_the_algorithm():
    x, weight, *_ = Problem(C1=25, C2=0).tensors()
    direct = conv3x3(x, weight, algorithm="direct")
    with fastds.use_conv_algorithm("direct"):
        assert torch.equal(conv3x3(x, weight), direct)
        with fastds.use_conv_algorithm("winograd"):
            assert torch.equal(conv3x3(x, weight), conv3x3(x, weight, algorithm="winograd"))
        assert torch.equal(conv3x3(x, weight), direct)
    with pytest.raises(
        ValueError,
        match="algorithm must be one of 'auto', .*, 'product', 'direct', 'implicit_gemm', 'window', got 'fast'",
    ):
        fastds.use_conv_algorithm("fast").__enter__()


def test_auto_equals_one_of_the_algorithms():
    for channels, size in ((1, 9), (3, 40), (16, 9), (64, 9), (256, 3)):
        x, weight, *_ = Problem(C1=channels, C2=0, O=channels, H=size, W=size).tensors()
        y = conv3x3(x, weight)
        assert any(torch.equal(y, conv3x3(x, weight, algorithm=a)) for a in ALGORITHMS)


@pytest.mark.parametrize("problem", sampled(24, seed=11), ids=str)
def test_im2col_algorithm(problem):
    tensors = leaves(problem)
    y, expected = problem.run(tensors, "product"), problem.expected([t if t is None else t.detach() for t in tensors])
    if problem.dtype == torch.float32:
        check_values(problem, y.detach(), expected)
        check_gradients(problem, tensors, y)
        return
    # The algorithm rounds the weights to the dtype of the maps, as the kernels of the library do.
    for got, right in [(y.detach(), expected), *pairs_of_gradients(problem, tensors, y)]:
        assert (got.double() - right).norm() <= (0.03 if problem.dtype == torch.bfloat16 else 0.02) * right.norm()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_empty_batch(algorithm):
    problem = Problem(B=0, shuffle=2, act="relu")
    tensors = leaves(problem)
    y = problem.run(tensors, algorithm)
    assert y.shape == (0, 6, 18, 14)
    for grad, tensor in zip(gradients(y, tensors, y.detach()), tensors, strict=True):
        assert grad.shape == tensor.shape and (grad == 0).all()


CALL = {"x": torch.ones(1, 4, 5, 6), "weight": torch.ones(8, 4, 3, 3)}
ERRORS = [
    ({"x": [1.0]}, TypeError, "x is a list, expected a Tensor"),
    ({"x": torch.ones(1, 4, 5, 6, dtype=torch.int64)}, TypeError, "x has dtype torch.int64"),
    ({"x": torch.ones(4, 5, 6)}, ValueError, r"x has shape \(4, 5, 6\), expected 4 dimensions"),
    ({"x": torch.ones(1, 0, 5, 6)}, ValueError, "at least one channel, row and column"),
    ({"weight": torch.ones(8, 4, 5, 5)}, ValueError, r"weight has shape .*expected \(8, 4, 3, 3\)"),
    ({"weight": torch.ones(8, 4, 3, 3).half()}, TypeError, "weight has dtype torch.float16, expected torch.float32"),
    ({"bias": torch.ones(7)}, ValueError, r"bias has shape \(7,\), expected \(8,\)"),
    ({"bias": torch.ones(8).bfloat16()}, TypeError, "bias has dtype torch.bfloat16"),
    ({"second_input": torch.ones(1, 4, 5, 7)}, ValueError, r"second_input has shape"),
    ({"residual": torch.ones(1, 4, 5, 6)}, ValueError, r"residual has shape .*expected \(1, 8, 5, 6\)"),
    ({"activation": "tanh"}, ValueError, "activation must be None, 'relu' or 'leaky_relu', got 'tanh'"),
    ({"negative_slope": -1.0}, ValueError, "negative_slope must be a finite number >= 0, got -1.0"),
    (
        {"padding_mode": "reflect"},
        ValueError,
        "padding_mode must be one of 'zeros', 'replicate', 'circular_x', got 'reflect'",
    ),
    (
        {"upscale_factor": 3},
        ValueError,
        "upscale_factor must be an int from 1 to 8 whose square divides 8 channels, got 3",
    ),
    ({"out_dtype": torch.bfloat16}, ValueError, "out_dtype must be the dtype of x"),
    (
        {"algorithm": "fast"},
        ValueError,
        "must be one of 'auto', 'winograd', 'amx', 'planes', .*, 'implicit_gemm', 'window', got 'fast'",
    ),
]


@pytest.mark.parametrize("change,error,message", ERRORS, ids=[f"{next(iter(e[0]))}-{i}" for i, e in enumerate(ERRORS)])
def test_error_messages(change, error, message):
    with pytest.raises(error, match=message):
        conv3x3(**(CALL | change))


def test_winograd_rejects_float64():
    with pytest.raises(RuntimeError, match="algorithm 'winograd' was requested, but the engine computes in float32"):
        conv3x3(CALL["x"].double(), CALL["weight"].double(), algorithm="winograd")


def test_forcing_an_unsupported_instruction_set_raises(native):
    native.set_isa("baseline")
    try:
        if native.conv3x3_available():
            pytest.skip("this build has the engine for every instruction set")
        x, weight = torch.zeros(1, 2, 8, 8), torch.zeros(2, 2, 3, 3)
        with pytest.raises(RuntimeError, match="no engine for the instruction set 'baseline'"):
            conv3x3(x, weight, algorithm="winograd")
        assert torch.equal(conv3x3(x, weight), x)
        with pytest.raises(RuntimeError, match="no code for the baseline instruction set"):
            native.conv3x3_packed_size((0, 0, 2, 2, 3, 18, 9, 3, 1, False, 1), False)
    finally:
        native.set_isa("auto")
