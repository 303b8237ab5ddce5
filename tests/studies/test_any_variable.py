# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds study any-variable`: its scores, and the shipped weights on held-out files."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("lightning", reason="studies belong to the training extra")

import torch
import torch.nn.functional as F
import xarray as xr

from fastds import models
from fastds.cli import main
from fastds.studies import any_variable


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Replace the files of the study by one file with two times and two variables, one with a missing value."""
    rng = np.random.default_rng(2)
    smooth = F.avg_pool2d(torch.from_numpy(rng.normal(size=(2, 2, 74, 90))), 7, stride=1).numpy().astype("f4")
    dims = ("time", "latitude", "longitude")
    data = xr.Dataset({"a": (dims, smooth[0]), "b": (dims, smooth[1])})
    data.b[1, 4, 4] = np.nan
    data.to_netcdf(tmp_path / "x.nc", engine="h5netcdf")
    monkeypatch.setattr(any_variable, "SOURCES", (("waves", "x.nc", ("a", "b"), (0, 1), np.s_[:, :80]),))
    return tmp_path


def test_gains_by_hand(folder, capsys):
    """The PSNR excludes a margin at the border. Gains are relative to bicubic and to the best interpolation."""
    board = folder / "board.json"
    command = ["study", "any-variable", f"--data.path={folder}", "--scales=[2]", f"--leaderboard={board}"]
    assert main(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| waves")]
    assert [line.split("|")[2].strip() for line in lines] == ["a", "b"]
    network = models.load("inr-any").eval()
    for line, (_, fields) in zip(lines, any_variable.read_sources(folder), strict=True):
        x = F.avg_pool2d(fields, 2)
        fine = {"bicubic": F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)}
        fine["bicubic 0.75"] = F.interpolate(x, scale_factor=2, mode="bicubic")
        fine["bilinear"] = F.interpolate(x, scale_factor=2, mode="bilinear")
        with torch.no_grad():
            fine["own"] = network(x, scale=2)
        # 8 pixels of margin, then whole blocks of 16
        error = {name: float((y - fields)[..., 8:56, 8:72].double().square().mean()) for name, y in fine.items()}
        gain = 10 * math.log10(error["bicubic"] / error["own"])
        cells = [cell.strip() for cell in line.split("|")]
        assert float(cells[3].split()[0]) == pytest.approx(gain, abs=0.006)
        lanczos = any_variable.INTERPOLATIONS["lanczos"](x, (68, 80))
        best = min(error["bicubic"], error["bicubic 0.75"], error["bilinear"])
        best = min(best, float((lanczos - fields)[..., 8:56, 8:72].double().square().mean()))
        assert float(cells[4]) == pytest.approx(10 * math.log10(best / error["own"]), abs=0.006)
    (row,) = json.loads(board.read_text())
    assert row["model"] == "inr-any" and row["cases"] == 2 and row["low"] is None  # two fields are too few
    assert row["value"] == pytest.approx(np.mean([float(line.split("|")[3].split()[0]) for line in lines]), abs=0.006)


def test_fields_too_small_for_every_factor_leave_their_row_empty(folder, capsys):
    assert main(["study", "any-variable", f"--data.path={folder}", "--scales=[40]"]) == 0
    assert "| waves | a |  |  |" in capsys.readouterr().out


def test_networks_of_several_variables_are_refused(folder, capsys):
    assert main(["study", "any-variable", f"--data.path={folder}", "--model=inr-small"]) == 2
    assert "model inr-small reads 4 variables, expected a network of one" in capsys.readouterr().err


def test_shipped_weights_are_above_every_interpolation(data_dir):
    """The files have surface fields, accumulated rain and upper-air fields that are not in the training data."""
    network = models.load("inr-any").eval()
    least = {}
    with torch.inference_mode():
        for key, fields in any_variable.read_sources(data_dir):
            _, least[key] = any_variable.compute_gain(network, fields[:1], 2.0)
    assert len(least) == 17 and min(least.values()) > 0.15, least
