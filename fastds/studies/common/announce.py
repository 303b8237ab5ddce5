# SPDX-License-Identifier: Apache-2.0
"""Description of the planned trainings of a study: networks, configurations, steps and estimated hours."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fastds import models
from fastds.inference.run_facts import flatten_options
from fastds.studies.common.budget import PAPER
from fastds.studies.common.quiet import suppress_warnings
from fastds.studies.common.tables import ResultTable
from fastds.training.config import RunConfig


class PlannedTraining(NamedTuple):
    """A planned training: configuration, number of parameters, and seconds of a step (None: not measured)."""

    config: RunConfig
    parameters: int
    seconds: float | None = None


def plan_training(config: RunConfig, seconds: float | None = None) -> PlannedTraining:
    """Count the parameters of a training's network."""
    network = suppress_warnings(lambda: models.create(config.model.name, **config.model.options))
    return PlannedTraining(config, sum(p.numel() for p in network.parameters()), seconds)


def describe_training(name: str, training: PlannedTraining) -> str:
    """Describe a planned training in one line."""
    c = training.config
    return (
        f"{name} will be trained: network {c.model.name}, {training.parameters:,} parameters, {c.max_steps:,} steps of "
        f"{c.data.batch_size} samples"
    )


def tabulate_trainings(trainings: Mapping[str, PlannedTraining], seeds: int) -> ResultTable:
    """Tabulate the planned trainings.

    Args:
        trainings: method -> training.
        seeds: number of seeds with which each is trained.
    """
    rows, total = [], 0.0
    for name, (config, parameters, seconds) in trainings.items():
        hours = None if seconds is None else seconds * config.max_steps / 3600
        total += hours or 0.0
        cells = ("-", "-") if hours is None else (f"{seconds:.3g}", _format_hours(hours))
        steps = f"{config.max_steps:,}", str(config.data.batch_size), f"{config.learning_rate:g}"
        rows.append((name, config.model.name, f"{parameters:,}", *steps, *cells))
    heads = ("method", "network", "parameters", "steps", "samples a step", "learning rate")
    title = f"Trainings of each of {seeds} seeds" if seeds > 1 else "Trainings"
    if total:
        title += f"; about {_format_hours(total * seeds)} hours together on this machine, validations not counted"
    return ResultTable(title, (*heads, "seconds of a step", "hours"), rows)


def _format_hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def format_configurations(trainings: Mapping[str, PlannedTraining]) -> list[str]:
    """List all options of the first training, and the differing options of the others."""
    lines: list[str] = []
    first: dict[str, Any] = {}
    for name, training in trainings.items():
        options = dict(flatten_options(dataclasses.asdict(training.config)))
        options.pop("output", None)
        if not first:
            first = options
            lines += [f"configuration of {name}:", *(f"  {key}: {value}" for key, value in options.items())]
            continue
        differing = [key for key in {**first, **options} if first.get(key) != options.get(key)]
        lines += [f"configuration of {name}, different:", *(f"  {key}: {options.get(key)}" for key in differing)]
    return lines


def time_second_call(call: Callable[[], object]) -> float:
    """Return the seconds of the second of two calls, as an estimate for slow functions."""
    call()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def format_title(title: str, budget: str, steps: int) -> str:
    """Append a note to a table's title if networks and trainings are smaller than the paper's."""
    if budget == PAPER:
        return title
    return f"{title} (small networks, {steps} steps each, not the paper's training)"


def format_plan(
    command: str,
    samples: ResultTable,
    trainings: Mapping[str, PlannedTraining],
    seeds: Sequence[int],
    notes: Sequence[str],
) -> str:
    """Format the text that `--plan` prints.

    Args:
        command: command line of the study.
        samples: table of the files.
        trainings: method -> training.
        seeds: random seeds.
        notes: methods that are left out, with the reasons.
    """
    tables = samples.to_markdown(), tabulate_trainings(trainings, len(seeds)).to_markdown()
    head = f"plan of {command}: nothing is trained yet", ""
    return "\n".join([*head, *tables, *notes, *format_configurations(trainings)])
