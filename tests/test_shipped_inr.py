# SPDX-License-Identifier: Apache-2.0
"""inr-small: one model for every factor, above bicubic interpolation on longitudes that it never saw."""

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


def test_command_without_naming_the_model(data_dir, tmp_path, capsys):
    with xr.open_dataset(data_dir / FILE) as file:
        file.isel(time=[0]).to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    assert main(["downscale", str(tmp_path / "in.nc"), str(tmp_path / "out.nc"), "--scale", "1.5"]) == 0
    fine = xr.open_dataset(tmp_path / "out.nc")
    assert fine.sizes["latitude"] == 271 and fine.sizes["longitude"] == 540 and bool(fine.t.notnull().all())
    capsys.readouterr()
