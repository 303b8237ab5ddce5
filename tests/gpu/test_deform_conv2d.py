# SPDX-License-Identifier: Apache-2.0
"""Tests of deform_conv2d on a GPU against the float64 reference on the CPU."""

import pytest
import torch
from gpu import checks

import fastds
from fastds.nn import GuidedDeformConv2d
from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from fastds.ops.impl.deform_conv2d.selection import use_fused, use_two_passes
from tests.support.deform_cases import NAMES, PROBLEMS, Problem, assert_within_rule, gradients, small, torch_in_dtype

PLAIN = Problem("plain", 2, 32, 48, 17, 23, G=4)


@pytest.fixture(params=["native", "triton"])
def backend(request, device, forced):
    """Run the test with each backend, or skip the test if the backend is not available."""
    x, offset, weight, bias, mask = (None if t is None else t.to(device) for t in small().tensors(torch.float32))
    with forced("deform_conv2d", request.param, x, offset, weight, bias, (1, 1), (1, 0), (1, 1), mask):
        yield request.param


def on(device, problem, dtype=torch.float32, offset_dtype=None):
    return checks.moved(problem.tensors(dtype, offset_dtype), device)


def op(problem):
    return lambda *tensors: problem.run(deform_conv2d, tensors)


DTYPES = [(torch.float32, None), (torch.bfloat16, torch.float32), (torch.float16, torch.float16), (torch.float64, None)]


def assert_agrees(problem, tensors, device):
    """Compare the result and the gradients with those of the reference in float64."""
    grad_y = torch.randn(problem.B, problem.O, *problem.out)
    exact = gradients(lambda t: problem.run(reference, t), [t if t is None else t.double() for t in tensors], grad_y)
    ours = gradients(lambda t: problem.run(deform_conv2d, t), checks.moved(tensors, device), grad_y.to(device))
    if tensors[0].dtype == torch.float64:
        return checks.close(ours, exact, 1e-13)
    peer = gradients(lambda t: torch_in_dtype(problem, t), tensors, grad_y)
    names = ["output", *(n for n, t in zip(NAMES, tensors, strict=True) if t is not None)]
    assert_within_rule([t.cpu() for t in ours], peer, exact, names, grad_y)


@pytest.mark.parametrize("dtype, offset_dtype", DTYPES, ids=["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=[p.id for p in PROBLEMS])
def test_agrees_with_reference(problem, dtype, offset_dtype, backend, device):
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("Triton has no float64 kernel")
    assert_agrees(problem, problem.tensors(dtype, offset_dtype), device)


TWO_PASSES = [
    Problem("packs1", 2, 16, 20, 9, 13, G=2),
    Problem("packs2", 1, 64, 24, 21, 19, (5, 5), padding=(2, 2), groups=2, G=2),
]
FUSED = Problem("outputs136", 1, 40, 136, 43, 35, G=5)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype, offset_dtype", DTYPES[:3], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("problem", TWO_PASSES, ids=[p.id for p in TWO_PASSES])
def test_two_passes(problem, dtype, offset_dtype, device):
    # On a dry run without a GPU the native kernels of the CPU compute the call.
    with fastds.use_backend("native"), use_two_passes(True):
        assert_agrees(problem, problem.tensors(dtype, offset_dtype), device)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype, offset_dtype", DTYPES[1:3], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("problem", [*TWO_PASSES, FUSED], ids=["packs1", "packs2", "outputs136"])
def test_fused(problem, dtype, offset_dtype, device):
    # On a dry run without a GPU the native kernels of the CPU compute the call.
    with fastds.use_backend("native"), use_fused():
        assert_agrees(problem, problem.tensors(dtype, offset_dtype), device)


@pytest.mark.sanitize
@pytest.mark.parametrize("problem", [PROBLEMS[1], small()], ids=["torchvision", "small"])
def test_small_inputs(problem, backend, device):
    """These tests also run under compute-sanitizer, which finds accesses out of bounds and races."""
    tensors = problem.tensors(torch.float32)
    grad_y = torch.randn(problem.B, problem.O, *problem.out)
    exact = gradients(lambda t: problem.run(reference, t), [t if t is None else t.double() for t in tensors], grad_y)
    ours = gradients(lambda t: problem.run(deform_conv2d, t), checks.moved(tensors, device), grad_y.to(device))
    for got, wish in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double().cpu(), wish, rtol=1e-4, atol=1e-4)


def test_gradcheck(device):
    problem = small()
    tensors = checks.leaves(on(device, problem, torch.float64))
    answer = fastds.explain("deform_conv2d", *tensors[:4], *problem.geometry, tensors[4])["native"]
    if answer.startswith("refused"):
        pytest.skip(f"native {answer}")
    with fastds.use_backend("native"):
        assert torch.autograd.gradcheck(op(problem), tensors, nondet_tol=1e-12)
        assert torch.autograd.gradgradcheck(op(problem), tensors, nondet_tol=1e-12)


def test_runs_are_bitwise_equal_except_for_atomic_gradients(backend, device):
    tensors = on(device, PLAIN, torch.bfloat16, torch.float32)
    first, second = (checks.value_and_gradients(op(PLAIN), tensors) for _ in range(2))
    checks.same(*([r[0], *r[2:]] for r in (first, second)))  # both add the gradient of input atomically


def test_deterministic_algorithms(device):
    """Without a forced backend, "native" is selected, which accumulates in fixed point."""
    checks.check_deterministic(op(PLAIN), on(device, PLAIN, torch.bfloat16, torch.float32))


def test_second_stream(backend, device):
    checks.check_stream(op(PLAIN), on(device, PLAIN))


def test_cuda_graph(backend, device):
    checks.check_graph(op(PLAIN), on(device, PLAIN))


def test_compile_fullgraph(backend, device):
    checks.check_compile(op(PLAIN), on(device, PLAIN))


def test_other_device(backend, device):
    checks.check_other_device(op(PLAIN), on(device, PLAIN))


def test_misaligned_and_sliced(backend, device):
    checks.check_misaligned(op(PLAIN), on(device, PLAIN))
    tensors = on(device, PLAIN, torch.bfloat16, torch.float32)
    checks.check_misaligned(op(PLAIN), tensors, 0.1)  # other kernels, which round samples to bfloat16 or not


def test_autocast(backend, device):
    tensors = on(device, PLAIN)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = op(PLAIN)(*tensors)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), op(PLAIN)(*tensors), rtol=3e-2, atol=0.2)


def test_more_than_2_to_the_31_elements(backend, gpu):
    """The lower right corner of the result for a map with 2.3e9 elements agrees with the result for that corner alone.

    The native backend may differ by rounding.
    """
    size, channels = 6000, 64
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.empty(1, channels, size, size, dtype=torch.bfloat16, device=gpu, memory_format=torch.channels_last)
    x.normal_()
    offset = torch.full((1, 2, 1, 1), 0.25, dtype=torch.bfloat16, device=gpu).expand(1, 2, size, size)
    weight = torch.randn(channels, channels, 1, 1, dtype=torch.bfloat16, device=gpu) / 8
    with torch.no_grad():
        y = deform_conv2d(x, offset, weight)[:, :, -64:-1, -64:-1]
        part = deform_conv2d(x[:, :, -64:, -64:].contiguous(memory_format=torch.channels_last),
                             offset[:, :, :64, :64], weight)[:, :, :-1, :-1]  # fmt: skip
    if backend == "triton":
        assert torch.equal(y, part)
    else:  # the kernel for tensor cores counts in 32 bits and leaves the large map to another
        torch.testing.assert_close(y, part, rtol=2e-2, atol=4e-2)


def test_samples_at_the_border_nan_and_infinity(backend, device):
    places = [-1.0, -0.5, 0.0, 3.0, 3.5, 4.0, 1e10, torch.nan, torch.inf, -torch.inf]
    x, weight = torch.randn(1, 16, 4, len(places)), torch.randn(16, 16, 1, 1)
    offset, mask = torch.full((1, 2, 4, len(places)), 0.25), torch.rand(1, 1, 4, len(places))
    offset[0, 0, 0] = torch.tensor(places)

    def run(function, tensors):
        return checks.value_and_gradients(lambda x, o, w, m: function(x, o, w, mask=m), tensors)

    exact = run(reference, [t.double() for t in (x, offset, weight, mask)])
    for got, wish in zip(run(deform_conv2d, checks.moved((x, offset, weight, mask), device)), exact, strict=True):
        torch.testing.assert_close(got.double().cpu(), wish, rtol=1e-4, atol=1e-4)


def test_empty_batch(backend, device):
    x, offset, weight, bias, mask = on(device, PLAIN)
    y = deform_conv2d(x[:0], offset[:0], weight, bias, *PLAIN.geometry, mask[:0])
    assert y.shape == (0, 48, *PLAIN.out) and y.device == x.device


def test_errors(backend, gpu):
    x, offset, weight, bias, mask = on(gpu, PLAIN)
    with pytest.raises(ValueError, match="offset is on device cpu, expected cuda:0, the device of input"):
        deform_conv2d(x, offset.cpu(), weight, bias, *PLAIN.geometry, mask)
    with pytest.raises(ValueError, match="mask is on device cpu"):
        deform_conv2d(x, offset, weight, bias, *PLAIN.geometry, mask.cpu())
    with pytest.raises(TypeError, match="weight has dtype torch.bfloat16, expected torch.float32"):
        deform_conv2d(x, offset, weight.bfloat16(), bias, *PLAIN.geometry, mask)
    with pytest.raises(TypeError, match="offset has dtype torch.float16, expected torch.bfloat16 or torch.float32"):
        deform_conv2d(x.bfloat16(), offset.half(), weight.bfloat16())


@pytest.mark.sanitize
@pytest.mark.parametrize("modulated, based", [(True, True), (False, False)], ids=["mask_base", "plain"])
def test_guided_deform_conv_agrees_with_the_cpu(modulated, based, device):
    module = GuidedDeformConv2d(16, 16, offset_groups=2, modulated=modulated)
    torch.nn.init.normal_(module.conv_offset_mask.weight, std=0.1)
    x, guide = (torch.randn(2, 16, 9, 11).to(memory_format=torch.channels_last) for _ in range(2))
    base = torch.randn(2, 2, 9, 11) if based else None
    expected = checks.value_and_gradients(module, (x, guide, base))
    module.to(device, memory_format=torch.channels_last)
    tensors = checks.moved((x, guide, base), device)
    for got, wish in zip(checks.value_and_gradients(module, tensors), expected, strict=True):
        torch.testing.assert_close(got.cpu(), wish, rtol=2e-3, atol=2e-3)
    with torch.autocast(device.type, dtype=torch.bfloat16), torch.no_grad():
        y = module(*tensors)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float().cpu(), expected[0], rtol=5e-2, atol=5e-2)
