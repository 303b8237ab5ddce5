# SPDX-License-Identifier: Apache-2.0
"""Tests that a grid decoded in bands of rows is bitwise equal to the grid decoded in one call."""

import pytest
import torch

from fastds.models import create
from fastds.models.inr import Encoded, decoders
from fastds.ops.impl.inr_query.points import GridSpec, PointSpec, from_index

SMALL = {"encoder_options": {"channels": 32, "blocks": 1}, "in_channels": 2}


def model_of(name, dtype=torch.float32, **options):
    torch.manual_seed(3)
    model = create(name, **SMALL, **({"dpfa_count": 1} if name == "inr-small" else {}), **options).eval()
    with torch.no_grad():
        for p in model.decoder.parameters():
            if p.abs().max() == 0:
                p.normal_(std=0.1)
    return model.to(dtype)


@pytest.fixture
def small_bands(monkeypatch):
    monkeypatch.setattr(decoders, "BAND_ROWS", 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("registration", ["cell", "node"])
@pytest.mark.parametrize("name", ["inr-small", "liif", "lte", "metasr"])
def test_inr_bands_are_identical(monkeypatch, name, registration, dtype):
    model, x = model_of(name, dtype, registration=registration), torch.randn(1, 2, 37, 18).to(dtype)
    x[:, :, 20:22, 3:9] = torch.nan
    with torch.no_grad():
        monkeypatch.setattr(decoders, "BAND_ROWS", 1000)
        whole = model(x, scale=2.67)
        monkeypatch.setattr(decoders, "BAND_ROWS", 5)
        banded = model(x, scale=2.67)
    assert whole.isnan().any() and torch.equal(banded.isnan(), whole.isnan())
    # In float64 the products are the library's, whose last bit depends on the number of rows on Intel (4e-16 measured).
    tolerance = 1e-14 if dtype == torch.float64 else 0.0
    torch.testing.assert_close(banded, whole, rtol=0.0, atol=tolerance, equal_nan=True)


def test_inr_band_computes_only_its_rows(monkeypatch, small_bands):
    model, x, seen = model_of("liif"), torch.randn(1, 2, 64, 20), []
    prepare = model.decoder.prepare
    monkeypatch.setattr(model.decoder, "prepare", lambda f: seen.append(f.shape[2]) or prepare(f))
    with torch.no_grad():
        model(x, scale=4)
    assert len(seen) == 22 and max(seen) <= 12


def test_inr_bands_do_not_change_gradients(small_bands):
    model, x = model_of("inr-small"), torch.randn(1, 2, 24, 20)
    y = model(x, scale=3)
    y.square().sum().backward()
    assert model.decoder.local.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert (model(x, scale=3) - y).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["inr-small", "metasr"])
@pytest.mark.parametrize("scale", [0.2, 1, 3.3])
def test_inr_points_read_only_their_rows(name, scale):
    model = model_of(name, torch.float64)
    encoded = Encoded(torch.randn(1, 32, 41, 9).double(), None, None)
    for low, high in ((-0.5, 3.0), (17.0, 23.9), (38.0, 40.5)):
        u = low + (high - low) * torch.rand(50, 2).double()
        where = from_index(torch.stack([u[:, 0], u[:, 1] % 8], -1), (41, 9), dtype=torch.float64)
        cell = torch.full((1, 50, 2), 2 / scale).double()
        whole = decoders.decode(model.decoder, encoded, where, cell, model.edge)  # with gradients: never in bands
        with torch.no_grad():
            part = decoders.decode(model.decoder, encoded, where, cell, model.edge)
        assert torch.equal(part, whole)


def test_inr_points_beyond_the_last_row_use_the_border():
    model, edge = model_of("liif", torch.float64), ("clamp", "clamp")
    encoded = Encoded(torch.randn(1, 32, 41, 9).double(), None, None)
    for row in (-50, 40, 90):
        where = PointSpec(torch.tensor([[[row, 3]]], dtype=torch.int32), torch.full((1, 1, 2), 0.3).double())
        whole = decoders.decode(model.decoder, encoded, where, torch.ones(1, 2).double(), edge)
        with torch.no_grad():
            assert torch.equal(decoders.decode(model.decoder, encoded, where, torch.ones(1, 2).double(), edge), whole)


def test_inr_query_cells_are_split_with_bands(small_bands):
    model = model_of("inr-small", torch.float64)
    encoded, grid = Encoded(torch.randn(1, 32, 30, 20).double(), None, None), GridSpec.cells((30, 20), (60, 40))
    cell = 0.5 + torch.rand(1, 2400, 2).double()
    whole = decoders.decode(model.decoder, encoded, grid, cell, model.edge)
    with torch.no_grad():
        assert torch.equal(decoders.decode(model.decoder, encoded, grid, cell, model.edge), whole)


def test_inr_grids_with_no_and_few_points(small_bands):
    model, x = model_of("liif"), torch.randn(1, 2, 9, 20)
    with torch.no_grad():
        assert model(x, size=(9, 3)).shape == (1, 2, 9, 3) and model(x[:, :, :1], size=(9, 3)).isfinite().all()
        assert model(x, size=(0, 5)).shape == (1, 2, 0, 5)
