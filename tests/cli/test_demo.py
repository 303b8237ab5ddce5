# SPDX-License-Identifier: Apache-2.0
"""Tests of the demo with random weights and with the shipped weights."""

import re
import time

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.image import imread

import fastds.plot
from fastds import models
from fastds.data import coarsen_dataset, open_dataset, synthetic_event
from fastds.models.baselines import advection, trilinear
from fastds.tasks.radar.demo import _find_rainiest_part, _write_picture, demo


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    model = models.create("fczsm-small", num_features=8, offset_groups=2, extractor_blocks=1, reconstruction_blocks=1)
    model.card.name, model.card.floor_dbz, model.card.ceiling_dbz = "tiny", 15.0, 70.0
    return model.eval()


def test_demo_writes_table_files_and_picture(tiny, tmp_path, capsys):
    began = time.perf_counter()
    table = demo(tmp_path / "new" / "demo", model=tiny, size=64, frames=3)
    printed, seconds = capsys.readouterr().out, time.perf_counter() - began
    assert int(re.search(r" in (\d+) s$", printed.strip())[1]) in (int(seconds), round(seconds))
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
    """The result depends on the seed only, not on the global random states of torch and numpy."""
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


def test_demo_picture_content(tmp_path, monkeypatch):
    event = synthetic_event(3, 5, (160, 192))
    coarse, pictures = coarsen_dataset(event), []
    out = event.assign(reflectivity=event.reflectivity.copy(data=event.reflectivity.values - 1.0))
    monkeypatch.setattr(fastds.plot, "field_panel", lambda *args, **options: pictures.append((args, options)))
    monkeypatch.setattr(fastds.plot, "save_png", lambda figure, path: pictures.append(path))
    _write_picture(tmp_path / "OUT.png", event, coarse, out, "net")
    ((fields, times), options), path = pictures
    assert path == tmp_path / "OUT.png" and list(fields) == ["truth", "trilinear", "advection", "net"]
    z = event.reflectivity.values
    start = 2 * int(np.argmax([(z[k] >= 20).mean() for k in (1, 3)]))
    assert times == [f"12:{5 * k:02d} UTC" for k in range(start, start + 3)]
    sums = {(i, j): (z[start + 1, i : i + 128, j : j + 128] >= 25).sum() for i in (0, 16, 32) for j in range(0, 65, 16)}
    i, j = max(sums, key=sums.get)
    part = slice(start, start + 3), slice(i, i + 128), slice(j, j + 128)
    np.testing.assert_array_equal(fields["truth"], z[part])
    np.testing.assert_allclose(fields["net"], np.maximum(z[part] - 1.0, -33.0), atol=1e-5)
    pair = coarse.reflectivity.values[start // 2 : start // 2 + 2]
    x = torch.from_numpy(pair.clip(0, 70) / 70).float()[None, :, None]
    for name, method in (("trilinear", trilinear), ("advection", advection)):
        np.testing.assert_allclose(fields[name], 70 * method(x, 2)[0, :, 0].numpy()[:, *part[1:]], atol=1e-3)
        difference = np.maximum(fields[name], 5) - np.maximum(fields["truth"], 5)
        np.testing.assert_allclose(options["differences"][name], difference, atol=1e-5)
    assert list(options["differences"]) == ["trilinear", "advection", "net"]
    first, nothing, second = options["inputs"]
    assert nothing is None
    np.testing.assert_array_equal([first, second], pair[:, i // 2 : i // 2 + 64, j // 2 : j // 2 + 64])
    np.testing.assert_allclose(options["x"], event.x.values[j : j + 128] / 1000)
    np.testing.assert_allclose(options["y"], event.y.values[i : i + 128] / 1000)


def test_demo_crop_has_most_rain():
    z = np.full((150, 300), 24.9)
    z[140, 200:210] = z[10, 5:13] = 25.0
    assert _find_rainiest_part(z) == (slice(16, 144), slice(96, 224)), "the first of several"
    assert _find_rainiest_part(z[:100]) == (slice(0, 100), slice(0, 100))
    far = np.zeros((304, 320))
    far[-1, -1] = 25.0
    assert _find_rainiest_part(far) == (slice(176, 304), slice(192, 320)), "the last of all"


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"size": 50}, "size must be"),
        ({"size": 96 - 64}, "at least 64"),
        ({"frames": 4}, "frames must be odd"),
        ({"frames": 1}, "at least 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tiny, tmp_path, option, sentence):
    with pytest.raises(ValueError, match=sentence):
        demo(tmp_path / "demo", model=tiny, **option)
    assert not list(tmp_path.iterdir())
