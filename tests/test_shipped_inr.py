# SPDX-License-Identifier: Apache-2.0
"""inr-small: one model for every factor, above bicubic interpolation on longitudes that it never saw."""

import numpy as np
import pytest

pytest.importorskip("lightning", reason="the scores belong to the training extra")

import torch
import xarray as xr

from fastds import models
from fastds.cli import main
from fastds.training.fields import FieldDataConfig, FieldDataModule, scores

FILE = "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"


def test_gain_over_bicubic_on_unseen_longitudes(data_dir):
    config = FieldDataConfig(str(data_dir / FILE), train=[0, 256], validation=[264, 352])
    data = FieldDataModule(config)
    with torch.no_grad():
        values = scores(models.load("inr-small"), data.validation[:1], [1.5, 2.0, 2.67, 4.0], data.value_range)
    gains = {k: v - values[k.replace("model", "bicubic")] for k, v in values.items() if k.startswith("model/psnr")}
    assert min(gains.values()) > 0.2, gains
    assert gains["model/psnr/x2/1"] > 1.0  # temperature


def test_command_to_a_quarter_degree_of_the_globe(data_dir, tmp_path, capsys):
    """13, 14: the seam is a step like its neighbours, the poles are finite and nearly one value."""
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
            assert error < 0.5 * rows[pole].std() + 0.05 * rows[one_degree_off].std(), name
