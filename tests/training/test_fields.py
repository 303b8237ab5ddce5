# SPDX-License-Identifier: Apache-2.0
"""Tests of training arbitrary-scale networks on synthetic fields: short runs, resuming and errors."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from fastds import cli, models
from fastds.models.card import ANY
from fastds.tasks.fields.config import DataConfig, ModelConfig, TrainingConfig
from fastds.tasks.fields.evaluation import make_coarse_and_fine
from fastds.tasks.fields.samples import FieldData, load_fields
from fastds.tasks.fields.training import FieldModule, train
from fastds.training.command import main


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Write waves of 40 x 90 points, which a network interpolates better than bilinear after a few steps."""
    rows, columns = torch.arange(40.0)[:, None], torch.arange(90.0)[None]
    field = torch.stack([torch.sin(1.1 * rows + 0.3 * t) * torch.cos(0.9 * columns - t) for t in range(4)])
    data = {
        "t": (("time", "latitude", "longitude"), (280 + 5 * field).numpy(), {"units": "K"}),
        "q": (("time", "latitude", "longitude"), (3 + field.square()).numpy(), {"units": "g kg-1"}),
        "height": (("latitude", "longitude"), (500 + 100 * field[0]).numpy(), {"units": "m"}),
    }
    file = tmp_path_factory.mktemp("fields") / "waves.nc"
    xr.Dataset(data).to_netcdf(file, engine="h5netcdf")
    return file


def config(path, output, **options):
    data = DataConfig(
        str(path), variables=["t", "q"], train=[0, 55], validation=[60, 90], crop=12, halo=1, queries=200,
        scales=[1.5, 2.5], batch_size=4, epoch_samples=100, vectors=[-1, -1], test_scales=[2.0],
    )  # fmt: skip
    model = {
        "encoder_options": {"channels": 16, "blocks": 2},
        "dpfa_count": 1,
        "decoder_options": {"width": 32, "heads": 2, "key_width": 4},
    }
    return TrainingConfig(
        data, ModelConfig(options=model), output=str(output), **{"learning_rate": 4e-3, "ema_decay": 0.0} | options
    )


def test_training_learns_and_exports(path, tmp_path):
    torch.manual_seed(0)
    best = train(config(path, tmp_path, max_steps=100, warmup_steps=5))
    model = models.load(best)
    scores = model.card.metrics["validation"]
    gains = [scores[f"model/psnr/x2/{c}"] - scores[f"bicubic/psnr/x2/{c}"] for c in (0, 1)]
    assert scores["val_gain_db"] == pytest.approx(sum(gains) / 2, abs=1e-4) and scores["val_gain_db"] > 1.0
    assert {name.split()[-1] for name in model.card.input_ranges} == {"mean", "gradient", "slope"}
    assert abs(model.mean[0] - 280) < 2 and model.config["in_channels"] == 2
    truth = load_fields(config(path, tmp_path).data)[:1, :, :, 60:]
    x, y = make_coarse_and_fine(truth, 2.0)
    with torch.no_grad():
        error = (model(x, scale=2) - y)[..., 8:-8, 8:-8].square().mean((0, 2, 3))
    bicubic = torch.nn.functional.interpolate(x, y.shape[2:], mode="bicubic")
    assert (error < (bicubic - y)[..., 8:-8, 8:-8].square().mean((0, 2, 3))).all()


def test_samples_follow_the_type_of_network(path, tmp_path):
    """Networks for one factor get samples of that factor; a network for any variable uses all fields."""
    with xr.open_dataset(path) as dataset:
        xr.concat([dataset, dataset], "longitude").to_netcdf(tmp_path / "wide.nc", engine="h5netcdf")
    small = [f"--data.path={tmp_path / 'wide.nc'}", "--data.crop=12", "--data.queries=20", "--data.epoch-samples=8"]
    for name, more, scale in (("edsr-x2", ["--data.variables=[t,q]"], 2), ("inr-any", [], None)):
        output = tmp_path / name
        assert main(["fields", f"--model={name}", *small, *more, "--max-steps=1", f"--output={output}"]) == 0
        model = models.load(output / "best.safetensors")
        assert model.config.get("scale") == scale
        assert [v["name"] for v in model.card.input_variables] == (["t", "q"] if scale else [ANY])


def test_another_factor_than_the_networks_is_refused(path, tmp_path, capsys):
    given = ["fields", "--model=edsr-x2", f"--data.path={path}", "--data.variables=[t,q]", f"--output={tmp_path}/o"]
    assert main([*given, "--data.scales=[1,3]"]) == 2
    assert "--data.scales must be [2, 2], the one factor of edsr-x2, got [1.0, 3.0]" in capsys.readouterr().err


def test_static_maps_reach_the_encoder(path, tmp_path):
    run = config(path, tmp_path, max_steps=25)
    run.data.statics = ["height"]
    model = models.load(train(run)).eval()
    assert model.static_channels == 1 and abs(model.static_mean[0] - 500) < 20 and 20 < model.static_std[0] < 90
    x, height = torch.randn(1, 2, 8, 9), torch.full((1, 1, 8, 9), 500.0)
    with torch.no_grad():
        assert (model(x, scale=2, static=height + 100) - model(x, scale=2, static=height)).abs().max() > 1e-5


def test_command_uses_static_maps_of_another_file_and_grid(tmp_path, capsys):
    lat, lon = 60 - 0.5 * torch.arange(40.0), 0.5 * torch.arange(90.0)
    t = 280 + torch.sin(lat)[:, None] * torch.cos(lon)[None] + torch.zeros(4, 1, 1)
    axes = {"latitude": ("latitude", lat, {"units": "degrees_north"}), "longitude": ("longitude", lon)}
    axes["longitude"] += ({"units": "degrees_east"},)
    attrs = {"units": "K", "standard_name": "air_temperature"}
    file, relief = tmp_path / "t.nc", tmp_path / "relief.nc"
    xr.Dataset({"t": (("time", *axes), t.numpy(), attrs)}, axes).to_netcdf(file, engine="h5netcdf")
    lat, lon = 62 - 0.125 * torch.arange(200.0), -1 + 0.125 * torch.arange(380.0)
    axes = {name: (name, v, axes[name][2]) for name, v in (("latitude", lat), ("longitude", lon))}
    height = (lat[:, None] * 20 + lon[None]).numpy()
    xr.Dataset({"h": (tuple(axes), height, {"units": "m"})}, axes).to_netcdf(relief, engine="h5netcdf")
    run = config(file, tmp_path / "run", max_steps=25)
    run.data.variables, run.data.statics = ["t"], [f"{relief}:h"]
    weights = str(train(run))
    model = models.load(weights)
    assert model.card.static_variables == [{"name": "h", "units": "m"}]
    # The map is a plane, so the mean of a cell is its value in the middle. The mean is over the training columns.
    assert abs(model.static_mean[0] - (20 * (60 - 0.25 * 39) + 0.25 * 54)) < 1.0
    command = ["downscale", str(file), str(tmp_path / "fine.nc"), "--model", weights, "--scale=2"]
    assert cli.main(command) == 2
    assert "reads static maps, h (m): give them with --static (FILE.nc" in capsys.readouterr().err
    assert cli.main([*command, "--static", str(relief)]) == 0
    with xr.open_dataset(tmp_path / "fine.nc", engine="h5netcdf") as fine:
        assert fine.t.shape == (4, 80, 180) and "static maps: h of relief.nc" in fine.attrs["history"]
    (tmp_path / "points.csv").write_text("lat,lon\n50.1,7.3\n")
    query = ["query", str(file), "--points", str(tmp_path / "points.csv"), "--out", str(tmp_path / "values.csv")]
    assert cli.main([*query, "--model", weights, "--static", f"{relief}:h"]) == 0
    assert abs(pd.read_csv(tmp_path / "values.csv").t_bilinear[0] - 280) < 2


def test_training_starts_from_given_weights(path, tmp_path):
    """The normalisation is taken from the weights; weights of other variables are refused."""
    first = train(config(path, tmp_path / "first", max_steps=2))
    again = config(path, tmp_path / "again", max_steps=1)
    again.learning_rate = 0.0
    again.data.train, again.data.validation, again.model.start = [20, 55], [60, 90], str(first)
    a, b = (models.load(weights) for weights in (first, train(again)))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    again.data.variables = ["t"]
    with pytest.raises(ValueError, match="reads 2 variables and 0 static maps, data.variables .* name 1 and 0"):
        train(again)


def test_loss_by_hand(path, tmp_path):
    """Absolute errors are divided by the mean error of bilinear interpolation on the first 64 samples."""
    run = config(path, tmp_path)
    run.data.degraded = 0.0
    data = FieldData(run.data, seed=4)
    expected = torch.zeros(2, dtype=torch.float64)
    for i in range(64):
        s = data.training[i]
        x, base, t = s["x"].double(), s["base"].long(), s["frac"].double()
        (top, left), (bottom, right) = ((base + k).clamp(0, 11).T for k in (0, 1))
        v, u = t.T
        above, below = (x[:, row, left] * (1 - u) + x[:, row, right] * u for row in (top, bottom))
        expected += (above * (1 - v) + below * v - s["target"].T.double()).abs().mean(1) / 64
    module = FieldModule(torch.nn.Linear(1, 1), run, data)
    torch.testing.assert_close(module.error_scale.double(), expected, rtol=1e-5, atol=0)
    prediction, target = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    by_hand = sum(((prediction - target)[..., c].double().abs() / expected[c]).mean() for c in range(2)) / 2
    torch.testing.assert_close(module.loss(prediction, {"target": target}).double(), by_hand, rtol=1e-5, atol=0)


def test_training_resumes(path, tmp_path):
    train(config(path, tmp_path, max_steps=25))
    train(config(path, tmp_path, max_steps=50))
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 50
    logs = [pd.read_csv(tmp_path / "csv" / name) for name in ("metrics.0.csv", "metrics.csv")]
    assert logs[0]["step"].max() <= 25 < logs[1]["step"].max()  # the curve before the resume stays


def test_a_killed_run_leaves_its_last_epoch(path, tmp_path, monkeypatch):
    steps = FieldModule.training_step

    def die(self, batch, index):
        if self.trainer.global_step == 60:
            raise KeyboardInterrupt
        return steps(self, batch, index)

    monkeypatch.setattr(FieldModule, "training_step", die)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(config(path, tmp_path, max_steps=75))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 50


def refused(run, change, message):
    """Check that a training with other data options is refused with a message."""
    for key, value in change.items():
        setattr(run.data, key, value)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(run)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"variables": ["t", "rain"]}, "'rain' is not in"),
        ({"units": ["degC", "g kg-1"]}, "t is in 'K', expected 'degC'"),
        ({"crop": 100}, "too small for crop 100"),
        ({"path": "nowhere.nc"}, "no such file"),
        ({"statics": ["relief"]}, "data.statics: .*there is no variable 'relief' in .* t, q, height"),
        ({"statics": ["t"]}, "data.statics: static map t has dimensions .* a map over"),
        ({"level": 500.0}, "level 500 was requested, but variable 't' has no vertical"),
    ],
)
def test_configuration_errors(path, tmp_path, change, message):
    run = config(path, tmp_path, max_steps=1)
    refused(run, change, message)


def test_overlapping_splits_are_refused():
    with pytest.raises(ValueError, match="overlap"):
        DataConfig("x.nc", train=[0, 50], validation=[40, 90])


def test_train_fields_command(path, tmp_path, capsys):
    arguments = ["--config", "inr-small", f"--data.path={tmp_path}/none.nc", f"--output={tmp_path}"]
    assert main(arguments) == 2
    assert "no such file" in capsys.readouterr().err


def test_failed_start_leaves_no_files(path, tmp_path, capsys):
    arguments = [f"--data.path={path}", "--data.variables=[t]", "--max-steps=1", "--threads=1"]
    for wrong in ("--data.path=none.nc", "--data.variables=[x]", "--data.crop=500", "--model=nope", "--threads=0"):
        assert main(["fields", *arguments, wrong, f"--output={tmp_path}/new"]) == 2
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("seed: 3")
    assert main(["fields", *arguments, "--data.path=none.nc", f"--output={tmp_path}/old"]) == 2
    assert (tmp_path / "old" / "config.yaml").read_text() == "seed: 3"
    capsys.readouterr()
    for wrong, sentence in (("--rate=1", "unknown option --rate"), ("--learning-rate=fast", "--learning-rate")):
        assert main(["fields", *arguments, wrong]) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.startswith("fastds train: ") and error.count("\n") == 1


def test_defaults_suit_a_user_file(path, tmp_path, capsys):
    """The split, the card and the wind components follow from the file."""
    arguments = [f"--data.path={path}", "--data.variables=[t]", "--data.crop=8", "--data.halo=1", "--data.queries=64"]
    arguments += ["--data.batch-size=2", "--data.epoch-samples=4", "--max-steps=2", "--threads=1"]
    small = "{encoder_options: {channels: 8, blocks: 2}, dpfa_count: 1, decoder_options: {width: 16, heads: 2}}"
    arguments += [
        "--data.scales=[1.0,2.0]",
        "--data.test-scales=[1.5]",
        f"--model.options={small}",
        f"--output={tmp_path}/o",
    ]
    assert main(["fields", *arguments, "--data.train=[0,55]", "--data.validation=[70,90]"]) == 2
    assert "at least 24 rows and columns are needed" in capsys.readouterr().err
    assert main(["fields", *arguments]) == 0  # a fifth of 90 columns is too few
    assert "the first 62 are for training, and the last 24 for validation" in capsys.readouterr().out
    assert models.load(tmp_path / "o" / "best.safetensors").card.input_variables == [{"name": "t", "units": "K"}]


def test_a_run_shorter_than_an_epoch_is_validated_at_its_end(path, tmp_path):
    """A resumed run is validated at its end, too."""
    for steps, folder in ((3, "short"), (30, "more")):
        weights = models.load(train(config(path, tmp_path / folder, max_steps=steps)))
        assert "val_gain_db" in weights.card.metrics["validation"]
        log = pd.read_csv(tmp_path / folder / "csv" / "metrics.csv")
        assert log[log.val_gain_db.notna()].step.max() >= steps - 1
        assert torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps
    again = train(config(path, tmp_path / "short", max_steps=5))
    assert again.exists()
    assert torch.load(tmp_path / "short" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


def test_resume_inside_an_epoch_does_not_warn(path, tmp_path):
    """Lightning warns of samples that come again; ours go on."""
    arguments = [f"--data.path={path}", "--data.variables=[t]", "--data.crop=8", "--data.halo=1", "--data.queries=64"]
    arguments += ["--data.batch-size=2", "--data.epoch-samples=8", "--data.train=[0,55]", "--data.validation=[60,90]"]
    small = "{encoder_options: {channels: 8, blocks: 2}, dpfa_count: 1, decoder_options: {width: 16, heads: 2}}"
    arguments += [
        "--data.scales=[1.0,2.0]",
        "--data.test-scales=[1.5]",
        f"--model.options={small}",
        f"--output={tmp_path}",
    ]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert [main(["fields", *arguments, f"--max-steps={steps}"]) for steps in (1, 3)] == [0, 0]
    assert not [w for w in seen if "resuming" in str(w.message)]


def test_run_without_finite_score_warns(path, tmp_path, monkeypatch):
    monkeypatch.setattr(FieldModule, "validation_step", lambda self, x, i: self.log("val_gain_db", float("nan")))
    with pytest.raises(ValueError, match="ended at step 3 without a finite validation error"):
        train(config(path, tmp_path, max_steps=3))


def test_an_interrupt_reaches_the_caller(path, tmp_path, monkeypatch):
    def interrupt(self, batch, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(FieldModule, "training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config(path, tmp_path, max_steps=75))


@pytest.fixture(scope="module")
def folder(path):
    """Add a file with one field on another grid, part of which is constant, and return the folder."""
    height = torch.sin(0.7 * torch.arange(50.0))[:, None] * torch.cos(torch.arange(150.0))[None]
    height[:, :40] = 7.0
    xr.Dataset({"h": (("latitude", "longitude"), (500 * height).numpy())}).to_netcdf(
        path.parent / "map.nc", engine="h5netcdf"
    )
    return path.parent


def config_of_each(folder, output, each=("waves.nc:t", "map.nc:h"), **options):
    run = config(folder, output)
    small = {"crop": 12, "halo": 1, "queries": 200, "scales": [1.5, 2.5], "batch_size": 4, "epoch_samples": 100}
    data = DataConfig(str(folder), each=list(each), test_scales=[1.5], **small)
    model = ModelConfig(name="inr-any", options=run.model.options)
    return TrainingConfig(data, model, output=str(output), learning_rate=4e-3, **options)


def test_one_network_of_any_variable(folder, tmp_path):
    """The card has no variable names, so that the network accepts variables in any units."""
    torch.manual_seed(0)
    run = config_of_each(folder, tmp_path, max_steps=100, warmup_steps=5, ema_decay=0.0)
    data = FieldData(run.data)
    assert [tuple(block.usable.shape) for block in data.training.blocks] == [(4, 1, 40, 67), (1, 1, 50, 112)]
    assert [tuple(field.shape) for field in data.validation] == [(1, 50, 30)]  # 18 columns of waves are too few
    model = models.load(train(run))
    assert model.card.any_variable and model.card.task == "fields" and set(model.card.input_ranges) == {"slope"}
    truth = load_fields(config(folder / "waves.nc", tmp_path).data)[:1, :1, :, 60:]
    x, y = make_coarse_and_fine(1e4 * (truth - 280), 1.5)
    with torch.no_grad():
        error = (model(x, scale=1.5) - y)[..., 8:-8, 8:-8].square().mean()
    bicubic = torch.nn.functional.interpolate(x, y.shape[2:], mode="bicubic")
    assert error < (bicubic - y)[..., 8:-8, 8:-8].square().mean()


def test_loss_of_any_variable_by_hand(folder, tmp_path):
    run = config_of_each(folder, tmp_path)
    run.data.each = ["map.nc:h"]
    data = FieldData(run.data, seed=4)
    samples = [data.training[i] for i in range(60)]
    flat = next(s for s in samples if s["x"].min() == s["x"].max())
    rough = next(s for s in samples if s["x"].std() > 100)
    module, by_hand = FieldModule(torch.nn.Linear(1, 1), run, data), []
    for s in (flat, rough):
        x, base, t = s["x"][0].double(), s["base"].long(), s["frac"].double()
        (top, left), (bottom, right) = ((base + k).clamp(0, 11).T for k in (0, 1))
        above, below = (x[row, left] * (1 - t[:, 1]) + x[row, right] * t[:, 1] for row in (top, bottom))
        plain = above * (1 - t[:, 0]) + below * t[:, 0]
        scale = (plain - s["target"][:, 0]).abs().mean() + 1e-6 * x.abs().max()
        by_hand.append(float((0.01 + 0 * plain).mean() / scale))
    assert by_hand[0] == pytest.approx(0.01 / (1e-6 * 3500), rel=0.1)  # the area mean is rounded, too
    batch = torch.utils.data.default_collate([flat, rough])
    found = module.loss(batch["target"] + 0.01, batch)
    assert float(found) == pytest.approx(sum(by_hand) / 2, rel=0.02)  # 0.01 on top of 3500 is rounded


@pytest.mark.parametrize(
    "change,message",
    [
        ({"each": ["none.nc:t"]}, "data.each: 'none.nc:t' is not FILE.nc:VARIABLE of the folder"),
        ({"each": ["t"]}, "data.each: 't' is not FILE.nc:VARIABLE"),
        ({"each": ["waves.nc:rain"]}, "data.each: 'rain' is not in .*waves.nc, which has"),
        (
            {"each": ["waves.nc:t"], "test_scales": [30.0]},
            "data.each: no last fifth of columns has the 80 rows and columns",
        ),
        ({"crop": 30}, r"fields of \(40, 67\) are too small for crop 30 and halo 1 at factor 1.5"),
    ],
)
def test_any_variable_errors(folder, tmp_path, change, message):
    run = config_of_each(folder, tmp_path, max_steps=1)
    refused(run, change, message)


@pytest.mark.parametrize("option", [{"variables": ["t"]}, {"level": 500.0}, {"train": [0, 5], "validation": [7, 9]}])
def test_options_of_one_file_are_refused_with_each(option):
    with pytest.raises(ValueError, match=f"data.{next(iter(option))} cannot be given with data.each"):
        DataConfig("x", each=["a.nc:t"], **option)
    with pytest.raises(ValueError, match="data.degraded needs one range of values, give 0 with data.each"):
        DataConfig("x", each=["a.nc:t"], degraded=0.5)


def test_integer_factors(path):
    """With whole_factors=1, factors are integers of at least 2, unless the field is too small for 2."""
    data = config(path, "").data
    data.whole_factors, data.scales = 1.0, [1.2, 2.9]
    factors = torch.stack([FieldData(data).training[i]["factor"] for i in range(20)])
    assert set(factors.flatten().tolist()) == {2.0}  # 40 rows take 2.86 at most
    data.crop, data.halo = 24, 0
    assert {float(FieldData(data).training[i]["factor"][0]) for i in range(20)} - {1.0, 2.0}


@pytest.mark.parametrize("columns, limits, crop", [(121, (87, 28), 32), (80, (48, 28), 32), (61, (30, 28), 22)])
def test_small_grid_gets_fitting_columns_and_crop(tmp_path, capsys, columns, limits, crop):
    values = np.random.default_rng(0).normal(280, 5, (6, 53, columns)).astype(np.float32)
    axes = {"latitude": 40 + 0.25 * np.arange(53), "longitude": 0.25 * np.arange(columns)}
    units = {"latitude": "degrees_north", "longitude": "degrees_east"}
    form = {name: (name, axis, {"units": units[name]}) for name, axis in axes.items()}
    field = (("time", "latitude", "longitude"), values, {"units": "K"})
    xr.Dataset({"t": field}, form).to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    data = FieldData(DataConfig(str(tmp_path / "t.nc"), variables=["t"]))
    assert data.training.blocks[0].usable.shape[3] == limits[0] and data.validation.shape[3] == limits[1]
    assert data.training[0]["x"].shape[1:] == (crop, crop)
    printed = capsys.readouterr().out
    assert f"the first {limits[0]} are for training" in printed and ("data.crop=22" in printed) == (crop == 22)
    with pytest.raises(ValueError, match=r"data.crop: fields of \(53, .* too small for crop 90 .*at most \d+ fits"):
        FieldData(DataConfig(str(tmp_path / "t.nc"), variables=["t"], crop=90))
    if crop < 32:  # a crop that was given is not replaced, even if it has the default value
        with pytest.raises(ValueError, match="too small for crop 32 .*at most 22 fits"):
            FieldData(DataConfig(str(tmp_path / "t.nc"), variables=["t"], crop=32))
