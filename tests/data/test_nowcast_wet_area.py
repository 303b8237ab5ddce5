# SPDX-License-Identifier: Apache-2.0
"""Tests of the wet area of single nowcasts."""

import numpy as np
import pytest
import torch
import xarray as xr

import fastds
from fastds import models
from fastds.data import synthetic_event, to_reflectivity
from fastds.tasks.nowcast.starts import ForecastCells, compute_wet_shares
from fastds.tasks.nowcast.wet_area import count_wet_cells, dry_weakest


def test_wet_area_is_advected():
    y, x = np.mgrid[:96, :96] - 48.0
    wet = (y**2 + x**2 < 144).astype(np.float32)
    now = int(wet.sum())
    paths = torch.zeros(3, 2, 96, 96)
    assert count_wet_cells(wet, paths, 3) == count_wet_cells(wet, None, 3) == [round(1.24 * now)] * 3
    paths[1], paths[2] = 10.0, 80.0  # inside; all of the shower has left
    still, inside, left = count_wet_cells(wet, paths, 3)
    assert still == inside == round(1.24 * now) and left == round(0.9 * now)
    assert count_wet_cells(np.zeros((96, 96), np.float32), paths, 3) == [0, 0, 0], "a dry field stays dry"
    wet[:40] = np.nan
    assert count_wet_cells(wet, None, 1) == [round(1.24 * np.nansum(wet))]


def test_cell_with_few_wet_pixels_has_small_wet_area():
    event = synthetic_event(2, shape=(48, 64))
    source = to_reflectivity(event)
    pixels = source.frames([3])[0]
    shares = compute_wet_shares(source, 3, ForecastCells(4, 0.0))
    assert shares.shape == (12, 16) and 0 < shares.mean() < (shares > 0).mean()
    expected = (pixels > 0).reshape(12, 4, 16, 4).mean((1, 3))
    np.testing.assert_allclose(shares[~np.isnan(shares)], expected[~np.isnan(shares)])
    assert np.array_equal(np.isnan(shares), np.isnan(pixels).reshape(12, 4, 16, 4).any((1, 3)))


def test_weakest_cells_are_dried_first():
    fields = np.stack([np.arange(12.0).reshape(3, 4), np.ones((3, 4)), np.zeros((3, 4))]).astype(np.float32)
    valid = np.ones((3, 4), bool)
    valid[0, 3] = False
    assert dry_weakest(fields, valid, [4, 5, 2], 0.0) == 6 + 6
    assert sorted(fields[0][fields[0] > 0]) == [3, 8, 9, 10, 11], "3 takes no part"
    assert (fields[1] > 0).sum() == 5 + 1 and (fields[2] == 0).all()
    assert (fields[1][valid] > 0).tolist() == [False] * 6 + [True] * 5


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("model", [None, "extrapolation"])
def test_nowcast_wet_area_matches_the_last_frame(model):
    event = synthetic_event(2, shape=(96, 96))
    source = to_reflectivity(event)
    last = source.frames([source.shape[0] - 1])[0]
    there = ~np.isnan(last)
    out = fastds.nowcast(model, event, lead="60min")
    wet = [(field[there] > 0).sum() / (last[there] > 0).sum() for field in out.rainfall_rate.values]
    assert all(0.8 <= share <= 1.25 for share in wet), wet
    assert 0 < out.attrs["fastds_dried_share"] < 1
    if model is None:
        free = fastds.nowcast(models.load("nowcast-small"), event, lead="60min", smooth=True)
        assert "fastds_dried_share" not in free.attrs
        assert (free.rainfall_rate.values[-1] > 0).sum() > (out.rainfall_rate.values[-1] > 0).sum()


def test_dried_fraction_is_recorded(tmp_path):
    event = synthetic_event(2, shape=(96, 96))
    event.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    from fastds.tasks.nowcast.run import nowcast_file

    report = nowcast_file(tmp_path / "in.nc", tmp_path / "out.nc", model="extrapolation", lead="60min")
    notes = [note for note in report.notes if "are dry so that the wet area" in note]
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as out:
        share = out.attrs["fastds_dried_share"]
    assert (len(notes) == 1) == (share > 1e-3) and share > 0
