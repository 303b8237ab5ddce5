# SPDX-License-Identifier: Apache-2.0
"""Tests of trainings whose forward and backward are replayed as CUDA graphs, which are emulated on the CPU."""

import dataclasses

import pytest
import torch

from fastds import data, models
from fastds.tasks.nowcast import training as nowcast
from fastds.tasks.nowcast.config import LossConfig
from fastds.tasks.radar import training as radar
from fastds.tasks.radar.config import DataConfig, ModelConfig, TrainingConfig
from tests.support import nowcast_training
from tests.support.emulated_graphs import EmulatedGradientGraph, install

TINY = {"num_features": 8, "offset_groups": 2, "extractor_blocks": 1, "reconstruction_blocks": 1}
STEPS = 8


@pytest.fixture(scope="module")
def event(tmp_path_factory):
    path = tmp_path_factory.mktemp("event") / "event.nc"
    data.synthetic_event(seed=1, frames=16, shape=(64, 64))[["reflectivity"]].to_netcdf(path)
    return path


def radar_config(event, output, **changes):
    samples = DataConfig(
        str(event), crop=16, scales=[1], intervals=[1], minimum_echo=0.0, batch_size=2, epoch_samples=8,
        validation_samples=4, workers=0,
    )  # fmt: skip
    config = TrainingConfig(
        samples, ModelConfig("fczsm-small", TINY), output=str(output), max_steps=STEPS, warmup_steps=2, ema_decay=0.9,
        progress=False, threads=1,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def nowcast_config(event, output, **changes):
    return nowcast_training.tiny(event, output, progress=False, max_steps=STEPS, **changes)


def scheduled(event, output, **changes):
    return nowcast_config(event, output, loss=LossConfig(scheduled_sampling=True), **changes)


RUNS = {
    "fczsm": (radar.train, radar_config),
    "nowcast": (nowcast.train, nowcast_config),
    "scheduled sampling": (nowcast.train, scheduled),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_training_launches_one_graph_a_step(name, event, tmp_path, monkeypatch):
    """The weights have the same bits as without graphs, and a step after the first three launches one graph."""
    train, config = RUNS[name]
    plain = train(config(event, tmp_path / "plain", graph="never"))
    install(monkeypatch)
    graphed = train(config(event, tmp_path / "graphed"))
    assert EmulatedGradientGraph.launches == STEPS - 3 + 2  # and two checks
    weights = [models.load(path).state_dict() for path in (plain, graphed)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.filterwarnings("ignore")
def test_training_without_a_graph_gives_the_reason_once(event, tmp_path, monkeypatch, capsys):
    install(monkeypatch)

    def capture(self, module, examples):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(EmulatedGradientGraph, "capture", capture)
    radar.train(radar_config(event, tmp_path / "run"))
    printed = capsys.readouterr().out
    assert printed.count("trained without a graph: ") == 1
    assert "operation not permitted when stream is capturing" in printed


@pytest.mark.filterwarnings("ignore")
def test_decoupling_loss_is_trained_without_a_graph(event, tmp_path, monkeypatch):
    """Similarities of memories are collected in addition to the output, which graphs do not support."""
    install(monkeypatch)
    model = nowcast_training.ModelConfig("nowcast-small", {"network": "MSRNN", "cell": "predrnn-v2", "hidden": 8})
    loss = LossConfig(decoupling=0.1)
    nowcast.train(nowcast_config(event, tmp_path / "run", model=model, loss=loss))
    assert EmulatedGradientGraph.launches == 0


def test_graph_option_of_trainings_is_checked(event):
    with pytest.raises(ValueError, match="graph must be auto or never, got 'always'"):
        radar_config(event, "unused", graph="always")
