# SPDX-License-Identifier: Apache-2.0
"""Tests of adversarial training: samples, losses, schedule and resuming."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import xarray as xr

from fastds import models
from fastds.models.baselines import interpolate
from fastds.studies import humidity as study
from fastds.tasks.humidity.config import (
    CriticConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    TrainingConfig,
    parse_arguments,
)
from fastds.tasks.humidity.evaluation import format_table
from fastds.tasks.humidity.samples import FieldSequences, HumidityData, read_regions
from fastds.tasks.humidity.training import AdversarialModule, build_module, compute_content_loss, train
from fastds.training.command import find_configurations
from fastds.training.modules import DistributedBatchSampler, OffsetSampler

TINY = {"width": 8, "post_width": 8, "pre_blocks": 1, "post_blocks": 1, "reduction": 4, "scale": 2}
TINY_CRITIC = {"width": 4, "down_blocks": 1, "post_blocks": 0, "reduction": 2}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(6, 24, 48)), 1), 2)
    field = 50 + 30 * smooth / np.abs(smooth).max()
    dataset = xr.Dataset({"r": (("time", "y", "x"), field, {"standard_name": "relative_humidity"})})
    dataset.to_netcdf(tmp_path / "rh.nc", engine="h5netcdf")
    return tmp_path


def configuration(folder, name="run", epochs=2, **changes):
    data = DataConfig(path=str(folder / "rh.nc"), steps=2, crop=8, batch_size=2, epoch_samples=6, validation_samples=4)
    config = TrainingConfig(
        data=data,
        optimiser=OptimiserConfig(warmup_epochs=1, epochs=epochs),
        model=ModelConfig("wgan-gp-small", TINY),
        critic=CriticConfig(options=TINY_CRITIC),
        learning_rate=1e-3,
        ema_decay=0.9,
        output=str(folder / name),
        progress=False,
        threads=1,
    )
    return dataclasses.replace(config, **changes)


def weights(path):
    return models.load(path).state_dict()


def test_run_exports_and_logs(folder):
    best = train(configuration(folder))
    generator = models.load(best)
    assert generator.card.offset == 0.0 and generator.card.range == 100.0 and generator.card.coarsening == "decimate"
    of_one = {f"val_{name}_one" for name in ("mse", "mae", "psnr", "ssim", "acc", "tcc")}
    assert set(generator.card.metrics["validation"]) == of_one | {
        "val_crps", "val_mse", "val_mse_noise_free", "val_mse_bicubic"
    }  # fmt: skip
    assert set(generator.card.input_ranges) == {"mean", "gradient"}  # four pixels have no slope
    log = (folder / "run" / "csv" / "metrics.csv").read_text()
    assert all(name in log.splitlines()[0] for name in ("penalty", "gradient_norm", "content", "adversarial", "rate"))


def test_resume_is_bit_identical(folder, monkeypatch):
    train(configuration(folder, "whole"))
    start = AdversarialModule.on_train_epoch_start

    def stop_in_second_epoch(self):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        start(self)

    monkeypatch.setattr(AdversarialModule, "on_train_epoch_start", stop_in_second_epoch)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(configuration(folder, "cut"))
    monkeypatch.setattr(AdversarialModule, "on_train_epoch_start", start)
    train(configuration(folder, "cut"))
    a, b = (weights(folder / name / "last.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_max_steps_replaces_the_epochs(folder):
    """The option max_steps may end a run inside an epoch, with a validation; a finished run is not continued."""
    config = configuration(folder, max_steps=4, epochs=1)  # 3 steps an epoch
    module = build_module(config)
    rates = [module.compute_rate_factor() for module.steps in (2, 3, 4)]
    assert rates == pytest.approx([1.0, 0.5 * (1 + math.cos(math.pi * 0.75)), 0.0], abs=1e-6)
    for _ in range(2):
        models.load(train(config))
        checkpoint = torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["steps"] == 4
    weights_of_4 = weights(folder / "run" / "last.safetensors")
    train(dataclasses.replace(config, max_steps=5))
    assert any(not torch.equal(v, weights_of_4[k]) for k, v in weights(folder / "run" / "last.safetensors").items())


def test_training_starts_from_given_weights(folder):
    first = train(configuration(folder, "first", max_steps=1))
    again = configuration(folder, "again", max_steps=1)
    again.model.start, again.learning_rate, again.critic.learning_rate, again.ema_decay = str(first), 0.0, 0.0, 0.0
    generator = build_module(again).generator
    assert all(torch.equal(v, weights(first)[k]) for k, v in generator.state_dict().items())
    a, b = (dict(models.load(path).named_parameters()) for path in (first, train(again)))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(adversary="gan"),
        LossConfig(content="crps", critic_steps=2),
        LossConfig(content="mse", adversarial_weight=0.0, critic_steps=0),
        LossConfig(content_weight=0.0, adversarial_weight=1.0),
        LossConfig(content="crps", noise_free_weight=1.0, adversarial_ramp=2.0),
    ],
    ids=["gan", "crps", "content only", "algorithm 1", "noise-free"],
)
def test_every_loss_trains(folder, loss):
    config = configuration(folder, loss=loss, epochs=1)
    config.optimiser.epochs = 1
    state = weights(train(config))
    assert all(torch.isfinite(v).all() for v in state.values())


def test_noise_free_field_and_ramp(folder):
    loss = LossConfig(content="crps", noise_free_weight=1.0, adversarial_weight=0.5, adversarial_ramp=2.0)
    module = build_module(configuration(folder, loss=loss))
    weights = [module.adversarial_weight() for module.steps in range(8)]
    assert weights == pytest.approx([0.5 * min(1, (k + 1) / 6) for k in range(8)])  # 3 batches an epoch
    coarse = torch.rand(2, 2, 1, 4, 4)
    module.generator.head.weight.data.fill_(0.1)
    members, noise_free = module.eval().draw(coarse)
    assert members.shape == (2, 2, 2, 1, 8, 8) and not torch.equal(members[0], members[1])
    torch.testing.assert_close(noise_free, module.generator(coarse, "zero"))


def test_study_humidity_trains_every_variant(folder):
    data = dataclasses.replace(configuration(folder).data, sources={"rh.nc": {
        "train": [[0, 24, 0, 24]], "validation": [[0, 24, 24, 36]], "test": [[0, 24, 36, 48]]}})  # fmt: skip
    loss = LossConfig(content="crps", noise_free_weight=1.0)
    config = configuration(folder, "study", data=dataclasses.replace(data, path=str(folder)), loss=loss)
    (table,) = study.compare(config, epochs=1, members=2)
    rows = ["no noise", "one member", "ensemble mean"]
    trained = ["SRCNN", "SRGAN"] + [
        f"{name}, {row}"
        for name in ("GAN", "no-residual-blocks", "no-CBAM", "sequential-kernels", "WGAN-GP")
        for row in rows
    ]
    untrained = {"lanczos", "bilinear", "bicubic", "static residual map", "per-location ridge"}
    assert list(table)[-len(trained) :] == trained and untrained <= set(table)
    assert all(math.isfinite(table[name]["mse"]) for name in trained)
    assert "bicubic, wrong convention" in format_table(table)
    widths = models.load(folder / "study" / "no-cbam" / "best.safetensors").config
    assert not widths["use_cbam"] and widths["use_resblocks"]
    assert models.load(folder / "study" / "srcnn" / "best.safetensors").align == "grid"


def test_conditional_critic_and_bfloat16_train(folder):
    config = configuration(folder, critic=CriticConfig(options={**TINY_CRITIC, "conditional": True}))
    config.optimiser.epochs, config.optimiser.bfloat16 = 1, True
    assert all(torch.isfinite(v).all() for v in weights(train(config)).values())


def test_not_finite_loss_stops(folder):
    config = configuration(folder)
    config.learning_rate = config.critic.learning_rate = float("inf")
    with pytest.raises(FloatingPointError, match="was not finite"):
        train(config)


def test_fair_crps_of_two_members():
    members, truth = torch.tensor([[1.0, 4.0], [3.0, 4.0]]), torch.tensor([0.0, 5.0])
    expected = ((1 + 3) / 2 - 2 / 2 + (1 + 1) / 2 - 0) / 2
    assert compute_content_loss(members, truth, "crps") == pytest.approx(expected)
    assert (
        compute_content_loss(members[:1], truth, "l1") == 1.0 and compute_content_loss(members[:1], truth, "mse") == 1.0
    )
    # Members from the distribution of the truth score better than a collapsed ensemble.
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(3, 20000, generator=generator)
    assert compute_content_loss(draws[:2], draws[2], "crps") < compute_content_loss(0 * draws[:2], draws[2], "crps")


def test_schedule_by_hand(folder):
    config = configuration(folder)
    config.optimiser = OptimiserConfig(warmup_epochs=2, epochs=10)
    module = build_module(config)
    rates = []
    for module.steps in range(33):
        rates.append(module.compute_rate_factor())
    assert rates[:6] == pytest.approx([k / 6 for k in range(1, 7)])
    assert rates[15] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5))) and rates[30] == pytest.approx(0, abs=1e-12)
    config.optimiser.literal_schedule = True
    module.steps = 0
    assert module.compute_rate_factor() == pytest.approx(2 / 6)
    module.steps = 30
    assert module.compute_rate_factor() == pytest.approx(0.5 * (1 + math.cos(1))), "without pi it ends at 0.77"


def test_samples_depend_on_seed_and_index_only(folder):
    config = configuration(folder).data
    regions = read_regions(config, "train")
    assert [tuple(r.shape) for r in regions] == [(6, 24, 36)] and regions[0].max() < 1.2
    a, b = (FieldSequences(regions, 5, 4, config, seed) for seed in (1, 2))
    sample = a[3]
    assert tuple(sample["coarse"].shape) == (2, 1, 2, 2) and tuple(sample["fine"].shape) == (2, 1, 8, 8)
    assert torch.equal(sample["coarse"], sample["fine"][..., ::4, ::4])
    assert torch.equal(a[3]["fine"], sample["fine"]) and not torch.equal(b[3]["fine"], sample["fine"])
    config.coarsening = "mean"
    coarse = FieldSequences(regions, 5, 4, config, 1)[3]["coarse"]
    torch.testing.assert_close(coarse, torch.nn.functional.avg_pool2d(sample["fine"], 4))
    assert interpolate(coarse, 4).shape == sample["fine"].shape


def test_flips_are_of_rows_and_columns_alone(folder):
    config = configuration(folder).data
    regions, seen = read_regions(config, "train"), set()
    plain, flipped = (FieldSequences(regions, 30, 4, dataclasses.replace(config, flips=f), 1) for f in (False, True))
    windows = regions[0].unfold(1, 8, 1).unfold(2, 8, 1)
    for i in range(30):
        fine, other = plain[i]["fine"], flipped[i]
        assert (windows == fine[0, 0]).all(-1).all(-1).any(), "as it is in the file"
        axes = [axes for axes in ((), (-1,), (-2,), (-2, -1)) if torch.equal(fine.flip(axes), other["fine"])]
        assert len(axes) == 1 and torch.equal(other["coarse"], other["fine"][..., ::4, ::4])
        seen.update(axes)
    assert len(seen) == 4


def test_training_and_validation_draw_by_seeds_of_their_own(folder):
    """Both parts use the same region, so that only their seeds differ."""
    box = [[0, 24, 0, 48]]
    config = dataclasses.replace(configuration(folder).data, sources={"rh.nc": {"train": box, "validation": box}})
    drawn = []
    for seed in (3, 3, 5):
        data = HumidityData(config, 4, seed, lambda: 0)
        data.setup()
        drawn.append([torch.stack([part[i]["fine"] for i in range(4)]) for part in (data.training, data.validation)])
    (training, validation), again, other = drawn
    assert torch.equal(training, again[0]) and torch.equal(validation, again[1])
    pairs = ((training, validation), (training, other[0]), (validation, other[1]))
    assert not any(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def test_processes_share_every_batch():
    sampler = OffsetSampler(12, lambda: 100)
    shares = [list(DistributedBatchSampler(sampler, 2, 3, rank)) for rank in range(3)]
    assert shares == [[100, 101, 106, 107], [102, 103, 108, 109], [104, 105, 110, 111]]
    assert len(DistributedBatchSampler(sampler, 2, 3, 0)) == 4


def test_days_are_drawn_for_validation(folder):
    config = configuration(folder).data
    whole = read_regions(dataclasses.replace(config, sources={"rh.nc": {"test": [[0, 24, 0, 48]]}}), "test")[0]
    parts = {}
    for stays in (False, True):
        source = {"validation_days": 1, "validation_stays": stays}
        split = dataclasses.replace(config, sources={"rh.nc": source})
        parts[stays] = [read_regions(split, role) for role in ("train", "validation", "test")]
    train, validation, test = parts[False]
    assert (len(train), len(validation), len(test)) == (2, 1, 0) and len(parts[True][0]) == 3
    assert torch.equal(torch.stack([*train, *validation]).sum(0), whole.unflatten(0, (3, 2)).sum(0))


def test_each_day_occurs_once_in_a_pass(folder):
    """A pass contains each of 3 days once, in a random order, also if a batch crosses two passes."""
    config = dataclasses.replace(configuration(folder).data, crop=24, each_once=True)
    days = [torch.full((2, 24, 24), float(k)) for k in range(3)]
    drawn = [int(FieldSequences(days, 9, 2, config, 5)[k]["fine"].mean()) for k in range(30)]
    passes = [tuple(drawn[k : k + 3]) for k in range(0, 30, 3)]
    assert all(sorted(one) == [0, 1, 2] for one in passes) and len(set(passes)) > 2
    again = [int(FieldSequences(days, 9, 2, config, 5)[k]["fine"].mean()) for k in range(30)]
    assert drawn == again


def test_error_messages(folder):
    config = configuration(folder).data
    regions = read_regions(config, "train")
    for message, call in [
        ("crop must be a multiple of the scale 3", lambda: FieldSequences(regions, 1, 3, config, 0)),
        ("there is no region", lambda: FieldSequences([], 1, 2, config, 0)),
        ("has 1 times, .* a sample data.steps=2 times", lambda: FieldSequences([regions[0][:1]], 1, 2, config, 0)),
        ("coarsening must be one of", lambda: DataConfig(path="", coarsening="max")),
        ("content must be one of", lambda: LossConfig(content="l2")),
        ("adversary must be one of", lambda: LossConfig(adversary="lsgan")),
        ("critic.name must be one of", lambda: CriticConfig("patch")),
        ("divide data.batch_size=2, got 3", lambda: TrainingConfig(data=config, devices=3)),
        ("max_minutes is for one process", lambda: TrainingConfig(data=config, devices=2, max_minutes=1.0)),
        ("'srcnn' has none", lambda: build_module(
            TrainingConfig(data=config, model=ModelConfig("srcnn"), loss=LossConfig(content="crps")))),
        ("'fczsm-small' cannot be trained on humidity, which takes wgan-gp", lambda: build_module(
            TrainingConfig(data=config, model=ModelConfig("fczsm-small")))),
        ("critic_steps must be positive", lambda: LossConfig(critic_steps=0)),
        ("unknown keys", lambda: read_regions(dataclasses.replace(config, sources={"rh.nc": {"trains": []}}), "train")),
        ("is no part of a", lambda: read_regions(
            dataclasses.replace(config, sources={"rh.nc": {"train": [[0, 99, 0, 9]]}}), "train")),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_shipped_configurations():
    small = {"wgan-gp-small", "wgan-gp-small-x8"}
    assert set(find_configurations("humidity")) == {"wgan-gp", "humidity-gan", "srgan", "srcnn"} | small
    paper = parse_arguments(["--config", "wgan-gp", "--data.path=."])
    assert paper.critic.learning_rate == 1e-3 and paper.learning_rate == 1e-4 and paper.ema_decay == 0.0
    assert (
        paper.max_steps is None
        and paper.optimiser == OptimiserConfig(epochs=200)
        and paper.max_minutes is None
        and paper.loss == LossConfig()
        and paper.data.batch_size == 16
    )


@pytest.mark.parametrize("name", ["wgan-gp-small", "wgan-gp-small-x8"])
def test_shipped_small_configuration_has_disjoint_regions(name, data_dir):
    config = parse_arguments(["--config", name, f"--data.path={data_dir}", "--max-minutes=1"])
    assert config.max_minutes == 1 and config.loss.content == "crps"
    build_module(config)
    for role in ("train", "validation", "test"):
        assert read_regions(config.data, role)
    for source in config.data.sources.values():
        boxes = [(role, box) for role in ("train", "validation", "test") for box in source.get(role, [])]
        for a, first in boxes:
            for b, second in boxes:
                separate = first[3] <= second[2] or second[3] <= first[2]
                assert a == b or separate, "regions of different roles share columns"


def test_small_grid_gets_a_fitting_crop(folder, capsys):
    config = DataConfig(path=str(folder / "rh.nc"), steps=2, validation_samples=2)  # 24 x 48 points, validated on 12
    data = HumidityData(config, 4, 0, lambda: 0)
    data.setup()
    assert data.training[0]["fine"].shape[-2:] == data.validation[0]["fine"].shape[-2:] == (8, 8)
    assert "data.crop=8, the largest that fits" in capsys.readouterr().out
    for crop in (32, 64):  # 64 is the default value
        with pytest.raises(ValueError, match=rf"data.crop={crop} rows and columns.*data.crop=8 fits"):
            HumidityData(dataclasses.replace(config, crop=crop), 4, 0, lambda: 0).setup()
