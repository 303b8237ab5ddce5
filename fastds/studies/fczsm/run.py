# SPDX-License-Identifier: Apache-2.0
"""`fastds study fczsm`: every method of the paper's tables, trained and scored on the same samples; a study that was
killed goes on and ends the same."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastds import models
from fastds.report import Page, check_report
from fastds.studies.common.bootstrap import FEWEST
from fastds.studies.common.budget import PAPER
from fastds.studies.common.folder import StudyFolder
from fastds.studies.common.runs import Runs
from fastds.studies.common.tables import ResultTable
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
    """What `fastds study fczsm` does: run_study, its tables and notes printed, config.report written."""
    if config.report is not None:
        check_report(config.report, made=config.output)
    quieten_lightning()
    return run_study(config)


def run_study(config: StudyConfig) -> pathlib.Path:
    """Train and score what has no result in config.output yet, and write tables, notes and figures there; the path of
    the table of scores is returned.

    Deterministic for given options and number of threads, killed or not; with a budget in time from the moment on that
    plan.json is there, which holds the number of steps.
    Raises: FileNotFoundError, ValueError for files or options that do not fit.
    """
    found = FczsmStudy(config)
    results = {name: found.results(name) for name in found.names}
    shown = {
        "scores": tables.score_rows(results, found.blocks, found.sizes),
        "order": tables.order_rows(results, found.blocks),
        "files": tables.file_rows(results, found.blocks),
        "samples": tables.sample_rows(found.blocks, found.files),
    }
    folder, notes = found.folder.path, found.notes()
    for name, table in shown.items():
        table.write(folder, name)
    (folder / "notes.txt").write_text("\n".join(notes) + "\n", encoding="utf-8")
    found.draw(list(shown.values()))
    print("\n".join([table.markdown() for table in shown.values()] + notes))
    return folder / "scores.md"


class FczsmStudy:
    """A study of the paper's methods. Attributes: files and their parts; left_out: method -> why; names of the methods
    that are scored; blocks of the test; folder of the study; runs; steps of each training; sizes: method -> width and
    parameters, of what was scored."""

    def __init__(self, config: StudyConfig):
        self.config = config
        self.files = samples.find_files(config.data)
        self.left_out = dict(self._left_out())
        wanted = [n for n, method in METHODS.items() if n in config.run or not (config.run and method.preset)]
        self.names = [name for name in wanted if name not in self.left_out]
        options = {key: value for key, value in dataclasses.asdict(config).items() if key not in _FREE}
        self.folder = StudyFolder(config.output, options | {"files": self.files})
        self.data = samples.training_data(config.data, self.files, samples.CROP)
        self.blocks = self._test_blocks()
        networks = [name for name in self.names if METHODS[name].preset]
        plan = self.folder.once("plan", lambda: make_plan(config, networks, self.data, self.blocks))
        self.steps, self.seconds, self.sizes = plan["steps"], plan["seconds_a_step"], {}
        self.runs = Runs("fczsm", self.folder, networks, config.seeds, self._train, self._score, config.progress)

    def _left_out(self) -> Iterator[tuple[str, str]]:
        missing = samples.without_dynamics(self.config.data, list(self.files))
        for name, method in METHODS.items():
            if method.dynamic and missing:
                yield name, missing
            elif method.static and not self.config.data.statics:
                yield name, "data.statics names no maps"

    def _test_blocks(self) -> list[TestBlock]:
        data, methods = self.config.data, [METHODS[name] for name in self.names]
        maps = samples.static_maps(data, list(self.files)) if any(m.static for m in methods) else {}
        further = any(m.dynamic for m in methods)
        return [samples.test_block(data, n, part["test"], maps.get(n), further) for n, part in self.files.items()]

    def _train(self, name: str, seed: int, output: pathlib.Path) -> None:
        c = self.config
        options = {"seed": seed, "output": str(output), "threads": c.threads, "device": c.device}
        train(training_config(name, c.budget, self.steps, self.data, progress=c.progress, **options))

    def _score(self, name: str, weights: pathlib.Path | None) -> dict[str, Any]:
        c = self.config
        found = with_prediction(name, weights, c.threads, c.device, lambda predict: score(predict, self.blocks))
        if weights is None:
            return found
        model = samples.quietly(lambda: models.load(weights))
        return found | {"width": width_of(model), "parameters": sum(p.numel() for p in model.parameters())}

    def results(self, name: str) -> dict[str, np.ndarray]:
        """The scores of a method on every test sample, the means over the seeds."""
        found = self.runs.scores(name)
        if "width" in found[0]:
            self.sizes[name] = found[0]["width"], found[0]["parameters"]
        return {key: np.mean([one[key] for one in found], 0) for key in SCORES}

    def draw(self, shown: list[ResultTable]) -> None:
        """Write the figures and, where it is asked for, the page, of the first seed; shown: the tables."""
        self.runs.say("figures")
        c, seed = self.config, self.config.seeds[0]
        curves = {name: self.runs.run_folder(name, seed) / "validation.csv" for name in self.runs.networks}
        block, sample = figures.most_echo(self.blocks)

        def fields(name: str) -> np.ndarray:
            weights = self.runs.weights(name, seed)
            return with_prediction(name, weights, c.threads, c.device, lambda predict: predict(sample).numpy())

        made, grid = {name: fields(name) for name in self.names}, figures.grid_of(c.data, block)
        title = f"{block.name}: truth, methods, differences"
        figures.draw_figures(self.folder.path, curves, made, sample, grid, title)
        if c.report is not None:
            told = facts(None, dict(flat(dataclasses.asdict(c))), {})
            told.pop("Model")
            rich, maps = [table.rich() for table in shown], figures.maps(grid, made, sample)
            title = "FC-ZSM and what it is compared with"
            Page(title, told, rich, self.notes(), maps, figures.charts(curves)).write(c.report)

    def notes(self) -> list[str]:
        """What stands below the tables."""
        paper = self.config.budget == PAPER
        small = "" if paper else "; networks in the small, the paper's ZSM is 64 wide, and here UNet 64, UNet3D 72"
        count = len(np.unique(labels_of(self.blocks)))
        notes = [
            f"Every network is trained in {self.steps} steps on the same samples (mean squared error, AdamW with "
            "warm-up and cosine decay, weights of the lowest validation error), "
            f"seeds {', '.join(map(str, self.config.seeds))}{small}.",
            f"Intervals are over the {count} blocks of time of the test, not over seeds; of fewer than {FEWEST} there "
            "are none. The paper's unit and samples are others: compare reductions and order, not numbers.",
        ]
        notes += [f"{name} is left out: {why}." for name, why in self.left_out.items()]
        if self.seconds:
            notes.append("Seconds a step: " + ", ".join(f"{n} {s:.3g}" for n, s in self.seconds.items()) + ".")
        return notes
