# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds finetune: training, selection on held-out samples, and the model card."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr

from tests.support.small_models import TEMPERATURE, field_model, gridded, nowcaster, radar_model

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import models
from fastds.cli import main
from fastds.data import reflectivity_to_rate, save_dataset, synthetic_event
from fastds.tasks.finetune import finetune, format_scores, make_config
from fastds.tasks.radar.synthetic_scores import Errors, score_synthetic_events


@pytest.fixture
def files(tmp_path):
    """Write two radar files of 24 fields and weights."""
    (tmp_path / "mine").mkdir()
    for seed in (1, 2):
        save_dataset(synthetic_event(seed, 24, (96, 96))[["reflectivity"]], tmp_path / "mine" / f"{seed}.nc")
    model = radar_model()
    model.card.training_data, model.card.licence = ["an event"], "CC0"
    model.card.description = "A test: small."
    models.save(model, tmp_path / "w.safetensors")
    return tmp_path


def options(monkeypatch, **changed):
    """Shorten the runs by changing the configuration."""

    def make_short(*arguments):
        config = make_config(*arguments)
        for name, value in {"max_steps": 4, "ema_decay": 0.0, "loss": "mse"}.items() | changed.items():
            setattr(config, name, value)
        for name, value in {"crop": 16, "epoch_samples": 8, "validation_samples": 8, "workers": 0}.items():
            setattr(config.data, name, value)
        return config

    monkeypatch.setattr("fastds.tasks.finetune.make_config", make_short)


def test_the_command_prints_scores_and_writes_a_card(files, monkeypatch, capsys):
    options(monkeypatch)
    words = ["finetune", str(files / "w.safetensors"), "--data", str(files / "mine"), "--output", str(files / "run")]
    assert main([*words, "--max-minutes", "5", "--learning-rate", "1e-4", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    card = models.load_card(files / "run" / "best.safetensors")
    before, after = (card.metrics[name]["mse_total"] for name in ("start", "validation"))
    assert f"mse_total: {before:.4g} before, {after:.4g} after" in printed and f"wrote {files}/run/best" in printed
    assert f"squared error in dBZ^2 on the validation samples: {after:.4g} against " in printed
    assert after <= before and card.name == "tiny-finetuned" and card.licence == "CC0"
    assert card.training_data == ["an event", "trained further on 1.nc", "trained further on 2.nc"]
    assert card.description == "tiny trained further on mine. A test: small."
    trained, given = (models.load(files / name).state_dict() for name in ("run/last.safetensors", "w.safetensors"))
    moved = [float((trained[name] - given[name]).abs().max()) for name in given]
    assert 0 < max(moved) < 1e-2  # from these weights on, by four small steps


def test_initial_score_is_of_the_given_weights(files, monkeypatch):
    """The initial score in the card is that of the first validation, before any step."""
    from fastds.tasks.radar.training import ExportWeights

    errors, known = [], ExportWeights.validate

    def validate(self, trainer, module):
        errors.append(known(self, trainer, module)[2])
        return known(self, trainer, module)

    monkeypatch.setattr(ExportWeights, "validate", validate)
    options(monkeypatch, max_steps=6)
    best = finetune(files / "w.safetensors", files / "mine", output=files / "run", learning_rate=1e-3)
    scores = models.load_card(best).metrics
    assert len(errors) >= 3 and min(errors) < errors[0]
    assert scores["start"]["mse_total"] == errors[0] and scores["validation"]["mse_total"] == min(errors)


def test_finetune_returns_the_better_weights(files, monkeypatch, capsys):
    options(monkeypatch)
    best = finetune(files / "w.safetensors", files / "mine", output=files / "run", learning_rate=3.0)
    for (name, a), b in zip(
        models.load(best).state_dict().items(), models.load(files / "w.safetensors").state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert "no validation was better than the first: the weights are those it started from" in format_scores(best)


@pytest.mark.parametrize(
    "name, from_shipped, without",
    [
        ("fczsm-small", {"crop": 44, "scales": [1, 1, 2]}, {"blocks": {}, "weights": [], "synthetic_events": 0}),
        ("nowcast-small", {"crop": 56, "fewest": 4}, {"blocks": {}, "weights": [], "synthetic_events": 0}),
        ("inr-small", {"variables": ["r", "t", "u", "z"], "vectors": [2, -1]}, {"train": [], "validation": []}),
        ("wgan-gp-small-x2", {"coarsening": "mean", "crop": 32}, {"sources": {}}),
        ("wgan-gp-small-x8", {"coarsening": "mean", "crop": 64}, {"sources": {}}),
    ],
)
def test_finetune_uses_the_shipped_configuration_without_its_files(name, from_shipped, without):
    card = models.load_card(name)
    config = make_config(name, card, "mine", "out", 7.0, 1e-4)
    assert {key: getattr(config.data, key) for key in from_shipped | without} == from_shipped | without
    assert (config.data.path, config.model.start, config.max_minutes) == ("mine", name, 7.0)


@pytest.mark.parametrize(
    ("card", "inputs"),
    [
        ({"name": "fczsm-small", "floor_dbz": 5.0, "ceiling_dbz": 60.0}, {"floor": 5.0, "ceiling": 60.0}),
        (
            {"name": "ms-convlstm", "floor_dbz": -10.0, "ceiling_dbz": 50.0, "input_steps": 3},
            {"floor": -10.0, "ceiling": 50.0, "known": 3},
        ),
        (
            {"name": "wgan-gp-small", "offset": 200.0, "range": 50.0, "coarsening": "decimate"},
            {"offset": 200.0, "range": 50.0, "coarsening": "decimate"},
        ),
        (
            {"name": "inr-small", "input_variables": [{"name": "t"}], "static_variables": [{"name": "orography"}]},
            {"variables": ["t"], "statics": ["orography"], "vectors": [], "units": []},
        ),
    ],
)
def test_user_weights_are_finetuned_by_their_model_card(card, inputs):
    card = models.ModelCard(**card)
    config = make_config("w.safetensors", card, "mine", "out", 7.0, 1e-4)
    assert {key: getattr(config.data, key) for key in inputs} == inputs


def test_user_weights_are_not_trained_by_paper_configurations():
    """Networks of a user are trained with the default options of the task, not with those of a paper."""
    card = models.ModelCard(name="ms-convlstm-mine", input_steps=5)
    config = make_config("w.safetensors", card, "mine", "out", 7.0, 1e-4)
    assert (config.data.crop, config.optimizer, config.loss.kind, config.max_epochs) == (96, "adamw", "rain", None)


@pytest.mark.parametrize("task", ["nowcast", "fields"])
def test_other_tasks_are_trained_further(tmp_path, monkeypatch, task):
    if task == "nowcast":
        model, data = nowcaster(), tmp_path / "radar"
        data.mkdir()
        save_dataset(synthetic_event(1, 48, (64, 64))[["reflectivity"]], data / "a.nc")
    else:
        model, data = field_model(), tmp_path / "t.nc"
        fields = gridded(TEMPERATURE)
        parts = [fields.assign_coords(time=fields.time + np.timedelta64(k, "D")) for k in range(6)]
        save_dataset(xr.concat(parts, "time", data_vars="minimal"), data)
    models.save(model, tmp_path / "w.safetensors")
    seen = []
    monkeypatch.setattr(f"fastds.tasks.{task}.training.train", lambda config: seen.append(config) or tmp_path)
    assert finetune(tmp_path / "w.safetensors", data, output=tmp_path / "run", max_minutes=3) == tmp_path
    (config,) = seen
    assert (config.model.start, config.data.path) == (str(tmp_path / "w.safetensors"), str(data))
    assert (config.max_minutes, config.learning_rate) == (3.0, 5e-4)


def test_finetune_rejects_untrainable_models(tmp_path, capsys):
    assert main(["finetune", "no-such", "--data", str(tmp_path)]) == 2
    assert "'no-such' is neither a file nor one of the shipped weights" in capsys.readouterr().err
    assert main(["finetune", "fczsm-small", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "o")]) == 2
    assert "no such file or folder" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_a_network_of_any_variable_takes_every_field_of_a_folder(tmp_path, monkeypatch):
    """All variables are used, except fields with missing values, which are named."""
    (tmp_path / "mine").mkdir()
    rng = np.random.default_rng(4)
    dims = ("latitude", "longitude")
    good, holed = (xr.Dataset({name: (dims, rng.normal(size=(90, 260)).astype("f4"))}) for name in ("snow", "soil"))
    holed.soil[3, 3] = np.nan
    for data, name in ((good.assign(n=3.0), "a.nc"), (holed, "b.nc")):
        data.to_netcdf(tmp_path / "mine" / name, engine="h5netcdf")
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    from fastds.tasks.fields import training

    def make_short(*arguments):
        config = make_config(*arguments)
        config.max_steps, config.data.epoch_samples, config.data.queries = 2, 16, 50
        return config

    monkeypatch.setattr("fastds.tasks.finetune.make_config", make_short)
    sources = []
    known = training.FieldData
    monkeypatch.setattr(training, "FieldData", lambda *a: sources.append(known(*a)) or sources[-1])
    with pytest.warns(UserWarning, match="soil of .*b.nc is left out: .*missing values"):
        best = finetune("inr-any", tmp_path / "mine", output=tmp_path / "run", max_minutes=1, threads=1)
    assert [tuple(block.usable.shape) for block in sources[0].training.blocks] == [(1, 1, 90, 195)]
    card = models.load_card(best)
    assert card.any_variable and card.name == "inr-any-finetuned"
    assert card.training_data[-1] == "trained further on a.nc"
    assert card.metrics["validation"]["val_gain_db"] >= card.metrics["start"]["val_gain_db"]
    (tmp_path / "mine" / "a.nc").unlink()
    with pytest.raises(ValueError, match="data.each: .*mine has no field without missing values on a regular grid"):
        finetune("inr-any", tmp_path / "mine", output=tmp_path / "again")


def test_finetune_accepts_the_reading_options(files, monkeypatch, capsys):
    """The file has rain rates without units and -9 for missing values, and some times are selected."""
    event = synthetic_event(3, 40, (96, 96))
    rain = reflectivity_to_rate(event.reflectivity.values)
    rain[:, :4] = -9
    (files / "rain").mkdir()
    plain = event[["reflectivity"]].assign(rain=(event.reflectivity.dims, rain)).drop_vars("reflectivity")
    plain.assign(other=plain.rain + 1).to_netcdf(files / "rain" / "rain.nc", engine="h5netcdf")
    options(monkeypatch)
    words = [str(files / "w.safetensors"), "--data", str(files / "rain"), "--output", str(files / "run")]
    read_options = ["--var", "rain", "--units", "mm/h", "--missing", "-9"]
    times = ["--start", str(event.time.values[4])[:16], "--stop", str(event.time.values[35])[:16]]
    assert main(["finetune", *words, *read_options, *times]) == 0, capsys.readouterr().err
    with xr.open_dataset(files / "run" / "data" / "rain.nc") as read:
        assert read.sizes["time"] == 32 and read.rain.attrs["units"] == "mm/h" and list(read.data_vars) == ["rain"]
        assert read.rain[:, :4].isnull().all() and read.rain[:, 4:].notnull().all()
    assert models.load_card(files / "run" / "best.safetensors").training_data[-1] == "trained further on rain.nc"
    assert main(["finetune", *words, "--var", "snow"]) == 2
    assert "'snow' is not in rain.nc, which has " in capsys.readouterr().err
    assert main(["finetune", "inr-small", *words[1:], "--var", "t"]) == 2
    assert "--var is for a network of one variable, inr-small reads r, t, u, z" in capsys.readouterr().err


@pytest.mark.parametrize("after", [0.9, 1.1])
def test_model_card_marks_weights_worse_on_other_data(files, monkeypatch, after):
    """The given weights beat advection on synthetic events; the fine-tuned weights may not."""
    made = iter([Errors(0.8, 1.0), Errors(after, 1.0)])
    monkeypatch.setattr("fastds.tasks.radar.synthetic_scores.score_synthetic_events", lambda model, device: next(made))
    options(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        best = finetune(files / "w.safetensors", files / "mine", output=files / "run", learning_rate=1e-4)
    card, sentence = models.load_card(best), "no better than advection on two synthetic events, where tiny is"
    assert any(sentence in str(one.message) for one in caught) == (after > 1)
    assert any(sentence in limit for limit in card.limits) == (after > 1)
    assert f"synthetic events: 0.8 before, {after} after, advection 1" in format_scores(best)


def test_shipped_radar_network_beats_baselines_on_other_data():
    errors = score_synthetic_events(models.load("fczsm-small"))
    assert errors.network < 0.97 * errors.advection
    assert score_synthetic_events(models.create("fczsm-s")) is None
