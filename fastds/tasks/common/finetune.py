# SPDX-License-Identifier: Apache-2.0
"""fastds finetune: shipped or own weights, trained further on files of one's own for some minutes."""

from __future__ import annotations

import importlib
import json
import os
import pathlib

import torch
import yaml

from fastds.models import ModelCard, load_card
from fastds.tasks.common.command import configurations, quieten_lightning

LEARNING_RATE = 5e-4


def finetune(
    model: str | os.PathLike,
    data: str | os.PathLike,
    output: str | os.PathLike = "finetuned",
    *,
    minutes: float = 30.0,
    learning_rate: float = LEARNING_RATE,
    threads: int | None = None,
    device: str = "auto",
    progress: bool = False,
) -> pathlib.Path:
    """Train weights further on a folder of files, with the samples and the loss of the weights' own configuration.

    A part of every file that no sample is drawn from, its last fifth, is validated on, before the first step, too; the
    result is the best of all validations, the weights as they were among them. Their card gets the files' names and
    both scores.

    Args:
        model: a shipped name or a weights file. data: a file or a folder, see `fastds train TASK --help`.
        output: folder of the run; one that holds a run goes on with it.
        minutes: of training. learning_rate: the highest. threads: of torch.
        device: "auto", a GPU where there is one, "cpu" or "cuda". progress: say how far it is.

    Returns: the path of best.safetensors. Raises: FileNotFoundError and ValueError for weights, data or options that do
        not fit, ImportError without Lightning.
    """
    card = load_card(model)
    if not card.task:
        raise ValueError(f"the card of {model} does not tell what the weights are for, so they cannot be trained")
    options = importlib.import_module(f"fastds.tasks.{card.task}.config")
    config = options.parse_arguments(_arguments(str(model), card, data, output, minutes, learning_rate))
    config.model.card = _told(card, pathlib.Path(data).name)
    config.threads, config.device, config.progress = threads, device, progress
    training = importlib.import_module(f"fastds.tasks.{card.task}.training")
    quieten_lightning()
    before = torch.get_num_threads()
    try:
        return training.train(config)
    finally:
        torch.set_num_threads(before)


# What the shipped configurations of a task say of their own files.
_OWN_FILES = {
    "radar": ("--data.blocks={}", "--data.weights=[]", "--data.synthetic_events=0"),
    "nowcast": ("--data.blocks={}", "--data.weights=[]", "--data.synthetic_events=0"),
    "fields": ("--data.train=[]", "--data.validation=[]"),
    "humidity": ("--data.sources={}",),
}


# What the weights were trained on, by the options of their samples: fields of the card.
_CARD = {
    "radar": {"floor": "floor_dbz", "ceiling": "ceiling_dbz"},
    "nowcast": {"floor": "floor_dbz", "ceiling": "ceiling_dbz", "known": "input_steps"},
    "fields": {},
    "humidity": {"offset": "offset", "range": "range", "coarsening": "coarsening"},
}


def _arguments(model: str, card: ModelCard, data, output, minutes: float, learning_rate: float) -> list[str]:
    """The options of the training: those of the shipped configuration that made the weights, on the data given, and
    what the card tells of the weights' inputs."""
    # wgan-gp-small made wgan-gp-small-x2, and weights that were trained further have its name and more.
    shipped = {k: path for k, path in configurations(card.task).items() if f"{card.name}-".startswith(f"{k}-")}
    variables = [v.get("name") for v in card.input_variables]
    names = [k for k, path in shipped.items() if _variables(path) in (None, variables)]
    named = ["--config", max(names, key=len)] if names else []
    bounds = [f"--max_minutes={minutes}", f"--learning_rate={learning_rate}", "--max_steps=null"]
    files = [f"--data.path={data}", f"--output={output}", "--validate_start=true"]
    inputs = [
        f"--data.{k}={value}" for k, name in _CARD[card.task].items() if (value := getattr(card, name)) is not None
    ]
    if card.any_variable:
        inputs.append('--data.each=["*"]')
    elif card.task == "fields":
        statics = [v.get("name") for v in card.static_variables]
        inputs += [f"--data.variables={json.dumps(variables)}", f"--data.statics={json.dumps(statics)}"]
    return [*named, *_OWN_FILES[card.task], *inputs, *files, *bounds, f"--model.start={model}"]


def _variables(configuration: pathlib.Path) -> list[str] | None:
    """That a shipped configuration names, if any."""
    return yaml.safe_load(configuration.read_text())["data"].get("variables")


def _told(card: ModelCard, files: str) -> dict:
    """What the card of the result says of its training on a file or folder of this name."""
    return {
        "name": f"{card.name}-finetuned",
        "description": f"{card.name} trained further on {files}. {card.description}".strip(),
    }


def scores(weights: str | os.PathLike) -> str:
    """What a fine-tuning gained, for the user: every score of the validation before and after."""
    metrics = load_card(weights).metrics
    before, after = metrics.get("start", {}), metrics.get("validation", {})
    lines = [
        f"{name}: {before[name]:.4g} before, {after[name]:.4g} after"
        for name in after
        if isinstance(before.get(name), int | float)
    ]
    if before == after:
        lines.append("no validation was better than the first: the weights are those it started from")
    return "\n".join(lines)
