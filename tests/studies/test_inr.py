# SPDX-License-Identifier: Apache-2.0
"""Tests of the study of arbitrary-scale networks: splits, training configurations and tables."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="training extra is not installed")

from fastds import models
from fastds.data.samples.degradation import compute_area_mean
from fastds.studies.fields.crops import Crop
from fastds.studies.inr import evaluation, methods, tables
from fastds.studies.inr.config import DataConfig
from fastds.studies.inr.evaluation import PROTOCOLS, make_protocols
from fastds.studies.inr.methods import FACTORS, METHODS, NETWORKS, PAPER_RANKING
from fastds.tasks.fields.back_projection import back_project
from fastds.tasks.fields.config import DataConfig as TrainingData
from fastds.tasks.fields.config import parse_arguments as parse_training
from fastds.tasks.fields.samples import load_fields
from tests.support.study_cases import make_waves


def test_split_columns_with_gaps():
    """Eight columns separate the parts, also across 180 W."""
    assert evaluation.split_columns(360) == {"train": [0, 200], "validation": [208, 264], "test": [272, 352]}
    assert evaluation.split_columns(216) == {"train": [0, 120], "validation": [128, 162], "test": [170, 208]}


def test_read_test_crops_uses_the_test_columns(tmp_path):
    config = DataConfig(f"{make_waves(tmp_path)}/waves.nc", variables=["t", "u"], crop=32, per_cell=1)
    data = evaluation.make_training_data(config)
    assert (data.train, data.validation, data.test) == ([0, 120], [128, 162], [170, 208])
    fields, crops = evaluation.read_test_crops(config, data)
    assert torch.equal(fields, load_fields(data)[..., 170:208]) and len(crops) == 2 * 4
    given = [Crop(0, 1, 0, 0), Crop(3, 2, 5, 5), Crop(4, 2, 0, 0)]
    assert evaluation.make_crop_labels(given, 2).tolist() == [[0, 1], [1, 2], [2, 2]]


@pytest.mark.parametrize("budget", ["45min", "paper"])
def test_every_method_is_trained_alike(budget):
    data = TrainingData("x", train=[0, 20], validation=[30, 40])
    made = {name: methods.make_training_config(name, budget, 80, data, seed=3, output="run") for name in NETWORKS}
    first = made["ours"]
    assert first.data.epoch_samples == (16_000 if budget == "paper" else 160)  # a fourth of 80 batches of 8
    for name, config in made.items():
        factor = METHODS[name].factor
        assert config.data.scales == ([float(factor)] * 2 if factor else [1.0, 4.0])
        if factor or budget != "paper":
            assert config.data.test_scales == [float(factor or 2)]
        assert config.data.degraded == (0.5 if name.startswith("ours") and name != "ours-clean" else 0.0)
        if budget == "paper":
            shipped = parse_training(["--config", METHODS[name].preset, "--data.path=x"])
            assert shipped.last_step() == 1_000_000 and (config.schedule, config.optimizer) == ("steps", "adam")
            shipped_data = dataclasses.replace(
                config.data, train=[], validation=[], split="time", degraded=shipped.data.degraded
            )
            back = {
                "data": shipped_data,
                "max_steps": None,
                "model": shipped.model,
                "output": shipped.output,
                "seed": 0,
            }
            assert dataclasses.replace(config, **back) == shipped
        samples_of_all = {"scales": [], "test_scales": [], "degraded": 0.0}
        ours, theirs = (dataclasses.replace(c.data, **samples_of_all) for c in (first, config))
        assert ours == theirs and dataclasses.replace(config, data=first.data, model=first.model) == first
        model = models.create(config.model.name, in_channels=2, **config.model.options)
        encoder = model.config["encoder_options"]
        assert encoder == first.model.options.get("encoder_options")
        if METHODS[name].dpfa:
            assert model.config["dpfa"] == METHODS[name].dpfa
    assert {c.dpfa for c in METHODS.values()} == {None, "deform", "mask", "modconv", "film", "none"}


# ---- tables


def test_psnr_by_hand():
    """The PSNR is averaged over seeds, crops and the two variables, whose ranges are 10 and 1."""
    errors = np.array([[[1.0, 1e-4], [0.1, 0.1]], [[1.0, 1e-4], [0.1, 0.1]]])
    np.testing.assert_allclose(tables.compute_psnr(errors, np.array([10.0, 1.0])), [30.0, 20.0])
    with_seeds = np.array([errors[0], errors[0] * 10])
    np.testing.assert_allclose(tables.compute_psnr(with_seeds, np.array([10.0, 1.0])), [25.0, 15.0])


def results_of(**gains):
    """Return PSNR of eight crops: a common pattern plus the gain of a method, for each factor it supports."""
    pattern = 30 + np.arange(8.0)
    named = {name.replace("_", "-"): gain for name, gain in gains.items()}
    return {n: {f: pattern + g for f in FACTORS if METHODS[n].factor in ("", f)} for n, g in named.items()}


LABELS = np.array([(t, b) for t in range(4) for b in range(2)])


def test_tabulate_ranking_by_protocol_and_factor():
    results = {p: results_of(ours=0.6, EDSR_x2=0.1, LTE=0.1, bicubic=-1.0) for p in PROTOCOLS}
    rows = {row[:3]: row[3:] for row in map(tuple, tables.tabulate_ranking(results, LABELS).format_rows())}
    assert rows["ours less EDSR-x2", "clean", "x2"] == ("+0.70", "+0.50 [+0.50, +0.50]", "agrees")
    assert rows["ours less LTE", "degraded", "x2"] == ("+0.48", "+0.50 [+0.50, +0.50]", "reproduced")
    assert rows["ours less LTE", "clean", "x4"] == ("-", "+0.50 [+0.50, +0.50]", "not in the paper")
    assert ("ours less EDSR-x2", "clean", "x3") not in rows
    assert rows["ours less LTE", "mirrored less clean", "x2"] == ("+0.48", "+0.50 [+0.50, +0.50]", "reproduced")
    of_abstract = 1 + len(FACTORS)
    assert len(rows) == len(PROTOCOLS) * (of_abstract + len(FACTORS)) + 2 * of_abstract


def test_protocols_by_hand():
    slope = torch.arange(6.0)[:, None] + 10 * torch.arange(8.0)

    def predict(x, size):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) + slope * torch.tensor([1.0, 2.0])[:, None, None]

    x = torch.randn(3, 2, 3, 4)
    ways = make_protocols(predict, lambda: None, [])
    assert ways["clean"] == (predict, None) and ways["degraded"][0] is predict and ways["degraded"][1] is not None
    flat = predict(x, (6, 8)).mean((2, 3)) - x.mean((2, 3))
    for way in ("agreeing", "mirrored"):
        made, coarsen = ways[way]
        y = made(x, (6, 8))
        assert coarsen is None
        torch.testing.assert_close(compute_area_mean(y, (3, 4)), x, atol=2e-2, rtol=0)
    four = torch.stack([slope, slope.flip(0), slope.flip(1), slope.flip(0, 1)]).mean(0)
    assert (four == four[0, 0]).all() and flat.std(0).max() < 1e-5  # so that what mirrored adds is a constant
    smooth = back_project(x.repeat_interleave(2, 2).repeat_interleave(2, 3), x)
    torch.testing.assert_close(ways["mirrored"][0](x, (6, 8)), smooth, atol=5e-2, rtol=0)


def test_mirrored_protocol_changes_the_sign_of_winds():
    def predict(x, size):
        seen.append(x)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x, seen = torch.randn(1, 3, 4, 4), []
    y = make_protocols(predict, lambda: None, [1, 2])["mirrored"][0](x, (8, 8))
    torch.testing.assert_close(compute_area_mean(y, (4, 4)), x, atol=1e-5, rtol=0)
    plain, down, across, both = seen
    assert torch.equal(down, x.flip(2) * torch.tensor([1.0, 1.0, -1.0])[:, None, None])
    assert torch.equal(across, x.flip(3) * torch.tensor([1.0, -1.0, 1.0])[:, None, None])
    assert torch.equal(both, x.flip(2, 3) * torch.tensor([1.0, -1.0, -1.0])[:, None, None])


def test_tables_are_complete():
    table = tables.tabulate_psnr("clean", results_of(ours=0.6, EDSR_x2=0.1), LABELS, {"ours": 1234})
    rows = {row[0]: row for row in table.format_rows()}
    assert list(rows) == list(METHODS) and all(len(row) == len(table.heads) for row in table.rows)
    assert rows["ours"][1] == "1,234" and rows["ours"][3].startswith("34.10 [")
    assert rows["EDSR-x2"][2:] == ["-", rows["EDSR-x2"][3], *4 * ["-"]] and rows["LIIF"][2] == "not run"
    errors = {"ours": {"2": np.array([[4.0, 1.0], [0.0, 1.0]])}}
    rows = tables.tabulate_variables(errors, ["t", "u"], ["K", "m s-1"]).format_rows()
    assert rows == [["ours", "x2", "1.414", "1"]]
    assert all(name in METHODS for better, other, _ in PAPER_RANKING for name in (better, other))
