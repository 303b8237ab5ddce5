# SPDX-License-Identifier: Apache-2.0
"""Tests of the values of inr_query."""

import math

import pytest
import torch
import torch.nn.functional as F

import fastds
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec, from_index, from_latlon, from_normalised
from tests.support.inr_cases import KINDS, grid_coordinates, liif, lte, meta_sr, query, random_case

f64 = torch.float64
PAIRS = [((7, 9), (14, 18)), ((6, 5), (16, 13)), ((8, 8), (20, 12)), ((5, 7), (3, 4)), ((11, 6), (33, 17))]


@pytest.fixture(autouse=True, params=["native", "reference"])
def backend(request):
    with fastds.use_backend(request.param):
        yield request.param


def normal(*shape, scale=1.0):
    return scale * torch.randn(*shape, dtype=f64)


def interior(source, target):
    """Return the mask of queries that are not at the first or last pixel centre.

    At these centres, the areas of published implementations depend on rounding.
    """
    masks = []
    for n, m in zip(source, target, strict=True):
        u = ((2 * torch.arange(m) + 1) * n - m).double() / (2 * m)
        masks.append((u.abs() > 1e-5) & ((u - (n - 1)).abs() > 1e-5))
    return (masks[0][:, None] & masks[1][None]).reshape(-1)


def random_liif(channels=4, hidden=24, outputs=3):
    sizes = [(9 * channels + 4, hidden), (hidden, hidden), (hidden, outputs)]
    return [(normal(o, i, scale=i**-0.5), normal(o, scale=0.3)) for i, o in sizes]


def factored_liif(features, where, cell, layers, **options):
    channels = features.shape[1]
    w1, b1 = layers[0]
    maps = F.conv2d(features, w1[:, : 9 * channels].unflatten(1, (channels, 3, 3)), b1, padding=1)
    extra = {"rho_w": w1[:, -4:-2], "cell_w": w1[:, -2:], "cell": cell, "ensemble": "late"}
    return query(maps, where, layers[1:], **extra, **options)


# ---- against the published formulas, written with grid_sample


@pytest.mark.parametrize("source,target", PAIRS)
def test_inr_query_equals_liif(source, target):
    features, layers = normal(2, 4, *source), random_liif()
    cell = torch.tensor([2 / n for n in target], dtype=f64).expand(2, 2)
    expected = liif(features, grid_coordinates(target, 2), cell, layers)
    kappa = cell * torch.tensor(source)
    y = factored_liif(features, GridSpec.cells(source, target), kappa, layers)
    keep = interior(source, target)
    assert (y - expected)[:, keep].abs().max() < 3e-8 * expected.std() * 10
    exact = factored_liif(features, GridSpec.cells(source, target), kappa, layers, weighting="areas")
    assert (exact - expected)[:, keep].abs().max() < 1e-11


def test_inr_query_liif_points_outside():
    features, layers, source = normal(1, 4, 7, 9), random_liif(), (7, 9)
    coord = (torch.rand(1, 200, 2, dtype=f64) * 2 - 1) * 1.2
    u = ((coord + 1) * torch.tensor(source) - 1) / 2
    where = PointSpec(u.floor().int(), u - u.floor())
    cell = torch.full((1, 2), 0.1, dtype=f64)
    expected = liif(features, coord, cell, layers)
    y = factored_liif(features, where, cell * torch.tensor(source), layers, weighting="areas")
    inside = ((u > -0.5) & (u < torch.tensor(source) - 0.5)).all(-1)
    assert inside.sum() > 100
    assert (y - expected)[inside].abs().max() < 1e-10
    assert (y - expected).abs().max() < 1e-6  # far outside the areas are large and equal on both sides


def test_inr_query_degenerate_rows_of_published_areas():
    """At scale 1, the results equal the published ones except in the outer rows and columns."""
    features, layers, source = normal(1, 4, 7, 9), random_liif(), (7, 9)
    cell = torch.tensor([[2 / 7, 2 / 9]], dtype=f64)
    expected = liif(features, grid_coordinates(source, 1), cell, layers).reshape(7, 9, -1)
    y = factored_liif(features, GridSpec.cells(source, source), cell * torch.tensor(source), layers).reshape(7, 9, -1)
    difference = (y - expected).abs().amax(-1)
    assert difference[1:-1, 1:-1].max() < 1e-6
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("factor", [1, 3, 5])
def test_skip_is_bilinear_with_area_weights(factor, backend):
    field = normal(2, 3, 7, 9).requires_grad_()
    maps, trunk = normal(2, 8, 7, 9), [(torch.zeros(3, 8, dtype=f64), torch.zeros(3, dtype=f64))]
    with fastds.use_backend(backend):
        where = GridSpec.cells((7, 9), (7 * factor, 9 * factor))
        y = query(maps, where, trunk, ensemble="late", skip=field, weighting="areas").unflatten(1, where.size)
    expected = F.interpolate(field, scale_factor=factor, mode="bilinear").permute(0, 2, 3, 1)
    assert (y - expected).abs().max() < 1e-12
    along = torch.randn_like(y)
    ours, exact = (torch.autograd.grad(t, field, along)[0] for t in (y, expected))
    assert (ours - exact).abs().max() < 1e-12


@pytest.mark.parametrize("source,target", PAIRS[:4])
def test_inr_query_equals_lte(source, target):
    features, field, half = normal(2, 4, *source), normal(2, 3, *source), 6
    coefficient = normal(2 * half, 4, 3, 3, scale=0.2), normal(2 * half)
    frequency = normal(2 * half, 4, 3, 3, scale=0.2), normal(2 * half)
    phase, layers = normal(half, 2), [(normal(8, 2 * half), normal(8)), (normal(3, 8), normal(3))]
    cell = torch.tensor([2 / n for n in target], dtype=f64).expand(2, 2)
    expected = lte(features, grid_coordinates(target, 2), cell, coefficient, frequency, phase, layers, field)
    maps = torch.cat([F.conv2d(features, w, b, padding=1) for w, b in (coefficient, frequency)], 1)
    extra = {"feature": "fourier", "ensemble": "late", "phase": phase, "cell": cell * torch.tensor(source)}
    y = query(maps, GridSpec.cells(source, target), layers, skip=field, **extra)
    keep = interior(source, target)
    assert (y - expected)[:, keep].abs().max() < 3e-7 * expected.std()


@pytest.mark.parametrize("source,target", [((7, 9), (14, 18)), ((6, 5), (16, 13)), ((8, 8), (20, 12))])
def test_inr_query_equals_meta_sr(source, target):
    channels, outputs, hidden = 4, 3, 16
    features = normal(2, channels, *source)
    layers = [
        (normal(hidden, 3), normal(hidden)),
        (normal(9 * channels * outputs, hidden), normal(9 * channels * outputs)),
    ]
    cell = torch.tensor([2 / n for n in target], dtype=f64).expand(2, 2)
    expected = meta_sr(features, grid_coordinates(target, 2), cell, layers, outputs)
    (w1, b1), (w2, b2) = layers
    kernels = w2.unflatten(0, (channels, 3, 3, outputs)).permute(3, 4, 0, 1, 2).flatten(0, 1)
    constant = b2.unflatten(0, (channels, 3, 3, outputs)).permute(3, 0, 1, 2)
    maps = torch.cat([F.conv2d(features, k, padding=1) for k in (kernels, constant)], 1)
    ratio = torch.stack([cell[:, 0] * source[0] / 2, torch.zeros(2, dtype=f64)], -1)
    extra = {"rho_w": w1[:, :2] / 2, "cell_w": torch.cat([w1[:, 2:], 0 * w1[:, 2:]], 1), "bias": b1, "cell": ratio}
    y = query(maps, GridSpec.corners(source, target), feature="dot", ensemble="none", **extra)
    assert (y - expected).abs().max() < 1e-10


def test_inr_query_factored_first_layer_in_float32():
    source, target = (7, 9), (17, 21)
    features, layers = normal(1, 4, *source), random_liif()
    cell = torch.tensor([[2 / n for n in target]], dtype=f64)
    expected = liif(features, grid_coordinates(target, 1), cell, layers)
    single = [(w.float(), b.float()) for w, b in layers]
    kappa = (cell * torch.tensor(source)).float()
    y = factored_liif(features.float(), GridSpec.cells(source, target), kappa, single)
    keep = interior(source, target)
    assert (y - expected)[:, keep].abs().max() < 1e-5 * expected.std()


# ---- coordinates


@pytest.mark.parametrize("n,m", [(180, 720), (721, 1801), (48, 133), (7, 7), (12, 36)])
def test_inr_query_grid_points_and_normalised_coordinates_agree(n, m):
    maps, trunk, keywords = random_case("affine-early_attn", source=(n, 3), batch=1)
    grid = GridSpec.cells((n, 3), (m, 2))
    expected = query(maps, grid, trunk, **keywords)
    assert torch.equal(query(maps, grid.points(dtype=f64), trunk, **keywords), expected)
    points = from_normalised(grid_coordinates((m, 2), 1), (n, 3), dtype=f64)
    assert (query(maps, points, trunk, **keywords) - expected).abs().max() < 1e-9


def test_inr_query_axes_are_exact_integers():
    base, frac = GridSpec.cells((721, 1), (1801, 1)).rows.locate()
    u = ((2 * torch.arange(1801) + 1) * 721 - 1801).double() / 3602
    assert torch.equal(base, u.floor().long()) and (base + frac - u).abs().max() < 1e-12
    assert frac.unique().numel() <= 1801 // math.gcd(721, 1801)
    assert GridSpec.cells((180, 3), (720, 3)).rows.locate()[1].unique().tolist() == [0.125, 0.375, 0.625, 0.875]


def test_inr_query_window_is_part_of_the_grid():
    maps, trunk, keywords = random_case("affine-early_area")
    grid = GridSpec.cells((7, 9), (17, 21))
    whole = query(maps, grid, trunk, **keywords).unflatten(1, (17, 21))
    part = query(maps, grid.window((3, 11), (5, 21)), trunk, **keywords).unflatten(1, (8, 16))
    assert torch.equal(part, whole[:, 3:11, 5:21])


def test_inr_query_is_continuous():
    """Halving the step between queries nearly halves the largest difference of neighbouring results."""
    for kind in ("affine-early_attn", "affine-late", "fourier-late"):
        maps, trunk, keywords = random_case(kind, batch=1, skip=False)
        largest = []
        for steps in (20000, 40000):
            line = torch.linspace(0, 1, steps + 1, dtype=f64)
            u = torch.stack([0.3 + 5.1 * line, 0.2 + 7.3 * line], -1)
            y = query(maps, from_index(u, (7, 9), dtype=f64), trunk, **keywords)
            largest.append(y.diff(dim=1).abs().max().item())
        assert largest[1] < 0.55 * largest[0], kind


def test_inr_query_weights_sum_to_one():
    maps, trunk, keywords = random_case("affine-early_attn", skip=False)
    constant = maps[:, :, :1, :1].expand_as(maps)
    keywords = {k: v for k, v in keywords.items() if k not in ("rho_w", "rho_bias")}
    y = query(constant, GridSpec.cells((7, 9), (15, 22)), trunk, **keywords)
    assert (y - y[:, :1]).abs().max() < 1e-12


def test_inr_query_attention_without_logits_is_area_weighting():
    maps, trunk, keywords = random_case("affine-early_attn")
    keywords["rho_bias"] = None
    silent = maps.clone()
    silent[:, 16:] = 0
    grid = GridSpec.cells((7, 9), (15, 22))
    y = query(silent, grid, trunk, **keywords)
    area = query(maps[:, :16], grid, trunk, **(keywords | {"ensemble": "early_area", "heads": 1, "dk": 0}))
    assert (y - area).abs().max() < 1e-12


def test_inr_query_is_translation_equivariant():
    maps, trunk, keywords = random_case("affine-early_attn", source=(9, 12))
    u = torch.rand(50, 2, dtype=f64) * torch.tensor([4.0, 6.0]) + 1
    y = query(maps, from_index(u, (9, 12), dtype=f64), trunk, **keywords)
    moved = keywords | {"skip": keywords["skip"].roll((2, 3), (2, 3))}
    shifted = from_index(u + torch.tensor([2, 3]), (9, 12), dtype=f64)
    assert (query(maps.roll((2, 3), (2, 3)), shifted, trunk, **moved) - y).abs().max() < 1e-12


def test_inr_query_uses_the_true_ratio_of_sizes():
    field = torch.linspace(0, 1, 11, dtype=f64)[None, None, :, None].expand(1, 1, 11, 6)
    y = query(field, GridSpec.cells((11, 6), (29, 8)), feature="affine", ensemble="early_area", activation="none")
    expected = F.interpolate(field, (29, 8), mode="bilinear", align_corners=False)
    assert (y.reshape(29, 8) - expected[0, 0]).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [(1, 5), (6, 1), (1, 1)])
def test_inr_query_single_rows_and_columns(kind, source):
    maps, trunk, keywords = random_case(kind, source=source, outputs=1)
    for target in ((3, 7), (1, 1)):
        y = query(maps, GridSpec.cells(source, target), trunk, **keywords)
        assert y.shape == (2, target[0] * target[1], 1) and torch.isfinite(y).all()


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_empty_and_prime_numbers_of_queries(kind):
    maps, trunk, keywords = random_case(kind)
    assert query(maps, GridSpec.cells((7, 9), (0, 5)), trunk, **keywords).shape == (2, 0, 3)
    u = torch.rand(2, 13, 2, dtype=f64) * 5
    assert query(maps, from_index(u, (7, 9)), trunk, **keywords).shape == (2, 13, 3)


# ---- domain


def test_inr_query_outside_modes():
    u = torch.tensor([[0.0, 0.0], [-0.5, 8.5], [3.0, 9.7], [-2.0, 1.0]], dtype=f64)
    with pytest.raises(ValueError, match="2 of 4 points lie outside the domain, the farthest 2 pixels"):
        from_index(u, (7, 9))
    assert from_index(u, (7, 9), outside="nan").outside.tolist() == [[False, False, True, True]]
    clamped = from_index(u, (7, 9), outside="clamp", dtype=f64)
    assert (clamped.base + clamped.frac)[0].tolist() == [[0, 0], [-0.5, 8.5], [3, 8.5], [-0.5, 1]]
    assert from_index(u[:2], (7, 9)).count == 2  # the half-pixel rim belongs to the domain
    from_index(torch.tensor([[0.0, 25.0]], dtype=f64), (7, 9), edge=("clamp", "wrap"))


def test_inr_query_longitude_wraps():
    maps, trunk, keywords = random_case("affine-early_attn", source=(5, 8))
    wrap = {"edge": ("clamp", "wrap")}
    u = torch.rand(2, 60, 2, dtype=f64) * torch.tensor([4.0, 8.0]) - torch.tensor([0.0, 0.5])
    y = query(maps, from_index(u, (5, 8), dtype=f64, **wrap), trunk, **keywords, **wrap)
    turn = from_index(u + torch.tensor([0, 8]), (5, 8), dtype=f64, **wrap)
    assert (query(maps, turn, trunk, **keywords, **wrap) - y).abs().max() < 1e-12
    rolled = keywords | {"skip": keywords["skip"].roll(3, 3)}
    moved = from_index(u + torch.tensor([0, 3]), (5, 8), dtype=f64, **wrap)
    assert (query(maps.roll(3, 3), moved, trunk, **rolled, **wrap) - y).abs().max() < 1e-12


def test_inr_query_longitude_conventions_and_descending_latitude():
    lat, lon = torch.arange(90.0, -91, -10, dtype=f64), torch.arange(0.0, 360, 20, dtype=f64)
    points_lat, points_lon = torch.tensor([12.0, -47.5, 90.0, -90.0]), torch.tensor([-180.0, -0.3, 179.9, 355.0])
    here = from_latlon(points_lat, points_lon, lat, lon, periodic_x=True, dtype=f64)
    there = from_latlon(points_lat, points_lon % 360, lat, lon, periodic_x=True, dtype=f64)
    u, v = (p.base + p.frac for p in (here, there))
    difference = torch.remainder((u - v)[..., 1] + 9, 18) - 9
    assert difference.abs().max() < 1e-4 and torch.equal(u[..., 0], v[..., 0])
    assert torch.allclose(u[0, :, 0], ((90 - points_lat) / 10).double())
    flipped = from_latlon(points_lat, points_lon, lat.flip(0), lon, periodic_x=True, dtype=f64)
    assert torch.allclose((flipped.base + flipped.frac)[..., 0], 18 - u[..., 0])


def test_inr_query_latitude_ramp_is_exact():
    for grid, fine in ((GridSpec.nodes((19, 36), (73, 144), periodic_x=True), torch.linspace(90, -90, 73)),
                       (GridSpec.cells((18, 36), (36, 72)), 87.5 - 5 * torch.arange(36.0) + 0.0)):  # fmt: skip
        n = 19 if fine.numel() == 73 else 18
        coarse = torch.linspace(90, -90, 19) if n == 19 else 85 - 10 * torch.arange(18.0)
        field = coarse.double()[None, None, :, None].expand(1, 1, n, 36)
        y = query(field, grid, ensemble="early_area", activation="none", edge=("clamp", "wrap"))
        y = y.reshape(fine.numel(), -1)
        inner = slice(0, None) if n == 19 else slice(1, -1)  # beyond the outer centres the skip is constant
        assert (y - fine.double()[:, None])[inner].abs().max() < 1e-10


def test_inr_query_skip_keeps_large_offsets():
    source, target = (7, 9), (14, 18)
    z = 1.2e5 + 10 * normal(1, 1, *source)
    maps, trunk, keywords = random_case("affine-early_area", batch=1, outputs=1, dtype=torch.bfloat16, skip=False)
    trunk[-1] = tuple(0 * t for t in trunk[-1])
    keywords = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
    y = query(maps, GridSpec.cells(source, target), trunk, skip=z.float(), **keywords)
    expected = F.interpolate(z, target, mode="bilinear", align_corners=False)
    assert (y.reshape(target) - expected[0, 0]).abs().max() < 0.02


# ---- masks


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_ignores_invalid_pixels(kind):
    maps, trunk, keywords = random_case(kind)
    mask = torch.rand(2, 7, 9) > 0.3
    mask[0, :3, :3] = False
    grid = GridSpec.cells((7, 9), (15, 22))
    y = query(maps, grid, trunk, mask=mask, **keywords)
    holed = torch.where(mask[:, None], maps, math.nan)
    skip = torch.where(mask[:, None], keywords["skip"], math.nan)
    again = query(holed, grid, trunk, mask=mask, **(keywords | {"skip": skip}))
    assert torch.equal(y.isnan(), again.isnan()) and torch.equal(y.nan_to_num(), again.nan_to_num())
    assert y.isnan().any() and y.unflatten(1, (15, 22))[0, 0, 0].isnan().all() and not y.isnan().all()


def test_inr_query_gradients_of_masked_points():
    maps, trunk, keywords = random_case("affine-early_attn")
    mask = torch.rand(2, 7, 9) > 0.4
    holed = torch.where(mask[:, None], maps, math.nan).requires_grad_()
    skip = torch.where(mask[:, None], keywords["skip"], math.nan)
    y = query(holed, GridSpec.cells((7, 9), (15, 22)), trunk, mask=mask, **(keywords | {"skip": skip}))
    y.nansum().backward()
    assert torch.isfinite(holed.grad).all() and (holed.grad[:, :, ~mask[0]][0] == 0).all()


# ---- gradients of the formula


@pytest.mark.parametrize("kind", KINDS)
def test_inr_query_gradcheck(kind, backend):
    maps, trunk, keywords = random_case(kind, source=(3, 4), batch=1, outputs=2, depth=4)
    keywords["activation"] = "none"
    trunk = trunk[-1:] if trunk and trunk[-1][0].shape[1] == 4 else [(normal(2, 4), normal(2))] if trunk else []
    where = from_index(torch.rand(5, 2, dtype=f64) * torch.tensor([2.0, 3.0]), (3, 4), dtype=f64)
    names = [k for k, v in keywords.items() if isinstance(v, torch.Tensor)]
    if backend == "native":  # whose gradients of coordinates are the reference's
        names.remove("cell")
    leaves = [maps, *(t for pair in trunk for t in pair), *(keywords[k] for k in names), where.frac]
    leaves = [t.clone().requires_grad_() for t in leaves]
    leaves[-1].requires_grad_(backend == "reference")

    def function(maps, *rest):
        pairs = list(zip(rest[0 : 2 * len(trunk) : 2], rest[1 : 2 * len(trunk) : 2], strict=True))
        points = PointSpec(where.base, rest[-1])
        values = dict(zip(names, rest[2 * len(trunk) : -1], strict=True))
        return query(maps, points, pairs, **(keywords | values))

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


# ---- refusals


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: from_index(torch.rand(3, 3), (4, 4)), "expected \\(Q, 2\\)"),
        (lambda: from_index(torch.full((1, 2), math.nan), (4, 4)), "must be finite"),
        (lambda: from_index(torch.rand(3, 2), (4, 4), outside="wrap"), "outside must be one of"),
        (lambda: from_index(torch.rand(3, 2), (4, 4), edge="clamp"), "edge must be a pair"),
        (lambda: from_latlon([120.0], [10.0], [0, 1, 2], [0, 1, 2]), "swapped"),
        (lambda: from_latlon([1.0], [1.0], [0, 1, 1], [0, 1, 2]), "grid_lat must be strictly"),
        (lambda: from_latlon([1.0], [1.0], [0, 1, 2], [0, 2, 1]), "grid_lon must be strictly"),
        (lambda: from_latlon([1.0], [1.0], [0, 1, 3], [0, 1, 2]), "equally spaced"),
        (lambda: from_latlon([1.0], [1.0], [0, 1, 2], [0, 1, 2], periodic_x=True), "spans 3 degrees"),
        (lambda: from_latlon([1.0], [40.0], [0, 1, 2], [0, 1, 2]), "outside the domain"),
        (lambda: GridSpec.cells((4, 4), (2.5, 3)), "target must be two ints"),
        (lambda: GridSpec.cells((0, 4), (2, 3)), "source must be two ints >= 1"),
        (lambda: GridSpec.nodes((4, 4), (1, 3)), "at least two rows and columns"),
        (lambda: GridSpec.cells((4, 4), (8, 8)).window((0, 9), (0, 8)), "does not lie in"),
    ],
)
def test_inr_query_rejects_invalid_points(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inr_query_rejects_half_precision_points():
    with pytest.raises(TypeError, match="half precision cannot resolve pixels"):
        from_normalised(torch.zeros(3, 2, dtype=torch.float16), (4, 4))
    with pytest.raises(TypeError, match="base must be an int32"):
        PointSpec(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="same|both"):
        PointSpec(torch.zeros(1, 3, 2, dtype=torch.int32), torch.zeros(1, 4, 2))
