# SPDX-License-Identifier: Apache-2.0
"""Base class of the studies of papers: train and score every method, write tables, notes, figures and a page."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, cast

from fastds.inference.run_facts import describe_run, flatten_options
from fastds.plot import save_png
from fastds.report import Chart, Maps, Page, check_report
from fastds.studies.common.config import PAPER, PaperConfig
from fastds.studies.common.plan import (
    Costs,
    PlannedTraining,
    describe_training,
    format_plan,
    format_title,
    make_plan,
    plan_training,
)
from fastds.studies.common.runs import Runs, StudyFolder, list_options
from fastds.studies.common.tables import ResultTable
from fastds.training.command import quieten_lightning
from fastds.training.config import RunConfig

_OPTIMISERS = {"adam": "Adam", "adamw": "AdamW"}
_SCHEDULES = {
    "constant": "constant learning rate", "cosine": "cosine decay", "steps": "learning rate reduced in steps"
}  # fmt: skip


class PaperStudy:
    """A study in its folder. Results in the folder are not computed again, so an interrupted study is resumed.

    A subclass reads its files, calls this __init__, and implements the methods that raise NotImplementedError.

    Args:
        config: options of the study.
        names: methods that are scored, in the order of the tables.
        networks: methods that are trained.
        basis: JSON data on which results depend, in addition to the options.

    Attributes:
        name: name of the command (class attribute).
        title: title of the page (class attribute).
        paper_steps: number of steps of each training with the budget "paper".
        folder: stored results.
        steps: number of steps of each training.
        seconds: seconds of a step by method, if measured.
        runs: trainings and scores.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper_steps: int | None

    config: Any  # a subclass of PaperConfig

    def __init__(self, config: PaperConfig, names: Sequence[str], networks: Collection[str], basis: dict[str, Any]):
        self.config, self.names = config, list(names)
        self.folder = StudyFolder(config.output, list_options(config) | basis)
        trained = [name for name in names if name in networks]

        def make() -> dict[str, Any]:
            return make_plan(config, trained, cast(int, self.paper_steps), self.measure_costs)

        plan = make() if config.plan else self.folder.load_or_compute("plan", make)
        self.steps, self.seconds = plan["steps"], plan["seconds_a_step"]
        self.runs = Runs(self.name, self.folder, trained, config.seeds, self.train, self.score, config.progress)

    # ---- implemented by each study

    def measure_costs(self, networks: list[str]) -> Costs:
        """Measure the time of trainings and of the rest on this machine."""
        raise NotImplementedError

    def make_training(self, name: str, seed: int, output: pathlib.Path) -> RunConfig:
        """Make the configuration of a training.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.
        """
        raise NotImplementedError

    def train(self, name: str, seed: int, output: pathlib.Path) -> object:
        """Train a method in a folder, or resume its training there.

        Args:
            name: the method.
            seed: random seed.
            output: folder of the training.

        Raises:
            NotImplementedError: the subclass does not implement the method.
        """
        raise NotImplementedError

    def measure_step_seconds(self, name: str) -> float:
        """Estimate the seconds of a training step from one step."""
        raise NotImplementedError

    def make_sample_table(self) -> ResultTable:
        """Tabulate the files and their training and test parts."""
        raise NotImplementedError

    def score(self, name: str, weights: pathlib.Path | None) -> dict[str, Any]:
        """Score a method; the result is JSON data."""
        raise NotImplementedError

    def make_tables(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, ResultTable]:
        """Make the tables, with the most important one first.

        Args:
            results: method -> scores by seed.

        Returns:
            A dictionary from file name to table.
        """
        raise NotImplementedError

    def draw_fields(self, results: Mapping[str, list[dict[str, Any]]]) -> Maps:
        """Write maps of the first seed as PNG files into the folder, and return them for the page."""
        raise NotImplementedError

    def make_charts(self, results: Mapping[str, list[dict[str, Any]]]) -> dict[str, Chart]:
        """Make the line charts, file name -> chart."""
        raise NotImplementedError

    def write_notes(self) -> list[str]:
        """Return the notes below the tables."""
        raise NotImplementedError

    # ---- common to all studies

    @property
    def run_options(self) -> dict[str, Any]:
        """Options of every training."""
        return {"threads": self.config.threads, "device": self.config.device, "progress": self.config.progress}

    @property
    def curves(self) -> dict[str, pathlib.Path]:
        """Validation logs of the first seed, method -> CSV file."""
        seed = self.config.seeds[0]
        return {name: self.runs.get_run_folder(name, seed) / "validation.csv" for name in self.runs.networks}

    def get_first_weights(self, name: str) -> pathlib.Path | None:
        """Return the weights of a method for the first seed."""
        return self.runs.get_weights(name, self.config.seeds[0])

    def _plan_trainings(self, measured: bool) -> dict[str, PlannedTraining]:
        """Describe the trainings of the first seed; if `measured`, with the seconds of a step."""
        found, seed = {}, self.config.seeds[0]
        for name in self.runs.networks:
            seconds = self.seconds.get(name)
            if measured and seconds is None:
                self.runs.log(f"a step of {name} is measured")
                seconds = self.measure_step_seconds(name)
            found[name] = plan_training(self.make_training(name, seed, self.runs.get_run_folder(name, seed)), seconds)
        return found

    def describe_optimiser(self) -> str:
        """Describe optimizer and schedule for the notes, for networks with a single loss."""
        if self.config.budget != PAPER:
            return "AdamW with warm-up and cosine decay"
        name = self.runs.networks[0] if self.runs.networks else None
        if name is None:
            return "the paper's optimiser"
        c = self.make_training(name, 0, self.folder.path)
        return f"{_OPTIMISERS[c.optimizer]}, {_SCHEDULES[c.schedule]}"

    def print_plan(self) -> None:
        """Print the plan: files, trainings, estimated hours on this machine, and configurations."""
        budget = self.config.budget
        left_out = [note for note in self.write_notes() if "left out" in note]
        command = f"fastds study {self.name} --budget={budget}"
        print(format_plan(command, self.make_sample_table(), self._plan_trainings(True), self.config.seeds, left_out))

    def run(self) -> pathlib.Path:
        """Train and score what has no result yet, and write tables, notes, figures and the page.

        The result is deterministic for given options and number of threads, also after an interruption. With a time
        budget, this holds once plan.json, which stores the number of steps, has been written.

        Returns:
            The path of the first table.
        """
        for name, training in self._plan_trainings(False).items():
            self.runs.log(describe_training(name, training))
        results = {name: self.runs.get_scores(name) for name in self.names}
        folder, budget = self.folder.path, self.config.budget
        shown = {
            name: dataclasses.replace(table, title=format_title(table.title, budget, self.steps))
            for name, table in self.make_tables(results).items()
        }
        notes = self.write_notes()
        if self.seconds:
            notes.append("Seconds a step: " + ", ".join(f"{n} {s:.3g}" for n, s in self.seconds.items()) + ".")
        for name, table in shown.items():
            table.write(folder, name)
        (folder / "notes.txt").write_text("\n".join(notes) + "\n", encoding="utf-8")
        self.runs.log("figures")
        maps, charts = self.draw_fields(results), self.make_charts(results)
        for name, chart in charts.items():
            save_png(chart.draw(), folder / f"{name}.png")
        if self.config.report is not None:
            run = describe_run(None, dict(flatten_options(dataclasses.asdict(self.config))), {})
            run.pop("Model")
            tables = [table.to_rich() for table in shown.values()]
            Page(self.title, run, tables, notes, maps, list(charts.values())).write(self.config.report)
        print("\n".join([table.to_markdown() for table in shown.values()] + notes))
        return folder / f"{next(iter(shown))}.md"


def run_paper_study(kind: type[PaperStudy], config: PaperConfig) -> pathlib.Path | None:
    """Run the command of a study; return the path of its first table, or None for a plan."""
    if config.report is not None:
        check_report(config.report, made=config.output)
    quieten_lightning()
    study = cast(Any, kind)(config)
    if config.plan:
        study.print_plan()
        return None
    return study.run()
