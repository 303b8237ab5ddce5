# SPDX-License-Identifier: Apache-2.0
"""Number of steps of the trainings of a study, from the measured costs and the budget."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from fastds.studies.common.budget import MIN_STEPS, PAPER, compute_steps, has_time_for, parse_budget, time_call
from fastds.studies.common.config import PaperConfig
from fastds.studies.common.quiet import suppress_warnings
from fastds.training.config import RunConfig
from fastds.training.modules import SupervisedModule

FORWARD = 0.4  # time of a forward pass, as a fraction of a step with gradients
START = 4.0  # seconds of a training without its steps and the reading of its files
_SHORT = (8, 24)  # steps of the two measured trainings
_DRAWING = 20.0  # seconds for tables, figures and page


class Costs(NamedTuple):
    """Measured costs: seconds of a step by method, and seconds of everything else for one seed (files, validations,
    scores)."""

    step_seconds: dict[str, float]
    fixed: float


def make_plan(
    config: PaperConfig, networks: list[str], paper_steps: int, measure: Callable[[list[str]], Costs]
) -> dict:
    """Compute the number of training steps.

    Args:
        config: options of the study.
        networks: methods that are trained.
        paper_steps: number of steps in the paper.
        measure: function that measures the costs of methods.
    Returns:
        {"steps": steps of every training, "seconds_a_step": seconds by method, empty if nothing was measured}.
    Raises:
        ValueError: if the budget is too short.
    """
    if config.max_steps is not None or config.budget == PAPER or not networks:
        return {"steps": config.max_steps or paper_steps, "seconds_a_step": {}}
    began, seeds = time.perf_counter(), len(config.seeds)
    costs = measure(networks)
    fixed = seeds * costs.fixed + _DRAWING + time.perf_counter() - began
    seconds = parse_budget(config.budget)
    try:
        steps = compute_steps(seconds, seeds * sum(costs.step_seconds.values()), fixed)
    except ValueError as error:
        raise ValueError(f"{error}; {_suggest_methods(config.budget, seconds, seeds, costs)}") from None
    return {"steps": steps, "seconds_a_step": {name: round(second, 4) for name, second in costs.step_seconds.items()}}


def _suggest_methods(budget: str, seconds: float, seeds: int, costs: Costs) -> str:
    """Name the fastest methods that fit into the budget, for the error message."""
    chosen, spent = [], _DRAWING
    for name in sorted(costs.step_seconds, key=costs.step_seconds.__getitem__):
        spent += seeds * (MIN_STEPS * costs.step_seconds[name] + costs.fixed / len(costs.step_seconds))
        if has_time_for(seconds, spent):
            chosen.append(name)
    if not chosen or len(chosen) == len(costs.step_seconds):
        return "fewer files, seeds or test_samples take less, and max_steps sets the steps without a budget"
    listed = ",".join(name for name in costs.step_seconds if name in chosen)
    return f"{budget} is enough for run=[{listed}], and max_steps sets the steps without a budget"


def time_step(module: SupervisedModule, batch: dict) -> float:
    """Measure the seconds of loss and gradients of a batch."""

    def step() -> float:
        loss = module.loss(module(batch), batch)
        loss.backward()
        return float(loss.detach())

    return time_call(step)


def estimate_step_seconds(train: Callable[[RunConfig], object], config: RunConfig) -> float:
    """Estimate the seconds of a step from short trainings of one and four steps with one sample each, after a warm-up.

    Args:
        train: function that runs a training.
        config: configuration of the planned training.
    """
    least = {"batch_size": 1, "validation_samples": 1, "epoch_samples": 4}
    known = {field.name for field in dataclasses.fields(config.data)}
    data = dataclasses.replace(config.data, **{key: value for key, value in least.items() if key in known})

    def short(steps: int, folder: str) -> object:
        return train(dataclasses.replace(config, data=data, max_steps=steps, output=folder, progress=False))

    _, one, four = (_time_training(short, steps) for steps in (1, 1, 4))  # the first call is slower: warm-up
    return config.data.batch_size * max(four - one, 3e-3) / 3


def _time_training(train: Callable[[int, str], object], steps: int) -> float:
    """Measure train(steps, folder) in seconds, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        suppress_warnings(lambda: train(steps, folder))
        return time.perf_counter() - began


def measure_trainings(train: Callable[[str, int, str], object], networks: list[str]) -> Costs:
    """Measure costs by two short trainings of each network, with as many validations as a full training has.

    Args:
        train: function of (name, steps, folder).
        networks: names of the methods.
    """
    step_seconds, fixed = {}, 0.0
    for name in networks:
        spent = [_time_training(functools.partial(train, name), steps) for steps in _SHORT]
        step_seconds[name] = max((spent[1] - spent[0]) / (_SHORT[1] - _SHORT[0]), 1e-3)
        fixed += max(spent[0] - _SHORT[0] * step_seconds[name], 0.0) + START
    return Costs(step_seconds, fixed)
