# SPDX-License-Identifier: Apache-2.0
"""Tests of the DB-RNN study: samples, training configurations, scores, tables and costs."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.study_cases import make_events

pytest.importorskip("lightning", reason="training extra is not installed")

from fastds import models
from fastds.data import RAIN_THRESHOLDS, normalised_rates, open_dataset
from fastds.metrics import NowcastScores
from fastds.studies.common.bootstrap import make_block_labels
from fastds.studies.common.radar import EvaluationBlock
from fastds.studies.db_rnn import evaluation, methods, study, tables
from fastds.studies.db_rnn.config import DataConfig, StudyConfig
from fastds.studies.db_rnn.methods import CELLS, METHODS, PUBLISHED, SCORES, get_published
from fastds.studies.db_rnn.study import measure_costs
from fastds.tasks.nowcast.config import ABLATIONS
from fastds.tasks.nowcast.config import DataConfig as TrainingData
from fastds.tasks.nowcast.config import parse_arguments as parse_training
from fastds.training.command import find_configurations

Z_R = [200.0, 1.6]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = make_events(tmp_path_factory.mktemp("events"))
    return DataConfig(str(folder), ["rain.nc"], test_samples=2, window=32, block="6min", scale=1)


def test_read_test_block_uses_the_last_part(config):
    block = evaluation.read_test_block(config, "rain.nc", [27, 38])
    assert len(block.samples) == 2 and block.blocks == [4, 5]  # the times of the last known fields, 4 and 5 steps in
    with open_dataset(f"{config.path}/rain.nc") as dataset:
        z = dataset.reflectivity.values[27:37, *block.window].clip(0, 60) / 60
    sample = block.samples[0]
    np.testing.assert_allclose(torch.cat([sample["x"], sample["y"]])[:, 0], np.nan_to_num(z), atol=1e-6)
    assert sample["x"].shape == (5, 1, 32, 32) and sample["known"].shape == sample["x"].shape
    coarse = evaluation.read_test_block(dataclasses.replace(config, scale=2), "rain.nc", [27, 38])
    assert coarse.samples[0]["y"].shape == (5, 1, 16, 16)
    assert [s.stop - s.start for s in coarse.window] == [32, 32]


# ---- trainings


def test_select_methods():
    base = ["persistence", "extrapolation"]
    assert study.select_methods(["MS-MIM-S"], "ConvLSTM") == [*base, "MS-MIM", "MS-MIM-S"]
    assert study.select_methods(["DB-discriminator-S"], "ConvLSTM") == [*base, "DB-ConvLSTM", "DB-discriminator-S"]
    assert study.select_methods(["DB-discriminator-S"], "MIM") == [*base, "DB-discriminator-S"]
    assert study.select_methods([], "MIM") == list(METHODS) and len(METHODS) == 2 + 3 * 7 + 3 + 6


@pytest.mark.parametrize("budget", ["45min", "paper"])
def test_every_method_is_trained_alike(budget):
    data, start = TrainingData("x", scales=[2]), "a.safetensors"
    made = {
        name: methods.make_training_config(
            name, "MIM", budget, 80, data, Z_R, start if m.kind == "staged" else None, seed=3, output="run"
        )
        for name, m in METHODS.items()
        if m.kind
    }
    first = made["MS-ConvLSTM"]
    for name, config in made.items():
        kind = METHODS[name].kind
        same = {"model": first.model, "loss": first.loss, "stage": None, "max_steps": 80}
        same["max_epochs"] = first.max_epochs
        assert dataclasses.replace(config, **same) == first
        assert config.max_steps == (160 if (kind, budget) == ("db", "paper") else 80)
        assert config.stage == ("deblurrer" if kind == "staged" else None)
        assert config.loss.kind == "db-rnn" and config.loss.epochs == (None if budget == "paper" else 50)
        row = METHODS[name].ablation if kind == "db" else "fixed"
        if kind == "db" or budget != "paper":  # a network of one output has no weights
            assert (config.loss.terms, config.loss.weights) == ABLATIONS[row]
    cells = [made[f"DB-{cell}"].model.name for cell in CELLS]
    assert cells == [f"db-{name}" for name in CELLS.values()] and made["DB-gdl"].model.name == "db-mim"
    parameters = {
        name: sum(p.numel() for p in models.create(made[name].model.name, **made[name].model.options).parameters())
        for name in ("MS-ConvLSTM", "DB-PredRNN", "SimVP", "MS-LSTM")
    }
    if budget == "paper":
        assert list(parameters.values())[:2] == [250_057, 1_014_194] and first.data.crop == 160
        assert parameters["MS-LSTM"] == 1_067_257 and 38.8e6 < parameters["SimVP"] < 39e6
    else:
        assert list(parameters.values())[:3] == [28_057, 113_810, 693_665] and first.data.epoch_samples == 20


def test_the_budget_paper_trains_the_shipped_configurations():
    """The optimiser is Adam with a constant rate and without clipping."""
    data = TrainingData("x", {"a.nc": {"train": [0, 9], "validation": [9, 19]}}, scales=[3], intervals=[5])
    shipped = {name: parse_training(["--config", name, "--data.path=x"]) for name in find_configurations("nowcast")}
    for name, method in METHODS.items():
        if not method.kind or name in methods.ABLATION:
            continue
        start = "a.safetensors" if method.kind == "staged" else None
        made = methods.make_training_config(name, "PrecipLSTM", "paper", 60_900, data, Z_R, start)
        steps = 121_800 if method.kind == "db" else 60_900
        assert (made.max_steps, made.data.intervals, made.data.blocks) == (steps, [5], data.blocks)
        assert (made.optimizer, made.schedule, made.gradient_clip, made.learning_rate) == (
            "adam",
            "constant",
            None,
            3e-4,
        )
        shipped_config = shipped.get("ms-lstm" if name == "MS-LSTM" else made.model.name)
        if shipped_config is not None:
            assert made.max_steps == shipped_config.last_step()
            back = {"data": shipped_config.data, "max_steps": None, "stage": shipped_config.stage}
            back["model"] = dataclasses.replace(made.model, start=None)
            back["loss"] = dataclasses.replace(made.loss, z_r=shipped_config.loss.z_r)
            assert dataclasses.replace(made, **back) == shipped_config
    other = methods.make_training_config("MS-MIM-S", "PrecipLSTM", "paper", 60_900, data, Z_R, "a.safetensors")
    assert (other.model.name, other.stage, other.model.start) == ("ms-mim-s", "deblurrer", "a.safetensors")
    variants = [methods.make_training_config(f"DB-discriminator-{v}", "MIM", "paper", 9, data, Z_R).loss for v in "SML"]
    assert [loss.discriminator for loss in variants] == ["S", "M", "L"]


def test_measure_costs(config):
    """A step of a two-stage network includes a forward pass of its forecaster."""
    study = StudyConfig(dataclasses.replace(config, test_samples=1), device="cpu")
    data = evaluation.make_training_data(study.data, {"rain.nc": {"train": [0, 10], "validation": [12, 24]}})
    block = evaluation.read_test_block(study.data, "rain.nc", [27, 38])
    found = measure_costs(study, ["MS-ConvLSTM", "MS-ConvLSTM-S"], data, [block])
    assert set(found.step_seconds) == {"MS-ConvLSTM", "MS-ConvLSTM-S"} and min(found.step_seconds.values()) > 0
    assert 0 < found.fixed < 600


# ---- scores and tables


def blocks_of(fields):
    """Return a test block with a block of time for each sample of the truth (samples, 5, 1, H, W)."""
    valid = torch.ones(fields.shape[1:], dtype=torch.bool)
    found = [{"y": y, "valid": valid} for y in fields]
    return [EvaluationBlock("a.nc", found, list(range(len(fields))), (slice(0, 8), slice(0, 8)), 0.5)]


def test_scores_are_those_of_all_samples_together():
    g = torch.Generator().manual_seed(0)
    truth, forecast = (0.3 + 0.5 * torch.rand(3, 5, 1, 8, 8, generator=g) for _ in range(2))
    given = iter(forecast)
    found = evaluation.ScoreSums([evaluation.score(lambda sample, steps: next(given), blocks_of(truth), Z_R)])
    weights, index = np.array([[1.0, 1, 1], [2, 0, 1]]), ([0, 1, 2], [0, 0, 2])
    for draw, chosen in enumerate(index):
        expected = NowcastScores(normalised_rates(RAIN_THRESHOLDS, tuple(Z_R)), 5)
        expected.add(forecast[chosen], truth[chosen])
        means = expected.means()
        for k, name in enumerate(SCORES[:15]):
            value = means[("csi", "hss", "pod")[k // 5]][k % 5]
            np.testing.assert_allclose(found.mean(name, weights)[draw], value, rtol=1e-12)
        for name, key in (("B-MSE", "b_mse"), ("B-MAE", "b_mae")):  # of 64 pixels, brought to 160 x 160
            assert found.mean(name, weights)[draw] == pytest.approx(means[key] * 400, rel=1e-12)


def sums_of(*heavy):
    """Return ScoreSums of five samples with the given numbers of hits of ten at the two highest rates.

    At lower rates, all ten are hits.
    """
    counts = np.zeros((len(heavy), 5, 5, 4))
    counts[:, :, :, 0] = 10
    for k, hits in enumerate(heavy):
        counts[k, :, 3:] = [hits, 10 - hits, 0, 50]
    errors = np.ones((len(heavy), 5, 2)) * (10 - np.array(heavy))[:, None, None]
    return evaluation.ScoreSums([{"counts": counts, "errors": errors, "pixels": np.full((len(heavy), 5), 60)}])


def test_tabulate_ranking_by_score():
    results = {"MS-MIM": sums_of(2, 2, 2, 2, 2), "DB-MIM": sums_of(4, 4, 4, 4, 4), "extrapolation": sums_of(*5 * [6])}
    table = tables.tabulate_ranking(results, make_block_labels([range(5)]))
    rows = {row[:2]: row[2:] for row in map(tuple, table.format_rows())}
    assert rows["DB-MIM less MS-MIM", "CSI 30"] == ("+0.049", "+0.200 [+0.200, +0.200]", "agrees")
    assert rows["DB-MIM less MS-MIM", "CSI 5"][2] == "undecided"
    assert rows["DB-MIM less MS-MIM", "B-MAE"][0] == "-36.9"
    assert rows["DB-MIM less extrapolation", "CSI 10"] == ("-", "-0.200 [-0.200, -0.200]", "not in the paper")


def test_tables_are_complete():
    results = {"MS-MIM": sums_of(2, 3, 2, 4, 2), "DB-gdl": sums_of(4, 4, 4, 4, 4)}
    whole, labels = {"MS-MIM": sums_of(1, 1, 1, 1, 1)}, make_block_labels([range(5)])
    made = tables.make_tables(results, whole, labels, {"MS-MIM": (8, 100705)}, list("abcde"))
    names = ["csi", "hss", "pod", "errors"]
    all_frames = [f"{name}-all-frames" for name in names]
    assert list(made) == ["csi", "order", *names[1:], "ablation", *all_frames, "leads"]
    (row,) = made["csi-all-frames"].format_rows()
    assert row[0] == "MS-MIM" and row[7].startswith("0.100 [") and row[8] == "0.676"
    rows = {row[0]: row for row in made["csi"].format_rows()}
    assert rows["LPT-QPN"][3] == "not in fastds" and rows["LPT-QPN"][8:] == ["0.602", "-", "0.409", "-", "0.092"]
    assert len(rows) == len(METHODS) - 6 + 2 and all(len(row) == len(made["csi"].heads) for row in made["csi"].rows)
    assert rows["MS-MIM"][1:3] == ["8", "100,705"] and rows["MS-MIM"][7].startswith("0.260 [")
    assert rows["MS-MIM"][8:] == ["0.676", "0.624", "0.536", "0.408", "0.233"]
    assert rows["DB-MIM"][3] == "not run" and rows["DB-MIM"][-1] == "0.282" and rows["MS-MIM-S"][-1] == "-"
    ablation = {row[0]: row for row in made["ablation"].format_rows()}
    assert ablation["DB-gdl"][3] == "0.400 [0.400, 0.400]" and ablation["DB-gdl"][6:] == ["0.443", "-", "868.1"]
    assert ablation["MS"][6:] == ["0.430", "-", "884.2"]
    assert ablation["DB-discriminator-L"][6:] == ["0.448", "-", "862.3"]
    assert ["MS-MIM", "CSI 30", *5 * ["0.260"]] in made["leads"].format_rows()


def test_published_scores_match_the_paper():
    """DB networks score higher than MS networks at every threshold, with one exception in table IV of the paper."""
    otherwise = {("MotionRNN", "POD 0.5")}  # 0.548 and 0.546
    shown = {"hko-7": SCORES[:10], "dwd-12": [s for s in SCORES[:15] if s.split()[1] in ("0.5", "2", "5")]}
    assert set(shown) == set(PUBLISHED)
    for data, printed in shown.items():
        for cell in CELLS:
            ms, db = (get_published(f"{kind}-{cell}", data) for kind in ("MS", "DB"))
            assert {(cell, s) for s in printed if db[s] <= ms[s]} <= otherwise
            assert db["B-MAE"] < ms["B-MAE"] and all(ms[s] is None for s in SCORES[:15] if s not in printed)
    assert get_published("SimVP")["CSI 30"] == 0.161 and get_published("persistence")["CSI 30"] is None
    assert (
        get_published("DB-PrecipLSTM", "dwd-12")["POD 5"] == 0.208 and get_published("SimVP", "dwd-12")["CSI 5"] is None
    )


# ---- all frames, long forecasts, costs


def test_all_frames_tables_include_input_frames():
    """A network forecasts frames 1 to 9 of 10; the last five are scored, and all nine are scored separately."""
    g = torch.Generator().manual_seed(1)
    x, y, made = (0.3 + 0.5 * torch.rand(n, 1, 8, 8, generator=g) for n in (5, 5, 9))
    block = blocks_of(y[None])
    block[0].samples[0] |= {"x": x, "known": torch.ones_like(x, dtype=torch.bool)}
    found = evaluation.score(lambda sample, steps: made, block, Z_R)
    once, thresholds = np.ones((1, 1)), normalised_rates(RAIN_THRESHOLDS, tuple(Z_R))
    for sums, prediction, truth in (
        (evaluation.ScoreSums([found]), made[4:], y),
        (evaluation.ScoreSums([found["all"]]), made, torch.cat([x[1:], y])),
    ):
        expected = NowcastScores(thresholds, len(truth))
        expected.add(prediction[None], truth[None])
        assert sums.mean("CSI 5", once)[0] == pytest.approx(expected.means()["csi"][2])
        assert sums.mean("B-MAE", once)[0] == pytest.approx(expected.means()["b_mae"] * 400)


def test_long_forecasts_are_scored_by_blocks_of_five():
    threshold = normalised_rates([10.0], tuple(Z_R))[0]
    heavy = torch.zeros(10, 1, 4, 4)
    heavy[:, :, :2] = threshold + 0.01  # half of every field
    sample = {"y": heavy, "valid": torch.ones_like(heavy, dtype=torch.bool)}
    late = heavy.clone()
    late[5:] = 0  # nothing is forecast in the second block
    found = evaluation.score_long(lambda sample, steps: late[:steps], [sample], Z_R)
    assert found == [[[40.0, 0.0, 0.0, 40.0], [0.0, 40.0, 0.0, 40.0]]]
    made = tables.compute_long_scores(np.array([found]))
    np.testing.assert_allclose(made["POD"], [1, 0])
    np.testing.assert_allclose(made["HSS"], [1, 0])
    table = tables.tabulate_long_scores({"MS-MIM": np.array([found])}, ["1", "2"])
    assert table.format_rows() == [["MS-MIM", "HSS 10", "1.000", "0.000"], ["MS-MIM", "POD 10", "1.000", "0.000"]]


def test_samples_are_taken_at_the_interval(config):
    every_second = dataclasses.replace(config, interval=2)
    assert evaluation.count_frames(every_second) == 19 and evaluation.count_frames(config, 7) == 40
    block = evaluation.read_test_block(every_second, "rain.nc", [10, 34])
    with open_dataset(f"{config.path}/rain.nc") as dataset:
        z = dataset.reflectivity.values[10:29:2, *block.window].clip(0, 60) / 60
    np.testing.assert_allclose(torch.cat([block.samples[0][k] for k in "xy"])[:, 0], np.nan_to_num(z), atol=1e-6)
    assert evaluation.make_training_data(
        every_second, {"rain.nc": {"train": [0, 9], "validation": [9, 18]}}
    ).intervals == [2]
    (long,) = evaluation.make_long_samples(config, block, [0, 15], 2)
    assert long["x"].shape == (5, 1, 32, 32) and long["y"].shape == (10, 1, 32, 32) == long["valid"].shape
    with pytest.raises(ValueError, match="no 15 frames at equal intervals"):
        evaluation.make_long_samples(config, block, [0, 14], 2)


@pytest.mark.usefixtures("native")
def test_costs_equal_those_of_the_network():
    from fastds.studies.common.plan import measure_cost

    found = measure_cost(models.create("ms-convlstm"), lambda batch: (torch.zeros(batch, 5, 1, 32, 32), 5), 2)
    assert found["parameters"] == 250_057
    assert 0.7 < found["multiply_adds"] / (25.17 / 25) < 1.0
    assert found["memory"] > 16 * 250_057
    table = tables.tabulate_complexity({"MS-ConvLSTM": found}, {"MS-ConvLSTM": 0.5})
    (row,) = table.format_rows()
    assert row[1] == "0.25" and row[4:] == ["0.5", "0.25", "25.2", "0.96", "1.12"]
