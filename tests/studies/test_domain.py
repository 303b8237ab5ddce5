# SPDX-License-Identifier: Apache-2.0
"""Tests of `fastds study domain` and `fastds study input-ranges` on public files."""

import itertools
import math

import pytest
import torch

pytest.importorskip("lightning", reason="the ranges are those of a training's samples")

from fastds import models
from fastds.cli import main
from fastds.studies.domain import cases

ERA5 = "era5_rh_t_u_z_500hPa_1deg_global_20160101_6h.nc"


@pytest.fixture
def few(monkeypatch):
    """Reduce the cases to a few samples of one radar."""
    block = {"radar_mch_20160711_5min.nc": (0, 14, 1)}
    for name, value in (("RADARS", block), ("FORECAST", block), ("COARSER", ((1, 1), (1, 4))), ("_SAMPLES", 1)):
        monkeypatch.setattr(cases, name, value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fczsm-small", 5),
        ("nowcast-small", 2),
        ("wgan-gp-small-x2", 3),
        ("inr-small", 8),
    ],
)
def test_ood_cases_have_scores_and_errors(name, expected, few, data_dir):
    network = models.load(name)
    with torch.inference_mode():
        found = list(itertools.islice(cases.CASES[network.card.task](network, data_dir), expected))
    assert len(found) == expected and len({case.label for case in found}) == expected
    for case in found:
        assert 0.2 < case.ratio < 1.3 and 0 < case.domain.score < 3 and case.block in case.label.split(", cells")[0]
    seen = [{one.what: one.value for one in case.domain.deviations} for case in (found[0], found[-1])]
    if network.card.task == "humidity":
        assert [case.label.split(", cells of ")[1] for case in found] == ["1", "2", "4"]
    if network.card.task in ("radar", "nowcast"):  # of input grids, which a network of radar makes finer
        finer = 2 if network.card.task == "radar" else 1
        assert [one["grid spacing"] / (1000 * finer) for one in seen] == pytest.approx([1, 4], rel=0.05)
        times = [one.get("cadence", one.get("interval between fields")) for one in seen]
        assert times == [300 * finer] * 2


def test_unseen_level_has_large_score_and_error(data_dir):
    network = models.load("inr-small")
    levels = [part for part in cases._read_four_variables(data_dir) if part[0] in ("NAM at 500 hPa", "NAM at 100 hPa")]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "_read_four_variables", lambda folder: iter(levels))
        known, foreign = (
            [c for c in cases.iter_field_cases(network, data_dir) if level[0] == c.block] for level in levels
        )
    assert max(case.ratio for case in known) < 1 < 10 < min(case.ratio for case in foreign)
    assert max(case.domain.score for case in known) < min(case.domain.score for case in foreign)
    assert "t mean" in {departure.what for departure in foreign[0].domain.outside}


def test_input_ranges_are_written_without_changing_weights(data_dir, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    words = ["--data.path", str(data_dir / ERA5), "--model=inr-small", f"--output={target}", "--samples=12"]
    assert main(["study", "input-ranges", *words]) == 0
    printed, before, after = capsys.readouterr().out, models.load("inr-small"), models.load(target)
    assert "t mean" in printed and after.card.input_ranges != before.card.input_ranges
    assert set(after.card.input_ranges) == set(before.card.input_ranges)
    for what, (low, high) in after.card.input_ranges.items():
        shipped = before.card.input_ranges[what]
        assert low < shipped[1] and high > shipped[0] and math.isfinite(high - low), what
    state = after.state_dict()
    assert all(torch.equal(state[key], value) for key, value in before.state_dict().items())
    assert main(["study", "input-ranges", *words, "--samples=1"]) == 2
    assert "--samples must be at least 2, got 1" in capsys.readouterr().err


def test_weights_without_ranges_are_rejected(tmp_path, data_dir, capsys):
    model = models.load("inr-small")
    model.card.input_ranges = {}
    models.save(model, tmp_path / "bare.safetensors")
    words = ["study", "domain", f"--data.path={data_dir}", f"--model={tmp_path}/bare.safetensors"]
    assert main(words) == 2
    assert "has no input_ranges in its card; fastds study input-ranges makes them" in capsys.readouterr().err
