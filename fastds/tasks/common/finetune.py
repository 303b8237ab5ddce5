# SPDX-License-Identifier: Apache-2.0
"""fastds finetune: shipped or own weights, trained further on files of one's own for some minutes."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import warnings
from typing import Unpack

import yaml

from fastds.data.reading import Reading
from fastds.models import ModelCard, load, load_card, save
from fastds.tasks.common.command import configurations, training_of
from fastds.tasks.common.told_files import told_files

LEARNING_RATE, MINUTES = 5e-4, 30.0


def finetune(
    model: str | os.PathLike,
    data: str | os.PathLike,
    output: str | os.PathLike = "finetuned",
    *,
    max_minutes: float = MINUTES,
    max_steps: int | None = None,
    learning_rate: float = LEARNING_RATE,
    threads: int | None = None,
    device: str = "auto",
    progress: bool = False,
    var: str | None = None,
    **reading: Unpack[Reading],
) -> pathlib.Path:
    """Train weights further on a folder of files, with the samples and the loss of the weights' own configuration.

    A part of every file that no sample is drawn from, its last fifth, is validated on, before the first step, too; the
    result is the best of all validations, the weights as they were among them. Their card gets the files' names and
    both scores. Radar networks are also compared with advection on synthetic events: where only the weights given win
    there, a UserWarning says so, and so does the card of the result.

    Args:
        model: a shipped name or a weights file. data: a file or a folder, see `fastds train TASK --help`.
        output: folder of the run; one that holds a run goes on with it.
        max_minutes, max_steps: of training. learning_rate: the highest. threads: of torch.
        device: "auto", a GPU where there is one, "cpu" or "cuda". progress: say how far it is.
        var: the variable of data, of a network of one. reading: missing, units, start and stop, see
            fastds.data.reading; with any of these the files are written again, as they tell, into output/data.

    Returns: the path of best.safetensors. Raises: FileNotFoundError and ValueError for weights, data or options that do
        not fit, ImportError without Lightning.
    """
    card = load_card(model)
    if not card.task:
        raise ValueError(f"the card of {model} does not tell what the weights are for, so they cannot be trained")
    options = importlib.import_module(f"fastds.tasks.{card.task}.config")
    files = _files(data, pathlib.Path(output) / "data", card, var, reading)
    config = options.parse_arguments(_arguments(str(model), card, files, output, max_minutes, learning_rate, max_steps))
    config.model.card = _told(card, pathlib.Path(data).name)
    if card.task in ("radar", "nowcast"):
        config.data.var = var
    config.threads, config.device, config.progress = threads, device, progress
    with training_of(card.task) as training:
        best = training.train(config)
        if card.task == "radar":
            _compare_elsewhere(model, best, config.device)
        return best


def _files(data, folder: pathlib.Path, card: ModelCard, var: str | None, reading: Reading):
    """The files to train on: those of data, or copies in a folder that tell what var and reading do."""
    if var is None and not any(value is not None for value in reading.values()):
        return data
    names = [v.get("name") for v in card.input_variables]
    if var is not None and len(names) > 1:
        raise ValueError(f"var is for a network of one variable, {card.name} reads {', '.join(map(str, names))}")
    named = names[0] if card.task == "fields" and names and not card.any_variable else None
    return told_files(data, folder, var, named, **reading)


def _compare_elsewhere(model: str | os.PathLike, best: pathlib.Path, device: str) -> None:
    """Compare weights before and after with advection on synthetic events, and tell the card of those after."""
    from fastds.tasks.radar.synthetic_scores import EVENTS, on_synthetic_events

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a lost comparison, which the command tells
        start, tuned = load(model), load(best)
    before, after = (on_synthetic_events(network, device) for network in (start, tuned))
    if before is None or after is None:
        return
    tuned.card.metrics["elsewhere"] = {"before": before.own, "after": after.own, "advection": after.advection}
    if before.own < before.advection and after.own >= after.advection:
        said = f"no better than advection on {EVENTS}, where {start.card.name} is: for radars like those of its files"
        tuned.card.limits = list(dict.fromkeys([*tuned.card.limits, said]))
        warnings.warn(f"the result is {said} alone, which its card says", stacklevel=3)
    save(tuned, best)


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


def _arguments(
    model: str, card: ModelCard, data, output, minutes: float, learning_rate: float, steps: int | None = None
) -> list[str]:
    """The options of the training: those of the shipped configuration that made the weights, on the data given, and
    what the card tells of the weights' inputs."""
    # wgan-gp-small made wgan-gp-small-x2, and weights that were trained further have its name and more.
    shipped = {k: path for k, path in configurations(card.task).items() if f"{card.name}-".startswith(f"{k}-")}
    variables = [v.get("name") for v in card.input_variables]
    read = {k: yaml.safe_load(path.read_text()) for k, path in shipped.items()}
    # Only those of shipped weights, which have a card: a paper's crops, steps and files are not a user's.
    names = [
        k for k, told in read.items() if "card" in told["model"] and told["data"].get("variables") in (None, variables)
    ]
    named = ["--config", max(names, key=len)] if names else []
    bounds = [
        f"--max_minutes={minutes}",
        f"--learning_rate={learning_rate}",
        f"--max_steps={'null' if steps is None else steps}",
    ]
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
    elsewhere = metrics.get("elsewhere")
    if elsewhere:
        errors = "{before:.4g} before, {after:.4g} after, advection {advection:.4g}".format(**elsewhere)
        lines.append(f"squared error in dBZ^2 above 15 dBZ on synthetic events: {errors}")
    if before == after:
        lines.append("no validation was better than the first: the weights are those it started from")
    return "\n".join(lines)
