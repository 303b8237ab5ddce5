# SPDX-License-Identifier: Apache-2.0
"""Tests that concurrent calls of the ops from several threads give the bits of single calls."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from fastds import ops
from tests.fuzz.campaign import case_of
from tests.fuzz.cases import DTYPES, build, tensors
from tests.fuzz.strategies import STRATEGIES

EACH = 3  # calls of an op

pytestmark = [pytest.mark.usefixtures("native"), pytest.mark.filterwarnings("ignore:fastds.")]


def computed(case):
    """Return the results and gradients of a call."""
    arguments = build(case)
    leaves = [t for t in tensors(arguments) if t.requires_grad]
    with torch.autocast("cpu", DTYPES[case.autocast]) if case.autocast else nullcontext():
        results = tensors(getattr(ops, case.op)(**arguments))
    generator = torch.Generator().manual_seed(case.seed)
    along = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in results]
    found = [pair for pair in zip(results, along, strict=True) if pair[0].requires_grad]
    if not found or not leaves:
        return results
    values, along = zip(*found, strict=True)
    gradients = torch.autograd.grad(values, leaves, along, allow_unused=True)
    return [*results, *(g for g in gradients if g is not None)]


def same_bits(a, b):
    return all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(a, b, strict=True))


def test_concurrent_calls_are_independent():
    cases = [case_of(5, op, "valid", number) for number in range(EACH) for op in STRATEGIES]
    alone = [computed(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for case, got, expected in zip(cases, pool.map(computed, cases), alone, strict=True):
                assert same_bits(got, expected), case


@pytest.mark.parametrize("op", STRATEGIES)
def test_concurrent_equal_calls(op):
    """All threads use the same caches of weights and workspaces."""
    case = case_of(5, op, "valid", EACH)
    alone = computed(case)
    with ThreadPoolExecutor(4) as pool:
        assert all(same_bits(got, alone) for got in pool.map(computed, [case] * 12))
