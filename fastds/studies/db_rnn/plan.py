# SPDX-License-Identifier: Apache-2.0
"""Time measurements of the DB-RNN study on this machine."""

from __future__ import annotations

import time

import torch

from fastds.inference.execution import resolve_device
from fastds.studies.common.announce import time_second_call
from fastds.studies.common.budget import time_call
from fastds.studies.common.plan import FORWARD, START, Costs, time_step
from fastds.studies.common.quiet import suppress_warnings
from fastds.studies.common.radar import EvaluationBlock
from fastds.studies.db_rnn.config import StudyConfig
from fastds.studies.db_rnn.methods import FUTURE, METHODS, VALIDATED, make_training_config
from fastds.studies.db_rnn.scores import score
from fastds.tasks.nowcast.config import DataConfig as TrainingData
from fastds.tasks.nowcast.config import TrainingConfig
from fastds.tasks.nowcast.samples import NowcastData
from fastds.tasks.nowcast.training import NowcastModule, build_model

_STEPS = 100  # number of steps in the measured configuration


def measure_costs(config: StudyConfig, names: list[str], data: TrainingData, blocks: list[EvaluationBlock]) -> Costs:
    """Measure the costs of methods.

    Args:
        config: options of the study.
        names: methods that are trained.
        data: samples of the trainings.
        blocks: test samples.
    """
    training = make_training_config("SimVP", config.ablation, config.budget, _STEPS, data, config.data.z_r).data
    began = time.perf_counter()
    samples = NowcastData(training, moving=False)
    suppress_warnings(samples.setup)
    setup, number = time.perf_counter() - began, iter(range(10_000))
    a_sample = time_call(lambda: samples.training[next(number)], most=20)
    batch = [samples.training[k] for k in range(training.batch_size)]
    batch = {key: torch.stack([sample[key] for sample in batch]).to(resolve_device(config.device)) for key in batch[0]}
    found = {name: _time_method(config, name, data, batch, blocks[0].samples[0]["x"]) for name in names}
    tested = sum(len(b.samples) * b.samples[0]["y"][0].numel() for b in blocks)
    validated = 8 * VALIDATED * training.crop**2
    scoring = _time_scoring(blocks, config.data.z_r)
    fixed = sum(START + setup + scoring + (tested + validated) * a_pixel for _, a_pixel in found.values())
    return Costs({name: s + training.batch_size * a_sample for name, (s, _) in found.items()}, fixed + 2 * scoring)


def time_one_sample(training: TrainingConfig, device: str) -> float:
    """Estimate the seconds of a step from loss and gradients of one sample; reading samples and the discriminator are
    not included."""
    c = training.data
    module = NowcastModule(build_model(training), training).to(resolve_device(device))
    frames = torch.rand(1, c.known + c.future, 1, c.crop, c.crop, device=next(module.parameters()).device)
    batch = {"frames": frames, "valid": torch.ones_like(frames, dtype=torch.bool)}
    return c.batch_size * time_second_call(lambda: module.loss(module(batch), batch).backward())


def _time_method(
    config: StudyConfig, name: str, data: TrainingData, batch: dict, known: torch.Tensor
) -> tuple[float, float]:
    """Measure the seconds of a step without reading samples, and of the forecast of one pixel.

    A staged network has two halves, trained one after the other; both are estimated from the MS network.

    Args:
        config: options of the study.
        name: the method.
        data: samples of the trainings.
        batch: a batch of samples.
        known: input frames of a test sample.
    """
    staged = METHODS[name].kind == "staged"
    trained = name.removesuffix("-S") if staged else name
    training = make_training_config(trained, config.ablation, config.budget, _STEPS, data, config.data.z_r)
    device = next(iter(batch.values())).device
    module, known = NowcastModule(build_model(training), training).to(device), known[None].to(device)

    def forecast() -> float:
        with torch.no_grad():
            return float(module.model.forecast(known, FUTURE).sum())

    step = time_step(module, batch) * (1 + FORWARD * staged)
    module.eval()
    return step, time_call(forecast, most=3) / known[0, 0].numel() * (1 + staged)


def _time_scoring(blocks: list[EvaluationBlock], z_r: list[float]) -> float:
    """Estimate the seconds of scoring one method."""
    one = EvaluationBlock(blocks[0].name, blocks[0].samples[:1], [0], blocks[0].window, 1.0)
    a_pixel = time_call(lambda: score(lambda s, steps: s["y"], [one], z_r), most=2) / one.samples[0]["y"].numel()
    return a_pixel * sum(len(b.samples) * b.samples[0]["y"].numel() for b in blocks)
