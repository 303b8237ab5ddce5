# SPDX-License-Identifier: Apache-2.0
"""Time measurements of the FC-ZSM study on this machine."""

from __future__ import annotations

import time

import torch

from fastds import metrics
from fastds.inference.execution import resolve_device
from fastds.studies.common.announce import time_second_call
from fastds.studies.common.budget import time_call
from fastds.studies.common.plan import FORWARD, START, Costs, time_step
from fastds.studies.common.quiet import suppress_warnings
from fastds.studies.common.radar import EvaluationBlock
from fastds.studies.fczsm.config import StudyConfig
from fastds.studies.fczsm.methods import METHODS, make_training_config
from fastds.tasks.radar.config import DataConfig as TrainingData
from fastds.tasks.radar.config import TrainingConfig
from fastds.tasks.radar.samples import RadarData
from fastds.tasks.radar.training import RadarModule, build_model

_STEPS = 100  # number of steps in the measured configuration


def measure_costs(config: StudyConfig, names: list[str], data: TrainingData, blocks: list[EvaluationBlock]) -> Costs:
    """Measure the costs of methods.

    Args:
        config: options of the study.
        names: methods that are trained.
        data: samples of the trainings.
        blocks: test samples.
    """
    setup, a_sample = _time_samples(config, names, data)
    steps = {name: _time_method(config, name, data, a_sample) for name in names}
    each = [_fixed(*found, setup, a_sample, blocks, data.crop) for found in steps.values()]
    return Costs({name: found[0] for name, found in steps.items()}, sum(each) + len(METHODS) * _time_scoring(blocks))


def _time_samples(config: StudyConfig, names: list[str], data: TrainingData) -> tuple[float, float]:
    """Measure the seconds to read the files, and to make a sample of the method with the most channels."""
    training = make_training_config(max(names, key=lambda n: METHODS[n][2:]), config.budget, _STEPS, data)
    channels = 1 + len(training.data.dynamics)
    began = time.perf_counter()
    samples = RadarData(training.data, False, 0, len(training.data.statics), in_channels=channels)
    suppress_warnings(samples.setup)
    setup, number = time.perf_counter() - began, iter(range(10_000))
    return setup, time_call(lambda: samples.training[next(number)], most=40)


def _time_method(config: StudyConfig, name: str, data: TrainingData, a_sample: float) -> tuple[float, int]:
    """Measure the seconds of a step including its samples; return them and the batch size."""
    training = make_training_config(name, config.budget, _STEPS, data)
    size = training.data.batch_size
    return time_step(*_module_and_batch(training, config.device, size)) + size * a_sample, size


def time_one_sample(training: TrainingConfig, device: str) -> float:
    """Estimate the seconds of a step from loss and gradients of one sample; reading samples is not included."""
    module, batch = _module_and_batch(training, device, 1)
    return training.data.batch_size * time_second_call(lambda: module.loss(module(batch), batch).backward())


def _module_and_batch(training: TrainingConfig, device: str, size: int) -> tuple[RadarModule, dict]:
    """Make the module of a training and a random batch of `size` samples."""
    module = RadarModule(build_model(training), training).to(resolve_device(device))
    c, crop = module.model.config, training.data.crop
    device = next(module.parameters()).device
    y = torch.rand(size, 3, 1, 2 * crop, 2 * crop, device=device)
    batch = {"x": torch.rand(size, 2, c["in_channels"], crop, crop, device=device), "y": y, "valid": y > 0.1}
    if c.get("static_channels"):
        batch["static"] = torch.rand(size, c["static_channels"], crop, crop, device=device)
    return module, batch


def _fixed(
    step_seconds: float, batch: int, setup: float, a_sample: float, blocks: list[EvaluationBlock], crop: int
) -> float:
    """Estimate the seconds of a training without its steps: files, validations, and forward passes of the test."""
    a_forward = FORWARD * (step_seconds - batch * a_sample) / batch  # seconds for one crop
    validations = 8 * 32 * (a_forward + a_sample)
    crops = sum(len(b.samples) * b.samples[0]["x"][0, 0].numel() for b in blocks) / crop**2
    return START + setup + validations + crops * a_forward


def _time_scoring(blocks: list[EvaluationBlock]) -> float:
    """Estimate the seconds of scoring one method."""
    sample = blocks[0].samples[0]
    y, valid = sample["y"][:, 0], sample["valid"][:, 0]
    a_pixel = time_call(lambda: metrics.radar_errors(y, y, valid), most=2) / y.numel()
    return a_pixel * sum(len(b.samples) * b.samples[0]["y"].numel() for b in blocks)
