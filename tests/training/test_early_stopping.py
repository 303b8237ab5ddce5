# SPDX-License-Identifier: Apache-2.0
"""Tests of validations within epochs and of trainings that end early."""

import signal

import pandas as pd
import pytest

from tests.support.training_runs import OPTIONS, arguments, same_weights, signalled

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

from fastds.tasks.fields.training import ExportWeights
from fastds.training.command import main
from fastds.training.modules import BaseLightningModule


def _command(files, task, folder, **changes):
    """Return the command line of a training whose epoch is longer than the training."""
    data = OPTIONS[task]["data"] | {"epoch_samples": 400}
    return arguments(files, task, folder, **{"max_steps": 50, "data": data} | changes)


def _validated(folder):
    return pd.read_csv(folder / "validation.csv").step.tolist()


@pytest.mark.parametrize("task", ["fields", "humidity"])
def test_training_within_an_epoch_validates_five_times(files, tmp_path, task):
    assert main(_command(files, task, tmp_path / "o")) == 0
    assert _validated(tmp_path / "o") == [10, 20, 30, 40, 50]


def test_training_by_time_validates_five_times(files, tmp_path, monkeypatch):
    monkeypatch.setattr(BaseLightningModule, "training_seconds", lambda self: float(self.steps_done()))
    assert main(_command(files, "fields", tmp_path / "o", max_steps=None, max_minutes=1.0)) == 0
    assert _validated(tmp_path / "o") == [12, 24, 36, 48, 60]


def test_signal_at_a_step_with_a_validation_resumes_exactly(files, tmp_path):
    command = _command(files, "fields", tmp_path / "cut")
    assert signalled(command, signal.SIGTERM, 9).returncode == 128 + signal.SIGTERM
    assert main(command) == 0 and main(_command(files, "fields", tmp_path / "whole")) == 0
    assert _validated(tmp_path / "cut") == [10, 20, 30, 40, 50]
    assert same_weights(tmp_path / "cut", tmp_path / "whole")
    assert (tmp_path / "cut" / "validation.csv").read_text() == (tmp_path / "whole" / "validation.csv").read_text()


def test_early_stopping_ends_a_training_and_names_the_best_step(files, tmp_path, monkeypatch, capsys):
    known = ExportWeights.validate

    def rising(self, trainer, module):  # the error is lowest at step 20
        return *known(self, trainer, module)[:2], abs(module.steps_done() - 20.0)

    monkeypatch.setattr(ExportWeights, "validate", rising)
    assert main(_command(files, "fields", tmp_path / "o", early_stopping=2)) == 0
    assert _validated(tmp_path / "o") == [10, 20, 30, 40]
    printed = capsys.readouterr().out
    assert "ended at step 40: 2 validations in a row had no lower error (--early-stopping)" in printed
    assert "best.safetensors has the weights of step 20" in printed
    assert main(_command(files, "fields", tmp_path / "o", early_stopping=3)) == 0  # continues
    assert _validated(tmp_path / "o") == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(("changes", "message"), [
    ({"early_stopping": 0}, "early-stopping must be at least 1, got 0"),
    ({"early_stopping": 2, "devices": 2}, "early-stopping is for one process"),
])  # fmt: skip
def test_early_stopping_rejects_invalid_values(files, tmp_path, capsys, changes, message):
    assert main(_command(files, "fields", tmp_path / "o", **changes)) != 0
    assert message in capsys.readouterr().err
