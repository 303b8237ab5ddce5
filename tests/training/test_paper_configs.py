# SPDX-License-Identifier: Apache-2.0
"""Tests of the shipped training configurations, and of those of papers against plain training loops."""

import copy
import importlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
import yaml

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import data
from fastds.ops.impl.inr_query.points import PointSpec
from fastds.training.command import TASKS, find_configurations
from fastds.training.lightning_extra import L, callbacks

pytestmark = pytest.mark.usefixtures("native")
ALL = [(task, name) for task in TASKS for name in find_configurations(task)]
# Those that made shipped weights tell a card.
PAPERS = [
    (task, name)
    for task, name in ALL
    if "card" not in yaml.safe_load(find_configurations(task)[name].read_text())["model"]
]
SMALL = {  # sizes in place of the papers'; everything else is as the configuration has it
    "radar": {
        "data.blocks": {}, "data.weights": [], "data.synthetic_events": 0, "data.crop": 8, "data.minimum_echo": 0.0,
        "data.epoch_samples": 12, "data.workers": 0,
    },
    "nowcast": {
        "data.blocks": {}, "data.weights": [], "data.synthetic_events": 0, "data.crop": 32, "data.scales": [1],
        "data.batch_size": 1, "data.epoch_samples": 4, "data.validation_samples": 1, "data.halo": 8,
    },
    "fields": {
        "data.each": [], "data.train": [], "data.validation": [], "data.units": [], "data.crop": 8, "data.halo": 2,
        "data.queries": 32, "data.batch_size": 2, "data.epoch_samples": 6,
    },
    "humidity": {
        "data.crop": 16, "data.batch_size": 2, "data.epoch_samples": 6, "data.validation_samples": 1, "data.steps": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write synthetic files of each task: a folder with radar data, masks.nc, fields.nc and humidity.nc."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    event = data.synthetic_event(seed=3, frames=64, shape=(72, 72), cadence_minutes=5.0)[["reflectivity"]]
    z = event["reflectivity"]
    for name, high in (("probability", 100.0), ("measurement_height", 9000.0)):
        event[name] = z.copy(data=high * rng.random(z.shape, np.float32)).assign_attrs(units="1", standard_name=name)
    (folder / "radar").mkdir()
    data.save_dataset(event, folder / "radar" / "event.nc")
    masks = event["reflectivity"][0].drop_vars("time", errors="ignore")
    maps = {name: masks.copy(data=rng.random(masks.shape, np.float32)).assign_attrs(units="1") for name in ("h", "lsm")}
    xr.Dataset({name: field.assign_attrs(standard_name=name) for name, field in maps.items()}).to_netcdf(
        folder / "masks.nc", engine="h5netcdf"
    )
    places = {"latitude": np.linspace(60.0, 30.0, 80), "longitude": np.linspace(0.0, 59.25, 160)}
    time = np.datetime64("2019-01-01") + 6 * np.arange(20) * np.timedelta64(1, "h")
    waves = np.sin(np.add.outer(np.add.outer(np.arange(20), np.arange(80)) * 0.7, np.arange(160) * 0.9))

    def field(rows, columns, name, units):
        values = 50.0 + 30.0 * waves[..., :rows, :columns] + rng.normal(size=(20, rows, columns))
        at = {"latitude": places["latitude"][:rows], "longitude": places["longitude"][:columns]}
        attributes = {"standard_name": name, "units": units}
        return xr.DataArray(values.clip(0, 100), {"time": time, **at}, ["time", *at], attrs=attributes)

    xr.Dataset({n: field(80, 160, n, "1") for n in "rtuz"}).to_netcdf(folder / "fields.nc", engine="h5netcdf")
    humid = field(16, 16, "relative_humidity", "%").to_dataset(name="r")
    humid.to_netcdf(folder / "humidity.nc", engine="h5netcdf")
    return folder


def words_of(task, name, files):
    """Return the options of a run on the synthetic files."""
    given = yaml.safe_load(find_configurations(task)[name].read_text())
    changed = dict(SMALL[task])
    path = {"radar": "radar", "nowcast": "radar", "fields": "fields.nc", "humidity": "humidity.nc"}[task]
    if given["data"].get("split") == "random":
        changed |= {"data.fixed_samples": [6, 2, 2], "data.minimum_valid": 0.5}
    if "statics" in given["data"]:
        changed["data.statics"] = [f"{files}/masks.nc:{v}" for v in ("h", "lsm")]
    if name == "inr-any":
        changed |= {"data.variables": ["r"]}
        del changed["data.units"], changed["data.train"], changed["data.validation"]
        changed["data.each"] = ["*"]
        del changed["data.variables"]
    elif task == "fields":
        changed |= {"data.variables": ["r", "t", "u", "z"], "data.split": "time"}
    if name in ("fczsm-small", "fczsm-small-middle"):
        changed["model.start"] = "fczsm-small"  # in place of the stage before
    if "unet" in name:
        changed["model.options.width"] = 8
    if task == "nowcast":
        changed["data.crop"] = 32 if name.startswith("db-") else 16  # the least of the discriminator
        if name not in ("simvp", "nowcast-small"):
            changed |= {"data.known": 3, "data.future": 2, "data.fewest": 2}
        changed["model.options"] = {"spatial": 8, "temporal": 32} if name == "simvp" else {"hidden": 8}
    if "preciplstm" in name:
        changed["model.options"] |= {"cell_options": {"window": 4}}
    if name == "nowcast-small":
        changed["model.options"] = {"network": "MSRNN", "hidden": 8}
    if task == "humidity":
        days = {"validation_days": 1, "validation_stays": True}
        crop = {"data.crop": 16}
        changed |= {"data.sources": {"humidity.nc": days}} | crop
    text = [
        f"--{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in changed.items()
    ]
    return ["--config", name, f"--data.path={files}/{path}", "--progress=false", *text]


class Steps(callbacks.Callback):
    """Records the first batch, the random state before it, and weights after the first and last steps."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 0:
            self.batch, self.state = copy.deepcopy(batch), torch.get_rng_state()
        if index == 1:  # the discriminator of DB-RNN moves after the callbacks of a step
            self.first = weights_of(module)

    def on_train_end(self, trainer, module):
        self.last = weights_of(module)


def weights_of(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def three_steps(monkeypatch, task, words):
    """Start a training as the command does and end it after three steps in float64.

    Returns:
        The configuration, the module before the first step, and Steps.
    """
    options = importlib.import_module(f"fastds.tasks.{task}.config")
    training = importlib.import_module(f"fastds.tasks.{task}.training")
    captured = {}

    def steps(config, module, samples, export, **others):
        recorder = Steps()
        captured.update(config=config, module=copy.deepcopy(module), steps=recorder)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=1, limit_train_batches=3, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, precision="64-true",
            callbacks=[recorder],
        )  # fmt: skip
        trainer.fit(module, datamodule=samples)

    monkeypatch.setattr(training, "run_training", steps)
    training.train(options.parse_arguments(words))
    return captured["config"], captured["module"].double().train(), captured["steps"]


def moved(before, after, names):
    """Return the differences of weights as one vector."""
    return torch.cat([(after[name] - before[name]).flatten() for name in names])


def check_update(module, network, prefix, steps, tolerance):
    """Check that a training step gives the weights of a network updated by a plain loop.

    Args:
        module: module before the step.
        network: network after the step of the plain loop.
        prefix: prefix of its weights in the module.
        steps: recorded steps of the training.
        tolerance: largest difference relative to the norm of the update.
    """
    before, ours = module.state_dict(), dict(network.named_parameters())
    plain = {f"{prefix}{name}": value.detach() for name, value in ours.items()}
    trained = moved(before, steps.first, plain)
    expected = moved(before, plain, plain)
    assert expected.norm() > 0
    away = float((trained - expected).norm() / expected.norm())
    assert away <= tolerance, f"{prefix}: {away}"


# ---- the papers' losses, by their equations


def radar_loss(network, batch, config):
    """Compute the mean squared error, equation 9 of FC-ZSM."""
    y = network(batch["x"], **({"static": batch["static"]} if "static" in batch else {}))
    return ((y - batch["y"])[batch["valid"]] * 55.0).square().mean()  # one sample a step


def nowcast_loss(network, batch, config):
    """Compute the loss of equation 7 of DB-RNN at epoch 0, without the adversarial term."""
    x = batch["frames"]
    outputs = (network.forecaster if config.stage else network).roll(x[:, : config.data.known], config.data.future)
    truth = x[:, -outputs[0].shape[1] :]

    def pixels(y):
        return ((y - truth).abs() + (y - truth) ** 2).sum((2, 3, 4)).mean()

    if len(outputs) == 1:
        return pixels(outputs[0]), outputs[0]
    forecasts, y = outputs

    def gradients(z):
        i, j = z[..., 1:, :-1] - z[..., :-1, :-1], z[..., :-1, 1:] - z[..., :-1, :-1]
        return i.abs(), j.abs()

    gdl = sum((a - b).abs().sum((2, 3, 4)) for a, b in zip(gradients(truth), gradients(y), strict=True)).mean()
    return 1.0 * pixels(forecasts) + 0.01 * pixels(y) + 0.001 * gdl, y


def fields_loss(network, batch, scale):
    """Compute the mean absolute error of the variables, relative to that of bilinear interpolation."""
    y = network.query(batch["x"], PointSpec(batch["base"], batch["frac"]), batch["factor"])
    return ((y - batch["target"]).abs() / scale).mean()


def step_by(adam, loss):
    adam.zero_grad()
    loss.backward()
    adam.step()


def plain_step(task, config, module, batch, state):
    """Compute one training step with a plain loop.

    Returns:
        A dictionary from the prefix of weights in the module to the network after the step.
    """
    betas, rate = (0.9, 0.999), {"radar": 1e-5, "nowcast": 3e-4, "fields": 1e-4}.get(task)
    if task == "humidity":
        return adversarial_step(config, module, batch, state)
    network = copy.deepcopy(module.model)
    trained = network.forecaster if getattr(config, "stage", None) else network
    adam = torch.optim.Adam(trained.parameters(), rate, betas)
    if task == "radar":
        step_by(adam, radar_loss(network, batch, config))
    if task == "fields":
        step_by(adam, fields_loss(network, batch, module.error_scale))
    if task != "nowcast":
        return {"model.": network}
    loss, y = nowcast_loss(network, batch, config)
    if config.loss.terms == "none":
        step_by(adam, loss)
        return {"model.": network}
    critic = copy.deepcopy(module.discriminator)
    its_adam = torch.optim.Adam(critic.parameters(), 3e-4)
    truth, y = batch["frames"][:, 1:].flatten(0, 1), y.flatten(0, 1)
    step_by(adam, loss - F.logsigmoid(critic(y)).mean())
    y = y.detach()
    step_by(its_adam, -(F.logsigmoid(critic(truth)).mean() + F.logsigmoid(-critic(y)).mean()))
    return {"model.": network, "discriminator.": critic}


def adversarial_step(config, module, batch, state):
    """Compute the first step of algorithm 1 of the humidity WGAN-GP with a content loss (equations 5 and 6)."""
    generator, critic = copy.deepcopy(module.generator), copy.deepcopy(module.critic_loss.critic)
    warm = config.optimiser.warmup_epochs * (config.data.epoch_samples // config.data.batch_size)
    its_adam = torch.optim.Adam(critic.parameters(), 1e-3 / (warm + 1e-8), (0.5, 0.9))
    adam = torch.optim.Adam(generator.parameters(), 1e-4 / (warm + 1e-8), (0.5, 0.9))
    torch.set_rng_state(state)
    x, z = batch["fine"], batch["coarse"]
    if config.loss.critic_steps:
        with torch.no_grad():
            fake = generator(z)
        if config.loss.adversary == "gan":
            loss = -(F.logsigmoid(critic(x)).mean() + F.logsigmoid(-critic(fake)).mean())
        else:
            e = torch.rand(len(x), dtype=x.dtype).view(-1, 1, 1, 1, 1)
            between = (e * x + (1 - e) * fake).requires_grad_()
            (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            loss = critic(fake).mean() - critic(x).mean() + 10.0 * penalty
        step_by(its_adam, loss)
    y = generator(z)
    loss = (y - x).square().mean() if config.loss.content == "mse" else (y - x).abs().mean()
    if config.loss.critic_steps:
        score = critic(y)
        loss = loss - 1e-3 * (score if config.loss.adversary == "wgan_gp" else F.logsigmoid(score)).mean()
    step_by(adam, loss)
    return {"generator.": generator} | ({"critic_loss.critic.": critic} if config.loss.critic_steps else {})


@pytest.mark.parametrize(("task", "name"), ALL, ids=[name for _, name in ALL])
def test_a_configuration_takes_three_steps(monkeypatch, files, task, name):
    """The first step equals plain torch: Adam, the loss of the paper, no clipping."""
    config, module, steps = three_steps(monkeypatch, task, words_of(task, name, files))
    assert all(torch.isfinite(value).all() for value in steps.last.values())
    assert any(not torch.equal(value, steps.first[name]) for name, value in steps.last.items())
    if (task, name) in PAPERS:
        # The GAN's logits are float32, and Adam makes whole steps of the rounding where a gradient is zero in truth.
        tolerance = 5e-5 if name in ("humidity-gan", "srgan") else 1e-6
        for prefix, network in plain_step(task, config, module, steps.batch, steps.state).items():
            check_update(module, network, prefix, steps, tolerance)


# ---- options


def module_of(files, *words):
    """Return the module of a radar training."""
    from fastds.tasks.radar import config, training

    options = config.parse_arguments([f"--data.path={files}/radar", "--data.crop=8", "--model=fczsm-small", *words])
    return training.RadarModule(torch.nn.Linear(2, 1), options)


def test_configured_schedules(files):
    """Check factors of the learning rate: constant, steps, warm-up and cosine."""
    constant = module_of(files, "--schedule=constant", "--max-steps=10", "--warmup-steps=0")
    assert {constant._compute_rate_factor(k) for k in range(12)} == {1.0}
    warm = module_of(files, "--schedule=constant", "--max-steps=10", "--warmup-steps=4")
    assert [warm._compute_rate_factor(k) for k in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    steps = module_of(
        files, "--schedule=steps", "--milestones=[3,5]", "--gamma=0.1", "--max-steps=9", "--warmup-steps=0"
    )
    assert [steps._compute_rate_factor(k) for k in (0, 2, 3, 4, 5, 8)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    )
    epochs = module_of(files, "--max-epochs=3", "--data.epoch-samples=10", "--data.batch-size=4", "--warmup-steps=0")
    assert (
        epochs.config.last_step() == 6
        and epochs._compute_rate_factor(6) == 0.0
        and epochs._compute_rate_factor(3) == pytest.approx(0.5)
    )
    assert module_of(files, "--max-epochs=3", "--max-steps=5").config.last_step() == 5
    assert epochs.config.max_minutes is None, "epochs end a run as steps do"


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_configured_optimisers(files, name, kind):
    words = (f"--optimizer={name}", "--betas=[0.5,0.75]", "--weight-decay=0.25", "--learning-rate=0.01")
    made = module_of(files, *words, "--warmup-steps=0").configure_optimizers()["optimizer"]
    assert type(made) is kind and made.defaults["betas"] == (0.5, 0.75)
    assert (made.defaults["weight_decay"], made.defaults["lr"]) == (0.25, 0.01)


@pytest.mark.parametrize(("clip", "norm"), [("null", 3700.0), ("1.0", 1.0), ("5000.0", 3700.0)])
def test_configured_gradient_clipping(files, clip, norm):
    module = module_of(files, f"--gradient-clip={clip}")
    optimiser = torch.optim.SGD(module.parameters(), 1.0)
    module.model.weight.grad, module.model.bias.grad = torch.tensor([[3700.0 * 0.6, 3700.0 * 0.8]]), torch.zeros(1)
    before = module.model.weight.grad.clone()
    module.configure_gradient_clipping(optimiser)
    assert module.model.weight.grad.norm().item() == pytest.approx(norm, rel=1e-5)
    assert torch.equal(module.model.weight.grad, before) or clip == "1.0"
    module.model.weight.grad[0, 0] = torch.inf
    module.configure_gradient_clipping(optimiser)
    assert module.model.weight.grad is None, "a step that is not finite is left out in either case"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizer=sgd"], "optimizer must be one of adamw, adam, got 'sgd'"),
        (["--schedule=linear"], "schedule must be one of cosine, constant, steps, got 'linear'"),
        (["--schedule=steps"], "milestones must be growing numbers of steps with schedule 'steps'"),
        (["--milestones=[3]"], "empty with any other, got .3. with 'cosine'"),
        (["--betas=[0.9,1.0]"], r"betas must lie in \[0, 1\), got \[0.9, 1.0\]"),
        (["--max-epochs=0"], "max_epochs must be at least 1, got 0"),
        (["--data.split=days"], "data.split must be one of blocks, random, got 'days'"),
        (["--data.split=random"], "data.fixed_samples must be the numbers of training, validation and test samples"),
        (["--data.fixed-samples=[3,2,1]"], "data.fixed_samples is for data.split=random"),
        (["--data.split=random", "--data.fixed-samples=[3,2,1]", "--data.synthetic-events=1"], "from whole files"),
        (["--data.minimum-valid=2"], r"data.minimum_valid must lie in \[0, 1\], got 2.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_options_are_rejected(files, words, message):
    with pytest.raises(ValueError, match=message):
        module_of(files, *words)


def radar_data(files, seed=0, **options):
    from fastds.tasks.radar.config import DataConfig
    from fastds.tasks.radar.samples import RadarData

    values = {"crop": 8, "scales": [1], "intervals": [1], "modes": ["dbz"], "minimum_echo": 0.0, "epoch_samples": 6}
    made = RadarData(DataConfig(f"{files}/radar", **values | options), flow=False, seed=seed)
    made.setup()
    return made


def random_sets(files, seed=0, **options):
    made = radar_data(files, seed, split="random", fixed_samples=[20, 6, 9], **options)
    return made, [set(made.training.fixed), set(made.validation.fixed), set(made.test.fixed)]


def test_random_sets_are_disjoint_and_depend_on_the_seed_alone(files):
    """The sets have the requested sizes for any options of the training; each sample occurs once per pass."""
    made, sets = random_sets(files)
    assert [len(one) for one in sets] == [20, 6, 9] and len(set.union(*sets)) == 35
    assert random_sets(files, augment=False, epoch_samples=20, batch_size=2)[1] == sets
    assert random_sets(files, seed=1)[1] == sets, "trainings of several seeds have the same test samples"
    assert random_sets(files, split_seed=1)[1] != sets
    samples = made.training
    passes = [[samples._get_fixed_draw(20 * turn + k) for k in range(20)] for turn in range(3)]
    assert all(set(one) == sets[0] for one in passes) and passes[0] != passes[1]
    assert len(made.validation) == 6 and len(made.test) == 9 and made.training.stores is made.test.stores


def test_random_sets_meet_the_required_echo_and_valid_pixels(files):
    made, _ = random_sets(files, minimum_echo=0.3, minimum_valid=1.0)
    for samples in (made.training, made.validation, made.test):
        for draw in samples.fixed:
            z = samples.stores[draw.source].dbz(draw.triple, *samples.window(draw))
            assert np.isfinite(z).all() and (z > 15.0).mean() >= 0.3
            assert np.diff(draw.triple).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"fixed_samples \[1, 1, 0\] are 2, and 0 different samples .* 100% of echo"):
        radar_data(files, split="random", fixed_samples=[1, 1, 0], minimum_echo=1.0, floor=60.0)


def test_samples_without_rotation(files):
    """The options augment and reverse are independent; without both, samples equal the file."""
    both, plain = radar_data(files).training, radar_data(files, augment=False, reverse=False).training
    rotated, reversed_ = radar_data(files, reverse=False).training, radar_data(files, augment=False).training
    differ = {"rotated": 0, "reversed": 0}
    for k in range(12):
        draw, z = plain.draw(np.random.default_rng((0, k)))
        y = torch.from_numpy(plain.read(draw, z)["y"])
        assert torch.equal(plain[k]["y"], y)
        assert any(torch.equal(reversed_[k]["y"], case) for case in (y, y.flip(0)))
        cases = [f for z in (y, y.mT) for f in (z, z.flip(-1), z.flip(-2), z.flip(-1, -2))]
        assert any(torch.equal(rotated[k]["y"], case) for case in cases)
        assert any(torch.equal(both[k]["y"], case) for one in cases for case in (one, one.flip(0)))
        differ["rotated"] += not torch.equal(rotated[k]["y"], y)
        differ["reversed"] += not torch.equal(reversed_[k]["y"], y)
    assert all(differ.values())


def nowcast_data(files, **options):
    from fastds.tasks.nowcast.config import DataConfig
    from fastds.tasks.nowcast.samples import NowcastData

    values = {"known": 3, "future": 2, "fewest": 2, "crop": 16, "scales": [1], "minimum_echo": 0.0, "epoch_samples": 6}
    made = NowcastData(DataConfig(f"{files}/radar", **values | options), moving=False)
    made.setup()
    return made


def test_nowcast_samples_at_the_requested_interval(files):
    """The interval applies to training and validation."""
    field = data.open_dataset(files / "radar" / "event.nc")["reflectivity"].values
    frames = np.where(np.isfinite(field), field, 0.0).clip(0.0, 60.0) / 60.0
    made = nowcast_data(files, intervals=[2], augment=False, reverse=False)
    views = np.lib.stride_tricks.sliding_window_view(frames, (9, 16, 16))[..., ::2, :, :]
    for samples in (made.training, made.validation):
        assert set(samples.windows[0]) == {2}
        for k in range(3):
            x = samples[k]["frames"][:, 0].numpy()
            brightest = np.unravel_index(x.argmax(), x.shape)
            places = np.argwhere(np.isclose(views[(..., *brightest)], x.max(), atol=1e-6))
            assert any(np.allclose(views[tuple(place)], x, atol=1e-6) for place in places)
    assert set(nowcast_data(files, intervals=[1, 2]).validation.windows[0]) == {1}
    plain, rotated = (nowcast_data(files, augment=on, reverse=False).training for on in (False, True))
    assert any(not torch.equal(plain[k]["frames"], rotated[k]["frames"]) for k in range(6))


@pytest.mark.parametrize(
    ("written", "task", "name"),
    [
        ("DB-PrecipLSTM", "nowcast", "db-preciplstm"),
        ("MS-PredRNN++", "nowcast", "ms-predrnn++"),
        ("WGAN-GP", "humidity", "wgan-gp"),
        ("ZSM-DS", "radar", "fczsm-ds"),
        ("FC-ZSM", "radar", "fczsm"),
        ("EDSR-x2", "fields", "edsr-x2"),
    ],
)
def test_preset_names_as_in_the_papers(written, task, name):
    from fastds.models.registry import resolve_preset
    from fastds.training.command import _find_task

    options = importlib.import_module(f"fastds.tasks.{task}.config")
    assert options.parse_arguments(["--config", written, "--data.path=x"]).output == name
    assert _find_task([f"--config={written}"]) == task and resolve_preset(written) == name


@pytest.mark.parametrize(("task", "name"), PAPERS, ids=[name for _, name in PAPERS])
def test_paper_configuration_names_the_source_of_each_line(task, name):
    """A comment names the section, table or equation, or states that the paper leaves the value open."""
    text = find_configurations(task)[name].read_text()
    for line in text.splitlines():
        key, _, rest = line.partition("#")
        bare = key.strip()
        assert rest or not bare or bare.endswith((":", "}")) or bare.startswith(("output", "path", "content_weight")), (
            line
        )
    config = importlib.import_module(f"fastds.tasks.{task}.config").parse_arguments(["--config", name])
    assert config.ema_decay == 0.0 and config.output == name
    if task != "humidity":
        assert (config.optimizer, tuple(config.betas), config.gradient_clip) == ("adam", (0.9, 0.999), None)
        assert config.warmup_steps == 0 and config.weight_decay == 0.0 and config.max_epochs
