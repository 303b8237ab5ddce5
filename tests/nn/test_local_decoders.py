# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.nn.LocalEnsembleDecoder and LocalAttentionDecoder."""

import pytest
import torch
import torch.nn.functional as F

from fastds import models
from fastds.nn import LocalAttentionDecoder, LocalEnsembleDecoder
from fastds.ops import GridSpec, inr_query
from fastds.ops.impl.inr_query.points import from_index, from_normalised

DECODERS = {
    "ensemble": lambda **options: LocalEnsembleDecoder(6, 2, width=16, hidden=2, **options),
    "attention": lambda **options: LocalAttentionDecoder(6, 2, width=16, heads=2, key_width=4, hidden=2, **options),
}


def made(kind, dtype=torch.float32, **options):
    """Return a decoder without zero weights."""
    torch.manual_seed(3)
    decoder = DECODERS[kind](**options).to(dtype)
    with torch.no_grad():
        decoder.trunk[-1].weight.normal_(std=0.3)
    return decoder


def features(dtype=torch.float32, batch=2, size=(7, 9)):
    return torch.randn(batch, 6, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def centres(size):
    """Return the normalised coordinates (Q, 2) of the cell centres of a grid, row by row."""
    axes = (-1 + (2 * torch.arange(m, dtype=torch.float64) + 1) / m for m in size)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def published(decoder, x, coordinates, cell):
    """Compute LIIF by its paper: the weighted average over four corners of an MLP of features, offset and cell."""
    height, width = x.shape[2:]
    unfolded = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3).unflatten(2, (height, width))
    first = torch.cat([decoder.local.weight.flatten(1), decoder.offset, decoder.cell], 1)
    u = ((coordinates + 1) * torch.tensor([height, width]) - 1) / 2
    low, total = u.floor(), 0
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        place = low + torch.tensor(corner)
        weight = (1 - (u - place).abs()).prod(-1)
        row, column = (p.long().clamp(0, n - 1) for p, n in zip(place.unbind(-1), (height, width), strict=True))
        q = unfolded[:, :, row, column].transpose(1, 2)
        rho = (2 * (u - torch.stack([row, column], -1))).expand(x.shape[0], -1, 2)
        h = torch.relu(F.linear(torch.cat([q, rho, cell.expand_as(rho)], -1), first, decoder.local.bias))
        for layer in list(decoder.trunk)[:-1]:
            h = torch.relu(layer(h))
        total = total + weight[:, None] * decoder.trunk[-1](h)
    return total


def test_local_ensemble_is_the_published_network():
    x, decoder, size = features(torch.float64), made("ensemble", torch.float64), (16, 13)
    cell = torch.tensor([2 * 7 / 16, 2 * 9 / 13], dtype=torch.float64)
    expected = published(decoder, x, centres(size), cell)
    y = decoder(x, size)
    assert y.shape == (2, 2, 16, 13) and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y.flatten(2).transpose(1, 2), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", DECODERS)
def test_sizes_grids_points_and_coordinates_agree(kind):
    x, decoder, size = features(), made(kind), (15, 20)
    y = decoder(x, size).flatten(2).transpose(1, 2)
    grid = GridSpec.cells((7, 9), size)
    cell = torch.tensor([[2 * 7 / 15, 2 * 9 / 20]]).expand(2, 2)
    torch.testing.assert_close(decoder(x, grid), y, rtol=0, atol=0)
    for where in (grid.points(), centres(size), centres(size)[None].expand(2, -1, -1), centres(size).float()):
        torch.testing.assert_close(decoder(x, where, cell=cell), y, rtol=1e-4, atol=1e-5)
    assert (decoder(x, centres(size)) - y).abs().max() > 1e-4  # points are as large as a pixel unless cell says more
    maps, options = decoder.prepare(x), {"rho_w": decoder.offset, "cell_w": decoder.cell, "cell": cell}
    if kind == "ensemble":
        options["ensemble"] = "late"
    else:
        options |= {"ensemble": "early_attn", "heads": 2, "dk": 4, "rho_bias": decoder.offset_bias}
    torch.testing.assert_close(inr_query(maps, grid, decoder.trunk.get_layers(None), **options), y, rtol=0, atol=0)


@pytest.mark.parametrize("name,options", [("liif", {}), ("inr", {"dpfa": "none"})])
def test_models_are_made_of_these_decoders(name, options):
    torch.manual_seed(0)
    small = {"encoder_options": {"channels": 6, "blocks": 1}, "skip": False}
    model = models.create(name, in_channels=2, **small, **options).eval()
    assert isinstance(model.decoder, LocalEnsembleDecoder if name == "liif" else LocalAttentionDecoder)
    with torch.no_grad():
        model.decoder.trunk[-1].weight.normal_(std=0.3)
        x = torch.randn(1, 2, 7, 9)
        alone = model.decoder(model.encoder(x, lambda i, f: f), (14, 27))
        torch.testing.assert_close(model(x, (14, 27)), alone, rtol=1e-5, atol=1e-5)


def test_columns_go_round_the_globe():
    x, decoder = features(), made("ensemble", padding_mode="circular_x")
    y = decoder(x, (14, 27))
    torch.testing.assert_close(decoder(x.roll(2, 3), (14, 27)), y.roll(6, 3), rtol=1e-4, atol=1e-5)
    u = torch.tensor([[3.0, -0.75], [3.0, 8.25]])
    a, b = decoder(x, from_index(u, (7, 9), ("clamp", "wrap")))[0]
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_skip_is_interpolated_and_missing_pixels_stay_missing():
    x, skip = features(), torch.randn(2, 2, 7, 9)
    untrained = DECODERS["attention"]()
    plain = F.interpolate(skip, (14, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(untrained(x, (14, 18), skip=skip), plain, rtol=1e-5, atol=1e-5)
    valid = torch.ones(2, 7, 9, dtype=torch.bool)
    valid[0, :4, :4] = False
    y = made("ensemble")(x, (7, 9), mask=valid)
    assert y[0, :, :3, :3].isnan().all() and not y[1].isnan().any()


@pytest.mark.parametrize("kind", DECODERS)
def test_gradients_of_features_parameters_skip_and_coordinates(kind):
    decoder, x = made(kind, torch.float64), features(torch.float64, 1, (4, 5)).requires_grad_()
    skip = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    places = (1.6 * torch.rand(5, 2, dtype=torch.float64) - 0.8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, skip, at: decoder(x, at, skip=skip), (x, skip, places), atol=1e-6)
    decoder(x, (8, 10), skip=skip).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in decoder.parameters())


@pytest.mark.parametrize("kind", DECODERS)
def test_compile_export_and_autocast(kind):
    x, decoder = features(), made(kind)
    y = decoder(x, (15, 20)).detach()
    torch.testing.assert_close(torch.compile(decoder, fullgraph=True, backend="aot_eager")(x, (15, 20)), y)

    class To(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder

        def forward(self, x):
            return self.decoder(x, (15, 20))

    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(To(), (x,)).module()(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        low = decoder(x, (15, 20))
    assert low.dtype == torch.float32 and (low - y).abs().max() < 0.05 * y.abs().max()


def test_refusals():
    decoder, x = made("ensemble"), features()
    with pytest.raises(ValueError, match="target must be two ints"):
        decoder(x, (2.5, 3))
    with pytest.raises(ValueError, match="points lie outside the domain"):
        decoder(x, torch.tensor([[0.0, 1.5]]))
    with pytest.raises(TypeError, match="where is a str, expected a size .*, a GridSpec, a PointSpec or a Tensor"):
        decoder(x, "here")
    with pytest.raises(ValueError, match=r"coordinates have shape \(5, 3\), expected \(Q, 2\) or \(B, Q, 2\)"):
        decoder(x, torch.zeros(5, 3))
    with pytest.raises(TypeError, match="cell is a float, expected a Tensor"):
        decoder(x, (3, 3), cell=2.0)
    with pytest.raises(TypeError, match="half precision cannot resolve pixels"):
        decoder(x, torch.zeros(1, 2).half())
    assert decoder(x, from_normalised(torch.zeros(0, 2), (7, 9))).shape == (2, 0, 2)
