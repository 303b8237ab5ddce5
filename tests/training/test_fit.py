# SPDX-License-Identifier: Apache-2.0
"""Tests of fastds.fit, which trains like `fastds train`, and of its network names."""

import importlib

import pytest
import torch

pytest.importorskip("lightning", reason="training needs Lightning (extra 'train')")

import fastds
from fastds import data, models
from fastds.training.command import TASKS, main

TINY = {"data.crop": 16, "data.epoch_samples": 4, "data.validation_samples": 2, "data.workers": 0}


@pytest.fixture(scope="module")
def event(tmp_path_factory):
    path = tmp_path_factory.mktemp("event") / "event.nc"
    data.save_dataset(data.synthetic_event(seed=3, frames=16, shape=(64, 64))[["reflectivity"]], path)
    return path


def test_fit_equals_the_train_command(event, tmp_path):
    before = torch.get_num_threads()
    model = fastds.fit("fczsm-small", event, output=tmp_path / "fit", threads=1, max_steps=2, options=TINY)
    assert torch.get_num_threads() == before and model.card.task == "radar"
    words = ["--max_steps=2", *(f"--{name}={value}" for name, value in TINY.items())]
    command = ["radar", "--model=fczsm-small", f"--data.path={event}", f"--output={tmp_path / 'train'}", "--threads=1"]
    assert main([*command, "--progress=false", *words]) == 0
    expected = models.load(tmp_path / "train" / "best.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    fine = fastds.predict(model, data.coarsen_dataset(data.synthetic_event(seed=1, frames=3, shape=(64, 64))))
    assert fine["reflectivity"].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("fczsm-huge", {}, "model must be one of ciaosr, .*, got 'fczsm-huge'"),
        ("nowcast-errors", {}, "model must be one of .*, got 'nowcast-errors'"),
        ("fczsm-small", {"max_steps": "many"}, "max_steps must be a whole number, got 'many'"),
        ("fczsm-small", {"options": {"data.crop": "many"}}, "data.crop must be .*got 'many'"),
        ("fczsm-small", {"options": {"max_steps": 3}}, "options must not have max_steps, which fit takes as argument"),
        ("fczsm-small", {"options": {"data.crap": 3}}, "data.crap.*see fastds train radar --help"),
        (3, {}, "model must be a text|model"),
    ],
)
def test_fit_rejects_untrainable_arguments(event, tmp_path, model, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        fastds.fit(model, event, output=tmp_path / "fit", **options)
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize("task", TASKS)
def test_preset_names_by_task(task, tmp_path):
    options, training = (importlib.import_module(f"fastds.tasks.{task}.{name}") for name in ("config", "training"))
    names = models.available(task=task)
    assert names and set(names) < set(models.available())
    assert all(models.load_card(name).task == task for name in models.available(pretrained=True, task=task))
    if task in ("radar", "nowcast"):
        for name in models.available():
            config = options.parse_arguments([f"--model={name}", "--data.path=x", f"--output={tmp_path}"])
            if name in names and name != "mlcast-convgru":  # which MLCast trains
                training.build_model(config)
            else:
                with pytest.raises(ValueError, match="cannot be trained"):
                    training.build_model(config)


def test_fit_error_names_the_other_task():
    with pytest.raises(ValueError, match="task must be one of 'radar', 'nowcast', 'fields', 'humidity', got 'rain'"):
        models.available(task="rain")
