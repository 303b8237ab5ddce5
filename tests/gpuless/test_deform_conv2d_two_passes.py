# SPDX-License-Identifier: Apache-2.0
"""Tests of deform_conv2d in two passes, samples and their product by torch, on the emulator against float64."""

import itertools

import pytest
import torch
from gpuless.two_passes_cases import DTYPES, draw_cases, limit_columns

from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d import guided, two_passes
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from tests.support.deform_cases import Problem, assert_agrees, far_problem, views

KERNEL = "deform_conv2d_sample_kernel"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first", range(0, 70, 10))
def test_random_shapes(emulated, columns, monkeypatch, first, dtype):
    emulator = emulated("deform_conv2d")
    for problem, tensors in draw_cases(emulator, monkeypatch, range(first, first + 10), dtype):
        assert_agrees(problem, tensors)
        assert {launch.name for launch in emulator.launches} == {KERNEL}, problem


def test_chunks_of_columns(emulated, columns, monkeypatch):
    """Lines of two images are in one chunk, the last chunk is smaller, and the results have the same bits."""
    problem = Problem("chunks", 3, 16, 5, 11, 9, G=2)
    tensors = problem.tensors(torch.bfloat16)
    emulator = emulated("deform_conv2d")
    expected = problem.run(deform_conv2d, tensors)
    assert len(emulator.launches) == 1
    emulator.clear()
    limit_columns(monkeypatch, 9 * 9 * 16 * 2 * 17)  # 17 lines
    assert torch.equal(problem.run(deform_conv2d, tensors), expected)
    assert len(emulator.launches) == 3 and len(columns[-1]) == 9 * 9 * 16 * 16 + 64


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_out_of_bounds_access(emulated, columns, dtype):
    emulated("deform_conv2d", seed=4)
    for problem in (Problem("odd", 1, 16, 20, 5, 7, G=2), Problem("wide", 1, 32, 4, 9, 3, G=1, mask=False)):
        assert_agrees(problem, problem.tensors(dtype))


def test_results_do_not_depend_on_thread_order(emulated, columns):
    problem = Problem("order", 1, 64, 16, 9, 17, G=8)
    tensors = problem.tensors(torch.bfloat16)
    emulator = emulated("deform_conv2d")
    first = problem.run(deform_conv2d, tensors)
    for emulator.seed in (1, 2, 3):
        assert torch.equal(problem.run(deform_conv2d, tensors), first)


def test_results_do_not_depend_on_strides(emulated, columns):
    problem = Problem("strides", 2, 16, 8, 5, 6, G=2)
    tensors = problem.tensors(torch.bfloat16, offset_dtype=torch.float32)
    emulated("deform_conv2d")
    expected = problem.run(deform_conv2d, tensors)
    for layout in ("contiguous", "channel_slice"):
        changed = [views(layout, t) if i in (0, 1, 4) else t for i, t in enumerate(tensors)]
        assert torch.equal(problem.run(deform_conv2d, changed), expected)


@pytest.mark.parametrize("far", ["batch", "row", "pixel"])
def test_elements_beyond_32_bits(emulated, columns, far):
    problem, values, far_values = far_problem(far, 16, 16)
    x = far_values[0]
    far_values[0] = x.as_strided(x.shape, (max(x.stride(0), 16), *x.stride()[1:]))  # that of one image is 1
    emulated("deform_conv2d")
    expected = problem.run(deform_conv2d, values)
    if far == "batch":  # positions are relative to an image
        assert torch.equal(problem.run(deform_conv2d, far_values), expected)
    else:
        with pytest.raises(RuntimeError, match="an image is larger than 32-bit positions reach"):
            problem.run(deform_conv2d, far_values)


SPECIAL = [float("nan"), float("inf"), float("-inf"), 1e10, -1.0, -1.0 + 2**-6, -2.0, 65504.0]


@pytest.mark.parametrize("what", ["offset", "input", "mask"])
def test_non_finite_values_match_the_reference(emulated, columns, what):
    problem = Problem("special", 1, 16, 16, 4, len(SPECIAL), (1, 1), padding=(0, 0), G=1)
    x, offset, weight, bias, mask = problem.tensors(torch.bfloat16, torch.float32)
    offset[:] = 0.25
    if what == "offset":
        offset[:, 1] = torch.tensor(SPECIAL) - torch.arange(len(SPECIAL))
    elif what == "input":  # the neighbours of the last row and column read corners outside
        x[0, 0, 1, : len(SPECIAL) - 1 : 2] = torch.tensor(SPECIAL[:4]).to(x.dtype)
        x[0, 1, -1, -1] = float("inf")
    else:
        mask[0, 0, 1, : len(SPECIAL) - 1 : 2] = torch.tensor(SPECIAL[:4]).to(mask.dtype)
    tensors = (x, offset, weight, bias, mask)
    emulated("deform_conv2d")
    got, exact = problem.run(deform_conv2d, tensors), problem.run(reference, [t.double() for t in tensors])
    assert torch.equal(got.isnan(), exact.isnan())
    assert what == "offset" or exact.isnan().any()
    finite = exact.isfinite()
    torch.testing.assert_close(got[finite].double(), exact[finite], rtol=0.03, atol=0.1)


@pytest.mark.parametrize("modulated, shift, slope", [(True, 0.0, 0.1), (True, 35.0, 1.0), (False, None, 0.1)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fused_offsets(emulated, columns, dtype, modulated, shift, slope):
    groups, channels = 2, 16
    x = torch.randn(2, channels, 11, 20).to(dtype).contiguous(memory_format=torch.channels_last)
    raw = torch.randn(2, (3 if modulated else 2) * groups * 9, 11, 20).to(dtype)
    raw = raw.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(20, channels, 3, 3) / 12).to(dtype), torch.randn(20).to(dtype)
    base = None if shift is None else torch.randn(2, 2, 11, 20) + torch.tensor([0.3, shift])[:, None, None]
    args = (x, raw, weight, bias, base, groups, modulated, slope)
    emulator = emulated("deform_conv2d")
    got = guided.GUIDED_DEFORM_CONV2D(*args)
    assert [launch.name for launch in emulator.launches] == [KERNEL]
    exact = guided.reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in args))
    tolerance = 2e-5 if dtype == torch.float32 else 1.6e-2
    torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=tolerance)


UNSUPPORTED = {
    "channels": ({"C": 12, "G": 1}, "a multiple of 8"),
    "offset_groups": ({"C": 16, "G": 4}, "a multiple of 8"),
    "groups": ({"C": 128, "O": 16, "groups": 16}, "at most 8 groups, got 16"),
}


@pytest.mark.parametrize("changes, reason", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_calls_name_the_reason(emulated, columns, changes, reason):
    problem = Problem("unsupported", **({"C": 16, "G": 2} | changes))
    emulated("deform_conv2d")
    with pytest.raises(RuntimeError, match=reason):
        problem.run(deform_conv2d, problem.tensors(torch.bfloat16))


def test_deterministic_algorithms_and_misaligned_offsets_are_refused():
    problem = Problem("refused", 1, 16, 4, 5, 6)
    x, offset, weight, _, mask = problem.tensors(torch.bfloat16)
    args = (weight, mask, *problem.geometry[:2])
    assert two_passes.get_unsupported_reason(x, offset, *args) is None
    assert "aligned" in two_passes.get_unsupported_reason(x, views("misaligned", offset), *args)
    assert "aligned" in two_passes.get_unsupported_reason(views("misaligned", x), offset, *args)
    torch.use_deterministic_algorithms(True)
    try:
        assert "deterministic" in two_passes.get_unsupported_reason(x, offset, *args)
    finally:
        torch.use_deterministic_algorithms(False)


def test_chunks_have_whole_tiles_and_equal_sizes(monkeypatch):
    for lines, most in itertools.product((1, 7, 8, 9, 200, 800), (1, 8, 100, 1000)):
        limit_columns(monkeypatch, most * 10)
        step = two_passes._count_chunk_lines(lines, 10, None)
        assert step % 8 == 0 and (step <= most or step == 8)
        chunks = [min(step, lines - first) for first in range(0, lines, step)]
        assert sum(chunks) == lines and max(chunks) - chunks[-1] <= 8 * len(chunks)
