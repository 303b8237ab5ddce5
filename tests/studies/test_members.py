# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds study downscaling-errors` and `radar --members`: training samples and scores."""

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="studies belong to the training extra")

from fastds import models
from fastds.cli import main
from fastds.data import save_dataset, synthetic_event
from fastds.metrics import crps
from fastds.models.ensembles import ErrorModel
from fastds.models.ensembles.downscaling_features import ERROR_INDEX, FEATURES, WET_SHARE_INDEX
from fastds.studies import fit_downscaling_errors, radar
from fastds.studies.radar import SCORES, score_members
from fastds.tasks.radar.members import MIN_ECHO_SHARE, RadarEnsemble, make_details
from fastds.tasks.radar.motion import smooth_pair_flow

FILE = "radar.nc"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("radars")
    save_dataset(synthetic_event(3, frames=10, shape=(96, 80))[["reflectivity", "crs"]], folder / FILE)
    return folder


def test_error_model_pools_of_sharp_and_smoothed_fields(folder, tmp_path, monkeypatch, capsys):
    blocks = (fit_downscaling_errors.Block(FILE, (0, None), 4),)
    monkeypatch.setattr(fit_downscaling_errors.make_pools, "__defaults__", (blocks, 0))
    sharp, smoothed = fit_downscaling_errors.make_pools(folder, models.load("fczsm-small").eval())
    assert sharp.features.shape[0] == FEATURES and (sharp.features[WET_SHARE_INDEX] > MIN_ECHO_SHARE).all()
    forecasts = 20 * sharp.features[0]
    assert np.corrcoef(forecasts, sharp.truth)[0, 1] > 0.9 and abs((forecasts - sharp.truth).mean()) < 0.5
    rough, even = ((20 * pool.features[0] - pool.truth).square().mean() for pool in (sharp, smoothed))
    assert even < 0.95 * rough  # a radar of little detail loses less
    target = tmp_path / "errors.safetensors"
    words = ["study", "downscaling-errors", f"--data.path={folder}", f"--output={target}", "--steps=3", "--threads=1"]
    assert main(words) == 0 and f"wrote {target}" in capsys.readouterr().out
    model = models.load(target)
    assert isinstance(model, ErrorModel) and model.card.name == "downscaling-errors" and model.card.metrics["loss"] > 0
    assert model.config == {"hidden": 32, "features": FEATURES, "lacking": ERROR_INDEX}
    assert (*model.card.valid_range, model.card.space_factor, model.card.task) == (15.0, 70.0, 2, "")


def test_shipped_error_model_has_the_fitted_form():
    assert models.load("downscaling-errors").config == {"hidden": 32, "features": FEATURES, "lacking": ERROR_INDEX}


def test_scores_of_members_by_hand(folder, monkeypatch):
    monkeypatch.setitem(radar.TEST_BLOCKS, FILE, (0, None, 4))
    model, block = models.load("fczsm-small").eval(), radar.read_test_block(folder, FILE, interval=2)
    samples = block.samples[:1]
    found = score_members(samples, model, 5)
    x, y, valid = (samples[0][key] for key in ("x", "y", "valid"))
    before, after = samples[0]["neighbours"]
    flow = smooth_pair_flow(before, x[:, 0], after)
    unknown = torch.full_like(x[0, 0], torch.nan)
    around = torch.stack([unknown if before is None else before[0], unknown if after is None else after[1]])
    with torch.inference_mode():
        made = model(x[None], flow=flow[None], context=around[None, :, None])[0, :, 0].clamp(0, 1)
    members = RadarEnsemble(5, 0, model.card)
    read = make_details(made, x[:, 0], flow, model.card)
    drawn, share = members.draw_between(read, 0), read[1].compute(slice(0, 96))[WET_SHARE_INDEX]
    near = valid[1, 0] & (share > MIN_ECHO_SHARE)
    truth = y[1, 0]
    error = (made[1] - truth)[near].abs().mean().item()
    score, spread, detail, plain, area = found["between"]
    assert len(SCORES) == 5 and score == pytest.approx(crps(drawn[:, near], truth[near]) / error, rel=1e-4)
    expected = (drawn[:, near] > 0).double().mean().item() / (truth[near] > 0).double().mean().item()
    assert area == pytest.approx(expected, rel=1e-5) and 0.4 < spread < 2.5
    assert plain < 0.6 and plain < detail < 2.5 and 0.3 < score < 0.95


def test_study_radar_command_prints_member_scores(folder, monkeypatch, capsys):
    monkeypatch.setattr(radar, "TEST_BLOCKS", {FILE: (0, 5, 4)})
    words = ["study", "radar", f"--data.path={folder}", "--floors=[15]", "--modes=[dbz]", "--members=3", "--threads=1"]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "3 members" in printed and "between" in printed and "mean" in printed
