# SPDX-License-Identifier: Apache-2.0
"""Planning of a study's trainings: measured costs, number of steps within the budget, and the printed plan."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fastds import models
from fastds._options import spell_name
from fastds.inference.run_facts import flatten_options
from fastds.models.card import Network
from fastds.studies.common.config import (
    MIN_STEPS,
    PAPER,
    PaperConfig,
    compute_steps,
    has_time_for,
    parse_budget,
    time_call,
)
from fastds.studies.common.runs import suppress_warnings
from fastds.studies.common.tables import ResultTable
from fastds.training.config import RunConfig
from fastds.training.modules import SupervisedModule

_ADAM_TENSORS = 4  # tensors as large as the parameters: weights, gradients and Adam's two moments
COST_HEADS = "parameters, 1e6", "multiply-adds, 1e9", "memory of a training step, GB", "seconds of a step"


def format_cost(cost: Mapping[str, float], seconds: float | None, digits: int) -> tuple[str, str, str, str]:
    """Format the costs of a network as table cells, with the columns COST_HEADS.

    Args:
        cost: see measure_cost.
        seconds: seconds of a training step; None: not measured.
        digits: decimals of the multiply-adds.
    """
    numbers = f"{cost['parameters'] / 1e6:.2f}", f"{cost['multiply_adds']:.{digits}f}", f"{cost['memory'] / 1e9:.2f}"
    return *numbers, "-" if seconds is None else f"{seconds:.3g}"


def measure_cost(network: Network, inputs: Callable[[int], tuple], batch: int) -> dict[str, float]:
    """Measure the costs of a network on a CPU.

    Args:
        network: network on a CPU.
        inputs: function from a batch size to the arguments of the forward pass, on a CPU.
        batch: samples of a training step.

    Returns:
        A dictionary. "parameters" is the number of parameters. "multiply_adds" is the number of multiply-adds of
            convolutions and matrix products in the forward pass of one sample, in units of 1e9. "memory" is the number
            of bytes of the tensors saved for the backward pass of a batch, the weights, the gradients and Adam's
            moments.
    """
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(p.numel() for p in network.parameters())
    memory = _measure_saved_bytes(network.train(), inputs(batch))
    memory += _ADAM_TENSORS * sum(p.numel() * p.element_size() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*inputs(1))
    return {"parameters": parameters, "multiply_adds": counter.get_total_flops() / 2e9, "memory": memory}


def _measure_saved_bytes(network: Network, arguments: tuple) -> int:
    """Return the bytes of the tensors that a forward pass saves for the backward pass, without parameters."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, tuple[Tensor, int]] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = tensor, storage.nbytes()  # holds the tensor, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        made = network(*arguments)
    size = sum(count for _, count in saved.values())
    del made
    return size


FORWARD = 0.4  # time of a forward pass, as a fraction of a step with gradients
START = 4.0  # seconds of a training without its steps and the reading of its files
_SHORT = (8, 24)  # steps of the two measured trainings
_DRAWING = 20.0  # seconds for tables, figures and page


class Costs(NamedTuple):
    """Measured costs of the trainings of a study.

    Attributes:
        step_seconds: seconds of a training step, by method.
        fixed: seconds of everything else for one seed, such as reading files, validations and scores.
    """

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
    seconds = cast(float, parse_budget(config.budget))
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
    steps = f"{spell_name('max_steps')} sets the steps without a budget"
    if not chosen or len(chosen) == len(costs.step_seconds):
        return f"fewer files, seeds or {spell_name('data.test_samples')} take less, and {steps}"
    listed = ",".join(name for name in costs.step_seconds if name in chosen)
    return f"{budget} is enough for {spell_name('run')}=[{listed}], and {steps}"


def time_step(module: SupervisedModule, batch: dict) -> float:
    """Measure the seconds of loss and gradients of a batch."""

    def step() -> float:
        loss = module.loss(module(batch), batch)
        loss.backward()
        return float(loss.detach())

    return time_call(step)


def estimate_step_seconds(train: Callable[[Any], object], config: RunConfig) -> float:
    """Estimate the time of a step of the planned training in seconds.

    Trainings of one and of four steps with a batch size of 1 are timed after a warm-up. The time of a step is
    multiplied by the planned batch size.

    Args:
        train: function that runs a training.
        config: configuration of the planned training.
    """
    least = {"batch_size": 1, "validation_samples": 1, "epoch_samples": 4}
    known = {field.name for field in dataclasses.fields(config.data)}
    data = dataclasses.replace(config.data, **{key: value for key, value in least.items() if key in known})

    def short(steps: int, folder: str) -> object:
        return train(dataclasses.replace(cast(Any, config), data=data, max_steps=steps, output=folder, progress=False))

    _, one, four = (_time_training(short, steps) for steps in (1, 1, 4))  # the first call is slower: warm-up
    return config.data.batch_size * max(four - one, 3e-3) / 3


def _time_training(train: Callable[[int, str], object], steps: int) -> float:
    """Measure train(steps, folder) in seconds, with a temporary folder."""
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


class PlannedTraining(NamedTuple):
    """A planned training: configuration, number of parameters, and seconds of a step or None."""

    config: RunConfig
    parameters: int
    seconds: float | None = None


def plan_training(config: RunConfig, seconds: float | None = None) -> PlannedTraining:
    """Make the PlannedTraining of a configuration, with the number of parameters of its network.

    Args:
        config: configuration of the training.
        seconds: seconds of a step; None: not measured.
    """
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
        hours = None if seconds is None else seconds * cast(int, config.max_steps) / 3600
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
    """Append to the title of a table that networks and trainings are small, unless the budget is "paper".

    Args:
        title: title of the table.
        budget: budget of the study.
        steps: number of steps of each training.

    Returns:
        The title.
    """
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
