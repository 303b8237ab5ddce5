# SPDX-License-Identifier: Apache-2.0
"""Problems and the memory of the columns for the tests of deform_conv2d in two passes."""

import random
from collections.abc import Iterator

import pytest
import torch

from fastds.ops.impl.deform_conv2d import two_passes
from fastds.ops.impl.deform_conv2d.selection import use_two_passes
from tests.support.deform_cases import Problem

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def columns(monkeypatch):
    """Fill the memory of the columns with NaN, and check after the test that none was written beyond its end."""
    held = []

    def allocate(x, count):
        memory = torch.full((count + 64,), float("nan"), dtype=x.dtype)
        held.append(memory)
        return memory[:count]

    monkeypatch.setattr(two_passes, "_allocate_columns", allocate)
    with use_two_passes(True):
        yield held
    assert all(memory[-64:].isnan().all() for memory in held)


def limit_columns(monkeypatch, size):
    monkeypatch.setattr(two_passes, "_get_column_bytes", lambda index: size)


def drawn(seed: int, pack: int) -> Problem:
    """Return a random problem that the two passes support, of `pack` channels in 16 bytes."""
    draw = random.Random(seed)
    groups = draw.choice([1, 1, 1, 2, 3, 8])
    group_packs = draw.randint(1, 4 if groups < 3 else 2)
    channels = groups * group_packs * pack
    kernel = draw.choice([(1, 1), (3, 3), (5, 5), (7, 7), (1, draw.randint(2, 10)), (draw.randint(1, 4), 2)])
    dilation = draw.randint(0, 2), draw.randint(0, 2)
    padding = draw.randint(0, 3), draw.randint(0, 3)
    least = [max((k - 1) * d + 1 - 2 * p, 1) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    least[0] = max(least[0], 2)  # a single pixel has no stride of 16 bytes
    return Problem(
        f"seed{seed}", draw.randint(1, 3), channels, groups * draw.randint(1, 20),
        draw.randint(least[0], least[0] + 11), draw.randint(least[1], least[1] + 11),
        kernel, (draw.randint(1, 3), draw.randint(1, 2)), padding, dilation, groups,
        draw.choice([n for n in range(1, 9) if channels % (pack * n) == 0]), draw.random() < 0.7, draw.random() < 0.7,
    )  # fmt: skip


def draw_cases(emulator, monkeypatch, seeds, dtype) -> Iterator[tuple[Problem, list]]:
    """Yield random problems and their tensors, with chunks of columns and an order of threads drawn by each seed."""
    for seed in seeds:
        torch.manual_seed(seed)
        draw = random.Random(seed)
        limit_columns(monkeypatch, draw.choice([1 << 12, 1 << 15, 1 << 24]))
        problem = drawn(seed, 16 // dtype.itemsize)
        tensors = problem.tensors(dtype, offset_dtype=draw.choice([dtype, torch.float32]))
        emulator.seed = seed
        emulator.clear()
        yield problem, tensors
