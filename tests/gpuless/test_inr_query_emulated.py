# SPDX-License-Identifier: Apache-2.0
"""Tests of the CUDA kernels of inr_query on the emulator, against the reference."""

import math

import pytest
import torch
from gpuless.emu import ptxas_report

import fastds
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec, from_index
from tests.support.inr_cases import KINDS, exact, query, random_case

GRID = GridSpec.cells((4, 5), (5, 7))


def case(kind, **options):
    return random_case(kind, source=(4, 5), depth=40, **options)


def is_leaf(name, value):
    return isinstance(value, torch.Tensor) and value.is_floating_point() and name != "cell"


def compare(kind, where, seed, tolerance=1e-11, **extra):
    maps, trunk, keywords = case(kind)
    keywords |= extra
    names = [k for k, v in keywords.items() if is_leaf(k, v)]
    grad = torch.randn(2, where.count, 3, dtype=torch.float64)
    result = []
    for function in (query, exact):
        leaves = [maps, *(t for pair in trunk for t in pair), *(keywords[k] for k in names)]
        leaves = [t.clone().requires_grad_() for t in leaves]
        pairs = list(zip(leaves[1 : 1 + 2 * len(trunk) : 2], leaves[2 : 1 + 2 * len(trunk) : 2], strict=True))
        values = keywords | dict(zip(names, leaves[1 + 2 * len(trunk) :], strict=True))
        y = function(leaves[0], where, pairs, **values)
        result.append([y, *torch.autograd.grad(y, leaves, torch.where(y.isnan(), 0, grad))])
    assert torch.equal(result[0][0].isnan(), result[1][0].isnan())
    for a, b in zip(*([t.nan_to_num() for t in r] for r in result), strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_grid(emulated, kind):
    emulator = emulated("inr_query", seed=0)
    compare(kind, GRID, 0)
    assert {launch.name for launch in emulator.launches} == {
        "inr_features_kernel", "inr_features_backward_kernel",
    }  # fmt: skip


@pytest.mark.sanitized
@pytest.mark.parametrize("kind", ["affine-early_attn", "fourier-late"])
def test_inr_query_points_wrap_and_mask(emulated, kind):
    emulated("inr_query", seed=1)
    mask = torch.rand(2, 4, 5) > 0.3
    where = from_index(torch.rand(2, 11, 2, dtype=torch.float64) * 3, (4, 5), dtype=torch.float64)
    cell = torch.rand(2, 11, 2, dtype=torch.float64)
    compare(kind, where, 1, mask=mask, edge=("wrap", "wrap"), cell=cell)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_and_nan_under_the_mask(emulated, kind):
    emulated("inr_query")
    maps, trunk, keywords = case(kind, dtype=torch.float32)
    mask = torch.rand(2, 4, 5) > 0.3
    holed = torch.where(mask[:, None], maps, math.nan)
    y = query(holed, GRID, trunk, mask=mask, **keywords)
    expected = exact(maps, GRID, trunk, mask=mask, **keywords)
    assert torch.equal(y.isnan(), expected.isnan())
    assert (y - expected).nan_to_num().abs().max() < 1e-5 * expected.nan_to_num().std()


def test_all_corners_of_the_skip_invalid(emulated):
    emulated("inr_query")
    mask = torch.tensor([[[False, True], [True, True]]])
    point = PointSpec(torch.zeros(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2))
    options = {"ensemble": "early_area", "mask": mask, "skip": torch.ones(1, 2, 2, 2), "compat": "liif"}
    with fastds.use_backend("native"):
        assert fastds.ops.inr_query(torch.ones(1, 2, 2, 2), point, **options).isnan().all()


def test_inr_query_bfloat16(emulated):
    emulated("inr_query")
    maps, trunk, keywords = case("affine-early_attn", dtype=torch.float32)
    y = query(maps.bfloat16(), GRID, trunk, **keywords)
    expected = exact(maps.bfloat16().float(), GRID, trunk, **keywords)
    assert y.dtype == torch.float32 and (y - expected).abs().max() < 0.05 * expected.std()


def test_deterministic_algorithms_refuse_the_atomic_backward(emulated):
    emulated("inr_query")
    maps, trunk, keywords = case("affine-early_area", dtype=torch.float32)
    y = query(maps.requires_grad_(), GRID, trunk, **keywords)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.warns(RuntimeWarning, match="it adds atomically on CUDA"):
            y.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.isfinite(maps.grad).all()


def test_registers_and_spills():
    for kernel in ptxas_report("inr_query", 90):
        assert kernel.spills == 0, kernel


@pytest.mark.parametrize("kind", ["affine-late", "affine-early_attn"])
def test_missing_values_propagate_through_relu(emulated, kind):
    emulated("inr_query", seed=0)
    maps, trunk, keywords = case(kind)
    maps[0, 3, 2, 2] = math.nan
    y, expected = query(maps, GRID, trunk, **keywords), exact(maps, GRID, trunk, **keywords)
    assert expected.isnan().any() and torch.equal(y.isnan(), expected.isnan())
