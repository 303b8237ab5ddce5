# SPDX-License-Identifier: Apache-2.0
"""`fastds study fczsm`: trains and scores every method of the paper's tables on the same samples; goes on after a
kill, in whose place the results are the same to the byte."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastds import models
from fastds.report import Page, check_report
from fastds.studies.common.budget import PAPER
from fastds.studies.common.folder import StudyFolder
from fastds.studies.fczsm import figures, samples, tables
from fastds.studies.fczsm.config import StudyConfig, parse_arguments
from fastds.studies.fczsm.methods import METHODS, training_config, width_of
from fastds.studies.fczsm.plan import make_plan
from fastds.studies.fczsm.samples import TestBlock
from fastds.studies.fczsm.scores import SCORES, labels_of, score, with_prediction
from fastds.tasks.common.command import quieten_lightning
from fastds.tasks.common.reports import facts, flat
from fastds.tasks.radar.training import train

__all__ = ["StudyConfig", "parse_arguments", "run_study", "study"]
# Options that no result depends on, or that may grow in a later run.
_FREE = ("output", "progress", "report", "threads", "device", "run", "seeds")


def study(config: StudyConfig) -> pathlib.Path:
    """What `fastds study fczsm` does: run_study, its tables printed, config.report written."""
    if config.report is not None:
        check_report(config.report, made=config.output)
    return run_study(config)


def run_study(config: StudyConfig) -> pathlib.Path:
    """Train and score what has no result in config.output yet; write tables and figures there, the table's path is
    returned.

    Deterministic for given options and number of threads, killed or not; with a budget in time, from the moment on
    that plan.json is there, which holds the number of steps.
    Raises: FileNotFoundError, ValueError for files or options that do not fit.
    """
    quieten_lightning()
    run = _Run(config)
    results = {name: run.results(name) for name in run.names}
    shown = [
        tables.score_rows(results, run.blocks, run.sizes), tables.order_rows(results, run.blocks),
        tables.file_rows(results, run.blocks), tables.sample_rows(run.blocks, run.files),
    ]  # fmt: skip
    folder = run.folder.path
    for table, name in zip(shown, ("scores", "order", "files", "samples"), strict=True):
        table.write(folder, name)
    (folder / "notes.txt").write_text("\n".join(run.notes()) + "\n")
    run.say("figures")
    curves = {name: run.curve(name) for name in run.trained}
    block, sample = figures.most_echo(run.blocks)
    fields = {name: run.fields(name, sample) for name in run.names}
    figures.draw_figures(folder, curves, fields, sample, f"{block.name}: truth, methods, and their differences")
    if config.report is not None:
        drawn = figures.maps(config.data, block, fields, sample)
        told = facts(None, dict(flat(dataclasses.asdict(config))), {})
        told.pop("Model")
        title = "FC-ZSM and what it is compared with"
        Page(title, told, [t.rich() for t in shown], run.notes(), drawn, figures.charts(curves)).write(config.report)
    print("\n".join([table.markdown() for table in shown] + run.notes()))
    return folder / "scores.md"


class _Run:
    """One run of the study. Attributes: files and their parts; names of the methods, trained: those with networks;
    left_out: method -> why; blocks of the test; folder; steps; sizes, method -> width and parameters."""

    def __init__(self, config: StudyConfig):
        self.config = config
        self.files = samples.find_files(config.data)
        self.left_out = dict(self._left_out())
        wanted = [n for n, method in METHODS.items() if n in config.run or not (config.run and method.preset)]
        self.names = [name for name in wanted if name not in self.left_out]
        self.trained = [name for name in self.names if METHODS[name].preset]
        options = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
        self.folder = StudyFolder(config.output, options | {"files": self.files})
        self.data = samples.training_data(config.data, self.files, samples.CROP)
        self.blocks = self._test_blocks()
        plan = self.folder.once("plan", lambda: make_plan(config, self.trained, self.data, self.blocks))
        self.steps, self.seconds, self.sizes = plan["steps"], plan["seconds_a_step"], {}

    def _left_out(self) -> Iterator[tuple[str, str]]:
        missing = samples.without_dynamics(self.config.data, list(self.files))
        for name, method in METHODS.items():
            if method.dynamic and missing:
                yield name, missing
            elif method.static and not self.config.data.statics:
                yield name, "no static maps: data.statics names none"

    def _test_blocks(self) -> list[TestBlock]:
        data, methods = self.config.data, [METHODS[name] for name in self.names]
        maps = samples.static_maps(data, list(self.files)) if any(m.static for m in methods) else {}
        further = any(m.dynamic for m in methods)
        return [samples.test_block(data, n, part["test"], maps.get(n), further) for n, part in self.files.items()]

    def say(self, what: str) -> None:
        """Progress on standard error."""
        if self.config.progress:
            print(f"fastds study fczsm: {what}", file=sys.stderr, flush=True)

    def _folder(self, name: str, seed: int) -> pathlib.Path:
        return self.folder.path / "runs" / f"{name}-{seed}"

    def _weights(self, name: str, seed: int) -> pathlib.Path | None:
        """The weights of a trained network; it is trained, or goes on, where it is not yet."""
        if METHODS[name].preset is None:
            return None
        c, number = self.config, self.trained.index(name) + 1
        output = self._folder(name, seed)

        def trained() -> list[str]:
            self.say(f"{name}, seed {seed}: training {number} of {len(self.trained)}, {self.steps} steps")
            run = {"output": str(output), "seed": seed, "threads": c.threads, "device": c.device}
            train(training_config(name, c.budget, self.steps, self.data, progress=c.progress, **run))
            return sorted(path.name for path in output.glob("*.safetensors"))

        self.folder.once(f"trained/{name}-{seed}", trained)
        return output / "best.safetensors"

    def results(self, name: str) -> dict[str, np.ndarray]:
        """The scores of a method on every test sample, the means over the seeds."""
        seeds = self.config.seeds if METHODS[name].preset else [0]
        found = [self.folder.once(f"scores/{name}-{seed}", lambda s=seed: self._scored(name, s)) for seed in seeds]
        if METHODS[name].preset:
            self.sizes[name] = found[0]["width"], found[0]["parameters"]
        return {key: np.mean([one[key] for one in found], 0) for key in SCORES}

    def _scored(self, name: str, seed: int) -> dict[str, Any]:
        weights = self._weights(name, seed)
        self.say(f"{name}, seed {seed}: scores")
        with_scores = with_prediction(
            name, weights, self.config.threads, self.config.device, lambda predict: score(predict, self.blocks)
        )
        if weights is None:
            return with_scores
        model = samples.quietly(lambda: models.load(weights))
        size = {"width": width_of(name, model.config), "parameters": sum(p.numel() for p in model.parameters())}
        return with_scores | size

    def fields(self, name: str, sample: dict) -> np.ndarray:
        """The fields of a method (3, H, W) in dBZ, of the first seed."""
        c = self.config
        weights = self._weights(name, c.seeds[0])
        return with_prediction(name, weights, c.threads, c.device, lambda predict: predict(sample).numpy())

    def curve(self, name: str) -> pathlib.Path:
        """The CSV of the validation errors of a method's first seed."""
        return self._folder(name, self.config.seeds[0]) / "validation.csv"

    def notes(self) -> list[str]:
        """What stands below the tables."""
        paper = self.config.budget == PAPER
        small = "" if paper else "; networks in the small, the paper's sizes in column width are 64, 72 and 64"
        notes = [
            f"Every network is trained in {self.steps} steps on the same samples (mean squared error, AdamW with "
            "warm-up and cosine decay, weights by the lowest validation error), "
            f"seeds {self.config.seeds}{small}.",
            f"Intervals are over the {len(np.unique(labels_of(self.blocks)))} blocks of time of the test, not over "
            "seeds; of fewer than about ten they are too short. The paper's unit and samples are others: compare "
            "reductions and order, not numbers.",
        ]
        notes += [f"{name} is left out: {why}." for name, why in self.left_out.items()]
        if self.seconds:
            notes.append("Seconds a step: " + ", ".join(f"{n} {s:.3g}" for n, s in self.seconds.items()) + ".")
        return notes
