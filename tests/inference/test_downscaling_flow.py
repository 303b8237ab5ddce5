# SPDX-License-Identifier: Apache-2.0
"""Tests that downscaled series have the same detail and rain at interpolated times as at input times."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.ndimage import gaussian_filter

import fastds
from fastds.data import coarsen_dataset, open_dataset, synthetic_event, to_reflectivity
from fastds.tasks.radar.steady import match_end_frames

FLOOR = 15.0  # of the shipped network


def detail(fields):
    """Return the mean variance of small-scale detail: reflectivity above the floor minus its Gaussian smoothing."""
    fields = np.clip(np.nan_to_num(fields, nan=FLOOR), FLOOR, 70)
    return np.mean([(z - gaussian_filter(z, 1.5)).var() for z in fields])


def rain(fields):
    """Return the mean rain in mm/h of fields in dBZ."""
    return np.where(fields > 0, (10 ** (fields / 10) / 200) ** (1 / 1.6), 0).mean()


def between_over_outer(out, measure):
    """Return the ratio of a measure of the interpolated fields to that of the fields at input times."""
    z = np.nan_to_num(out.reflectivity.values, nan=-32)
    return measure(z[1::2]) / ((measure(z[:-1:2]) + measure(z[2::2])) / 2)


def smooth_of_two(seed=0, shape=(120, 140)):
    """Return (3, h, w): two fields of cells and, between them, their blurred mean."""
    rng = np.random.default_rng(seed)
    ends = [np.clip(gaussian_filter(rng.normal(0, 1, shape), 2) * 3 - 0.2, 0, 1) for _ in range(2)]
    middle = gaussian_filter((ends[0] + ends[1]) / 2, 1.5)
    return torch.from_numpy(np.stack([ends[0], middle * (middle > 0.01), ends[1]]).astype(np.float32))


def test_middle_frame_gets_detail_and_distribution_of_its_neighbours():
    y = smooth_of_two()
    out = match_end_frames(y).numpy()
    ends = [y[k].numpy() for k in (0, 2)]
    assert ((out > 0) <= (y[1].numpy() > 0)).all(), "dry stays dry"
    wet = [np.sort(z.ravel())[-2000:] for z in (out, *ends)]
    np.testing.assert_allclose(wet[0], (wet[1] + wet[2]) / 2, atol=5e-3)

    def variance(z):
        return (z - gaussian_filter(z, 1.5)).var()

    target = np.mean([variance(z) for z in ends])
    assert variance(y[1].numpy()) < 0.6 * target and variance(out) > variance(y[1].numpy()) * 1.3


def test_similar_and_empty_middle_frames_are_unchanged():
    y = smooth_of_two()
    same = torch.stack([y[0], y[0], y[0]])
    np.testing.assert_allclose(match_end_frames(same), y[0], atol=5e-3)
    dry = y.clone()
    dry[2] = 0
    torch.testing.assert_close(match_end_frames(dry), y[1])
    assert (match_end_frames(torch.zeros(3, 8, 8)) == 0).all()


def test_large_fields_between_are_no_stronger_than_those_at_input_times():
    """In large frames the maximum is taken over a subset of rows, which may not contain the strongest echo."""
    rng = np.random.default_rng(5)
    y = torch.from_numpy(gaussian_filter(rng.random((3, 1100, 1000)), (0, 6, 6)).astype(np.float32))
    y = ((y - 0.5) * 8).clamp(0, 0.6)
    for row in range(3, 9):
        y[1, row, 100 + 50 * row] = 0.9
        assert 0.4 < float(match_end_frames(y).max()) <= float(y[[0, 2]].max()) + 1 / 4096


@pytest.mark.usefixtures("native")
def test_intensities_do_not_pulse_and_smooth_keeps_least_squares():
    coarse = coarsen_dataset(synthetic_event(5, frames=9, shape=(192, 192)))
    steady, smooth = (fastds.downscale("fczsm-small", coarse, smooth=on) for on in (False, True))
    assert (steady.attrs["fastds_smooth"], smooth.attrs["fastds_smooth"]) == (0, 1)
    xr.testing.assert_equal(steady.reflectivity[::2], smooth.reflectivity[::2])
    assert between_over_outer(smooth, detail) < 0.9
    assert 0.9 < between_over_outer(steady, detail) < 1.1 and 0.95 < between_over_outer(steady, rain) < 1.05
    plain = fastds.downscale("advection", coarse)
    assert plain.attrs["fastds_smooth"] == 1, "methods without weights are what their names say"
    with pytest.raises(ValueError, match="smooth is for one field of each time"):
        fastds.downscale("fczsm-small", coarse, smooth=True, members=2)


@pytest.mark.usefixtures("native")
def test_intensities_do_not_pulse_with_time_factor_4():
    coarse = coarsen_dataset(synthetic_event(5, frames=9, shape=(192, 192)), every=4)
    z = np.nan_to_num(fastds.downscale("fczsm-small", coarse, time_factor=4).reflectivity.values, nan=-32)
    inner = [rain(z[k::4][:2]) for k in (1, 2, 3)]
    outer = (rain(z[:-1:4]) + rain(z[4::4])) / 2
    assert all(0.9 < value / outer < 1.1 for value in inner), (inner, outer)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["radar_mch_20160711_5min.nc", "radar_opera_20180824_15min.nc"])
def test_intensities_do_not_pulse_on_real_radars(name):
    path = Path(os.environ.get("FASTDS_DATA", "none")) / name
    if not path.exists():
        pytest.skip("needs the radar files")
    with open_dataset(path) as data:
        part = data.isel(time=slice(2, 9), y=slice(100, 356), x=slice(100, 356)).load()
    source = to_reflectivity(part)
    coarse = coarsen_dataset(part, var=source.source_name).rename({source.source_name: "reflectivity"})
    out = fastds.downscale("fczsm-small", coarse, var="reflectivity")
    assert 0.88 < between_over_outer(out, detail) < 1.12 and 0.95 < between_over_outer(out, rain) < 1.05
