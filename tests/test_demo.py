# SPDX-License-Identifier: Apache-2.0
"""The demo on a small event with random weights; with the shipped weights where there are any."""

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.image import imread

from fastds import models
from fastds.data import open_dataset
from fastds.tasks.radar.demo import demo


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    model = models.create("fczsm-small", num_features=8, offset_groups=2, extractor_blocks=1, reconstruction_blocks=1)
    model.card.name, model.card.floor_dbz, model.card.ceiling_dbz = "tiny", 15.0, 70.0
    return model.eval()


def test_demo_writes_table_files_and_picture(tiny, tmp_path, capsys):
    table = demo(tmp_path / "new" / "demo", model=tiny, size=64, frames=3)
    printed = capsys.readouterr().out
    for word in ("trilinear", "advection", "tiny", "2 km, 10 min", "wrote truth.nc, input.nc, OUT.nc"):
        assert word in printed
    folder = tmp_path / "new" / "demo"
    assert sorted(p.name for p in folder.iterdir()) == ["OUT.nc", "OUT.png", "input.nc", "truth.nc"]
    with open_dataset(folder / "OUT.nc") as out, open_dataset(folder / "truth.nc") as truth:
        assert out.reflectivity.shape == truth.reflectivity.shape == (3, 64, 64)
        np.testing.assert_allclose(out.x, truth.x)
    picture = imread(folder / "OUT.png")
    assert picture.shape[1] > 1000 and len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20
    assert table.rows["tiny"]["mse_total_15"] > 0


def test_demo_is_repeatable(tiny, tmp_path, capsys, monkeypatch):
    """By its seed, whatever the state of the generators of torch and numpy: the table and every value in the files."""
    monkeypatch.setattr("fastds.tasks.radar.demo._write_picture", lambda *args: None)
    tables = []
    for name, options in (("a", {}), ("b", {}), ("other", {"seed": 8})):
        tables.append(demo(tmp_path / name, model=tiny, size=64, frames=3, **options).rows)
        torch.rand(1), np.random.rand()
    np.testing.assert_equal(tables[0], tables[1])
    assert set(tables[0]) == set(tables[2]) and all(tables[0][k] != tables[2][k] for k in tables[0])
    for file in ("truth.nc", "input.nc", "OUT.nc"):
        a, b, other = (open_dataset(tmp_path / name / file).load() for name in ("a", "b", "other"))
        xr.testing.assert_equal(a, b)
        assert not a.reflectivity.equals(other.reflectivity)


@pytest.mark.parametrize(
    ("option", "sentence"), [({"size": 50}, "size must be"), ({"frames": 4}, "frames must be odd")]
)
def test_sizes_that_do_not_fit_are_refused(tiny, tmp_path, option, sentence):
    with pytest.raises(ValueError, match=sentence):
        demo(tmp_path / "demo", model=tiny, **option)
    assert not list(tmp_path.iterdir())
