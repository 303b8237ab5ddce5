# SPDX-License-Identifier: Apache-2.0
"""Tests of --append: an early and exact error if a store cannot be continued."""

import shutil

import pytest

pytest.importorskip("zarr", reason="archives need the package zarr")
pytest.importorskip("dask", reason="archives need the package dask")

from fastds.archive import run
from fastds.cli import main
from fastds.data import coarsen_dataset, save_dataset, synthetic_event


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    event = coarsen_dataset(synthetic_event(5, 7, (64, 64)))[["reflectivity", "crs"]]
    for k in range(3):
        save_dataset(event.isel(time=slice(k, k + 1)), tmp_path / f"{k}.nc")
    return tmp_path


DOWNSCALE = ["downscale", "?.nc", "o.zarr", "--threads=1"]


def _refusal(words, monkeypatch, capsys):
    """Return the error message, which is raised before any file is opened."""
    with monkeypatch.context() as context:
        context.setattr(run, "create_pipeline", lambda request: pytest.fail("the files were opened"))
        assert main(words) == 2
    return capsys.readouterr().err


def test_resume_of_a_store_without_manifest(folder, monkeypatch, capsys):
    assert main([*DOWNSCALE, "--model=trilinear"]) == 0
    capsys.readouterr()
    message = _refusal([*DOWNSCALE, "--model=trilinear", "--append"], monkeypatch, capsys)
    assert "o.zarr cannot be continued: there is no o.zarr.manifest" in message
    assert "is written with --append, --workers, --scheduler, --keep-going, --chunks or --shards" in message
    shutil.rmtree("o.zarr")
    assert main([*DOWNSCALE, "--model=trilinear", "--append"]) == 0
    assert main([*DOWNSCALE, "--model=trilinear", "--append"]) == 0
    assert "already done" in capsys.readouterr().out


def test_resume_of_a_store_with_other_options_or_files(folder, monkeypatch, capsys):
    assert main([*DOWNSCALE, "--model=trilinear", "--workers=1"]) == 0
    message = _refusal([*DOWNSCALE, "--model=bicubic", "--append"], monkeypatch, capsys)
    assert "cannot be continued: model was 'trilinear' and is 'bicubic'; without --append it is made anew" in message
    message = _refusal([*DOWNSCALE, "--model=trilinear", "--time-factor=4", "--append"], monkeypatch, capsys)
    assert "cannot be continued: time_factor was None and is 4;" in message
    (folder / "0.nc").unlink()
    message = _refusal([*DOWNSCALE, "--model=trilinear", "--append"], monkeypatch, capsys)
    assert f"cannot be continued: {folder}/0.nc is not among the files;" in message
