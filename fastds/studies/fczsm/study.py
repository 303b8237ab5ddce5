# SPDX-License-Identifier: Apache-2.0
"""The study of the FC-ZSM paper, `fastds study fczsm`."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fastds import metrics, models
from fastds._options import spell_name
from fastds.inference.execution import resolve_device
from fastds.models.card import Network
from fastds.report import Chart, Maps
from fastds.studies.common.bootstrap import describe_intervals, make_block_labels
from fastds.studies.common.config import PAPER, time_call
from fastds.studies.common.plan import FORWARD, START, Costs, measure_cost, time_second_call, time_step
from fastds.studies.common.radar import EvaluationBlock, find_files, find_most_echo, read_grid, tabulate_samples
from fastds.studies.common.runs import suppress_warnings
from fastds.studies.common.study import PaperStudy, run_paper_study
from fastds.studies.common.tables import ResultTable
from fastds.studies.fczsm.config import StudyConfig, parse_arguments
from fastds.studies.fczsm.evaluation import (
    CROP,
    LEAST,
    SCORES,
    call_with_prediction,
    explain_missing_dynamics,
    make_training_data,
    read_fixed_blocks,
    read_static_maps,
    read_test_block,
    score,
)
from fastds.studies.fczsm.methods import METHODS, get_width, load_paper_config, make_training_config
from fastds.studies.fczsm.tables import (
    draw_maps,
    make_charts,
    make_maps,
    tabulate_costs,
    tabulate_files,
    tabulate_ranking,
    tabulate_reductions,
    tabulate_scores,
)
from fastds.tasks.radar.config import DataConfig as TrainingData
from fastds.tasks.radar.config import TrainingConfig
from fastds.tasks.radar.samples import RadarData
from fastds.tasks.radar.training import RadarModule, build_model, train

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
    """Measure the seconds to read the files, and the seconds to make one sample.

    The sample is that of the method with the most channels.
    """
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
    where = next(module.parameters()).device
    y = torch.rand(size, 3, 1, 2 * crop, 2 * crop, device=where)
    batch = {"x": torch.rand(size, 2, c["in_channels"], crop, crop, device=where), "y": y, "valid": y > 0.1}
    if c.get("static_channels"):
        batch["static"] = torch.rand(size, c["static_channels"], crop, crop, device=where)
    return module, batch


def _fixed(
    step_seconds: float, batch: int, setup: float, a_sample: float, blocks: list[EvaluationBlock], crop: int
) -> float:
    """Estimate the seconds of a training without its steps.

    The estimate includes files, validations, and forward passes on the test samples.
    """
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


__all__ = ["StudyConfig", "parse_arguments", "study"]


def study(config: StudyConfig) -> pathlib.Path | None:
    """Run `fastds study fczsm`. Raises FileNotFoundError or ValueError for unusable files or options."""
    return run_paper_study(FczsmStudy, config)


class FczsmStudy(PaperStudy):
    """The study of the FC-ZSM paper.

    Attributes:
        files: file -> its parts.
        left_out: method -> reason why it is left out.
        data: samples of the trainings.
        blocks: test samples.
    """

    name, title = "fczsm", "FC-ZSM and what it is compared with"

    def __init__(self, config: StudyConfig):
        paper = load_paper_config("ZSM", config.data.path)
        self.paper_steps, crop = paper.last_step(), paper.data.crop if config.budget == PAPER else CROP
        self.files = find_files(config.data, 2 * crop, LEAST)
        self.left_out = dict(self._left_out(config))
        requested = [n for n, method in METHODS.items() if n in config.run or not (config.run and method.preset)]
        names = [name for name in requested if name not in self.left_out]
        self.data = make_training_data(config.data, self.files, crop)
        self.blocks = self._test_blocks(config, names)
        networks = [name for name in names if METHODS[name].preset]
        basis = {"files": self.files if config.data.split == "time" else sorted(self.files)}
        super().__init__(config, names, networks, basis)

    def _left_out(self, config: StudyConfig) -> Iterator[tuple[str, str]]:
        missing = explain_missing_dynamics(config.data, list(self.files))
        for name, method in METHODS.items():
            if method.dynamic and missing:
                yield name, missing
            elif method.static and not config.data.statics:
                yield name, f"{spell_name('data.statics')} names no maps"

    def _test_blocks(self, config: StudyConfig, names: list[str]) -> list[EvaluationBlock]:
        data, methods = config.data, [METHODS[name] for name in names]
        if data.split == "random":
            statics = data.statics if any(m.static for m in methods) else []
            dynamics = data.dynamics if any(m.dynamic for m in methods) else {}
            training = make_training_config("ZSM", config.budget, 1, self.data).data
            return read_fixed_blocks(data, dataclasses.replace(training, statics=statics, dynamics=dynamics))
        maps = read_static_maps(data, list(self.files)) if any(m.static for m in methods) else {}
        further = any(m.dynamic for m in methods)
        return [read_test_block(data, n, part["test"], maps.get(n), further) for n, part in self.files.items()]

    def measure_costs(self, networks: list[str]) -> Costs:
        return measure_costs(self.config, networks, self.data, self.blocks)

    def make_training(self, name: str, seed: int, output: pathlib.Path) -> TrainingConfig:
        """Make the configuration of a training.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.

        Returns:
            The configuration.
        """
        options = self.run_options | {"seed": seed, "output": str(output)}
        return make_training_config(name, self.config.budget, self.steps, self.data, **options)

    def train(self, name: str, seed: int, output: pathlib.Path) -> None:
        """Train a method in a folder, or resume its training there.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.
        """
        train(self.make_training(name, seed, output))

    def measure_step_seconds(self, name: str) -> float:
        return time_one_sample(self.make_training(name, 0, self.folder.path), self.config.device)

    def make_sample_table(self) -> ResultTable:
        return tabulate_samples(self.blocks, self.files if self.config.data.split == "time" else {})

    def score(self, name: str, weights: pathlib.Path | None) -> dict[str, Any]:
        found = self._predicting(name, weights, lambda predict: score(predict, self.blocks))
        if weights is None:
            return found
        model = suppress_warnings(lambda: models.load(weights))
        return found | {"width": get_width(model), "parameters": sum(p.numel() for p in model.parameters())}

    def _predicting(self, name: str, weights: pathlib.Path | None, use) -> Any:
        return call_with_prediction(name, weights, self.config.threads, self.config.device, use)

    def make_tables(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, ResultTable]:
        sizes = {n: (one[0]["width"], one[0]["parameters"]) for n, one in results.items() if "width" in one[0]}
        means = {name: {s: np.mean([one[s] for one in found], 0) for s in SCORES} for name, found in results.items()}
        costs = {name: self._cost(name) for name in self.runs.networks if name in results}
        return {
            "scores": tabulate_scores(means, self.blocks, sizes),
            "order": tabulate_ranking(means, self.blocks),
            "reductions": tabulate_reductions(means),
            **({"complexity": tabulate_costs(costs, self.seconds)} if costs else {}),
            "files": tabulate_files(means, self.blocks),
            "samples": self.make_sample_table(),
        }

    def _cost(self, name: str) -> dict[str, float]:
        """Measure the costs of a network for a sample and a batch of its training; see measure_cost."""
        c = make_training_config(name, self.config.budget, 1, self.data)
        model: Network = models.create(c.model.name, **c.model.options)
        channels, maps = model.config["in_channels"], model.config.get("static_channels", 0)

        def inputs(batch: int) -> tuple[torch.Tensor, ...]:
            x = torch.zeros(batch, 2, channels, c.data.crop, c.data.crop)
            return (x, torch.zeros(batch, maps, c.data.crop, c.data.crop)) if maps else (x,)

        return self.folder.load_or_compute(f"costs/{name}", lambda: measure_cost(model, inputs, c.data.batch_size))

    def make_charts(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Chart]:
        return make_charts(self.curves)

    def draw_fields(self, results: Mapping[str, list[dict[str, Any]]]) -> Maps:
        block, number = find_most_echo(self.blocks)
        sample = block.samples[number]

        def fields(name: str) -> np.ndarray:
            return self._predicting(name, self.get_first_weights(name), lambda predict: predict(sample).numpy())

        made, grid = {name: fields(name) for name in self.names}, read_grid(self.config.data, block, number)
        title = f"{block.name}: truth, methods, differences"
        draw_maps(self.folder.path, made, sample, grid, title)
        return make_maps(grid, made, sample)

    def write_notes(self) -> list[str]:
        paper = self.config.budget == PAPER
        small = "" if paper else "; networks in the small, the paper's ZSM is 64 wide, and here UNet 64, UNet3D 72"
        labels = make_block_labels(block.blocks for block in self.blocks)
        notes = [
            f"Every network is trained in {self.steps} steps on the same samples (mean squared error, "
            f"{self.describe_optimiser()}, weights of the lowest validation error), "
            f"seeds {', '.join(map(str, self.config.seeds))}{small}.",
            f"{describe_intervals(labels)} "
            "The paper's unit and samples are others: compare reductions and order, not numbers.",
        ]
        return notes + [f"{name} is left out: {why}." for name, why in self.left_out.items()]
