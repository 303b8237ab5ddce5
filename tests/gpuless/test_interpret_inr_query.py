# SPDX-License-Identifier: Apache-2.0
"""Tests of the interpreted fused Triton kernel of inr_query, against float64."""

import itertools

import pytest
import torch
from fastds.kernels import inr_query as kernels
from gpuless.triton_rig import guard, untouched

import fastds
from fastds.ops.impl.inr_query.points import GridSpec, from_index
from tests.support.inr_cases import exact, query

pytestmark = pytest.mark.interpreted
SOURCE = (4, 5)
ENSEMBLES = ["early_attn", "early_area", "late"]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(kernels, "select_tile", lambda *_: (16, 4))
    monkeypatch.setattr(kernels, "select_late_tile", lambda width: (4, width // 2, 4))


def case(ensemble, dtype, hidden=2, outputs=3, depth=64):
    g = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    heads, dk = (4, 8) if ensemble == "early_attn" else (1, 0)
    maps = normal(2, depth + 2 * heads * dk, *SOURCE).to(dtype)
    widths = [depth] * (hidden + 1) + [outputs]
    trunk = [(normal(b, a) / a**0.5, normal(b)) for a, b in itertools.pairwise(widths)]
    keywords = {
        "rho_w": normal(depth, 2),
        "cell_w": normal(depth, 2),
        "bias": normal(depth),
        "cell": normal(2, 2).abs(),
    }
    if heads > 1:
        keywords["rho_bias"] = normal(heads, 2)
    return maps, trunk, keywords | {"ensemble": ensemble, "heads": heads, "dk": dk, "skip": normal(2, outputs, *SOURCE)}


def agree(maps, where, trunk, keywords):
    with fastds.use_backend("triton"):
        y = query(maps, where, trunk, **keywords)
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
    expected = exact(maps.double(), where, [(w.double(), b.double()) for w, b in trunk], **double)
    assert y.dtype == torch.float32
    assert (y - expected).abs().max() < TOLERANCES[maps.dtype] * expected.std()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_inr_query_grid(ensemble, dtype):
    maps, trunk, keywords = case(ensemble, dtype)
    agree(maps, GridSpec.cells(SOURCE, (5, 7)), trunk, keywords)


@pytest.mark.parametrize("ensemble", ["early_attn", "late"])
def test_inr_query_points_wrap_and_cells(ensemble):
    maps, trunk, keywords = case(ensemble, torch.float32, hidden=0)
    where = from_index(torch.rand(2, 19, 2) * 3, SOURCE)
    agree(maps, where, trunk, keywords | {"cell": torch.rand(2, 19, 2), "edge": ("wrap", "wrap")})
    bare = {k: v for k, v in keywords.items() if k in ("ensemble", "heads", "dk")}
    shared = from_index(torch.rand(7, 2) * 3, SOURCE)
    agree(maps, shared, trunk, bare | {"activation": "none"})


def test_zero_weight_corners_are_ignored():
    maps, trunk, keywords = case("early_attn", torch.float32)
    maps[:, 64:] *= 30
    agree(maps, GridSpec.cells(SOURCE, SOURCE), trunk, keywords)


@pytest.mark.parametrize("ensemble", ["early_area", "late"])
def test_no_out_of_bounds_access(ensemble):
    maps, trunk, keywords = case(ensemble, torch.float32, outputs=5)
    inside = guard(maps.contiguous(memory_format=torch.channels_last))
    skip = guard(keywords["skip"])
    agree(inside, GridSpec.cells(SOURCE, (3, 7)), trunk, keywords | {"skip": skip})
    assert untouched(inside) and untouched(skip)


def test_gradients_come_from_the_native_kernel():
    maps, trunk, keywords = case("early_attn", torch.float32)
    grid = GridSpec.cells(SOURCE, (5, 7))
    grads = []
    for name in ("triton", "reference"):
        leaf = maps.clone().requires_grad_()
        with fastds.use_backend(name):
            query(leaf, grid, trunk, **keywords).sum().backward()
        grads.append(leaf.grad)
    assert (grads[0] - grads[1]).abs().max() < 1e-4 * grads[1].abs().max()


def test_unsupported_calls_are_rejected():
    maps, trunk, keywords = case("early_attn", torch.float32)
    grid = GridSpec.cells(SOURCE, (5, 7))
    with fastds.use_backend("triton"):
        with pytest.raises(RuntimeError, match="no mask"):
            query(maps, grid, trunk, mask=torch.ones(2, *SOURCE, dtype=torch.bool), **keywords)
        with pytest.raises(RuntimeError, match="hidden layers of width 64"):
            query(maps, grid, [(torch.zeros(8, 64), torch.zeros(8)), (torch.zeros(3, 8), torch.zeros(3))], **keywords)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_missing_values_propagate_through_relu(ensemble):
    maps, trunk, keywords = case(ensemble, torch.float32)
    maps[0, 3, 2, 2] = float("nan")
    grid = GridSpec.cells(SOURCE, (7, 9))
    with fastds.use_backend("triton"):
        y = query(maps, grid, trunk, **keywords)
    expected = exact(maps, grid, trunk, **keywords)
    assert expected.isnan().any() and torch.equal(y.isnan(), expected.isnan())
