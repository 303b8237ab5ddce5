# SPDX-License-Identifier: Apache-2.0
"""Calls drawn by seed for the fused kernel of deform_conv2d, csrc/deform_conv2d/cuda_fused.cuh."""

import random
from dataclasses import dataclass

import pytest
import torch
from gpuless.conv3x3_window_cases import is_untouched, make_poisoned_allocator
from gpuless.emu import Emulator
from torch import Tensor

from fastds.ops import deform_conv2d
from fastds.ops.core import native
from fastds.ops.impl.deform_conv2d import op
from fastds.ops.impl.deform_conv2d.selection import use_fused
from tests.support.deform_cases import Problem, assert_agrees

KERNEL = "deform_conv2d_fused_kernel"
DTYPES = (torch.bfloat16, torch.float16)
TILE, SLAB_TERMS, BLOCK_OUTPUTS = 8, 64, 128
MOST_STAGES = 40  # of a drawn call, which the emulator computes in about half a second


@dataclass(frozen=True)
class Case:
    """A call of deform_conv2d by the kernel.

    Attributes:
        problem: the sizes.
        dtype: dtype of the maps.
        offset_dtype: dtype of the offsets.
        reach: factor of the offsets, which are up to 4 pixels without it.
    """

    problem: Problem
    dtype: torch.dtype = torch.bfloat16
    offset_dtype: torch.dtype = torch.float32
    reach: int = 1

    def make_tensors(self) -> list[Tensor | None]:
        """Return input, offset, weight, bias and mask, which depend on torch's seed."""
        x, offset, *rest = self.problem.tensors(self.dtype, self.offset_dtype)
        return [x, self.reach * offset, *rest]

    def compute(self, tensors) -> Tensor:
        return self.problem.run(deform_conv2d, tensors)

    def count_stages(self) -> int:
        """Return the number of times that stages of shared memory are filled."""
        p = self.problem
        tiles = p.B * -(-p.out[0] // TILE) * -(-p.out[1] // TILE)
        terms = p.kernel[0] * p.kernel[1] * p.C // p.groups
        return tiles * -(-terms // SLAB_TERMS) * p.groups * -(-p.O // p.groups // BLOCK_OUTPUTS)


def draw_case(seed: int) -> Case:
    """Draw a case of at most MOST_STAGES stages. Offsets of a single pixel are left out: torch gives it odd strides."""
    draw = random.Random(seed)
    while True:
        case = _draw_any_case(draw)
        if case.count_stages() <= MOST_STAGES and case.problem.out != (1, 1):
            return case


def _draw_any_case(draw: random.Random) -> Case:
    groups, kernel = draw.choice([1, 1, 1, 2, 3, 8]), draw.choice([(1, 1), (3, 3), (5, 5), (7, 7), (1, 10), (4, 2)])
    packs = draw.choice([1, 2, 3, 8, draw.randint(1, 12)])  # of 8 channels of a group
    channels = 8 * groups * packs
    outputs = groups * draw.choice([1, 8, 16, draw.randint(1, 64), draw.randint(65, 150) if groups == 1 else 8])
    dilation, padding = [tuple(draw.randint(0, most) for _ in range(2)) for most in (2, 3)]
    least = [max((k - 1) * d + 1 - 2 * p, 1) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    least[0] = max(least[0], 2)  # a single pixel has no stride of 16 bytes
    height, width = (n + draw.randint(0, draw.choice([6, 17])) for n in least)
    problem = Problem(
        "drawn", draw.randint(1, 3), channels, outputs, height, width, kernel,
        (draw.randint(1, 3), draw.randint(1, 2)), padding, dilation, groups,
        draw.choice([n for n in range(1, 13) if channels % (8 * n) == 0]), draw.random() < 0.7, draw.random() < 0.7,
    )  # fmt: skip
    dtype = draw.choice(DTYPES)
    return Case(problem, dtype, draw.choice([dtype, torch.float32]), draw.choice([1, 1, 7]))


@pytest.fixture
def fused_outputs(monkeypatch):
    """Request the kernel. Fill its results with NaN before it runs, between guards; return a list of their memory."""
    buffers: list[Tensor] = []
    monkeypatch.setattr(op, "empty_map", make_poisoned_allocator(buffers))
    with use_fused():
        yield buffers


SEEDS = 3  # orders of threads


def finds_an_error(case: Case, module, buffers: list[Tensor], monkeypatch) -> bool:
    """Return whether some order of threads gives a wrong result, an error or a write outside of the results.

    Args:
        case: the call.
        module: result of emu.build.
        buffers: memory of poisoned results, see fused_outputs.
        monkeypatch: fixture of the test.
    """
    emulator = Emulator([module])
    monkeypatch.setattr(native, "get_module", lambda: emulator)
    for emulator.seed in range(SEEDS):
        torch.manual_seed(0)
        try:
            assert_agrees(case.problem, case.make_tensors())
        except (AssertionError, RuntimeError):
            return True
        if not is_untouched(buffers):
            return True
    return False
