# SPDX-License-Identifier: Apache-2.0
"""Tests of the FC-ZSM study: splits, samples, plan and tables."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.study_cases import make_meteonet

pytest.importorskip("lightning", reason="training extra is not installed")

from fastds import models
from fastds.data import open_dataset, save_dataset, to_reflectivity
from fastds.studies.common.bootstrap import make_block_labels
from fastds.studies.common.radar import EvaluationBlock, find_files, split_frames, tabulate_samples
from fastds.studies.fczsm import evaluation, methods, study, tables
from fastds.studies.fczsm.config import DataConfig, StudyConfig
from fastds.studies.fczsm.methods import METHODS
from fastds.tasks.radar.config import DataConfig as TrainingData
from fastds.tasks.radar.samples import RadarData


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_meteonet(tmp_path_factory.mktemp("meteonet"))


# ---- parts and samples


def test_find_files_skips_unusable_files(folder, tmp_path):
    config = DataConfig(str(folder))
    first, second = (f"reflectivity_new_NW_2018_03.{k}.npz" for k in (1, 2))
    assert find_files(config, 64, 3) == {first: split_frames(20, "", 3), second: split_frames(17, "", 3)}
    assert list(find_files(dataclasses.replace(config, files=[second]), 64, 3)) == [second]
    assert list(find_files(dataclasses.replace(config, path=str(folder / first)), 64, 3)) == [first]
    for change, message in (({"files": ["no.nc"]}, "data.files: no such file"), ({"path": "no"}, "data.path: no such")):
        with pytest.raises(FileNotFoundError, match=message):
            find_files(dataclasses.replace(config, **change), 64, 3)
    with open_dataset(folder / first) as dataset:
        small = dataset[["reflectivity"]].isel(latitude=slice(0, 60)).load()
        save_dataset(dataset[["reflectivity"]].load(), tmp_path / "radar.nc")
    save_dataset(small, tmp_path / "small.nc")
    with pytest.warns(UserWarning, match=r"small.nc \(the grid of small.nc is \(60, 64\), a sample needs 64 pixels"):
        assert list(find_files(DataConfig(str(tmp_path)), 64, 3)) == ["radar.nc"]
    assert evaluation.explain_missing_dynamics(config, [first]) == ""
    missing = evaluation.explain_missing_dynamics(dataclasses.replace(config, path=str(tmp_path)), ["radar.nc"])
    assert missing == "radar.nc has no probability and no measurement_height"


def test_read_test_block_uses_the_last_part(folder):
    config = DataConfig(str(folder), test_samples=3, window=32, block="10min")
    name = "reflectivity_new_NW_2018_03.1.npz"
    static = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    block = evaluation.read_test_block(config, name, [12, 20], static, True)
    assert len(block.samples) == 3 and block.blocks == [0, 1, 2]  # starts 12, 14 (2.5 rounded), 17 of 12 to 17
    rows, columns = block.window
    with open_dataset(folder / name) as dataset:
        z = dataset.reflectivity.values[12:15, rows, columns].clip(15, 70)
    sample = block.samples[0]
    np.testing.assert_allclose(15 + 55 * sample["y"][:, 0], np.nan_to_num(z, nan=15.0), atol=1e-4)
    assert sample["x"].shape == (2, 3, 16, 16) and sample["static"].shape == (1, 16, 16)
    corner = static[0, rows, columns][:2, :2].mean()
    assert float(sample["static"][0, 0, 0]) == pytest.approx(float(corner))
    assert sample["valid"][:, :, 2:-2, 2:-2].any() and not sample["valid"][:, :, :2].any()


# ---- methods and plan


def test_published_scores_satisfy_their_identity():
    """In published rows, MSE total = (t2 + 2 t13) / 3 up to rounding, and reductions are those of table 2."""
    rows = {name: m.published for name, m in METHODS.items() if m.published}
    assert len(rows) == 7 and all(abs(t - (t2 + 2 * t13) / 3) < 0.001 for t, t2, t13, _ in rows.values())
    reductions = [100 * (rows[n][0] / rows["trilinear"][0] - 1) for n in ("UNet", "UNet3D", "ZSM", "ZSM-DS")]
    assert reductions == pytest.approx([-58.11, -65.13, -70.22, -72.47], abs=0.01)


@pytest.mark.parametrize("budget", ["45min", "paper"])
def test_every_method_is_trained_alike(budget):
    data = TrainingData("x", statics=["a:b", "a:c"], dynamics={"d": [0, 1], "e": [0, 2]}, crop=32)
    run = {"seed": 3, "output": "run"}
    made = {n: methods.make_training_config(n, budget, 80, data, **run) for n, m in METHODS.items() if m.preset}
    parameters = {
        n: sum(p.numel() for p in models.create(c.model.name, **c.model.options).parameters()) for n, c in made.items()
    }
    if budget == "paper":
        expected = [31_031_299, 34_234_057, 8_737_073, 8_738_225, 9_476_465, 9_477_617]
        assert list(parameters.values()) == expected
        assert {(c.learning_rate, c.data.crop, c.data.batch_size) for c in made.values()} == {(1e-5, 200, 1)}
        assert {c.warmup_steps for c in made.values()} == {0}
    else:
        assert parameters["UNet"] == 1_092_195 and parameters["UNet3D"] == 423_561 and parameters["ZSM"] == 233_041
        assert {c.data.epoch_samples for c in made.values()} == {40}
        assert {c.warmup_steps for c in made.values()} == {9}  # a tenth of the training
    for name, config in made.items():
        m = METHODS[name]
        assert config.data.statics == (data.statics if m.static else []) and config.loss == "mse"
        assert config.data.dynamics == (data.dynamics if m.dynamic else {}) and config.max_steps == 80
        same = dataclasses.replace(config, model=made["ZSM"].model, data=made["ZSM"].data)
        assert same == made["ZSM"]
        assert dataclasses.replace(config.data, statics=[], dynamics={}) == made["ZSM"].data


def test_the_budget_paper_trains_the_shipped_configurations():
    """The optimiser is Adam with a constant rate and without clipping; samples are fixed and not augmented."""
    data = TrainingData("x", statics=["a:b", "a:c"], dynamics={"d": [0, 1], "e": [0, 2]}, split="random",
                        fixed_samples=[6000, 100, 1000])  # fmt: skip
    for name, method in METHODS.items():
        if method.preset is None:
            continue
        shipped = methods.load_paper_config(name, "x")
        made = methods.make_training_config(name, "paper", shipped.last_step(), data)
        assert made.max_steps == 240_000 and made.data.fixed_samples == shipped.data.fixed_samples
        shipped_data = dataclasses.replace(made.data, statics=shipped.data.statics, dynamics=shipped.data.dynamics)
        assert dataclasses.replace(made, max_steps=None, data=shipped_data, model=shipped.model) == shipped
        assert (made.optimizer, made.schedule, made.gradient_clip) == ("adam", "constant", None)
        assert made.data.split == "random" and not made.data.augment and not made.data.reverse


def test_random_test_samples_are_disjoint_from_training(folder):
    """The samples are the same for every training seed and have the requested minimum echo."""
    config = StudyConfig(
        DataConfig(str(folder), split="random", fixed_samples=[12, 2, 5], minimum_echo=0.05, split_seed=4)
    )
    data = evaluation.make_training_data(config.data, {}, 8)
    assert (data.split, data.fixed_samples, data.split_seed, data.minimum_echo) == ("random", [12, 2, 5], 4, 0.05)
    found = evaluation.read_fixed_blocks(config.data, data)
    assert sum(len(block.samples) for block in found) == 5 == sum(len(block.blocks) for block in found)
    tested = {(block.name, draw.triple, draw.row, draw.column) for block in found for draw in block.samples.draws}
    for seed in (0, 1):
        reader = RadarData(data, False, seed, 0, in_channels=3)
        reader.setup()
        trained = {(reader.files[d.source], d.triple, d.row, d.column) for d in reader.training.fixed}
        assert len(trained) == 12 and not trained & tested
        assert {(reader.files[d.source], d.triple, d.row, d.column) for d in reader.test_draws} == tested
    block = found[0]
    sample = block.samples[0]
    assert sample["x"].shape == (2, 3, 8, 8) and sample["y"].shape == (3, 1, 16, 16)
    assert not sample["valid"][:, :, :2].any() and (sample["y"] > 0).float().mean() >= 0.05
    with open_dataset(folder / block.name) as dataset:
        z = to_reflectivity(dataset).frames([block.samples.draws[0].triple[1]])[0][block.windows[0]]
    np.testing.assert_allclose(15 + 55 * sample["y"][1, 0], np.nan_to_num(z, nan=15).clip(15, 70), atol=1e-4)


def test_read_test_block_with_minimum_echo(folder):
    with pytest.raises(ValueError, match="data.minimum_echo: no time of the last part of .* has 100% of echo"):
        evaluation.read_test_block(
            DataConfig(str(folder), minimum_echo=1.0), "reflectivity_new_NW_2018_03.1.npz", [12, 20], None, True
        )
    with pytest.raises(ValueError, match="data.files is for data.split=time"):
        StudyConfig(DataConfig("x", ["a.nc"], split="random"))
    assert StudyConfig(DataConfig("x"), budget="paper").data.split == "random"


def test_measure_costs_by_hand(monkeypatch):
    """The fixed time has reading, validation, forecasts of the test samples and scoring."""
    data, block = TrainingData("x", crop=32), EvaluationBlock("a", [{"x": torch.zeros(2, 1, 8, 8)}], [0], (), 0.5)
    seconds = {"ZSM": 2.0, "UNet": 0.5}
    monkeypatch.setattr(study, "_time_samples", lambda *args: (3.0, 0.0))
    monkeypatch.setattr(study, "_time_method", lambda config, name, *args: (seconds[name], 4))
    monkeypatch.setattr(study, "_time_scoring", lambda blocks: 1.0)
    found = study.measure_costs(StudyConfig(DataConfig("x")), ["ZSM", "UNet"], data, [block])
    fixed = sum(7.0 + (8 * 32 + 1 / 16) * 0.4 * s / 4 for s in seconds.values())
    assert found.step_seconds == seconds and found.fixed == pytest.approx(fixed + len(METHODS))


def test_measure_costs_of_trained_methods(folder):
    """The plan of real trainings has a step for each."""
    config = StudyConfig(DataConfig(str(folder)), device="cpu")
    data = evaluation.make_training_data(config.data, find_files(config.data, 64, 3), 32)
    block = evaluation.read_test_block(config.data, "reflectivity_new_NW_2018_03.1.npz", [12, 20], None, True)
    found = study.measure_costs(config, ["UNet", "ZSM-D"], data, [block])
    assert set(found.step_seconds) == {"UNet", "ZSM-D"} and 0 < found.step_seconds["UNet"] < 2 and 0 < found.fixed < 600


# ---- scores and tables


def test_scores_of_a_method_by_hand(folder):
    config = DataConfig(str(folder), test_samples=2)
    block = evaluation.read_test_block(config, "reflectivity_new_NW_2018_03.2.npz", [10, 17], None, True)
    found = evaluation.call_with_prediction("trilinear", None, 1, "cpu", lambda p: evaluation.score(p, [block]))
    for k, sample in enumerate(block.samples):
        up = torch.nn.functional.interpolate(sample["x"][:, :1], scale_factor=2, mode="bilinear")
        error = 55 * (torch.stack([up[0], up.mean(0), up[1]]) - sample["y"])
        each = [float(error[t][sample["valid"][t]].square().mean()) for t in range(3)]
        assert found["mse_t2"][k] == pytest.approx(each[1], rel=1e-4)
        assert found["mse_total"][k] == pytest.approx(sum(each) / 3, rel=1e-4) and 0 < found["ssim"][k] < 1
    moved = evaluation.call_with_prediction("advection", None, 1, "cpu", lambda p: evaluation.score(p, [block]))
    assert moved["mse_t2"] != found["mse_t2"]


def test_predictions_pass_the_required_channels(folder, tmp_path):
    sample = {"x": torch.rand(2, 3, 8, 8), "static": torch.rand(2, 8, 8)}
    tiny = {"num_features": 4, "offset_groups": 1, "extractor_blocks": 0, "reconstruction_blocks": 0}
    for name, channels in (("ZSM", 1), ("ZSM-DS", 3)):
        static = {"static_channels": 2} if METHODS[name].static else {}
        model = models.create("fczsm", in_channels=channels, **static, **tiny)
        models.save(model, tmp_path / "w.safetensors")
        y = evaluation.call_with_prediction(name, tmp_path / "w.safetensors", 1, "cpu", lambda predict: predict(sample))
        given = [sample["static"]] if static else []
        with torch.inference_mode():
            expected = 15 + 55 * model.eval()(sample["x"][None, :, :channels], *given)[0, :, 0]
        torch.testing.assert_close(y, expected)


def blocks_of(*counts):
    """Return test blocks with these numbers of samples.

    Each sample is in a separate block of time, except the last two of a file, which share one.
    """
    return [
        EvaluationBlock(f"{k}.nc", [{}] * n, [*range(n - 1), n - 2], (slice(0, 8), slice(4, 12)), 0.25)
        for k, n in enumerate(counts)
    ]


def results_of(**means):
    """Return scores of methods: a mean plus a small pattern over the samples, without pattern for "ssim"."""
    pattern = np.array([0.01, -0.01, 0.02, 0.0, -0.02, 0.01, -0.01])
    return {
        name.replace("_", "-"): {s: mean + pattern * (s != "ssim") for s in evaluation.SCORES}
        for name, mean in means.items()
    }


def test_blocks_of_time_are_not_shared_by_files():
    assert make_block_labels(block.blocks for block in blocks_of(4, 3)).tolist() == [[0], [1], [2], [2], [3], [4], [4]]


def test_tabulate_scores():
    found = results_of(trilinear=2.0, UNet=1.5, ZSM=0.5)
    table = tables.tabulate_scores(found, blocks_of(4, 3), {"UNet": (12, 1092195), "ZSM": (16, 233041)})
    rows = {row[0]: row for row in table.format_rows()}
    assert list(rows) == list(METHODS) and all(len(row) == len(table.heads) for row in table.rows)
    assert rows["ZSM"][1:3] == ["16", "233,041"] and rows["ZSM"][3].startswith("0.500 [0.4")
    assert rows["ZSM"][7] == "-75.00" and rows["ZSM"][8:] == ["0.730", "1.456", "0.367", "0.958", "-70.23"]
    assert rows["trilinear"][7] == "-" and rows["trilinear"][-1] == "-" and rows["trilinear"][8] == "2.452"
    assert rows["ZSM-D"][3:8] == ["not run", "-", "-", "-", "-"] and rows["ZSM-D"][8] == "0.696"
    assert rows["advection"][8:] == ["-"] * 5


def test_tabulate_reductions():
    """Reductions have two decimals as in the paper; the row of Serifi et al. is only quoted."""
    rows = {row[0]: row[1:] for row in tables.tabulate_reductions(results_of(trilinear=2.0, ZSM=0.5)).format_rows()}
    assert rows["DCN"] == ["-", "-", "-", "1.740", "0.649", "-62.70"]
    assert rows["ZSM"] == ["2.000", "0.500", "-75.00", "2.452", "0.730", "-70.23"]  # printed as -70.22
    printed = {"UNet": -58.11, "UNet3D": -65.13, "ZSM-D": -71.62, "ZSM-S": -72.43, "ZSM-DS": -72.47}
    assert all(abs(float(rows[name][-1]) - value) < 0.011 for name, value in printed.items())


def test_tabulate_ranking():
    found = results_of(trilinear=2.0, advection=1.0, UNet=2.5, UNet3D=1.5, ZSM=1.5, ZSM_S=1.0)
    found["ZSM"]["mse_total"] = found["ZSM"]["mse_total"] + np.array([1, -1, 1, -1, 0, 1, -1]) * 0.1
    table = tables.tabulate_ranking(found, blocks_of(4, 3))
    rows = {row[0]: row[1:] for row in table.format_rows()}
    assert rows["UNet less trilinear"] == ["-58.12", "+25.0 [+25.0, +25.0]", "opposite"]
    assert rows["UNet3D less UNet"] == ["-7.01", "-50.0 [-50.0, -50.0]", "agrees"]
    assert rows["ZSM less UNet3D"][0] == "-5.10" and rows["ZSM less UNet3D"][2] == "undecided"
    assert rows["ZSM less advection"][::2] == ["-", "not in the paper"]
    assert rows["ZSM-S less ZSM"][2] == "agrees" and not any("ZSM-D" in name for name in rows)


def test_tabulate_files_and_samples():
    found = results_of(trilinear=2.0, ZSM=0.5)
    blocks = blocks_of(4, 3)
    assert tables.tabulate_files(found, blocks).format_rows() == [
        ["0.nc", "2.005", "0.505"],
        ["1.nc", "1.993", "0.493"],
    ]
    parts = {f"{k}.nc": split_frames(13, "", 3) for k in range(2)}
    row = tabulate_samples(blocks, parts).format_rows()[0]
    assert row == ["0.nc", "0 to 2", "5 to 7", "10 to 12", "4", "3", "8 x 8", "25.0"]
