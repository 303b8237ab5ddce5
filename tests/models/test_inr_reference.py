# SPDX-License-Identifier: Apache-2.0
"""Tests of parts of the arbitrary-scale networks against their formulas in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastds import models
from fastds.models.inr.convert import from_published, to_published
from fastds.models.inr.decoders import CiaoSRDecoder, MetaSRDecoder
from fastds.models.inr.encoders import RDN, EDSRBaseline, SwinIRLight, WindowBlock, pad_border, reflect_to_multiple
from fastds.nn import LocalEnsembleDecoder
from fastds.ops import GridSpec
from fastds.ops.impl.inr_query.points import from_index

f64 = torch.float64
PLACES = [(0.0, 0.0), (2.3, 4.6), (1.5, 3.2), (4.0, 6.0), (-0.4, 6.3), (3.7, -0.3), (0.2, 5.9)]


def conv(x, layer, mode="replicate"):
    """Compute a 3x3 convolution with explicit padding."""
    if mode == "circular_x":
        x = F.pad(F.pad(x, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1), mode="replicate")
    else:
        x = F.pad(x, (1, 1, 1, 1), mode="replicate" if mode == "replicate" else "constant")
    return F.conv2d(x, layer.weight, layer.bias)


@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
@pytest.mark.parametrize("mode", ["replicate", "circular_x", "zeros"])
def test_ciaosr_query_by_query(mode, masked):
    decoder, skip = CiaoSRDecoder(3, 2, mode, width=8, hidden=1).double(), torch.randn(1, 2, 5, 7, dtype=f64)
    features, kappa = torch.randn(1, 3, 5, 7, dtype=f64), torch.tensor([[0.8, 0.6]], dtype=f64)
    mask = torch.ones(1, 5, 7, dtype=torch.bool)
    if masked:
        mask[0, 2, 4] = mask[0, 0, 6] = False
    edge = ("clamp", "wrap" if mode == "circular_x" else "clamp")
    u = torch.tensor(PLACES, dtype=f64)
    where = from_index(u, (5, 7), dtype=f64)
    given = {"mask": mask if masked else None, "gain": torch.tensor([1.5, 0.5], dtype=f64)}
    found = decoder.query(decoder.prepare(features), where, kappa, skip, edge, **given)[0]

    grid, options = GridSpec.cells((5, 7), (10, 21)), (kappa, skip, edge, given["mask"])
    of_points = decoder.query(features, grid.points(dtype=f64), *options)
    assert torch.allclose(decoder.query(features, grid, *options), of_points, atol=1e-10, equal_nan=True)

    def pixel(row, column):
        column = column % 7 if edge[1] == "wrap" else min(max(column, 0), 6)
        return min(max(row, 0), 4), column

    def around(row, column):
        values = []
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                i, j = row + di, column + dj
                outside = not (0 <= i < 5 and 0 <= j < 7) and mode == "zeros"
                i, j = min(max(i, 0), 4), j % 7 if mode == "circular_x" else min(max(j, 0), 6)
                values.append(torch.zeros(3, dtype=f64) if outside else features[0, :, i, j])
        return torch.stack(values, 1).reshape(-1)  # channel, row, column

    for k, (y, x) in enumerate(PLACES):
        nearest = pixel(math.floor(y + 0.5), math.floor(x + 0.5))
        nearest = around(*nearest) * mask[0, *nearest]
        logits, values, shares = [], [], []
        for a in (0, 1):
            for b in (0, 1):
                row, column = math.floor(y) + a, math.floor(x) + b
                at = pixel(row, column)
                if not mask[0, *at]:
                    continue
                column = column if edge[1] == "wrap" else at[1]
                rho = torch.tensor([2 * (y - at[0]), 2 * (x - column)], dtype=f64)
                inputs = torch.cat([around(*at), rho, kappa[0]])
                logits.append((nearest * around(*at) * decoder.key(inputs)).sum())
                values.append(around(*at) * decoder.value(inputs))
                weight = abs(1 - a - (y - math.floor(y))) * abs(1 - b - (x - math.floor(x)))
                shares.append((weight, skip[0, :, at[0], at[1]]))
        if not sum(w for w, _ in shares):
            assert found[k].isnan().all()
            continue
        alpha = torch.softmax(torch.stack(logits), 0)
        expected = decoder.head(sum(a * v for a, v in zip(alpha, values, strict=True))) * given["gain"]
        expected = expected + sum(w * v for w, v in shares) / sum(w for w, _ in shares)
        assert torch.allclose(found[k], expected, atol=1e-10), (k, found[k], expected)


def test_metasr_query_by_query():
    decoder, features = MetaSRDecoder(3, 2, "replicate", width=8).double(), torch.randn(1, 3, 4, 5, dtype=f64)
    kappa, grid = torch.tensor([[1.0, 2 / 3]], dtype=f64), GridSpec.cells((4, 5), (8, 15))
    maps = decoder.prepare(features)
    constant, kernels = conv(features, decoder.constant), conv(features, decoder.kernels).unflatten(1, (2, 8))

    def expected(row, column):
        """Return the expected value at the position (row, column)."""
        i, j = int(row), int(column)
        a = torch.relu(decoder.first(torch.tensor([row - i, column - j, 0.5], dtype=f64)))
        return kernels[0, :, :, i, j] @ a + constant[0, :, i, j]

    found = decoder.query(maps, grid, kappa)[0].reshape(8, 15, 2)
    cells = [(i, j, i / 2, j // 3 + j % 3 / 3) for i in range(8) for j in range(15)]
    assert all(torch.allclose(found[i, j], expected(*corner), atol=1e-10) for i, j, *corner in cells)
    corners = torch.tensor([(0.1, 0.2), (1.9, 3.3), (2.6, 4.6), (3.4, 0.9)], dtype=f64)
    where = from_index(corners - 0.5 + torch.tensor([1 / 4, 1 / 6], dtype=f64), (4, 5), dtype=f64)
    found = decoder.query(maps, where, kappa)[0]
    assert all(torch.allclose(z, expected(*c), atol=1e-10) for z, c in zip(found, corners.tolist(), strict=True))


@pytest.mark.parametrize(("shift", "wrap"), [(0, False), (2, False), (2, True)])
def test_window_block_pixel_by_pixel(shift, wrap):
    block, x = WindowBlock(6, 2, 4, shift).double(), torch.randn(1, 8, 12, 6, dtype=f64)
    found = block(x, wrap)
    q, k, v = block.qkv(block.norm1(x))[0].unflatten(-1, (3, 2, 3)).unbind(2)
    places = [(i, j) for i in range(8) for j in range(12)]
    attended = torch.zeros(8, 12, 2, 3, dtype=f64)
    for i, j in places:
        top, left = ((n - shift) // 4 * 4 + shift for n in (i, j))
        window = [(top + a, left + b) for a in range(4) for b in range(4)]
        if shift:
            window = [(a, b % 12 if wrap else b) for a, b in window if 0 <= a < 8 and (wrap or 0 <= b < 12)]
        distances = [((i - a) + 3, (j - b + 6) % 12 - 6 + 3) for a, b in window]
        bias = torch.stack([block.bias[a * 7 + b] for a, b in distances])
        keys, values = (torch.stack([t[a, b] for a, b in window]) for t in (k, v))
        weights = torch.softmax((q[i, j] * keys).sum(-1) / math.sqrt(3) + bias, 0)
        attended[i, j] = (weights[..., None] * values).sum(0)
    y = x + block.project(attended.flatten(2))[None]
    assert torch.allclose(found, y + block.down(F.gelu(block.up(block.norm2(y)))), atol=1e-10)


@pytest.mark.parametrize("mode", ["replicate", "circular_x", "zeros"])
def test_encoders_layer_by_layer(mode):
    x = torch.randn(2, 3, 6, 9, dtype=f64)
    seen = []

    def between(i, f):
        seen.append(i)
        return 1.5 * f

    edsr = EDSRBaseline(3, mode, channels=4, blocks=2).double()
    first = f = conv(x, edsr.head, mode)
    for block in edsr.blocks:
        f = 1.5 * (f + conv(conv(f, block.conv1, mode).relu(), block.conv2, mode))
    assert torch.allclose(edsr(x, between), conv(f, edsr.tail, mode) + first, atol=1e-10) and seen == [0, 1]
    rdn = RDN(3, mode, channels=4, blocks=2, layers=2).double()
    one = lambda f, layer: F.conv2d(f, layer.weight.reshape(len(layer.weight), -1, 1, 1), layer.bias)  # noqa: E731
    first = conv(x, rdn.head, mode)
    f, outputs = conv(first, rdn.second, mode), []
    for block in rdn.blocks:
        dense = f
        for layer in block.convs:
            dense = torch.cat([dense, conv(dense, layer, mode).relu()], 1)
        f = 1.5 * (one(dense, block.fuse) + f)
        outputs.append(f)
    expected = conv(one(torch.cat(outputs, 1), rdn.fuse), rdn.tail, mode) + first
    assert torch.allclose(rdn(x, between), expected, atol=1e-10) and seen == [0, 1, 0, 1]


def test_swinir_layer_by_layer():
    net = SwinIRLight(3, "replicate", channels=6, depth=2, blocks=2, heads=2, window=4).double()
    x = torch.randn(1, 3, 6, 9, dtype=f64)
    padded = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (0, 2), (0, 3)), mode="reflect"))
    first = conv(padded, net.head)
    norm = lambda f, layer: layer(f.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
    f = norm(first, net.norm_in)
    for blocks, layer in zip(net.blocks, net.convs, strict=True):
        assert [block.shift for block in blocks.blocks] == [0, 2]
        y = f.permute(0, 2, 3, 1)
        for block in blocks.blocks:
            y = block(y, False)
        f = 2 * (conv(y.permute(0, 3, 1, 2), layer) + f)
    expected = conv(norm(f, net.norm_out), net.tail) + first
    assert torch.allclose(net(x, lambda i, f: 2 * f), expected[:, :, :6, :9], atol=1e-10)


@pytest.mark.parametrize("size", [(1, 2), (2, 3), (5, 8), (8, 1)])
def test_fields_are_reflected_to_whole_windows(size):
    x = torch.randn(1, 1, *size)
    pad = [(0, 0), (0, 0), *((0, -n % 8) for n in size)]
    assert np.array_equal(reflect_to_multiple(x, 8), np.pad(x.numpy(), pad, mode="reflect"))


@pytest.mark.parametrize("mode", ["replicate", "circular_x", "zeros"])
def test_padding_matches_the_convolutions(mode):
    x = torch.randn(1, 2, 3, 4)
    rows = {"mode": "constant"} if mode == "zeros" else {"mode": "edge"}
    columns = {"mode": "wrap"} if mode == "circular_x" else rows
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 0), (2, 2)), **columns)
    expected = np.pad(expected, ((0, 0), (0, 0), (2, 2), (0, 0)), **rows)
    assert np.array_equal(pad_border(x, 2, mode), expected)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_fixed_factor_layer_by_layer(scale, periodic):
    model = models.create(
        f"edsr-x{scale}", in_channels=2, encoder_options={"channels": 4, "blocks": 1}, periodic_x=periodic
    ).double()
    model.mean.fill_(3.0), model.std.fill_(2.0)
    mode, x = "circular_x" if periodic else "replicate", torch.randn(1, 2, 4, 5, dtype=f64)
    f = model.encoder((x - 3) / 2, lambda i, f: f)
    for layer, r in zip(model.up, {2: [2], 3: [3], 4: [2, 2]}[scale], strict=True):
        f = F.pixel_shuffle(conv(f, layer, mode), r)
    wide = F.pad(x, (1, 1, 0, 0), mode="circular" if periodic else "replicate")
    skip = F.interpolate(wide, scale_factor=scale, mode="bilinear")[..., scale:-scale]
    y = 2 * conv(f, model.last, mode)
    assert torch.allclose(model(x), y + skip, atol=1e-10)
    u = torch.tensor([(0.0, 0.0), (1.2, 3.4), (-0.45, 4.49), (3.5, -0.5), (2.49, 1.51), (0.0, 4.5)], dtype=f64)
    found = model.query(x, from_index(u, (4, 5), dtype=f64), torch.full((1, 2), float(scale), dtype=f64))
    fine = ((u + 0.5) * scale).floor().long()
    rows, columns = fine[:, 0].clamp(0, 4 * scale - 1), fine[:, 1].clamp(0, 5 * scale - 1)
    assert torch.equal(found[0], model(x)[0, :, rows, columns].T)
    model.skip = False
    assert torch.allclose(model(x), y + 3, atol=1e-10)


def test_published_weights_of_another_number_of_variables():
    names = {"channels": 4, "blocks": 1}
    ours = models.create(
        "liif", in_channels=2, encoder_options=names, decoder_options={"width": 8, "hidden": 1}, dpfa="none", skip=False
    )
    state = to_published(ours)
    model = from_published(state)
    assert model.config["in_channels"] == 2 and model.config["encoder_options"] == names
    assert model.config["decoder_options"] == {"width": 8, "hidden": 1}
    assert model.mean.tolist() == [0.5, 0.5] and model.std.tolist() == [0.5, 0.5]
    assert all(torch.equal(a, b) for a, b in zip(to_published(model).values(), state.values(), strict=True))


def test_first_weights_of_the_local_ensemble():
    decoder = LocalEnsembleDecoder(8, 2, width=4096)
    for parameter in (decoder.local.weight, decoder.local.bias, decoder.offset, decoder.cell):
        ends = parameter.min().item(), parameter.max().item()
        assert ends == pytest.approx((-(76**-0.5), 76**-0.5), rel=0.01)
