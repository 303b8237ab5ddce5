# SPDX-License-Identifier: Apache-2.0
"""Tests of the humidity WGAN-GP study: methods, test regions, scores, tables and costs."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

pytest.importorskip("lightning", reason="training extra is not installed")

from fastds import metrics, models
from fastds.models.baselines import interpolate
from fastds.studies.common.plan import measure_trainings
from fastds.studies.wgan_gp import evaluation, methods, tables
from fastds.studies.wgan_gp.config import DataConfig as StudyData
from fastds.studies.wgan_gp.config import StudyConfig
from fastds.studies.wgan_gp.methods import METHODS, NETWORKS, PAPER_RANKING, SCORES
from fastds.tasks.humidity.config import DataConfig as HumidityData
from fastds.tasks.humidity.config import parse_arguments as humidity_training
from tests.support.study_cases import make_humidity


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = make_humidity(tmp_path_factory.mktemp("humidity"))
    return humidity_training(["--config", f"{folder}/tiny.yaml", "--data.path", str(folder)])


def test_make_variants_of_the_tables():
    """Check the options in which each variant in tables 3 and 4 of the paper differs from WGAN-GP."""
    config = humidity_training(["--config", "wgan-gp-small", "--data.path", "data"])
    found = methods.make_variants(config)
    assert list(found) == methods.NETWORKS
    assert found["WGAN-GP"] is config
    scale = methods.get_scale(config)
    align = "grid" if config.data.coarsening == "decimate" else "center"
    srcnn, srgan, gan = (found[name] for name in ("SRCNN", "SRGAN", "GAN"))
    assert (srcnn.model.name, srcnn.model.options) == ("srcnn", {"scale": scale, "align": align})
    loss = srcnn.loss
    assert (loss.content, loss.noise_free_weight, loss.adversarial_weight, loss.critic_steps) == ("mse", 0.0, 0.0, 0)
    assert (srgan.model.name, srgan.model.options) == ("srgan-small", {"scale": scale})
    assert (srgan.critic.name, srgan.critic.options) == ("srgan", {"width": 16})
    assert (srgan.loss.adversary, srgan.loss.content, srgan.loss.noise_free_weight) == ("gan", "l1", 0.0)
    assert dataclasses.replace(gan, loss=config.loss) == config and gan.loss.adversary == "gan"
    assert gan.loss.content == config.loss.content
    for name, flag in (
        ("no-residual-blocks", {"use_resblocks": False}),
        ("no-CBAM", {"use_cbam": False}),
        ("sequential-kernels", {"mixing": "sequential"}),
    ):
        for part in ("model", "critic"):
            changed, before = getattr(found[name], part), getattr(config, part)
            assert changed.name == before.name and changed.options == before.options | flag


def test_every_method_is_trained_alike(training):
    made = {name: methods.make_training_config(name, training, "45min", 24, seed=2) for name in NETWORKS}
    for name, config in made.items():
        expected = methods.make_variants(training)[name]
        assert (config.model, config.critic, config.loss) == (expected.model, expected.critic, expected.loss)
        assert config.max_steps == 24 and config.optimiser.epochs is None and config.max_minutes is None
        assert config.data == dataclasses.replace(training.data, epoch_samples=6) and config.seed == 2
    paper = methods.make_training_config("GAN", training, "paper", 24)
    assert paper.data == training.data
    srgan = methods.make_training_config("SRGAN", training, "paper", 24)
    assert (srgan.model.name, srgan.critic.options) == ("srgan", {"width": 64}), "the paper's, not those in the small"


def test_the_budget_paper_trains_the_shipped_configurations():
    base = humidity_training(["--config", "wgan-gp", "--data.path=x"])
    assert methods.count_paper_steps(base) == 200 * (731 // 16)
    assert StudyConfig(StudyData("x"), budget="paper") == StudyConfig(StudyData("x", 64), "wgan-gp", budget="paper")
    small = StudyConfig(StudyData("x"))
    assert (small.training, small.data.tile) == ("wgan-gp-small", 32)
    for name, shipped in (("GAN", "humidity-gan"), ("SRGAN", "srgan"), ("SRCNN", "srcnn"), ("WGAN-GP", "wgan-gp")):
        made = methods.make_training_config(name, base, "paper", 9000)
        shipped_config = humidity_training(["--config", shipped, "--data.path=x"])
        assert made.data == shipped_config.data and made.learning_rate == shipped_config.learning_rate
        assert dataclasses.replace(made.optimiser, epochs=200) == shipped_config.optimiser
        ours, theirs = (models.create(c.model.name, **c.model.options).config for c in (made, shipped_config))
        assert ours == theirs and made.loss == shipped_config.loss
        if name != "SRCNN":  # which has no critic
            assert made.critic == shipped_config.critic


# ---- test regions


def test_read_test_regions_days_and_tiles(training):
    regions = evaluation.read_test_regions(training.data, 2, 11)
    assert [(r.name, tuple(r.days.shape), len(r.tiles)) for r in regions] == [("rh.nc", (2, 2, 22, 12), 2)]
    region = regions[0]
    fine = evaluation.read_regions(training.data, "test")[0] * 100
    torch.testing.assert_close(region.days[1, 1], fine[3, :22, :12])
    torch.testing.assert_close(region.coarse, region.days[..., ::2, ::2])
    assert region.tiles == [(slice(0, 11), slice(0, 11)), (slice(11, 22), slice(0, 11))] and len(region) == 4
    assert evaluation.make_sample_labels([region, region]).tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="names no test region of 2 times and 64 x 64 points"):
        evaluation.read_test_regions(training.data, 2, 64)


# ---- scores and tables


def test_scores_of_an_interpolation_by_hand(training):
    regions = evaluation.read_test_regions(training.data, 2, 11)
    found = evaluation.call_with_prediction(
        "bicubic", None, 2, "grid", 2, 1, "cpu", lambda predict: evaluation.score(predict, regions, 100.0)
    )
    assert set(found) == {"one"} and all(len(values) == 4 for values in found["one"].values())
    day, (rows, columns) = regions[0].days[1], regions[0].tiles[1]
    up = interpolate(day[..., ::2, ::2], 2, "bicubic", "grid")
    expected = metrics.field_scores(up[:, rows, columns], day[:, rows, columns], 100.0)
    assert {s: found["one"][s][3] for s in SCORES} == pytest.approx({s: expected[s] for s in SCORES})
    away = evaluation.call_with_prediction(
        "bicubic-misaligned", None, 2, "grid", 2, 1, "cpu", lambda predict: evaluation.score(predict, regions, 100.0)
    )
    assert sum(away["one"]["mse"]) > 1.5 * sum(found["one"]["mse"]), "half a coarse cell away"


def test_a_network_with_noise_has_members(training, tmp_path):
    """Members are clipped to the valid range of the card."""
    config = methods.make_variants(training)["WGAN-GP"]
    model = models.create(config.model.name, **config.model.options).eval()
    model.head.bias.data.fill_(2.0)
    model.card.offset, model.card.range, model.card.valid_range = 0.0, 100.0, (0.0, 105.0)
    models.save(model, tmp_path / "w.safetensors")
    coarse = torch.full((2, 4, 4), 50.0)
    y = evaluation.call_with_prediction("GAN", tmp_path / "w.safetensors", 2, "grid", 3, 1, "cpu", lambda p: p(coarse))
    assert y.shape == (3, 2, 8, 8) and bool((y == 105.0).all())
    regions = evaluation.read_test_regions(training.data, 2, 11)
    fields = torch.stack([regions[0].days[0] + 1, regions[0].days[0] - 3])
    one_day = dataclasses.replace(regions[0], days=regions[0].days[:1], coarse=regions[0].coarse[:1])
    found = evaluation.score(lambda coarse: fields, [one_day], 100.0)
    assert found["one"]["mse"] == pytest.approx([1.0, 1.0], rel=1e-4)
    assert found["mean"]["mse"] == pytest.approx([1.0, 1.0], rel=1e-4)
    assert found["mean"]["crps"] == pytest.approx([(1 + 3) / 2 - 4 / 2] * 2, abs=1e-4)


def test_published_scores_match_the_ranking():
    """The proposed network is the best of both tables."""
    for name, method in METHODS.items():
        for score, value, best in zip(SCORES, method.published, METHODS["WGAN-GP"].published, strict=True):
            if value is not None and name != "WGAN-GP":
                assert (best < value) == (score in ("mse", "mae")), (name, score)
    assert all(name in METHODS for pair in PAPER_RANKING for name in pair)


def test_tables_are_complete():
    labels = np.array([[k // 5, k % 5 + 100] for k in range(25)])
    found = {name: {s: np.full(25, value) for s in SCORES} for name, value in (("GAN", 3.0), ("WGAN-GP", 2.0))}
    found["bicubic"] = {s: 4.0 + np.tile([1, -1, 1, -1, 0], 5) for s in SCORES}
    table = tables.tabulate_scores(found, labels, {"GAN": 1234})
    rows = {row[0]: row for row in table.format_rows()}
    assert list(rows) == list(METHODS) and all(len(row) == len(table.heads) for row in table.rows)
    assert rows["GAN"][1:3] == ["1,234", "3.000 [3.000, 3.000]"] and rows["GAN"][8:] == [
        "37.362", "2.755", "0.752", "31.640", "0.948", "0.860"
    ]  # fmt: skip
    assert rows["SRCNN"][2:8] == ["not run", *5 * ["-"]] and rows["no-CBAM"][8] == "-"
    order = {row[:2]: row[2:] for row in map(tuple, tables.tabulate_ranking(found, labels).format_rows())}
    assert order["WGAN-GP less GAN", "MSE"] == ("-1.177", "-1.000 [-1.000, -1.000]", "agrees")
    assert order["WGAN-GP less GAN", "SSIM"][2] == "opposite" and len(order) == 6


def test_days_of_an_hourly_file_span_24_hours(tmp_path):
    """With daily=True every third hour is used."""
    hours = np.datetime64("2022-01-01") + np.arange(50) * np.timedelta64(1, "h")
    values = np.broadcast_to(np.arange(50.0)[:, None, None], (50, 12, 12))
    places = {"latitude": np.arange(12.0, 0, -1), "longitude": np.arange(12.0)}
    field = xr.DataArray(values, {"time": hours, **places}, ["time", *places], attrs={"units": "%"})
    field.to_dataset(name="r").to_netcdf(tmp_path / "hourly.nc", engine="h5netcdf")
    source = {"variable": "r", "daily": True, "test": [[0, 12, 0, 12]]}
    config = HumidityData(str(tmp_path), {"hourly.nc": source}, steps=8)
    (region,) = evaluation.read_test_regions(config, 2, 12)
    np.testing.assert_allclose(region.days[:, :, 0, 0].flatten(), np.arange(0, 48, 3), atol=1e-4)
    with pytest.raises(ValueError, match="daily: the time step is 1 h, and no multiple of that is the 4.8 h"):
        evaluation.read_test_regions(dataclasses.replace(config, steps=5), 2, 12)


def test_average_by_day_is_over_tiles(training):
    (region,) = evaluation.read_test_regions(training.data, 2, 11)
    assert tables.average_by_day(np.array([1.0, 3, 5, 7, 2, 2, 0, 4]), [region, region]) == [2.0, 6.0, 2.0, 2.0]


def test_measure_trainings_by_two_short_runs(monkeypatch):
    """The training calls move the clock, by 5 s plus half a second a step."""
    now = [0.0]
    monkeypatch.setattr("fastds.studies.common.plan.time.perf_counter", lambda: now[0])

    def train(name, steps, folder):
        now[0] += 5 + 0.5 * steps * (2 if name == "b" else 1)

    found = measure_trainings(train, ["a", "b"])
    assert found.step_seconds == {"a": 0.5, "b": 1.0} and found.fixed == 2 * (5 + 4)
