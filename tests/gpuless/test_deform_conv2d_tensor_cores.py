# SPDX-License-Identifier: Apache-2.0
"""Tests of the forward kernel of deform_conv2d for tensor cores on the emulator, against float64."""

import dataclasses
import random

import pytest
import torch

from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d.reference import deform_conv2d as reference
from tests.support.deform_cases import Problem, assert_agrees, far_problem, views

pytestmark = pytest.mark.usefixtures("in_one_pass")

KERNEL = "deform_conv2d_tensor_cores_kernel"
HALF = [torch.bfloat16, torch.float16]


def drawn(seed: int) -> Problem:
    """Return a random problem that this kernel supports."""
    draw = random.Random(seed)
    groups, packs = draw.choice([1, 1, 1, 2, 3]), draw.randint(2, 9)
    channels = groups * packs * 8
    kernel = (draw.randint(1, 4), draw.randint(1, 4))
    return Problem(
        f"seed{seed}", draw.randint(1, 3), channels, groups * draw.randint(16, 90), draw.randint(4, 14),
        draw.randint(4, 14), kernel, (draw.randint(1, 2), draw.randint(1, 3)), (draw.randint(0, 3), draw.randint(0, 3)),
        (1, draw.randint(0, 1)), groups, draw.choice([n for n in range(1, channels + 1) if channels % (8 * n) == 0]),
        draw.random() < 0.7, draw.random() < 0.7,
    )  # fmt: skip


def tensors_of(problem, dtype, offset_dtype=None):
    """Return the tensors of a problem with a misaligned offset, which the window kernel does not support."""
    x, offset, *rest = problem.tensors(dtype, offset_dtype)
    return [x, views("misaligned", offset), *rest]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("seed", range(20))
def test_random_shapes(emulated, seed, dtype):
    torch.manual_seed(seed)
    problem = drawn(seed)
    tensors = tensors_of(problem, dtype, offset_dtype=random.Random(seed).choice([dtype, torch.float32]))
    emulator = emulated("deform_conv2d", seed=seed)
    assert_agrees(problem, tensors)
    assert [launch.name for launch in emulator.launches] == [KERNEL]


@pytest.mark.sanitized
def test_no_out_of_bounds_access(emulated):
    """35 pixels and 20 outputs fill neither a warp nor a block."""
    problem = Problem("odd", 1, 16, 20, 5, 7, G=2)
    emulated("deform_conv2d", seed=4)
    assert_agrees(problem, tensors_of(problem, torch.bfloat16))


# 960 terms, of which 608 fit shared memory at once.
MANY_TERMS = Problem("terms", 1, 80, 20, 5, 40, (3, 4), padding=(1, 1), G=5)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_terms_exceeding_shared_memory(emulated, dtype):
    emulated("deform_conv2d", seed=3)
    assert_agrees(MANY_TERMS, tensors_of(MANY_TERMS, dtype))


@pytest.mark.parametrize("problem", [MANY_TERMS, drawn(1)], ids=lambda p: p.id)
def test_results_do_not_depend_on_thread_order(emulated, problem):
    tensors = tensors_of(problem, torch.bfloat16)
    emulator = emulated("deform_conv2d")
    first = problem.run(deform_conv2d, tensors)
    for emulator.seed in (1, 2):
        assert torch.equal(problem.run(deform_conv2d, tensors), first)


SPECIAL = [float("nan"), float("inf"), float("-inf"), 1e10, -1.0, -1.0 + 2**-6, -2.0, 65504.0]


@pytest.mark.parametrize("what", ["offset", "input", "mask"])
def test_non_finite_values_match_the_reference(emulated, what):
    problem = Problem("special", 1, 16, 16, 4, len(SPECIAL), (1, 1), padding=(0, 0), G=1)
    x, offset, weight, bias, mask = tensors_of(problem, torch.bfloat16, torch.float32)
    offset[:] = 0.25
    if what == "offset":
        offset[:, 1] = torch.tensor(SPECIAL) - torch.arange(len(SPECIAL))
    else:
        changed = x if what == "input" else mask
        changed[0, 0, 1, : len(SPECIAL) - 1 : 2] = torch.tensor(SPECIAL[:4]).to(changed.dtype)
    tensors = (x, offset, weight, bias, mask)
    emulated("deform_conv2d")
    got, exact = problem.run(deform_conv2d, tensors), problem.run(reference, [t.double() for t in tensors])
    assert torch.equal(got.isnan(), exact.isnan())
    assert what == "offset" or exact.isnan().any()
    finite = exact.isfinite()
    torch.testing.assert_close(got[finite].double(), exact[finite], rtol=0.03, atol=0.1)


@pytest.mark.parametrize(
    "change",
    [{"C": 8, "G": 1}, {"O": 15}, {"C": 20, "G": 1}],
    ids=["few_channels", "few_outputs", "channels_not_of_8"],
)
def test_other_shapes_use_the_fallback_kernel(emulated, change):
    problem = dataclasses.replace(Problem("plain", 1, 16, 16, 5, 6, G=2), **change)
    emulator = emulated("deform_conv2d")
    assert_agrees(problem, tensors_of(problem, torch.bfloat16))
    assert [launch.name for launch in emulator.launches] == ["deform_conv2d_forward_kernel"]


@pytest.mark.parametrize("which", [0, 2], ids=["input", "weight"])
def test_unaligned_addresses(emulated, which):
    problem = Problem("odd", 1, 16, 16, 5, 6, G=2)
    tensors = tensors_of(problem, torch.bfloat16)
    emulator = emulated("deform_conv2d")
    aligned = problem.run(deform_conv2d, tensors)
    tensors[which] = views("misaligned", tensors[which])
    torch.testing.assert_close(problem.run(deform_conv2d, tensors), aligned, rtol=0.02, atol=0.05)
    assert [launch.name for launch in emulator.launches] == [KERNEL, "deform_conv2d_forward_kernel"]


def test_elements_beyond_32_bits_use_the_fallback_kernel(emulated):
    problem, values, far_values = far_problem("batch", 16, 16)
    values[1] = far_values[1] = views("misaligned", values[1])
    emulator = emulated("deform_conv2d")
    near, far = problem.run(deform_conv2d, values), problem.run(deform_conv2d, far_values)
    torch.testing.assert_close(far, near, rtol=0.02, atol=0.05)
    assert [launch.name for launch in emulator.launches] == [KERNEL, "deform_conv2d_forward_kernel"]
