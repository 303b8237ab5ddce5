# SPDX-License-Identifier: Apache-2.0
"""Tests of inr-small against bicubic interpolation on longitudes that are not in the training data."""

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the scores belong to the training extra")

import torch
import xarray as xr

from fastds import models
from fastds.cli import main
from fastds.tasks.fields.config import DataConfig
from fastds.tasks.fields.evaluation import make_coarse_and_fine, resize_bicubic, resize_bicubic_torch
from fastds.tasks.fields.samples import FieldData

FILE = "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"


def test_gain_over_both_bicubic_kernels_on_unseen_longitudes(data_dir):
    config = DataConfig(str(data_dir / FILE), train=[0, 256], validation=[264, 352])
    truth, model, gains = FieldData(config).validation[:1], models.load("inr-small"), {}
    for scale in (1.5, 2.0, 2.67, 4.0):
        x, y = make_coarse_and_fine(truth, scale)
        size, inner = tuple(y.shape[2:]), (..., slice(10, -10), slice(10, -10))
        with torch.no_grad():
            ours = (model(x, size=size) - y)[inner].square().mean((0, 2, 3))
        for kernel in (resize_bicubic, resize_bicubic_torch):
            error = (kernel(x, size) - y)[inner].square().mean((0, 2, 3))
            gains |= {
                (kernel.__name__, scale, v): g
                for v, g in zip("rtuz", (10 * (error / ours).log10()).tolist(), strict=True)
            }
    assert min(gains.values()) > 0.5, gains
    assert gains["resize_bicubic", 2.0, "t"] > 1.2


def test_command_to_a_quarter_degree_of_the_globe(data_dir, tmp_path, capsys):
    """Differences at the border of the longitudes are like those nearby; values at the poles are nearly constant."""
    with xr.open_dataset(data_dir / FILE) as file:
        coarse = file.isel(time=[0]).load()
    coarse.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    assert main(["downscale", str(tmp_path / "in.nc"), str(tmp_path / "out.nc"), "--grid", "0.25"]) == 0
    capsys.readouterr()
    with xr.open_dataset(tmp_path / "out.nc") as file:
        fine = file.load()
    for name in "rtuz":
        rows = fine[name].values[0]
        assert rows.shape == (721, 1440) and np.isfinite(rows).all()
        # From column to column, the last one over the seam; every fourth step starts at the same place of its cell.
        steps = np.abs(np.roll(rows, -1, axis=1) - rows).mean(axis=0)[3::4]
        neighbours = np.concatenate([steps[:10], steps[-11:-1]])
        assert 0.75 < steps[-1] / neighbours.mean() < 1.25, name
        for pole, one_degree_off in ((0, 4), (-1, -5)):
            assert rows[pole].std() < 0.25 * rows[one_degree_off].std(), name
            error = abs(rows[pole].mean() - coarse[name].values[0, pole].mean())
            # Humidity, the largest: 0.11 in the north, 0.10 in the south.
            assert error < 0.15 * rows[one_degree_off].std(), name
