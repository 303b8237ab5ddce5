# SPDX-License-Identifier: Apache-2.0
"""Tests of the native kernel of inr_query against the reference, and with torch."""

import itertools
import math

import pytest
import torch

import fastds
from fastds.ops import inr_query
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec, from_index
from tests.support.inr_cases import KINDS, exact, flat_arguments, query, random_case

f64 = torch.float64
GRID = GridSpec.cells((7, 9), (15, 22))


def places(batch=2, queries=301):
    u = torch.rand(batch, queries, 2) * torch.tensor([7.0, 9.0]) - 0.5
    return {"grid": GRID, "points": from_index(u, (7, 9)), "shared": from_index(u[0], (7, 9))}


def doubled(maps, trunk, keywords):
    trunk = [(w.double(), b.double()) for w, b in trunk]
    return maps.double(), trunk, {k: v.double() if is_number(v) else v for k, v in keywords.items()}


def is_number(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def single(kind, dtype, **options):
    """Return a case with float32 tensors and maps of `dtype`."""
    maps, trunk, keywords = random_case(kind, dtype=torch.float32, **options)
    return maps.to(dtype), trunk, keywords


# Tolerances in standard deviations of the output: (largest error, root mean square error).
TOLERANCES = {
    torch.float64: (1e-12, 1e-13),
    torch.float32: (4e-6, 6e-7),
    torch.float16: (5e-3, 1e-3),
    torch.bfloat16: (5e-2, 8e-3),
}


@pytest.mark.parametrize("where", ["grid", "points", "shared"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_inr_query_forward(kind, dtype, where, each_isa):
    maps, trunk, keywords = random_case(kind, depth=24) if dtype == f64 else single(kind, dtype, depth=24)
    place = places()[where]
    if where == "points":
        keywords["cell"] = torch.rand(2, 301, 2, dtype=keywords["cell"].dtype)
    # The reference gets the rounded maps: what is left is arithmetic (bfloat16 rounds rows and hidden values too).
    where64 = place if where == "grid" else PointSpec(place.base, place.frac.double())
    m, t, k = doubled(maps, trunk, keywords)
    expected = exact(m, where64, t, **k)
    largest, rms = TOLERANCES[dtype]
    for isa in each_isa():
        error = (query(maps, place, trunk, **keywords).double() - expected) / expected.std()
        assert error.abs().max() < largest and error.square().mean().sqrt() < rms, isa


@pytest.mark.parametrize("depth,hidden,outputs,heads,dk", [(128, 128, 4, 4, 16), (64, 64, 1, 1, 3), (30, 7, 5, 3, 8)])
def test_inr_query_layer_widths(depth, hidden, outputs, heads, dk, isa):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    maps = normal(1, depth + 2 * heads * dk, 5, 6)
    trunk = [(normal(o, i) / i**0.5, normal(o)) for i, o in ((depth, hidden), (hidden, hidden), (hidden, outputs))]
    extra = {"rho_w": normal(depth, 2), "heads": heads, "dk": dk, "rho_bias": normal(heads, 2)}
    grid = GridSpec.cells((5, 6), (23, 17))
    m, t, k = doubled(maps, trunk, extra)
    expected = exact(m, grid, t, **k)
    assert (query(maps, grid, trunk, **extra) - expected).abs().max() < 4e-6 * expected.std()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", ["wrap", "mask", "areas", "linear", "bare"])
def test_forward_options(kind, options, each_isa):
    maps, trunk, keywords = random_case(kind)
    if options == "wrap":
        keywords["edge"] = ("wrap", "wrap")
    elif options == "mask":
        keywords["mask"] = torch.rand(2, 7, 9) > 0.3
        maps = torch.where(keywords["mask"][:, None], maps, math.nan)
    elif options == "areas":
        keywords["weighting"] = "areas"
    elif options == "linear":
        keywords["activation"] = "none"
    else:
        keywords = {
            k: v for k, v in keywords.items() if k not in ("skip", "bias", "rho_bias", "cell", "cell_w", "phase")
        }
        trunk = []
    expected = exact(maps, GRID, trunk, **keywords)
    for isa in each_isa():
        y = query(maps, GRID, trunk, **keywords)
        assert torch.equal(y.isnan(), expected.isnan()), isa
        assert (y - expected).nan_to_num().abs().max() < 1e-11 * expected.nan_to_num().std(), isa


def leaves_of(maps, trunk, keywords):
    names = [k for k, v in keywords.items() if is_number(v) and k != "cell"]
    tensors = [maps, *(t for pair in trunk for t in pair), *(keywords[k] for k in names)]
    return names, [t.detach().clone().requires_grad_() for t in tensors]


def gradients(function, maps, where, trunk, keywords, grad, create_graph=False):
    names, leaves = leaves_of(maps, trunk, keywords)
    pairs = list(zip(leaves[1 : 1 + 2 * len(trunk) : 2], leaves[2 : 1 + 2 * len(trunk) : 2], strict=True))
    values = keywords | dict(zip(names, leaves[1 + 2 * len(trunk) :], strict=True))
    y = function(leaves[0], where, pairs, **values)
    return torch.autograd.grad(y, leaves, grad.to(y.dtype), create_graph=create_graph), leaves


@pytest.mark.parametrize("where", ["grid", "points"])
@pytest.mark.parametrize("options", ["plain", "wrap", "mask", "cells"])
@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_backward(kind, options, where, each_isa):
    maps, trunk, keywords = random_case(kind)
    place = places()[where]
    queries = place.count
    if options == "wrap":
        keywords["edge"] = ("wrap", "wrap")
    elif options == "mask":
        keywords["mask"] = torch.rand(2, 7, 9) > 0.3
    elif options == "cells":
        keywords["cell"] = torch.rand(2, queries, 2, dtype=f64)
    grad = torch.randn(2, queries, 3, dtype=f64)
    theirs, _ = gradients(exact, maps, place, trunk, keywords, grad)
    for isa in each_isa():
        ours, _ = gradients(query, maps, place, trunk, keywords, grad)
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape and (a - b).abs().max() <= 1e-11 * b.abs().max().clamp(min=1e-3), isa


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)], ids=str
)
def test_inr_query_backward_in_low_precision(kind, dtype, tolerance):
    maps, trunk, keywords = single(kind, dtype)
    grad = torch.randn(2, GRID.count, 3)
    ours, leaves = gradients(query, maps, GRID, trunk, keywords, grad)
    theirs, _ = gradients(exact, *doubled(maps, trunk, keywords)[:1], GRID, *doubled(maps, trunk, keywords)[1:], grad)
    for a, b, leaf in zip(ours, theirs, leaves, strict=True):
        assert a.dtype == leaf.dtype
        # Rounding may change the sign of an activation near zero, so gradients are compared by their norm.
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("depth", [5, 20, 33])
def test_a_missing_value_stays_in_its_queries(depth, native):
    maps = torch.randn(1, depth, 20, 20).bfloat16()
    maps[:, :, 1] = math.nan
    widths = (depth, 8, 40, 3)
    layers = [(torch.randn(b, a), torch.randn(b)) for a, b in itertools.pairwise(widths)]
    with torch.no_grad():
        results = []
        for backend in ("native", "reference"):
            with fastds.use_backend(backend):
                results.append(inr_query(maps, GridSpec.cells((20, 20), (60, 60)), layers, ensemble="late"))
    assert torch.equal(results[0].isnan(), results[1].isnan()) and results[0].isfinite().any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, f64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_and_infinities_propagate(kind, dtype, value, each_isa):
    """Results and gradients are NaN or infinite exactly where those of the reference are."""
    maps, trunk, keywords = random_case(kind) if dtype == f64 else single(kind, dtype)
    maps[0, 3, 2, 4] = value
    m, t, k = doubled(maps, trunk, keywords)
    grad = torch.ones(2, GRID.count, 3, dtype=f64)
    theirs = [exact(m, GRID, t, **k), *gradients(exact, m, GRID, t, k, grad)[0]]
    assert value == -math.inf or not theirs[0].isfinite().all()  # ReLU makes 0 of -inf
    for isa in each_isa():
        ours = [query(maps, GRID, trunk, **keywords), *gradients(query, maps, GRID, trunk, keywords, grad)[0]]
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf()), isa


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_is_bitwise_independent_of_chunk_size(kind, isa):
    maps, trunk, keywords = single(kind, torch.float32)
    whole = query(maps, GRID, trunk, **keywords).unflatten(1, GRID.size)
    for rows in ((0, 1), (3, 11), (14, 15)):
        part = query(maps, GRID.window(rows, (0, 22)), trunk, **keywords).unflatten(1, (-1, 22))
        assert torch.equal(part, whole[:, slice(*rows)])
    assert torch.equal(query(maps, GRID.points(), trunk, **keywords).unflatten(1, GRID.size), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(query(maps, GRID, trunk, **keywords).unflatten(1, GRID.size), whole)
    finally:
        torch.set_num_threads(threads)


def test_inr_query_backward_chunks_and_threads(monkeypatch):
    maps, trunk, keywords = single("affine-late", torch.float32)
    where, grad = GridSpec.cells((7, 9), (90, 110)), torch.randn(2, 9900, 3)
    first, _ = gradients(query, maps, where, trunk, keywords, grad)
    again, _ = gradients(query, maps, where, trunk, keywords, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        other, _ = gradients(query, maps, where, trunk, keywords, grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(first[0], other[0])  # maps: our kernel; the trunk's products are torch's
    monkeypatch.setattr("fastds.ops.impl.inr_query.query.CHUNK_ROWS", 5000)
    chunked, _ = gradients(query, maps, where, trunk, keywords, grad)
    for a, b in zip(first, chunked, strict=True):
        assert (a - b).norm() < 1e-5 * a.norm()


@pytest.mark.parametrize("axis", ["batch", "rows", "columns"])
def test_inr_query_element_offsets_are_64_bit(axis, tmp_path, isa):
    """The last sample, row or column of the maps lies 2^33 bytes after the first, in a sparse file."""
    maps, trunk, keywords = single("affine-early_attn", torch.float32)
    near = maps.contiguous(memory_format=torch.channels_last)
    strides = list(near.stride())
    k = {"batch": 0, "rows": 2, "columns": 3}[axis]
    strides[k] = 2**31 // (maps.shape[k] - 1) + 1
    extent = 1 + sum((n - 1) * s for n, s in zip(maps.shape, strides, strict=True))
    memory = torch.from_file(str(tmp_path / "maps"), shared=True, size=extent)
    (tmp_path / "maps").unlink()
    results, grad = [], torch.randn(2, GRID.count, 3)
    for leaf in (near, memory.as_strided(maps.shape, strides).copy_(maps)):
        y = query(leaf.requires_grad_(), GRID, trunk, **keywords)
        results.append((y, *torch.autograd.grad(y, leaf, grad)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_inr_query_coordinates_are_64_bit(isa):
    """The test uses the last cells of a grid of 2^30 x 2^30, whose coordinates have numerators above 2^31."""
    maps, trunk, keywords = random_case("affine-early_area")
    n = 1 << 30
    last = GridSpec.cells((7, 9), (n, n)).window((n - 2, n), (n - 3, n))
    assert min(axis.step * axis.size + axis.start for axis in (last.rows, last.columns)) > 2**31
    y, expected = query(maps, last, trunk, **keywords), exact(maps, last, trunk, **keywords)
    assert (y - expected).abs().max() < 1e-11 * expected.std()


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_double_backward(kind):
    maps, trunk, keywords = random_case(kind, batch=1, source=(4, 5), depth=8)
    where, grad = GridSpec.cells((4, 5), (5, 7)), torch.randn(1, 35, 3, dtype=f64)
    result = []
    for function in (query, exact):
        first, leaves = gradients(function, maps, where, trunk, keywords, grad, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True)
        result.append([g for g in second if g is not None])
    for a, b in zip(*result, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max().clamp(min=1e-6)


# ---- in torch


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_opcheck(kind):
    maps, trunk, keywords = single(kind, torch.float32)
    args = list(flat_arguments(maps, GRID, trunk, **keywords))
    torch.library.opcheck(torch.ops.fastds.inr_query.default, tuple(args))
    names, leaves = leaves_of(maps, trunk, keywords)
    args[0] = leaves[0]
    torch.library.opcheck(torch.ops.fastds.inr_query.default, tuple(args))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_inr_query_fake_gradients_have_the_real_layout(layout):
    maps, trunk, keywords = single("affine-early_attn", torch.float32)
    args = flat_arguments(maps.contiguous(memory_format=layout), GRID, trunk, **keywords)
    backward, grad_y = torch.ops.fastds.inr_query_backward, torch.ones(2, GRID.count, 3)

    def on(device, value):
        if isinstance(value, list):
            return [on(device, v) for v in value]
        return value.to(device) if isinstance(value, torch.Tensor) else value

    real, fake = (backward(*on(device, [grad_y, True, *args])) for device in ("cpu", "meta"))
    assert [g.stride() for g in real] == [g.stride() for g in fake]


@pytest.mark.parametrize("kind", ["affine-early_attn", "affine-late"])
def test_inr_query_compile(kind):
    maps, trunk, keywords = single(kind, torch.float32)
    w, b = (t.requires_grad_() for t in trunk[0])
    maps.requires_grad_()

    def function(maps, w):
        return query(maps * 2, GRID, [(w, b), *trunk[1:]], **keywords).square().mean()

    expected = torch.autograd.grad(function(maps, w), (maps, w))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, e in zip(torch.autograd.grad(compiled(maps, w), (maps, w)), expected, strict=True):
        assert (a - e).abs().max() <= 1e-5 * e.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_layouts_and_gradient_subsets(kind):
    maps, trunk, keywords = single(kind, torch.float32)
    expected = query(maps, GRID, trunk, **keywords)
    assert torch.equal(query(maps.contiguous(memory_format=torch.channels_last), GRID, trunk, **keywords), expected)
    wide = torch.randn(2, maps.shape[1] + 5, 9, 14).contiguous(memory_format=torch.channels_last)
    inner = wide[:, 3 : 3 + maps.shape[1], 1:8, 2:11]
    inner.copy_(maps)
    assert torch.equal(query(inner, GRID, trunk, **keywords), expected)
    expanded = maps[:1].expand_as(maps)
    assert torch.equal(query(expanded, GRID, trunk, **keywords), query(expanded.clone(), GRID, trunk, **keywords))
    if trunk:
        w = trunk[-1][0].clone().requires_grad_()
        query(maps, GRID, [*trunk[:-1], (w, trunk[-1][1])], **keywords).sum().backward()
        assert torch.isfinite(w.grad).all()


def test_inr_query_autocast_excludes_coordinates_and_skip():
    maps, trunk, keywords = single("affine-early_attn", torch.float32)
    keywords["skip"] = keywords["skip"] + 1.2e5
    with torch.autocast("cpu", torch.bfloat16):
        y = query(maps, GRID, trunk, **keywords)
    assert y.dtype == torch.float32
    assert torch.equal(y, query(maps.bfloat16(), GRID, trunk, **keywords))


def test_gradients_of_coordinates_come_from_the_reference(monkeypatch):
    monkeypatch.setattr("fastds.ops.core.backends._warned", set())  # another test may have caused the warning
    maps, trunk, keywords = random_case("affine-early_attn")
    u = (torch.rand(11, 2, dtype=f64) * 5).requires_grad_()
    with pytest.warns(RuntimeWarning, match="gradients of coordinates"):
        y = query(maps, from_index(u, (7, 9), dtype=f64), trunk, **keywords)
    (grad,) = torch.autograd.grad(y[0, :, 0].sum(), u)
    step = 1e-6 * torch.tensor([1.0, 0.0], dtype=f64)
    value = [
        query(maps, from_index(u.detach() + s, (7, 9), dtype=f64), trunk, **keywords)[0, :, 0] for s in (step, -step)
    ]
    assert ((value[0] - value[1]) / 2e-6 - grad[:, 0]).abs().max() < 1e-4


def test_inr_query_coordinates_keep_their_dtype():
    """The coordinate 1800.25 must not be rounded to bfloat16, which gives 1800."""
    ramp = torch.arange(3600.0)[None, None, None].expand(1, 1, 1, 3600)
    where = from_index(torch.tensor([[0.0, 1800.25]]), (1, 3600))
    y = inr_query(
        torch.zeros(1, 1, 1, 3600, dtype=torch.bfloat16), where, skip=ramp, ensemble="early_area", activation="none"
    )
    assert y.item() == 1800.25


def test_outside_points_are_nan():
    maps, trunk, keywords = single("affine-early_attn", torch.float32)
    where = from_index(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), (7, 9), outside="nan")
    y = query(maps, where, trunk, **keywords)
    assert torch.isfinite(y[:, 0]).all() and y[:, 1].isnan().all()


def test_inr_query_empty():
    maps, trunk, keywords = single("affine-early_attn", torch.float32)
    assert query(maps, GridSpec.cells((7, 9), (0, 4)), trunk, **keywords).shape == (2, 0, 3)
    keywords = {k: v[:0] if is_number(v) and k in ("cell", "skip") else v for k, v in keywords.items()}
    leaf = maps[:0].requires_grad_()
    y = query(leaf, GRID, trunk, **keywords)
    y.sum().backward()
    assert y.shape == (0, GRID.count, 3) and leaf.grad.shape == leaf.shape


DOT = {"feature": "dot", "ensemble": "none", "trunk": [], "heads": 1, "dk": 0}


def refused(change, kind="affine-early_attn"):
    maps, trunk, keywords = single(kind, torch.float32)
    call = {"maps": maps, "where": GRID, "trunk": trunk, **keywords}
    change(call)
    return lambda: inr_query(call.pop("maps"), call.pop("where"), call.pop("trunk"), **call)


@pytest.mark.parametrize(
    "change,error,message",
    [
        (lambda c: c.update(maps=c["maps"][0]), ValueError, "maps has shape"),
        (lambda c: c.update(maps=c["maps"].int()), TypeError, "maps has dtype"),
        (lambda c: c.update(where=(14, 18)), TypeError, "expected GridSpec or PointSpec"),
        (lambda c: c.update(feature="sine"), ValueError, "feature must be one of"),
        (lambda c: c.update(ensemble="early"), ValueError, "ensemble must be one of"),
        (lambda c: c.update(compat="lte"), ValueError, "compat must be None or 'liif'"),
        (lambda c: c.update(heads=5), ValueError, "maps has 36 channels"),
        (lambda c: c.update(dk=0), ValueError, "dk >= 1"),
        (lambda c: c.update(heads=65), ValueError, "heads in 1..64"),
        (lambda c: c.update(rho_w=c["rho_w"][:3]), ValueError, "rho_w has shape \\(3, 2\\), expected \\(16, 2\\)"),
        (lambda c: c.update(cell=None), ValueError, "cell is None"),
        (lambda c: c.update(cell=c["cell"].half()), TypeError, "cell has dtype"),
        (lambda c: c.update(skip=c["skip"][:, :1]), ValueError, "skip has shape"),
        (lambda c: c.update(mask=torch.ones(2, 7, 8, dtype=torch.bool)), ValueError, "mask has shape"),
        (lambda c: c.update(trunk=[(torch.zeros(3, 5), torch.zeros(3))]), ValueError, "trunk\\[0\\] weight has shape"),
        (lambda c: c.update(trunk=[torch.zeros(3)]), TypeError, "list of pairs"),
        (lambda c: c.update(edge=("wrap", "zero")), ValueError, "edge must be a pair"),
        (lambda c: c.update(out_dtype=torch.int32), ValueError, "out_dtype"),
        (lambda c: c.update(feature="dot", ensemble="none"), ValueError, "empty trunk"),
        (lambda c: c.update(DOT, rho_w=None), ValueError, "'dot' needs rho_w of shape"),
        (lambda c: c.update(DOT, rho_w=torch.zeros(0, 2)), ValueError, "'dot' needs rho_w of shape"),
        (lambda c: c.update(DOT, rho_w=torch.zeros(4, 2)), ValueError, "D \\+ 1 a divisor of maps' 36 channels"),
        (lambda c: c.update(phase=torch.zeros(8, 2)), ValueError, "phase belongs to feature 'fourier'"),
    ],
)
def test_inr_query_rejects_invalid_arguments(change, error, message):
    with pytest.raises(error, match=message):
        refused(change)()


def test_inr_query_explain():
    maps, trunk, keywords = single("affine-early_attn", torch.float32)
    report = fastds.explain("inr_query", *flat_arguments(maps, GRID, trunk, **keywords))
    assert report["native"] == "chosen" and report["reference"] == "usable"
    assert report["triton"].startswith("refused")
