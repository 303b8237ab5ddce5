# SPDX-License-Identifier: Apache-2.0
"""Tests of radar training: configuration, time blocks, losses, short runs and resuming."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import data, models
from fastds.models.baselines import trilinear
from fastds.studies.radar import TEST_BLOCKS
from fastds.tasks.radar.config import DataConfig, ModelConfig, TrainingConfig, parse_arguments
from fastds.tasks.radar.samples import RadarData
from fastds.tasks.radar.training import RadarModule, train
from fastds.training.command import TASKS, find_configurations, main
from fastds.training.model_card import update_model_card
from fastds.training.modules import BaseLightningModule
from fastds.training.progress import TrainingProgress
from fastds.training.radar_files import make_synthetic_events, make_time_blocks, share_weights

TINY = {"num_features": 8, "offset_groups": 1, "extractor_blocks": 1, "reconstruction_blocks": 1, "alignment": "plain"}


@pytest.fixture(scope="module")
def event(tmp_path_factory):
    path = tmp_path_factory.mktemp("event") / "event.nc"
    data.save_dataset(data.synthetic_event(seed=3, frames=16, shape=(64, 64))[["reflectivity"]], path)
    return path


def tiny(event, output, **changes) -> TrainingConfig:
    samples = DataConfig(
        str(event),
        crop=16,
        scales=[1],
        intervals=[1],
        minimum_echo=0.0,
        batch_size=2,
        epoch_samples=8,
        validation_samples=4,
        workers=0,
    )
    config = TrainingConfig(
        samples,
        ModelConfig("fczsm-small", TINY),
        output=str(output),
        max_steps=8,
        warmup_steps=2,
        ema_decay=0.9,
        progress=False,
        threads=1,
    )
    return dataclasses.replace(config, **changes)


def batch(b=2, size=8):
    g = torch.Generator().manual_seed(0)
    return {
        "x": torch.rand(b, 2, 1, size, size, generator=g),
        "y": torch.rand(b, 3, 1, 2 * size, 2 * size, generator=g),
        "valid": torch.rand(b, 3, 1, 2 * size, 2 * size, generator=g) > 0.3,
    }


def module_of(event, **changes):
    return RadarModule(torch.nn.Linear(1, 1), tiny(event, "unused", **changes))


def test_named_configurations_parse():
    assert "fczsm-small" in find_configurations("radar")
    assert len(find_configurations()) == sum(len(find_configurations(task)) for task in TASKS)  # no name twice
    for name in find_configurations("radar"):
        config = parse_arguments(["--config", name, "--data.path=elsewhere", "--max-steps=7"])
        assert config.data.path == "elsewhere" and config.max_steps == 7
        assert config.model.name in models.registry.PRESETS
        for file, block in config.data.blocks.items():
            start = TEST_BLOCKS[file][0] if file in TEST_BLOCKS else np.inf
            assert block["train"][1] <= block["validation"][0] and block["validation"][1] <= start - 1, file


def test_exclude_removes_a_radar():
    fmi, words = "radar_fmi_20160928_5min.nc", ["--config", "fczsm-small", "--data.path=elsewhere"]
    whole, config = parse_arguments(words), parse_arguments([*words, f"--data.without=[{fmi}]"])
    assert fmi in whole.data.blocks and list(config.data.blocks) == list(whole.data.blocks)[1:]
    assert config.data.weights == whole.data.weights[1:]
    card = models.ModelCard()
    update_model_card(card, config)
    assert not card.training_data and card.cadence_s == [600.0, 1800.0]


@pytest.mark.parametrize(
    ("without", "message"), [(["x.nc"], "data.without must name files of data.blocks.*got x.nc"), (None, "no file")]
)
def test_exclude_rejects_invalid_radars(without, message):
    blocks = parse_arguments(["--config", "fczsm-small", "--data.path=elsewhere"]).data.blocks
    with pytest.raises(ValueError, match=message):
        DataConfig("elsewhere", blocks, without or list(blocks))


def test_unknown_configuration_is_named(capsys):
    assert main(["--config", "fczsm-huge"]) == 2
    assert "no configuration of that name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "l3"}, "loss must be one of"),
        ({"max_steps": 0}, "must be positive"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
    ids=["loss", "steps", "ema"],
)
def test_configuration_messages(event, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(event, "unused", **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0}, "data.crop must be at least 1, got 0"),
        ({"workers": -1}, "data.workers must be at least 0, got -1"),
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
    ],
)
def test_configuration_without_samples(event, change, message):
    config = tiny(event, "unused")
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, data=dataclasses.replace(config.data, **change))


def test_validation_uses_the_last_fifth(event):
    (train_block,), (validation,) = make_time_blocks(DataConfig(str(event)))
    assert (train_block.start, train_block.stop) == (0, 11) and (validation.start, validation.stop) == (13, 16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"path": "nowhere"}, FileNotFoundError, "no such file or folder"),
        ({"blocks": {"event.nc": {"train": [0, 9], "validation": [8, 12]}}}, ValueError, "overlap"),
        ({"blocks": {"event.nc": {"validation": [0, 9]}}}, ValueError, "must be {train"),
        ({"blocks": {"event.nc": {"train": [0, 9]}}}, ValueError, "at least one file must have a validation block"),
        ({"blocks": {"other.nc": {"train": [0, 9], "validation": [9, 12]}}}, FileNotFoundError, "no file to train on"),
    ],
    ids=["path", "overlap", "incomplete", "no-validation", "other-file"],
)
def test_block_messages(event, change, error, message):
    with pytest.raises(error, match=message):
        make_time_blocks(dataclasses.replace(DataConfig(str(event)), **change))


def test_file_without_validation_block_is_trained_on(event, tmp_path):
    for name in ("a.nc", "b.nc"):
        (tmp_path / name).symlink_to(event)
    blocks = {"a.nc": {"train": [0, 9]}, "b.nc": {"train": [0, 9], "validation": [11, 16]}}
    train_blocks, (validation,) = make_time_blocks(DataConfig(str(tmp_path), blocks))
    assert [block.stop for block in train_blocks] == [9, 9] and validation.path == str(tmp_path / "b.nc")


def test_samples_carry_flow_and_depend_on_the_seed_alone(event):
    config = tiny(event, "unused").data
    first, again, other = (RadarData(config, flow=True, seed=seed) for seed in (1, 1, 2))
    for module in (first, again, other):
        module.setup()
    a, b, c = (module.training[3] for module in (first, again, other))
    assert a["flow"].shape == (1, 2, 2, 16, 16)
    assert all(torch.equal(a[key], b[key]) for key in a) and not torch.equal(a["x"], c["x"])


def test_loss_counts_valid_pixels_alone(event):
    module, samples = module_of(event, loss="mse"), batch()
    prediction = torch.zeros_like(samples["y"])
    expected = sum(((55 * samples["y"][i][samples["valid"][i]]) ** 2).mean() for i in range(2)) / 2
    torch.testing.assert_close(module.loss(prediction, samples), expected)
    spoilt = torch.where(samples["valid"], prediction, float("nan"))
    torch.testing.assert_close(module.loss(spoilt, samples), expected)


def test_relative_loss_of_trilinear_is_one(event):
    samples = batch()
    assert float(module_of(event).loss(trilinear(samples["x"], 2), samples)) == pytest.approx(1.0, abs=0.01)


def test_training_of_the_middle_frame_changes_nothing_else(event, tmp_path):
    """The correction is added to the network of the start, whose other weights stay; its context is in the samples."""
    torch.manual_seed(0)
    start = models.create("fczsm-small", **TINY)
    models.save(start, tmp_path / "start.safetensors")
    config = tiny(event, tmp_path / "run", ema_decay=0.0, seed=1)
    config.model = ModelConfig("fczsm-small", start=str(tmp_path / "start.safetensors"), middle_frame_only=True)
    trained = models.load(train(config).parent / "last.safetensors")
    assert trained.config["middle_frame"]
    state = start.state_dict()
    for key, value in trained.state_dict().items():
        if key in state:
            assert torch.equal(value, state[key]), key
    assert trained.middle.last.weight.any()
    again = tiny(event, tmp_path / "again", max_steps=2)  # a network that has the correction is trained further
    again.model = ModelConfig("fczsm-small", start=str(tmp_path / "run" / "last.safetensors"), middle_frame_only=True)
    train(again)


@pytest.mark.parametrize(
    "name, message", [("unet", "is for an FC-ZSM"), ("fczsm-d", "does not fit .*middle_frame=True needs residual")]
)
def test_networks_without_a_middle_frame_are_named(event, tmp_path, name, message):
    config = tiny(event, tmp_path)
    config.model = ModelConfig(name, {}, middle_frame_only=True)
    with pytest.raises(ValueError, match=rf"model.middle[-_]frame[-_]only {message}"):
        train(config)


def test_losses_by_hand(event):
    """The losses are means over samples of means over valid pixels, with errors in dBZ (range 55)."""
    samples, prediction = batch(), torch.rand(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    rows = torch.nn.functional.interpolate(samples["x"][:, :, 0], scale_factor=2, mode="bilinear").double()
    lines = torch.stack([rows[:, 0], rows.mean(1), rows[:, 1]], 1)[:, :, None]
    charbonnier = relative = 0.0
    for i in range(2):
        ours, theirs = (55 * (z - samples["y"])[i][samples["valid"][i]].double() for z in (prediction, lines))
        charbonnier += ((ours**2 + 0.1**2).sqrt() - 0.1).mean() / 2
        relative += (ours**2).mean() / ((theirs**2).mean() + 0.25) / 2
    for kind, expected in (("charbonnier", charbonnier), ("relative_mse", relative)):
        loss = module_of(event, loss=kind).loss(prediction, samples)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


def test_synthetic_events_have_seeds_and_speeds_of_their_own():
    speeds = (5, 10, 15, 20, 25, 5)
    events = make_synthetic_events(len(speeds), seed=7, frames=2)
    for k, (event, speed) in enumerate(zip(events, speeds, strict=True)):
        expected = data.synthetic_event(seed=7 + k, frames=2, speed=speed)
        assert list(event) == ["reflectivity"] and event["reflectivity"].identical(expected["reflectivity"])


def test_weights_of_sources():
    """The weights of the files come first; the last weight is divided among the events."""
    assert share_weights([3, 1, 2], 2, 4) == [3, 1, 0.5, 0.5, 0.5, 0.5]
    assert share_weights([3, 1], 2, 0) == [3, 1] and share_weights([], 2, 4) is None
    for weights, events in (([3, 1], 4), ([3, 1, 2], 0)):
        with pytest.raises(ValueError, match="data.weights needs one number per training file"):
            share_weights(weights, 2, events)


def test_rate_warms_up_and_ends_at_zero(event):
    module = module_of(event, max_steps=100, warmup_steps=10)
    assert (
        module._compute_rate_factor(0) == pytest.approx(0.1, rel=0.01)
        and module._compute_rate_factor(10) > 0.95
        and module._compute_rate_factor(100) == 0.0
    )
    module = module_of(event, max_steps=10**9, max_minutes=1.0, warmup_steps=1)
    module.elapsed = 30.0
    assert module._compute_rate_factor(5) == pytest.approx(0.5, abs=0.01)
    module.elapsed = 61.0
    assert module._compute_rate_factor(5) == pytest.approx(0.0, abs=1e-6)


class Broken(torch.nn.Module):
    config = {}

    def __init__(self, bad_steps):
        super().__init__()
        self.weight, self.calls, self.bad_steps = torch.nn.Parameter(torch.ones(())), 0, bad_steps
        self.card = models.ModelCard()

    def forward(self, x):
        self.calls += 1
        y = trilinear(x, 2) * self.weight
        return y * float("nan") if self.training and self.calls in self.bad_steps else y


def run_broken(event, tmp_path, monkeypatch, bad_steps):
    model = Broken(bad_steps)
    monkeypatch.setattr("fastds.tasks.radar.training.build_model", lambda config: model)
    monkeypatch.setattr("fastds.training.trainer.models.save", lambda model, path: path.touch())
    train(tiny(event, tmp_path, ema_decay=0.0))
    return model


def test_non_finite_step_is_skipped(event, tmp_path, monkeypatch):
    assert torch.isfinite(run_broken(event, tmp_path, monkeypatch, {2, 4}).weight)


def test_persistent_non_finite_loss_stops_the_run(event, tmp_path, monkeypatch):
    with pytest.raises(FloatingPointError, match="not finite in 5 steps in a row"):
        run_broken(event, tmp_path, monkeypatch, set(range(2, 99)))


def test_run_exports(event, tmp_path):
    train(tiny(event, tmp_path))
    last, fresh = models.load(tmp_path / "last.safetensors"), models.create("fczsm-small", **TINY)
    assert last.config["num_features"] == 8 and last.card.floor_dbz == 15.0 and "validation" in last.card.metrics
    assert set(last.card.input_ranges) == {"flow disagreement", "flow residual"} and last.card.seeds == [0]
    assert any(not torch.equal(p, q) for p, q in zip(last.parameters(), fresh.parameters(), strict=True))
    assert not torch.are_deterministic_algorithms_enabled(), "the choice of the trainer outlives it"
    made = {"best.safetensors", "checkpoints", "csv", "tensorboard", "config.yaml"}
    assert {path.name for path in tmp_path.iterdir()} >= made


def test_progress_shows_step_loss_and_remaining_time(event, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastds.training.progress.LINE_EVERY", 0.0)
    config = tiny(event, tmp_path, progress=True)
    train(config)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    start = rf"training: step \d+ of {config.max_steps}, loss [\d.e-]+"
    times = r"\d:\d\d:\d\d, about \d:\d\d:\d\d left"
    assert len(lines) == config.max_steps and re.fullmatch(f"{start}, {times}", lines[0])
    assert re.fullmatch(rf"{start}, lowest validation error [\d.e-]+, {times}", lines[-2])


@pytest.mark.parametrize(
    ("steps", "minutes", "message", "left"),
    [
        (40, None, "step 10 of 40", "0:01:30"),
        (None, 1.0, "step 10", "0:00:30"),
        (40, 1.0, "step 10", "0:00:30"),
        (15, 1.0, "step 10 of 15", "0:00:15"),
    ],
)
def test_remaining_time_uses_the_earlier_limit(steps, minutes, message, left):
    """The state is after ten steps and half a minute, before the first validation."""
    config = SimpleNamespace(max_steps=steps, max_minutes=minutes)
    module = SimpleNamespace(
        config=config, training_seconds=lambda: 30.0, steps_done=lambda: 10, last_step=lambda: steps
    )
    parts = TrainingProgress(SimpleNamespace(best=float("inf")))._parts(module, None)
    assert parts == [message, "0:00:30", f"about {left} left"]


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_processes_draw_numbers_of_their_own(rank):
    given = {"config": SimpleNamespace(seed=5, graph="never"), "steps_done": lambda: 7, "global_rank": rank}
    given["is_finished"] = lambda: False
    nothing = {"optimizers": [], "lr_scheduler_configs": []}
    for size, expected in ((1, 11), (3, 5 + 1_000_003 * (rank + 1) + 7)):
        torch.manual_seed(11)
        BaseLightningModule.on_train_start(
            SimpleNamespace(**given, trainer=SimpleNamespace(world_size=size, **nothing))
        )
        assert torch.initial_seed() == expected


def test_smallest_valid_training(event):
    least = tiny(event, "unused", max_steps=1, ema_decay=0.0)
    assert dataclasses.replace(least, max_minutes=1e-3).max_minutes == 1e-3
    with pytest.raises(ValueError, match="max_steps and max_minutes must be positive, got 1 and 0"):
        dataclasses.replace(least, max_minutes=0)


def test_max_minutes_ends_the_run(event, tmp_path):
    best = train(tiny(event, tmp_path, max_steps=10**6, max_minutes=0.02))
    assert best.exists()


def test_blocks_hold_a_sample_each(event):
    (train_block,), (validation,) = make_time_blocks(DataConfig(str(event)), 6)
    assert (train_block.stop, validation.start, validation.stop) == (8, 10, 16)
    with pytest.raises(ValueError, match="has 16 time steps, too few for .* blocks of at least 8 and 2 between them"):
        make_time_blocks(DataConfig(str(event)), 8)


@pytest.mark.parametrize("name", ["srcnn", "ms-convlstm"])
def test_unsuitable_networks_are_rejected(event, tmp_path, name):
    with pytest.raises(ValueError, match=f"model.name: '{name}' cannot be trained on radar files"):
        train(dataclasses.replace(tiny(event, tmp_path / "o"), model=ModelConfig(name)))
    assert not (tmp_path / "o").exists()


@pytest.fixture(scope="module")
def relief(event, tmp_path_factory):
    """Write heights on the grid of the event and return the file."""
    with data.open_dataset(event) as radar:
        height = (200 + 3 * radar.x / 1e3 + 5 * radar.y / 1e3).transpose("y", "x").astype("float32")
    path = tmp_path_factory.mktemp("relief") / "relief.nc"
    data.save_dataset(height.assign_attrs(units="m").to_dataset(name="height"), path)
    return path


def with_relief(event, output, relief):
    config = tiny(event, output)
    config.data.statics = [f"{relief}:height"]
    config.model.options = {**TINY, "static_channels": 1}
    return config


def test_static_maps_are_cut_averaged_and_rotated_with_the_crops(event, relief, tmp_path):
    config = with_relief(event, tmp_path, relief)
    module = RadarData(config.data, False, 0, 1)
    module.setup()
    variable, maps = module.static_variables[0], module.training.statics[0]
    assert variable["name"] == "height" and variable["units"] == "m" and abs(maps.mean()) < 1e-4
    with data.open_dataset(relief) as file:
        np.testing.assert_allclose(maps[0] * variable["std"] + variable["mean"], file.height, atol=1e-3)
    plain = data.RadarTriples([event], crop=32, samples=9, scales=(1,), statics=[maps], augment=False)
    rotated = data.RadarTriples([event], crop=32, samples=9, scales=(1,), statics=[maps])
    whole = maps.reshape(1, 32, 2, 32, 2).mean((2, 4))
    np.testing.assert_allclose(plain[0]["static"], whole, atol=1e-6)
    for i in range(9):  # one crop of this size exists, so that a field shows how it was rotated
        x, static = rotated[i]["x"], rotated[i]["static"]
        assert any(
            torch.equal(torch.from_numpy(turn(plain[i]["static"].numpy())), static)
            and torch.equal(torch.from_numpy(turn(z)), x)
            for z in (plain[i]["x"].numpy(), plain[i]["x"].numpy()[::-1])
            for turn in TURNS
        )


TURNS = [
    lambda a, k=k, m=m: np.ascontiguousarray(np.rot90(a[..., ::-1] if m else a, k, (-2, -1)))
    for k in range(4)
    for m in (False, True)
]


def test_a_run_with_static_maps_downscales_with_them(event, relief, tmp_path):
    best = train(with_relief(event, tmp_path, relief))
    model = models.load(best)
    assert model.card.static_variables[0]["name"] == "height" and model.card.static_variables[0]["std"] > 1
    again = with_relief(event, tmp_path / "again", relief)
    again.model.start = str(best)
    again.max_steps = 4
    assert models.load(train(again)).card.static_variables == model.card.static_variables
    with data.open_dataset(event) as file:
        coarse = data.coarsen_dataset(file.isel(time=slice(0, 3)).load())
    fine = model.downscale(coarse, static=[str(relief)])
    assert fine.attrs["fastds_static_maps"] == "height of relief.nc" and fine.sizes["x"] == 64


def test_statics_must_match_the_network(event, relief, tmp_path):
    config = with_relief(event, tmp_path, relief)
    config.data.statics = []
    with pytest.raises(ValueError, match="network reads 1 static maps and 0 were given"):
        train(config)
    config.data.statics, config.data.synthetic_events = [f"{relief}:height"], 2
    with pytest.raises(ValueError, match="with 2 synthetic events"):
        train(config)
    config.data.statics, config.data.synthetic_events = [f"{relief}:orog"], 0
    with pytest.raises(ValueError, match="data.statics, for .*event.nc: static map: there is no variable 'orog'"):
        train(config)


def test_help_names_every_task_and_configuration(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {task} " in text for task in TASKS) and all(name in text for name in find_configurations())
