# SPDX-License-Identifier: Apache-2.0
"""Tests of training nowcasting networks: moving crops, losses, short runs, resuming and errors."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import data, models
from fastds.data.samples.radar_triples import FrameStore
from fastds.models.db_rnn import DBRNN, MSRNN, LagrangianRNN, StagedRNN
from fastds.models.db_rnn.losses import Weights, generator_loss, pixel_loss
from fastds.tasks.nowcast.config import LossConfig, ModelConfig, parse_arguments
from fastds.tasks.nowcast.rain_loss import RainLoss
from fastds.tasks.nowcast.samples import NowcastCrops, NowcastData, follow_motion
from fastds.tasks.nowcast.training import NowcastModule, train
from fastds.training.command import find_configurations, main
from fastds.training.model_card import update_model_card
from tests.support.nowcast_training import batch_of, samples, tiny

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(scope="module")
def event(tmp_path_factory):
    path = tmp_path_factory.mktemp("event") / "event.nc"
    fields = data.synthetic_event(seed=3, frames=20, shape=(72, 72), cadence_minutes=10.0)[["reflectivity"]]
    data.save_dataset(fields, path)
    return path


def crops(event, moving=True, augment=True, seed=1, **changes) -> NowcastCrops:
    config = samples(event, **changes)
    return NowcastCrops(
        [str(event)], config, samples=8, scales=config.scales, intervals=config.intervals, moving=moving,
        augment=augment, seed=seed,
    )  # fmt: skip


OF_A_SEED = [
    [-12.479, -1.923], [-5.406, 10.851], [27.714, 75.048], [13.819, 21.627],
    [13.106, -0.475], [0.656, 60.08], [18.702, 33.453], [1.04, -34.65],
]  # fmt: skip

# ---- samples


def test_samples_depend_on_the_seed_alone(event):
    a, b, c = (crops(event, seed=seed)[3] for seed in (1, 1, 2))
    assert a["frames"].shape == a["valid"].shape == (6, 1, 24, 24) and a["valid"].dtype == torch.bool
    assert all(torch.equal(a[key], b[key]) for key in a) and not torch.equal(a["frames"], c["frames"])


def test_eulerian_crops_equal_the_file(event):
    frames = crops(event, moving=False, augment=False)[0]["frames"].numpy()
    store = FrameStore(str(event))
    z = data.prepare(store.dbz(range(20)), 0.0, 60.0)
    views = np.lib.stride_tricks.sliding_window_view(z, (6, 24, 24))
    brightest = np.unravel_index(frames[:, 0].argmax(), (6, 24, 24))
    places = np.argwhere(np.isclose(views[(..., *brightest)], frames.max(), atol=1e-6))
    assert any(np.allclose(views[tuple(place)], frames[:, 0], atol=1e-6) for place in places)


def test_uniform_drift_is_stationary_in_lagrangian_crops():
    g = torch.Generator().manual_seed(2)
    still = torch.nn.functional.interpolate(torch.rand(1, 1, 14, 14, generator=g), size=(112, 112), mode="bicubic")
    x = torch.stack([still[0, :, 40 - 2 * t : 104 - 2 * t, 20 + t : 84 + t] for t in range(8)]).clamp(0, 1)
    moved, valid = follow_motion(x, torch.ones_like(x, dtype=torch.bool), 4, [24, 24], 16)
    assert moved.shape == valid.shape == (8, 1, 16, 16) and valid.all()
    change = (moved - moved[3]).abs().mean((1, 2, 3))
    assert torch.equal(moved[3], x[3, :, 24:40, 24:40])
    assert change.max() < 0.02 < 0.1 * (x[7] - x[3]).abs().mean()
    _, valid = follow_motion(x, torch.ones_like(x, dtype=torch.bool), 4, [48, 0], 16)  # moves out below and to the left
    assert valid[3].all() and not valid[7, 0, -4:].any() and not valid[7, 0, :, :2].any() and valid[7, 0, :6, 6:].all()


def test_short_windows_are_filled_with_missing_frames(event):
    sets = crops(event, moving=False, future=30, fewest=2, reverse=False)
    lengths = {len(window) for window in sets.windows[0][1]}
    assert lengths == set(range(5, 21)) and sorted(w[0] for w in sets.windows[0][1]) == list(range(16))
    for i in range(8):
        valid = sets[i]["valid"].flatten(1).any(1)
        assert valid.shape == (33,) and valid[:5].all() and not valid[20:].any()


def test_pool_repeats_crops(event):
    pooled = crops(event, pool=2, augment=False)
    assert torch.equal(pooled[0]["frames"], pooled[2]["frames"])
    fresh = crops(event, augment=False)[1]["frames"]
    torch.testing.assert_close(pooled[1]["frames"], fresh, rtol=0, atol=1e-3)


def constant(dbz, frames=8, size=32):
    """Return a dataset with the same value everywhere."""
    fields = data.synthetic_event(seed=1, frames=frames, shape=(size, size))[["reflectivity"]]
    return fields.assign(reflectivity=xr.full_like(fields.reflectivity, dbz))


def test_sources_are_drawn_by_their_weights(event):
    options = dict(samples=8, scales=[1], intervals=[1], moving=False, augment=False, seed=1)
    sources = [constant(30.0), constant(45.0)]
    shares = []
    for weights in (None, [0.0, 2.0], [1.0, 4.0]):
        sets = NowcastCrops(sources, samples(event), weights=weights, **options)
        shares.append(np.mean([float(sets[i]["frames"][0].max()) == 0.75 for i in range(200)]))
    assert shares == pytest.approx([0.5, 1.0, 0.8], abs=0.1) and shares[1] == 1.0


def test_shift_raises_echo_and_keeps_dry(event):
    plain, raised = (crops(event, shift=[dbz, dbz])[2]["frames"].double() for dbz in (0.0, 6.0))
    expected = torch.where(plain > 0, (plain + 6.0 / 60).clamp(max=1), 0.0)
    assert (plain == 0).any() and (plain > 0.5).any()
    torch.testing.assert_close(raised, expected, rtol=0, atol=1e-6)


def test_validation_uses_unaugmented_files(tmp_path):
    """Validation windows are from later times, in order, without augmentation or shift."""
    fields = constant(30.0, frames=30, size=64)
    rows, columns, frames = np.arange(64)[:, None], np.arange(64), np.arange(30)[:, None, None]
    squares = np.where((rows + columns) % 2, 4.0, -4.0)  # gone at scale 2
    fields = fields.assign(
        reflectivity=fields.reflectivity.copy(data=10 + frames + 0.05 * columns + squares + 0 * rows)
    )
    data.save_dataset(fields, tmp_path / "ramp.nc")
    config = samples(tmp_path / "ramp.nc", scales=[1, 2, 2], intervals=[1, 2], shift=[5.0, 9.0], fewest=3)
    module = NowcastData(config, moving=False, seed=2)
    module.setup()
    seen = set()
    for i in range(12):
        z = 60 * module.validation[i]["frames"][:, 0].double()
        scale = 1 if (z[0, 0, 0] - z[0, 1, 0]).abs() > 4 else 2
        seen.add(scale)
        ramp = z[0, 0, ::2]  # every second column: the squares are the same
        torch.testing.assert_close(ramp.diff(), torch.full((11,), 0.1 * scale).double(), rtol=0, atol=0.01)
        torch.testing.assert_close((z[1:] - z[:-1]).mean((1, 2)), torch.ones(5).double(), rtol=0, atol=0.01)
        assert 34 <= z[0].mean() <= 34 + 0.05 * 63, "frames 24 to 29 are the last fifth"
    assert seen == {1, 2}


def test_the_crops_of_a_seed_stay_the_same(event, tmp_path):
    """The expected numbers were computed when this test was written."""
    with data.open_dataset(event) as fields:
        fields = fields.load()
    fields["reflectivity"][:, :40, :30] = np.nan
    data.save_dataset(fields, tmp_path / "hole.nc")
    changes = {"scales": [1, 2], "intervals": [1, 2], "minimum_echo": 0.6, "shift": [-2.0, 4.0], "fewest": 2}
    found = crops(tmp_path / "hole.nc", moving=False, seed=3, **changes)
    pattern = torch.cos(1.1 * torch.arange(24.0))[:, None] * torch.sin(0.7 * torch.arange(24.0) + 1)
    pattern = pattern * torch.arange(1.0, 7)[:, None, None, None]
    sums = [[(found[i][key] * pattern).sum().item() for key in ("frames", "valid")] for i in range(8)]
    assert np.array(sums) == pytest.approx(np.array(OF_A_SEED), abs=2e-2)


def test_sparse_coverage_uses_the_best_crop(event, tmp_path):
    with data.open_dataset(event) as fields:
        fields = fields.load()
    fields["reflectivity"][:, :, 11:] = np.nan
    data.save_dataset(fields, tmp_path / "strip.nc")
    found = crops(tmp_path / "strip.nc", moving=False)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        drawn = [[int(rng.integers(49)) for _ in range(2)] for _ in range(24)]
        place = found._draw_place(np.random.default_rng(seed), found.stores[0], 1, 0)
        assert place == min(drawn, key=lambda p: p[1]) != drawn[0]


def test_input_ranges_use_crops_at_fixed_positions(event):
    moving, fixed = (NowcastData(samples(event), moving=moving, seed=1) for moving in (True, False))
    for part in (moving, fixed):
        part.setup()
    assert moving.compute_input_ranges(6) == fixed.compute_input_ranges(6) != {}
    assert moving.compute_input_ranges(6) != fixed.compute_input_ranges(8)
    sample = fixed.training[0]
    found = fixed.compute_statistics(sample)
    sample["frames"][[0, 3, 4, 5]] = 0
    assert found and fixed.compute_statistics(sample) == found
    assert NowcastData(samples(event, known=1), moving=False).compute_input_ranges() == {}


def test_the_second_network_of_two_is_validated(event):
    module, batch = NowcastModule(DBRNN(hidden=4), tiny(event)), batch_of()
    module.on_validation_epoch_start()
    with torch.no_grad():
        module.validation_step(batch, 0)
        last = module(batch)[-1]
    valid = (batch["valid"][:, 3:] & batch["valid"][:, 2:3]).double()
    error = ((last[:, -3:].clamp(0, 1) - batch["frames"][:, 3:]) ** 2 * valid).sum((0, 2, 3, 4)) / valid.sum(
        (0, 2, 3, 4)
    )
    assert module.validation_scores()["val_mse"] == pytest.approx(module.range_dbz**2 * error.mean().item(), rel=1e-4)


# ---- losses


def test_rain_loss_by_hand():
    loss = RainLoss([0.5, 0.9], [0.0, 0.25], 0.02, 0.7, 1 / 60, 2).double()
    g = torch.Generator().manual_seed(3)
    y, x, r = (torch.rand(2, 2, 1, 9, 8, generator=g, dtype=torch.float64) for _ in range(3))
    valid = torch.rand(2, 2, 1, 9, 8, generator=g) > 0.3
    expected = 0.0
    for k in range(2):
        a, b, c = (z[:, k][valid[:, k]] for z in (y, x, r))
        for floor in (0.0, 0.25):
            error, least = (((z.clamp(min=floor) - b.clamp(min=floor)) ** 2).mean() for z in (a, c))
            expected += error / (least + 1 / 3600) / 4
        for tau in (0.5, 0.9):
            p, o = 1 / (1 + torch.exp(-(a - tau) / 0.02)), (b >= tau).double()
            expected += 0.7 * (1 - (p * o).sum() / (p + o - p * o).sum()) / 4
    torch.testing.assert_close(loss(y, x, r, valid), expected)


def test_gradient_of_csi_is_that_of_many_batches():
    loss, g = RainLoss([0.5], [0.0], 0.1, 1.0, 1 / 60, 1).double(), torch.Generator().manual_seed(4)
    x, y = (torch.rand(6, 1, 1, 6, 6, generator=g, dtype=torch.float64) for _ in range(2))
    y.requires_grad_(True)
    valid = torch.ones_like(x, dtype=torch.bool)
    for _ in range(300):
        for i in range(6):
            loss.compute_csi_deficit(y[i : i + 1].detach(), x[i : i + 1], valid[:1])
    total = sum(loss.compute_csi_deficit(y[i : i + 1], x[i : i + 1], valid[:1]) for i in range(6)) / 6
    p, o = torch.sigmoid((y - 0.5) / 0.1), (x >= 0.5).double()
    whole = 1 - (p * o).sum() / (p + o - p * o).sum()
    assert total.item() == pytest.approx(whole.item(), abs=0.01)
    gradients = [torch.autograd.grad(value, y)[0].flatten() for value in (total, whole)]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=0.05)


@pytest.mark.parametrize("kind", ["db-rnn", "rain"])
@pytest.mark.parametrize("network", [MSRNN, DBRNN])
def test_losses_count_valid_pixels_alone(event, network, kind):
    deblurs, terms = network is DBRNN, "gdl" if network is DBRNN and kind == "db-rnn" else "none"
    config = tiny(event, loss=LossConfig(kind=kind, terms=terms, weights="scheduled" if deblurs else None))
    module, batch = NowcastModule(network(hidden=4), config), batch_of()
    outputs = module(batch)
    wrong = [torch.where(batch["valid"][:, 1:], y, 7.0) for y in outputs]
    known = 3
    last = batch["valid"][:, known - 1 : known]
    for y in wrong if kind == "rain" else []:
        y[:, -3:] = torch.where(last, y[:, -3:], 9.0)
    torch.testing.assert_close(module.loss(tuple(wrong), batch), module.loss(outputs, batch))


def test_paper_losses(event):
    batch = batch_of()
    batch["valid"][:] = True
    truth = batch["frames"][:, 1:]
    for network in (MSRNN(hidden=4), DBRNN(hidden=4)):
        weights = "scheduled" if isinstance(network, DBRNN) else "fixed"
        module = NowcastModule(network, tiny(event, loss=LossConfig(kind="db-rnn", weights=weights)))
        outputs = module(batch)
        epoch_0 = Weights(1.0, 0.01, 0.0, 0.0)
        expected = generator_loss(*outputs, truth, epoch_0) if len(outputs) == 2 else pixel_loss(outputs[0], truth)
        torch.testing.assert_close(module.loss(outputs, batch), expected)


def test_discriminator_and_loss_epoch_are_selected(event):
    network, data = DBRNN(cell="predrnn", hidden=4), samples(event, crop=32, batch_size=2, epoch_samples=4)

    def module(**options):
        loss = LossConfig(kind="db-rnn", terms="adversarial", **options)
        return NowcastModule(network, tiny(event, data=data, max_steps=40, loss=loss))

    widths = {name: module(discriminator=name).discriminator.hidden.out_features for name in "SML"}
    assert widths == {"S": 10, "M": 10, "L": 16}
    channels = {name: module(discriminator=name).discriminator.convs[2].weight.shape[0] for name in ("S", None)}
    assert channels == {"S": 20, None: 32}, "of PredRNN the paper's is M"
    by_steps, by_samples = module(epochs=50), module()
    for each in (by_steps, by_samples):
        each._trainer = SimpleNamespace(global_step=10)
    assert by_steps.epoch() == 12 and by_samples.epoch() == 5
    with pytest.raises(ValueError, match="loss.discriminator must be one of S, M, L, got 'XL'"):
        LossConfig(discriminator="XL")


# ---- runs


def test_training_reduces_the_loss_below_extrapolation(event, tmp_path):
    config = tiny(
        event, tmp_path, max_steps=60, learning_rate=3e-3, ema_decay=0.0, loss=LossConfig(csi_weight=0.0),
        data=samples(event, epoch_samples=120, pool=24, validation_samples=8),
    )  # fmt: skip
    model = models.load(train(config))
    scores = model.card.metrics["validation"]
    assert set(model.card.input_ranges) == {"flow disagreement", "flow residual"}
    assert scores["val_mse"] < 0.96 * scores["val_mse_reference"] and scores["val_error"] < 0.98
    assert isinstance(model, LagrangianRNN) and (model.card.floor_dbz, model.card.ceiling_dbz) == (0.0, 60.0)


def test_resume_is_exact(event, tmp_path):
    """The run includes a discriminator, scheduled sampling and averaged weights."""
    config = tiny(
        event, tmp_path / "whole", model=ModelConfig("db-convgru", {"hidden": 4}),
        loss=LossConfig(kind="db-rnn", terms="adversarial", scheduled_sampling=True),
        data=samples(event, crop=32),
    )  # fmt: skip
    train(config)

    class KilledError(Exception):
        pass

    def die(module, *arguments):
        if module.global_step == 6:
            raise KilledError

    halves = dataclasses.replace(config, output=str(tmp_path / "halves"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NowcastModule, "on_train_batch_start", die)
        with pytest.raises(KilledError):
            train(halves)
    assert torch.load(tmp_path / "halves/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    train(halves)
    a, b = (models.load(tmp_path / name / "last.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    states = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "halves")]
    judges = [{k: v for k, v in s["state_dict"].items() if k.startswith("discriminator.")} for s in states]
    assert judges[0] and all(torch.equal(judges[0][k], judges[1][k]) for k in judges[0])
    torch.manual_seed(0)
    fresh = NowcastModule(models.create("db-convgru", hidden=4), config).discriminator.state_dict()
    assert any(not torch.equal(judges[0][f"discriminator.{k}"], v) for k, v in fresh.items())


def test_staged_training(event, tmp_path):
    model, options = ModelConfig("ms-convgru-s", {"hidden": 4}), dict(max_steps=4, ema_decay=0.0)
    first = train(tiny(event, tmp_path / "a", stage="forecaster", model=model, **options))
    model = dataclasses.replace(model, start=str(first))
    second = train(tiny(event, tmp_path / "b", stage="deblurrer", model=model, **options))
    a, b = models.load(first), models.load(second)
    assert isinstance(b, StagedRNN)
    trained = NowcastModule(b, tiny(event, stage="deblurrer", model=model)).model
    assert not any(p.requires_grad for p in trained.forecaster.parameters())
    pairs = zip(a.forecaster.parameters(), b.forecaster.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    pairs = zip(a.deblurrer.parameters(), b.deblurrer.parameters(), strict=True)
    assert any(not torch.equal(p, q) for p, q in pairs)


def test_scheduled_sampling_fades(event, monkeypatch):
    config = tiny(event, max_steps=10, loss=LossConfig(scheduled_sampling=True))
    module = NowcastModule(MSRNN(hidden=4), config)
    monkeypatch.setattr(NowcastModule, "global_step", 4)
    assert module.feed_truth() == pytest.approx(0.6)
    assert module.eval().feed_truth() == 0.0
    config = dataclasses.replace(config, max_steps=10**9, max_minutes=1.0)
    module = NowcastModule(MSRNN(hidden=4), config)
    module.elapsed = 45.0
    assert module.feed_truth() == pytest.approx(0.25)


def test_validation_scores_of_the_untrained_network_are_those_of_the_reference(event):
    config = tiny(event)
    module, moving = (
        NowcastModule(models.create("nowcast-small", hidden=4), config),
        NowcastData(config.data, True),
    )
    moving.setup()
    module.eval().on_validation_epoch_start()
    with torch.no_grad():
        for i in range(4):
            module.validation_step({k: v[None] for k, v in moving.validation[i].items()}, i)
    scores = module.validation_scores()
    assert scores["val_mse"] == pytest.approx(scores["val_mse_reference"], rel=1e-6)
    assert scores["val_error"] == pytest.approx(1) and 0 < scores["val_csi_2"] == scores["val_csi_2_reference"] < 1
    module.on_validation_epoch_start()
    with torch.no_grad():
        module.validation_step({k: 0 * v[None] for k, v in moving.validation[0].items()}, 0)
    with warnings.catch_warnings():  # nothing valid: no score, and no complaint of numpy about it
        warnings.simplefilter("error")
        assert np.isnan(module.validation_scores()["val_csi_2"])


# ---- refusals


def test_named_configurations_parse():
    for name in find_configurations("nowcast"):
        config = parse_arguments(["--config", name, "--data.path=elsewhere", "--max-steps=7"])
        assert config.data.path == "elsewhere" and config.max_steps == 7 and config.model.name in models.available()
        for block in config.data.blocks.values():
            assert "validation" not in block or block["train"][1] <= block["validation"][0]


def test_without_leaves_out_a_radar():
    fmi, words = "radar_fmi_20160928_5min.nc", ["--config", "nowcast-small", "--data.path=elsewhere"]
    whole, config = parse_arguments(words), parse_arguments([*words, f"--data.without=[{fmi}]"])
    assert fmi in whole.data.blocks and fmi not in config.data.blocks
    assert config.data.weights == whole.data.weights[1:] and config.data.without == []
    card = models.ModelCard()
    update_model_card(card, config)
    assert not card.training_data
    with pytest.raises(ValueError, match=r"data.without must name files of data.blocks.*got x.nc"):
        parse_arguments([*words, "--data.without=[x.nc]"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": {"kind": "mse"}}, "loss.kind must be one of rain, db-rnn"),
        ({"loss": {"terms": "all"}}, "loss.terms must be one of none, gdl, adversarial, got 'all'"),
        ({"loss": {"weights": "falling"}}, "loss.weights must be one of fixed, scheduled, got 'falling'"),
        ({"loss": {"ablation": "none"}}, "loss.ablation must be one of fixed"),
        ({"loss": {"ablation": "gdl", "terms": "gdl"}}, "loss.ablation is the earlier name of loss.terms"),
        ({"loss": {"kind": "rain", "terms": "gdl"}}, "belong to the sums over pixels"),
        ({"data": {"known": 0}}, "data.known must be positive"),
        ({"data": {"fewest": 4}}, "1 <= data.fewest <= data.future"),
        ({"stage": "both"}, "stage must be one of forecaster, deblurrer"),
        ({"stage": "deblurrer"}, "needs model.start"),
        ({"max_steps": 0}, "must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"gradient_clip": -1.0}, "gradient_clip must be positive, got -1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"warmup_steps": -3}, "warmup_steps must be at least 0, got -3"),
        ({"seed": -1}, r"seed must lie in 0 to 2\^32 - 1, got -1"),
        ({"data": {"floor": 60.0}}, "data.floor must be below data.ceiling, got 60.0 and 60.0"),
        ({"data": {"scales": []}}, r"data.scales must be one whole number or more, each at least 1, got \[\]"),
        ({"data": {"intervals": [0]}}, r"data.intervals must be one whole number or more, .* got \[0\]"),
        ({"data": {"minimum_echo": 2.0}}, r"data.minimum_echo must lie in \[0, 1\], got 2.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_invalid_configurations_are_rejected(event, change, message):
    with pytest.raises(ValueError, match=message):
        if "loss" in change:
            LossConfig(**change["loss"])
        elif "data" in change:
            samples(event, **change["data"])
        else:
            tiny(event, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "forecaster"}, "stage must be given for .* -s, forecaster or deblurrer, and for no other, got"),
        ({"loss": LossConfig(weights="scheduled")}, "are for networks that deblur"),
        ({"data": {"crop": 80}}, "smaller than data.crop 80"),
        (
            {"data": {"future": 40, "fewest": 20}},
            "20 time steps, too few for training and validation blocks of at least 23",
        ),
        ({"data": {"weights": [1.0, 2.0]}}, "one number per training file"),
        ({"data": {"path": "nowhere.nc"}}, "no such file"),
        ({"model": ModelConfig(card={"colour": "blue"})}, "model.card has no field 'colour'"),
        ({"model": ModelConfig(card={"limits": "a"})}, "model.card: the model card's limits is 'a', expected"),
        ({"model": ModelConfig(start="fczsm-small")}, "'fczsm-small' cannot be trained to nowcast, which takes"),
    ],
    ids=["stage", "ablation", "crop", "short", "weights", "path", "card", "limits", "network"],
)
def test_invalid_runs_are_rejected(event, tmp_path, change, message):
    config = tiny(event, tmp_path, **{k: v for k, v in change.items() if k != "data"})
    config.data = dataclasses.replace(config.data, **change.get("data", {}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(config)


def test_train_nowcast_command(tmp_path, capsys):
    arguments = ["--config", "nowcast-small", f"--data.path={tmp_path}/none", f"--output={tmp_path}/out"]
    assert main(arguments) == 2
    assert "no such file or folder" in capsys.readouterr().err
