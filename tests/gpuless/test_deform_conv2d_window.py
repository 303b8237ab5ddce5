# SPDX-License-Identifier: Apache-2.0
"""Tests of the deform_conv2d kernel that keeps a window of the map in shared memory, on the emulator."""

import random

import pytest
import torch

from fastds.ops import deform_conv2d
from fastds.ops.impl.deform_conv2d import guided
from tests.support.deform_cases import Problem, assert_agrees

pytestmark = pytest.mark.usefixtures("in_one_pass")

KERNEL = "deform_conv2d_window_kernel"
HALF = [torch.bfloat16, torch.float16]


def drawn(seed: int) -> Problem:
    """Return a random problem for this kernel with several tiles of 8 x 16 pixels."""
    draw = random.Random(seed)
    groups, packs = draw.choice([1, 1, 2]), draw.choice([2, 4, 5, 8])
    channels = groups * packs * 8
    return Problem(
        f"seed{seed}", draw.randint(1, 2), channels, groups * draw.randint(16, 70), draw.randint(6, 19),
        draw.randint(6, 35), (draw.randint(1, 3), draw.randint(1, 3)), (draw.randint(1, 2), draw.randint(1, 2)),
        (draw.randint(0, 2), draw.randint(0, 2)), (1, 1), groups,
        draw.choice([n for n in range(1, channels + 1) if channels % (8 * n) == 0]), draw.random() < 0.7,
        draw.random() < 0.7,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_random_shapes(emulated, seed, dtype):
    torch.manual_seed(seed)
    problem = drawn(seed)
    tensors = problem.tensors(dtype, offset_dtype=random.Random(seed).choice([dtype, torch.float32]))
    emulator = emulated("deform_conv2d", seed=seed)
    assert_agrees(problem, tensors)
    assert [launch.name for launch in emulator.launches] == [KERNEL]


@pytest.mark.sanitized
def test_samples_outside_the_shared_tile_and_the_input(emulated):
    """Displacements are up to 40 pixels, and the margin of a tile has 12."""
    problem = Problem("far", 1, 16, 20, 30, 37, G=2)
    x, offset, *rest = problem.tensors(torch.bfloat16, offset_dtype=torch.float32)
    emulator = emulated("deform_conv2d", seed=4)
    assert_agrees(problem, [x, 10 * offset, *rest])
    assert [launch.name for launch in emulator.launches] == [KERNEL]


def test_results_do_not_depend_on_thread_order(emulated):
    problem = Problem("order", 1, 64, 64, 9, 17, G=8)
    tensors = problem.tensors(torch.bfloat16)
    emulator = emulated("deform_conv2d")
    first = problem.run(deform_conv2d, tensors)
    for emulator.seed in (1, 2):
        assert torch.equal(problem.run(deform_conv2d, tensors), first)


@pytest.mark.parametrize("modulated, shift, slope", [(True, 0.0, 0.1), (True, 35.0, 1.0), (False, None, 0.1)])
def test_fused_offsets(emulated, modulated, shift, slope):
    groups, channels = 2, 16
    x = torch.randn(2, channels, 11, 40).bfloat16().contiguous(memory_format=torch.channels_last)
    raw = torch.randn(2, (3 if modulated else 2) * groups * 9, 11, 40).bfloat16()
    raw = raw.contiguous(memory_format=torch.channels_last)
    weight, bias = (torch.randn(20, channels, 3, 3) / 12).bfloat16(), torch.randn(20).bfloat16()
    base = None if shift is None else torch.randn(2, 2, 11, 40) + torch.tensor([0.3, shift])[:, None, None]
    args = (x, raw, weight, bias, base, groups, modulated, slope)
    emulator = emulated("deform_conv2d")
    got = guided.GUIDED_DEFORM_CONV2D(*args)
    assert [launch.name for launch in emulator.launches] == [KERNEL]
    exact = guided.reference(*(t.double() if isinstance(t, torch.Tensor) else t for t in args))
    torch.testing.assert_close(got.double(), exact, rtol=1.6e-2, atol=1.6e-2)
