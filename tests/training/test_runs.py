# SPDX-License-Identifier: Apache-2.0
"""Tests of code that all trainings share: sampling, averaged weights, export, time limits and kills."""

import math
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support import training_runs

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds import models
from fastds.tasks.fields import training as fields
from fastds.tasks.humidity import training as humidity
from fastds.tasks.nowcast import training as nowcast
from fastds.tasks.radar import training as radar
from fastds.training.command import TASKS, main
from fastds.training.modules import BaseLightningModule, SupervisedModule

# Task -> (callback that exports weights, logged score that selects them, 1 if a lower score is better, else -1).
EXPORTS = {
    "radar": (radar.ExportWeights, "val_mse_total", 1),
    "fields": (fields.ExportWeights, "val_gain_db", -1),
    "humidity": (humidity.ExportGenerator, "val_crps", 1),
    "nowcast": (nowcast.ExportWeights, "val_error", 1),
}


@pytest.fixture(scope="module", params=TASKS)
def run(request, files, tmp_path_factory):
    """Run a short training of two epochs of four steps; record its batches and the weights after each step."""
    folder, batches, weights = tmp_path_factory.mktemp(request.param) / "o", [], []
    after = BaseLightningModule.on_train_batch_end

    def record(self, outputs, batch, index):
        batches.append([float(v.double().sum()) for v in batch.values()])
        network = self.model if isinstance(self, SupervisedModule) else self.average
        weights.append({name: p.detach().double().clone() for name, p in network.named_parameters()})
        after(self, outputs, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseLightningModule, "on_train_batch_end", record)
        assert main(training_runs.arguments(files, request.param, folder)) == 0
    return SimpleNamespace(task=request.param, folder=folder, batches=batches, weights=weights)


def test_every_step_sees_new_samples(run):
    assert len(run.batches) == 8 and len({tuple(values) for values in run.batches}) == 8


def test_exported_weights_are_the_averaged_ones(run):
    """The average is decay * average + (1 - decay) * weights and starts after the first step."""
    last, average = models.load(run.folder / "last.safetensors"), run.weights[0]
    for new in run.weights[1:]:
        average = {name: 0.9 * average[name] + 0.1 * value for name, value in new.items()}
    if run.task == "humidity":  # averages by itself, see test_training_humidity_step
        average = run.weights[-1]
    for name, parameter in last.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), average[name], rtol=1e-4, atol=1e-6)


def test_the_card_of_the_best_weights_has_the_best_score_of_the_log(run):
    _, name, sign = EXPORTS[run.task]
    logged = pd.read_csv(run.folder / "csv" / "metrics.csv")[name].dropna()
    scores = models.load(run.folder / "best.safetensors").card.metrics["validation"]
    assert len(logged) == 2
    found = scores["mse_total"] if run.task == "radar" else scores[name]
    assert found == pytest.approx(sign * (sign * logged).min(), rel=1e-6)


@pytest.mark.parametrize("task", EXPORTS)
def test_weights_of_the_best_score_are_saved(task, tmp_path, monkeypatch):
    """A resumed run keeps the best score, and a score that is NaN is never the best."""
    export, name, sign = EXPORTS[task]
    saved = {}
    monkeypatch.setattr("fastds.training.trainer.models.save", lambda n, path: saved.update({path.name: n.tag}))

    def validate(callback, tag, score):
        network = SimpleNamespace(tag=tag, card=models.ModelCard())
        others = "val_mse", "val_mse_reference", "val_mse_trilinear", "val_mse_noise_free", "val_mse_bicubic"
        values = dict.fromkeys(others, torch.tensor(1.0)) | {name: torch.tensor(sign * score)}
        shown = {"sanity_checking": False, "state": SimpleNamespace(fn="fit"), "is_global_zero": True}
        trainer = SimpleNamespace(**shown, callback_metrics=values)
        config = SimpleNamespace(model=SimpleNamespace(card={}), seed=7)
        plain = {key: float(value) for key, value in values.items()}
        methods = {"steps_done": lambda: tag, "validation_scores": lambda: plain}
        module = SimpleNamespace(model=network, exported=network, config=config, **methods)
        callback.on_validation_epoch_end(trainer, module)
        assert (network.card.input_ranges, network.card.seeds) == ({"mean": [1.0, 2.0]}, [7])
        return saved["last.safetensors"], saved.get("best.safetensors")

    callback = export(tmp_path, {"mean": [1.0, 2.0]})
    found = [validate(callback, k, score) for k, score in enumerate((math.nan, 3.0, 1.0, 2.0))]
    assert found == [(0, None), (1, 1), (2, 2), (3, 2)]
    again = export(tmp_path, {"mean": [1.0, 2.0]})
    again.load_state_dict(callback.state_dict())
    assert [validate(again, k, score) for k, score in ((4, 1.5), (5, 0.5))] == [(4, 2), (5, 5)]


@pytest.mark.parametrize("run", ["fields", "humidity"], indirect=True)
def test_a_resumed_run_follows_its_learning_rate(run, files, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "o")
    assert main(training_runs.arguments(files, run.task, folder, max_steps=12, learning_rate=1e-30)) == 0
    before, after = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (run.folder, folder))
    key = "current_model_state" if run.task == "fields" else "state_dict"  # not the average of the weights
    names = [name for name in before[key] if name.startswith(("model.", "generator.")) and name.endswith("weight")]
    assert names and all(torch.equal(before[key][name], after[key][name]) for name in names)


@pytest.mark.parametrize("run", ["nowcast", "humidity"], indirect=True)
@pytest.mark.parametrize(("seed", "best"), [(0, 0), (5, 5)])
def test_best_weights_are_rescored_on_current_samples(run, files, tmp_path, monkeypatch, capfd, seed, best):
    load = EXPORTS[run.task][0].load_state_dict
    monkeypatch.setattr(EXPORTS[run.task][0], "load_state_dict", lambda self, state: load(self, state | {"best": -1e9}))
    folder = shutil.copytree(run.folder, tmp_path / "o")
    assert main(training_runs.arguments(files, run.task, folder, max_steps=12, seed=seed)) == 0
    assert models.load_card(folder / "best.safetensors").seeds == [best]
    assert ("samples have changed: the best weights are selected again" in capfd.readouterr().out) == (seed > 0)


def test_run_without_resume_restarts(files, tmp_path, capfd):
    """The weights of the restarted run equal those of a run in a new folder."""

    def trained(folder, **options):
        assert main(training_runs.arguments(files, "radar", tmp_path / folder, **options)) == 0
        return "resumed from step 2" in capfd.readouterr().out

    assert not trained("o", max_steps=2) and not trained("fresh", max_steps=4)
    assert not trained("o", max_steps=4, resume=False)
    assert training_runs.same_weights(tmp_path / "o", tmp_path / "fresh")
    assert not trained("p", max_steps=2) and trained("p", max_steps=4)


def test_time_limit_continues_after_resume():
    module = BaseLightningModule(SimpleNamespace(seed=0, last_step=lambda: None, max_minutes=2.0, graph="never"))
    module._trainer = SimpleNamespace(world_size=1, should_stop=False, optimizers=[], lr_scheduler_configs=[])
    module.exported = SimpleNamespace(card=models.ModelCard())
    checkpoint = {"elapsed": 119.0, "random_state": torch.get_rng_state()}
    module.on_load_checkpoint(checkpoint)
    assert module.training_seconds() == 119.0 and not module.is_finished()
    module.on_train_start()
    module._since -= 1.5  # seconds of training
    assert module.is_finished()
    module.on_save_checkpoint(again := {})
    assert 120.5 <= again["elapsed"] < 130 and np.array_equal(again["random_state"], checkpoint["random_state"])


@pytest.mark.parametrize("bound", [{"max_steps": 4}, {"max_steps": None, "max_minutes": 1e-4}])
def test_finished_run_reports_nothing_to_do(files, tmp_path, run, bound, capfd):
    shutil.copytree(run.folder, tmp_path / "o")
    words = training_runs.arguments(files, run.task, tmp_path / "o", progress=True, **bound)
    assert main(words) == 0
    captured = capfd.readouterr()
    assert "nothing is left to train: 8 steps in " in captured.out and "resumed from" not in captured.out
    assert "training ends" not in captured.err
    assert training_runs.same_weights(run.folder, tmp_path / "o")


def test_killed_run_resumes_exactly(files, tmp_path, run):
    """The run is killed by SIGKILL in its second epoch and continues from the checkpoint of the first."""
    done = training_runs.signalled(training_runs.arguments(files, run.task, tmp_path / "o"), signal.SIGKILL, 5)
    last = tmp_path / "o" / "checkpoints" / "last.ckpt"
    assert done.returncode == -signal.SIGKILL and [p.name for p in last.parent.iterdir()] == ["last.ckpt"], done.stderr
    assert main(training_runs.arguments(files, run.task, tmp_path / "o")) == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert training_runs.same_weights(run.folder, tmp_path / "o", name)
