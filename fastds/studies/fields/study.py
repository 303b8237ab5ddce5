# SPDX-License-Identifier: Apache-2.0
"""Study of arbitrary-scale networks: trainings, scores and tables of each run in a folder."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastds import models
from fastds._options import OptionError
from fastds.data.samples.degradation import Degradation, DegradationConfig
from fastds.models.baselines.regression import LocationRidge, StaticResidual
from fastds.models.card import Network
from fastds.models.weight_files import read_digest
from fastds.studies.command import find_configurations
from fastds.studies.common.bootstrap import compute_interval
from fastds.studies.common.runs import StudyFolder, list_options
from fastds.studies.common.tables import format_markdown
from fastds.studies.fields.crops import compute_crop_errors, draw_crops
from fastds.tasks.fields import training as field_training
from fastds.tasks.fields.config import DataConfig, ModelConfig, TrainingConfig
from fastds.tasks.fields.evaluation import make_coarse_and_fine, resize_bicubic, resize_bicubic_torch, resize_bilinear
from fastds.tasks.fields.samples import FieldData, load_fields
from fastds.training.command import read_command_line

OURS = "inr-small"
# Methods with which inr-small, its variants and trained weights are compared.
REFERENCES = ("bicubic", "bicubic-0.75", "static residual", "regression per point", "liif", "lte", "edsr-x2", OURS)


def render(runs: list[dict]) -> str:
    """Format all tables as Markdown: PSNR and RMSE by variable and factor, differences from the references, and costs.

    Runs of one method with several seeds are averaged. Intervals are computed by compute_interval.
    """
    methods = group_runs(runs)
    names = runs[0]["variables"]
    parts = [_format_scores(methods, names)]
    parts += [_format_differences(methods, names, ours) for ours in methods if ours.startswith((OURS, "weights "))]
    parts.append(_format_costs(methods))
    return "\n".join(parts)


def group_runs(runs: Iterable[dict]) -> dict[str, list[dict]]:
    """Group runs by method, sorted by name and seed."""
    methods: dict[str, list[dict]] = {}
    for run in sorted(runs, key=lambda r: (r["method"], r.get("seed", 0))):
        methods.setdefault(run["method"], []).append(run)
    return methods


def compute_psnr(run: dict, scale: str) -> np.ndarray:
    """Compute the PSNR (crops, channels) relative to the range of the training data."""
    return 10 * np.log10(np.square(run["value_range"]) / np.asarray(run["mse"][scale]))


def get_crop_labels(run: dict) -> np.ndarray:
    """Return the labels (crops, 2) for the bootstrap: number of the group of times, and number of the latitude band."""
    return np.asarray(run["crops"])[:, :2] // [run.get("together", 1), 1]


def _format_scores(methods: dict, names: list[str]) -> str:
    rows = []
    for method, runs in methods.items():
        for scale in runs[0]["mse"]:
            db = np.mean([compute_psnr(r, scale).mean(0) for r in runs], 0)
            pooled = np.mean([r["mse"][scale] for r in runs], (0, 1))
            ranges = np.square(runs[0]["value_range"])
            cells = [f"{v:.2f} ({np.sqrt(m):.4g})" for v, m in zip(db, pooled, strict=True)]
            rows.append([method, scale, *cells, f"{db.mean():.2f}", f"{(10 * np.log10(ranges / pooled)).mean():.2f}"])
    head = ["method", "factor", *(f"{n}: dB (RMSE)" for n in names), "mean dB", "dB of mean MSE"]
    return "PSNR, mean over the crops and then the variables:\n\n" + format_markdown(head, rows)


def _format_differences(methods: dict, names: list[str], ours: str) -> str:
    """Format the differences of a method from each reference, with intervals and the mean of each seed.

    Weights that were not trained in the study are only compared with untrained methods.
    """
    rows, trained = [], "seed" in methods[ours][0]
    for other in (m for m in REFERENCES if m in methods and m != ours and (trained or "seed" not in methods[m][0])):
        pairs = list(_pair_runs(methods[ours], methods[other]))
        for scale in (s for s in methods[other][0]["mse"] if pairs and s in methods[ours][0]["mse"]):
            each = [compute_psnr(a, scale) - compute_psnr(b, scale) for a, b in pairs]
            mean, labels = np.mean(each, 0), get_crop_labels(pairs[0][0])
            cells = [_format_interval(mean[:, c], labels) for c in range(len(names))]
            seeds = ", ".join(f"{e.mean():+.2f}" for e in each)
            rows.append([f"{ours} - {other}", scale, _format_interval(mean.mean(1), labels), *cells, seeds])
    head = ["difference", "factor", "mean dB [95 %]", *names, "mean of each seed"]
    return f"{ours}, differences in dB:\n\n" + format_markdown(head, rows)


def _pair_runs(ours: list[dict], theirs: list[dict]) -> Iterable[tuple[dict, dict]]:
    """Pair runs of equal seed; an untrained method, which has no seed, is paired with every run."""
    if "seed" not in theirs[0]:
        return ((run, theirs[0]) for run in ours)
    by_seed = {run["seed"]: run for run in theirs}
    return ((run, by_seed[run["seed"]]) for run in ours if run["seed"] in by_seed)


def _format_interval(values: np.ndarray, labels: np.ndarray) -> str:
    low, high = compute_interval(values, labels)
    return f"{values.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


def _format_costs(methods: dict) -> str:
    rows = [
        [name, str(len(runs)), str(runs[0]["steps"]), f"{runs[0]['parameters']:,}", f"{_compute_minutes(runs):.1f}"]
        for name, runs in methods.items()
        if "seed" in runs[0]
    ]
    return "Cost:\n\n" + format_markdown(["method", "seeds", "steps", "parameters", "CPU minutes a run"], rows)


def _compute_minutes(runs: list[dict]) -> float:
    return float(np.mean([r["train_cpu_s"] for r in runs])) / 60


SCALES = {"1.5": (1.5, 1.5), "2": (2, 2), "2.67": (2.67, 2.67), "3": (3, 3), "4": (4, 4), "2x3": (2, 3)}


INTERPOLATIONS: dict[str, Callable] = {
    "bilinear": resize_bilinear,
    "bicubic": resize_bicubic,
    "bicubic-0.75": resize_bicubic_torch,
}
# Regressions on the location alone, for whole regions (crop: null) and integer factors.
LOCATION_REGRESSIONS = {"static residual": StaticResidual, "regression per point": LocationRidge}
WHOLE_FACTORS = ("2", "3", "4")


@dataclasses.dataclass
class Method:
    """A method of the study.

    Args:
        model: the network.
        learning_rate: learning rate of the training.
        scales: range of training factors, instead of that of the data.
        degraded: fraction of the training samples from the degradation pipeline.
        test: factors of the test, keys of SCALES; default all.
    """

    model: ModelConfig
    learning_rate: float = 3e-3
    scales: list[float] | None = None
    degraded: float = 0.0
    test: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class StudyConfig:
    """Options of the study; all methods are trained on the same samples (seed, index) for the same number of steps.

    Args:
        data: samples, and the parts for training, validation and test.
        methods: name -> Method.
        run: names of the methods to run; default all.
        seeds: random seeds of samples and initial weights.
        weights: names or paths of trained weights that are scored for comparison.
        max_steps: number of steps of each training.
        ema_decay: decay of the averaged weights of each training.
        crop: side of the test crops in fine pixels; None: every field whole, and regressions of the location are also
            scored.
        per_cell: test crops of each time and latitude band.
        together: successive times that the bootstrap draws as one block, such as a day.
        degraded: score on inputs of the degradation pipeline (the same draws for all methods) instead of area means.
        output: folder of the runs.
        threads: number of threads of torch; None leaves the number unchanged.
    """

    data: DataConfig
    methods: dict[str, Method]
    run: list[str] = dataclasses.field(default_factory=list)
    seeds: list[int] = dataclasses.field(default_factory=lambda: [0, 1, 2])
    weights: list[str] = dataclasses.field(default_factory=list)
    max_steps: int = 1500
    ema_decay: float = 0.99
    crop: int | None = 64
    per_cell: int = 2
    together: int = 1
    degraded: bool = False
    output: str = "study"
    threads: int | None = None

    def __post_init__(self):
        if not (self.data.train and self.data.test):
            raise OptionError(
                "data", ": the study needs separate test columns or times for training, validation and testing"
            )
        if self.data.statics:
            raise OptionError("data.statics", ": the methods of the study read no static maps")
        unknown = set(self.run) - set(self.methods)
        if unknown:
            raise OptionError("run", f"names {sorted(unknown)}, the methods are {sorted(self.methods)}")


def run_study(config: StudyConfig) -> pathlib.Path:
    """Run the methods and seeds without a JSON file in config.output, write table.md there and return its path.

    With degraded inputs, scores and table are in the subfolder "degraded". Results of weights are stored by their
    checksum. The table has the weights of this configuration, and all methods and seeds with results in the folder.

    Raises:
        ValueError: the folder holds results of other options, or data or weights do not fit.
        FileNotFoundError: there are no such data or weights.
    """
    load_fields(config.data)  # this and the next line raise errors before anything is written
    digests = {name: read_digest(name) for name in config.weights}
    clean = dataclasses.replace(config, degraded=False)
    folder = StudyFolder(config.output, list_options(config, "weights", "degraded"))
    part = "degraded/" if config.degraded else ""
    for name in (*INTERPOLATIONS, *(LOCATION_REGRESSIONS if config.crop is None else ())):
        folder.load_or_compute(part + name, functools.partial(score_untrained, config, name))
    scored = []
    for name, digest in digests.items():
        result = f"weights-{pathlib.Path(name).stem}-{digest[:12]}"
        scores = folder.load_or_compute(part + result, functools.partial(score_weights, config, name))
        scored.append({"method": f"weights {name}", **scores})
    for seed, name in itertools.product(config.seeds, config.run or config.methods):
        run = folder.load_or_compute(f"{name}-{seed}", functools.partial(train_and_score, clean, name, seed))
        if config.degraded:
            folder.load_or_compute(f"{part}{name}-{seed}", functools.partial(rescore, config, run))
    output = folder.path / part
    others = [file for file in sorted(output.glob("*.json")) if not file.name.startswith(("options.", "weights-"))]
    table = output / "table.md"
    table.write_text(render([json.loads(file.read_text()) for file in others] + scored))
    return table


def _get_run_folder(config: StudyConfig, name: str, seed: int) -> pathlib.Path:
    return pathlib.Path(config.output) / f"{name}-{seed}"


def make_training_config(config: StudyConfig, name: str, seed: int) -> TrainingConfig:
    """Make the training configuration of a method, with validation at factors of its training.

    Args:
        config: options of the study.
        name: the method, a key of config.methods.
        seed: random seed.

    Returns:
        The configuration.
    """
    method = config.methods[name]
    data = config.data
    if method.scales:
        tested = [sum(method.scales) / 2] if method.scales[0] == method.scales[1] else data.test_scales
        data = dataclasses.replace(data, scales=method.scales, test_scales=tested)
    data = dataclasses.replace(data, degraded=method.degraded)
    return TrainingConfig(
        data, method.model, output=str(_get_run_folder(config, name, seed)), seed=seed,
        max_steps=config.max_steps, learning_rate=method.learning_rate, ema_decay=config.ema_decay,
        threads=config.threads,
    )  # fmt: skip


def train_and_score(config: StudyConfig, name: str, seed: int) -> dict:
    """Train a method, and score the weights with the lowest validation error on the test part.

    Args:
        config: options of the study.
        name: the method, a key of config.methods.
        seed: random seed.

    Returns:
        Options, costs and scores of the run by name.
    """
    training = make_training_config(config, name, seed)
    before = time.process_time()
    model: Network = models.load(field_training.train(training))
    seconds = time.process_time() - before
    return {
        "method": name, "seed": seed, "steps": config.max_steps, "learning_rate": training.learning_rate,
        "train_cpu_s": round(seconds, 1), "parameters": sum(p.numel() for p in model.parameters()),
        "validation": model.card.metrics["validation"], **score_run(config, name, seed),
    }  # fmt: skip


def score_run(config: StudyConfig, name: str, seed: int) -> dict:
    """Score the weights of a finished run.

    Args:
        config: options of the study.
        name: the method, a key of config.methods.
        seed: random seed.

    Returns:
        Errors by factor and further values, see `score`.
    """
    model = models.load(_get_run_folder(config, name, seed) / "best.safetensors").eval()
    with torch.no_grad():
        return score(lambda x, size: model(x, size=size), config, config.methods[name].test)


def rescore(config: StudyConfig, run: dict) -> dict:
    """Return the result of a finished run with errors that are computed anew, on the inputs of this configuration."""
    return run | score_run(config, run["method"], run["seed"])


def score_untrained(config: StudyConfig, name: str) -> dict:
    """Score an interpolation or a regression of the location."""
    if name in INTERPOLATIONS:
        return {"method": name, **score(INTERPOLATIONS[name], config)}
    return {"method": name, **score(make_regression(LOCATION_REGRESSIONS[name], config), config, WHOLE_FACTORS)}


def score_weights(config: StudyConfig, name: str) -> dict:
    """Score trained weights. The result has no name, because files with other names may have the same weights."""
    model = models.load(name).eval()
    with torch.no_grad():
        return score(lambda x, size: model(x, size=size), config)


def make_regression(kind: type, config: StudyConfig) -> Callable:
    """Return predict(x, size) of a regression of the location.

    The regression is fitted on the training part for each factor and variable.
    """
    train = config.data.part(load_fields(config.data), config.data.train)

    @functools.cache
    def fitted(factor: int) -> list:
        coarse, fine = make_coarse_and_fine(train, factor)
        return [kind(factor).fit(coarse[:, c], fine[:, c]) for c in range(train.shape[1])]

    def predict(x: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.stack([model(x[:, c]) for c, model in enumerate(fitted(size[0] // x.shape[2]))], 1)

    return predict


def make_degradation(data: FieldData) -> Callable:
    """Return degrade(fine, size, seed), which applies the degradation pipeline to fields in physical units.

    The fields are normalised for the pipeline as in training.
    """
    mean, std = (t[:, None, None] for t in (data.mean, data.std))
    pipeline = Degradation(DegradationConfig(probability=1.0), data.training.degradation.value_range)

    def degrade(fine: Tensor, size: tuple[int, int], seed: int) -> Tensor:
        return pipeline((fine - mean) / std, size, torch.Generator().manual_seed(seed)) * std + mean

    return degrade


def score(predict: Callable, config: StudyConfig, names: Sequence[str] = ()) -> dict:
    """Score predict(x, size) on the test crops by factor.

    Args:
        predict: the method.
        config: options of the study.
        names: factors, keys of SCALES; default all.

    Returns:
        Errors by factor under "mse", and variables, value ranges, crops and times per block.
    """
    data = FieldData(config.data)
    test = config.data.part(load_fields(config.data), config.data.test)
    crops = draw_crops(test.shape, config.crop, config.per_cell, seed=0)
    degrade = make_degradation(data) if config.degraded else None
    return {
        "variables": config.data.variables,
        "value_range": data.value_range.tolist(),
        "crops": crops,
        "together": config.together,
        "mse": {n: compute_crop_errors(predict, test, crops, config.crop, SCALES[n], degrade) for n in names or SCALES},
    }


def study(config: StudyConfig) -> pathlib.Path:
    """Run a study of fields, print its table of results and return the path of the table."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    table = run_study(config)
    print(table.read_text())
    return table


def parse_arguments(arguments: list[str]) -> StudyConfig:
    """Parse the command line of a study of fields; `--config` accepts the name of a shipped study or a file."""
    about = "Compare arbitrary-scale downscaling with its baselines."
    return read_command_line(StudyConfig, arguments, "fastds study fields", about, find_configurations())
