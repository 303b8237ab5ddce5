# SPDX-License-Identifier: Apache-2.0
"""The runs of the study: train, score, one JSON file each; what has a file is not run again."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastds import models
from fastds.models.baselines.interpolation import bilinear_at
from fastds.reference.query_points import GridSpec
from fastds.training import fields as field_training
from fastds.training.command import read_command_line
from fastds.training.fields import (
    FieldDataConfig,
    FieldDataModule,
    FieldTrainingConfig,
    bicubic,
    load_fields,
)
from fastds.training.study.crops import crop_errors, draw_crops
from fastds.training.study.table import render

SCALES = {"1.5": (1.5, 1.5), "2": (2, 2), "2.67": (2.67, 2.67), "3": (3, 3), "4": (4, 4), "2x3": (2, 3)}


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) interpolated to cells of `size`."""
    return bilinear_at(x, GridSpec.cells(tuple(x.shape[2:]), size)).unflatten(1, size).permute(0, 3, 1, 2)


def bicubic_torch(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The same with a = -0.75, torch's default: better for rough fields, worse for smooth ones."""
    return torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False)


INTERPOLATIONS: dict[str, Callable] = {"bilinear": bilinear, "bicubic": bicubic, "bicubic-0.75": bicubic_torch}


@dataclasses.dataclass
class Method:
    """One row of the study.

    Args:
        model: a preset. options: its arguments. learning_rate: of its training.
        scales: factors to train on instead of those of the data. test: factors it is scored at, names of SCALES; none:
            all.
    """

    model: str
    options: dict = dataclasses.field(default_factory=dict)
    learning_rate: float = 3e-3
    scales: list[float] | None = None
    test: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class StudyConfig:
    """The study; every method sees the same samples (seed, index) in the same number of steps.

    Args:
        data: samples and the columns to train on, to choose weights by and to test on, three regions.
        methods: name -> Method. run: which of them; none: all. seeds: of samples and initial weights.
        weights: names or paths of trained weights that are scored beside. max_steps: of each training.
        crop: of the test, fine pixels. per_cell: test crops per time and latitude band.
        output: folder of the runs.
    """

    data: FieldDataConfig
    methods: dict[str, Method]
    run: list[str] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2])
    weights: list[str] = dataclasses.field(default_factory=list)
    max_steps: int = 1500
    ema_decay: float = 0.99
    crop: int = 64
    per_cell: int = 2
    output: str = "study"
    threads: int | None = None

    def __post_init__(self):
        if not self.data.test:
            raise ValueError("data.test: the study needs test columns apart from training and validation")
        unknown = set(self.run) - set(self.methods)
        if unknown:
            raise ValueError(f"run names {sorted(unknown)}, the methods are {sorted(self.methods)}")


def run_study(config: StudyConfig) -> pathlib.Path:
    """Run what has no JSON file in config.output yet, seed by seed, write table.md there and return its path."""
    output = pathlib.Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    for name in INTERPOLATIONS:
        _once(output / f"{name}.json", lambda name=name: {"method": name, **score(INTERPOLATIONS[name], config)})
    for name in config.weights:
        _once(output / f"weights-{pathlib.Path(name).stem}.json", lambda name=name: score_weights(config, name))
    for seed in config.seeds:
        for name in config.run or config.methods:
            _once(output / f"{name}-{seed}.json", lambda name=name, seed=seed: train_and_score(config, name, seed))
    table = output / "table.md"
    table.write_text(render([json.loads(path.read_text()) for path in sorted(output.glob("*.json"))]))
    return table


def _once(path: pathlib.Path, make: Callable[[], dict]) -> None:
    if not path.exists():
        result = make()
        path.write_text(json.dumps(result))


def training_config(config: StudyConfig, name: str, seed: int) -> FieldTrainingConfig:
    """The training of a method; its validation uses the factors it knows."""
    method = config.methods[name]
    data = config.data
    if method.scales:
        tested = [sum(method.scales) / 2] if method.scales[0] == method.scales[1] else data.test_scales
        data = dataclasses.replace(data, scales=method.scales, test_scales=tested)
    return FieldTrainingConfig(
        data, method.model, method.options, output=str(pathlib.Path(config.output) / f"{name}-{seed}"), seed=seed,
        max_steps=config.max_steps, learning_rate=method.learning_rate, ema_decay=config.ema_decay,
        threads=config.threads,
    )  # fmt: skip


def train_and_score(config: StudyConfig, name: str, seed: int) -> dict:
    """One run: the errors of the weights that the validation region chose, on the test region."""
    training = training_config(config, name, seed)
    before = time.process_time()
    model = models.load(field_training.train(training)).eval()
    seconds = time.process_time() - before
    with torch.no_grad():
        result = score(lambda x, size: model(x, size=size), config, config.methods[name].test)
    return {
        "method": name, "seed": seed, "steps": config.max_steps, "learning_rate": training.learning_rate,
        "train_cpu_s": round(seconds, 1), "parameters": sum(p.numel() for p in model.parameters()),
        "validation": model.card.metrics["validation"], **result,
    }  # fmt: skip


def score_weights(config: StudyConfig, name: str) -> dict:
    """The errors of trained weights."""
    model = models.load(name).eval()
    with torch.no_grad():
        return {"method": f"weights {name}", **score(lambda x, size: model(x, size=size), config)}


def score(predict: Callable, config: StudyConfig, names: list[str] = ()) -> dict:
    """Errors of predict(x, size) on the test crops, by factor, with what is needed to read them."""
    data = config.data
    fields = load_fields(data)
    test = fields[..., slice(*data.test)]
    crops = draw_crops(test.shape, config.crop, config.per_cell, seed=0)
    return {
        "variables": data.variables,
        "value_range": FieldDataModule(data).value_range.tolist(),
        "crops": crops,
        "mse": {name: crop_errors(predict, test, crops, config.crop, SCALES[name]) for name in names or SCALES},
    }


def train(config: StudyConfig) -> pathlib.Path:
    """What `fastds train study` calls: run_study, and its table printed."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    table = run_study(config)
    print(table.read_text())
    return table


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Read a command line into a StudyConfig; `--config NAME` takes a shipped configuration by its name."""
    return read_command_line(StudyConfig, arguments, "study", "Compare arbitrary-scale downscaling with its baselines.")
