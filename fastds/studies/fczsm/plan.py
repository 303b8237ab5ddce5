# SPDX-License-Identifier: Apache-2.0
"""How many steps every training of the study takes: the same for all, as many as the budget has time for."""

from __future__ import annotations

import time

import torch

from fastds import metrics
from fastds.studies.common.budget import PAPER, budget_seconds, seconds_a_call, steps_within
from fastds.studies.fczsm.config import StudyConfig
from fastds.studies.fczsm.methods import METHODS, PAPER_STEPS, training_config
from fastds.studies.fczsm.samples import TestBlock, quietly
from fastds.tasks.common.settings import resolved
from fastds.tasks.radar.config import DataConfig as TrainingData
from fastds.tasks.radar.samples import RadarData
from fastds.tasks.radar.training import RadarModule, build_model

_STEPS = 100  # of a training that is only measured
_FORWARD = 0.4  # of the time of a step, which has the gradients, too
_DRAWING = 20.0  # seconds of tables, figures and page
_START = 4.0  # seconds before and after a training, beside the reading of its files


def make_plan(config: StudyConfig, names: list[str], data: TrainingData, blocks: list[TestBlock]) -> dict:
    """{"steps": of every training, "seconds_a_step": by method, where they were measured}.

    names: of the methods that are trained; data: their samples; blocks: of the test.
    Raises: ValueError for a budget that is too short.
    """
    if config.max_steps is not None or config.budget == PAPER or not names:
        return {"steps": config.max_steps or PAPER_STEPS, "seconds_a_step": {}}
    began = time.perf_counter()
    setup, a_sample = _seconds_of_samples(config, names, data)
    steps = {name: _seconds_of(config, name, data, setup, a_sample) for name in names}
    each = [_fixed(*found, setup, a_sample, blocks, data.crop) for found in steps.values()]
    runs, spent = len(config.seeds), time.perf_counter() - began
    fixed = runs * sum(each) + spent + _DRAWING + (len(METHODS) * runs) * _scoring(blocks)
    a_step = runs * sum(second for second, _ in steps.values())
    count = steps_within(budget_seconds(config.budget), a_step, fixed)
    return {"steps": count, "seconds_a_step": {name: round(found[0], 4) for name, found in steps.items()}}


def _seconds_of_samples(config: StudyConfig, names: list[str], data: TrainingData) -> tuple[float, float]:
    """Seconds to read the files, and to make a sample of the method with most channels."""
    training = training_config(max(names, key=lambda n: METHODS[n][2:]), config.budget, _STEPS, data)
    channels = 1 + len(training.data.dynamics)
    began = time.perf_counter()
    samples = RadarData(training.data, False, 0, len(training.data.statics), in_channels=channels)
    quietly(samples.setup)
    setup, number = time.perf_counter() - began, iter(range(10_000))
    return setup, seconds_a_call(lambda: samples.training[next(number)], most=40)


def _seconds_of(config: StudyConfig, name: str, data: TrainingData, setup: float, a_sample: float) -> tuple[float, int]:
    """Seconds of a step, its samples included, and the samples of a batch."""
    training = training_config(name, config.budget, _STEPS, data)
    module = RadarModule(build_model(training), training).to(resolved(config.device))
    c, (size, crop) = module.model.config, (training.data.batch_size, training.data.crop)
    device = next(module.parameters()).device
    y = torch.rand(size, 3, 1, 2 * crop, 2 * crop, device=device)
    batch = {"x": torch.rand(size, 2, c["in_channels"], crop, crop, device=device), "y": y, "valid": y > 0.1}
    if c.get("static_channels"):
        batch["static"] = torch.rand(size, c["static_channels"], crop, crop, device=device)

    def step() -> float:
        loss = module.loss(module(batch), batch)
        loss.backward()
        return float(loss.detach())

    return seconds_a_call(step) + size * a_sample, size


def _fixed(a_step: float, batch: int, setup: float, a_sample: float, blocks: list[TestBlock], crop: int) -> float:
    """Seconds of a training beside its steps: files, validations, and the forwards of the test."""
    a_forward = _FORWARD * (a_step - batch * a_sample) / batch  # of one crop
    validations = 8 * 32 * (a_forward + a_sample)
    crops = sum(len(b.samples) * b.samples[0]["x"][0, 0].numel() for b in blocks) / crop**2
    return _START + setup + validations + crops * a_forward


def _scoring(blocks: list[TestBlock]) -> float:
    """Seconds of the scores of one method."""
    sample = blocks[0].samples[0]
    y, valid = sample["y"][:, 0], sample["valid"][:, 0]
    a_pixel = seconds_a_call(lambda: metrics.radar_errors(y, y, valid), most=2) / y.numel()
    return a_pixel * sum(len(b.samples) * b.samples[0]["y"].numel() for b in blocks)
