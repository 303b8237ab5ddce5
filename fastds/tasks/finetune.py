# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning of shipped weights or a user's weights on the user's files."""

from __future__ import annotations

import importlib
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import yaml

from fastds._options import OptionError, spell_argument
from fastds.data.formats.opening import list_files
from fastds.data.reading import ReadOptions, open_input
from fastds.models import ModelCard, load, load_card, save
from fastds.models.card import Network
from fastds.training.command import build_config, find_configurations, import_training
from fastds.training.config import RunConfig
from fastds.training.rewriting import rewrite_with_metadata

LEARNING_RATE, MINUTES = 5e-4, 30.0


def finetune(
    model: str | os.PathLike,
    data: str | os.PathLike,
    *,
    output: str | os.PathLike = "finetuned",
    max_minutes: float = MINUTES,
    max_steps: int | None = None,
    learning_rate: float = LEARNING_RATE,
    threads: int | None = None,
    device: str = "auto",
    progress: bool = False,
    var: str | None = None,
    missing: float | None = None,
    units: str | None = None,
    array: str | None = None,
    start: str | None = None,
    stop: str | None = None,
    static: Sequence[str] | None = None,
    dynamics: Mapping[str, Any] | str | None = None,
) -> pathlib.Path:
    """Fine-tune weights on a folder of files, with the samples and the loss of the weights' original configuration.

    The last fifth of each file is held out for validation. The weights are also validated before the first step. The
    result has the lowest validation error, including the initial weights. Its card names the files and has both scores.
    If var, missing, units, array, start or stop is given, the files are first rewritten into output/data with this
    metadata.
    Radar networks are compared with advection on synthetic events, too: if the initial weights are better than
    advection there and the result is not, a UserWarning is issued and the card mentions it.

    Args:
        model: shipped name or weights file.
        data: file or folder, see `fastds train TASK --help`.
        output: folder of the run; a run in it is resumed (default: "finetuned").
        max_minutes: length of the training in minutes (default: 30).
        max_steps: number of optimizer steps (default: no limit).
        learning_rate: highest learning rate (default: 5e-4).
        threads: number of CPU threads (default: torch's setting).
        device: "auto" (a GPU if there is one), "cpu" or "cuda" (default: "auto").
        progress: print the progress to standard error (default: False).
        var: variable of data, for networks with one input variable (default: the only one that fits).
        missing: value that marks missing data, if the files do not declare it.
        units: units of the variable, if the files do not declare them.
        array: layout of raw binary files, see fastds.data.open_array (default: none).
        start: first time to use, a date (default: the first time).
        stop: last time to use (default: the last time).
        static: radar: static maps for weights that read some, such as those of fczsm-s: "FILE.nc:VARIABLE" for each.
        dynamics: radar: additional input variables for weights that read some, such as those of fczsm-d, if their names
            or units in the files differ from the model card; see fastds.downscale (default: those of the model card).

    Returns:
        Path of best.safetensors.

    Raises:
        FileNotFoundError: no such weights or data.
        ValueError: weights, data or options that do not fit.
        ImportError: Lightning is not installed.
    """
    card = load_card(model)
    if not card.task:
        raise ValueError(f"the card of {model} does not declare a task for the weights, so they cannot be trained")
    reading = ReadOptions(missing=missing, units=units, start=start, stop=stop, array=array)
    files = _prepare_files(data, pathlib.Path(output) / "data", card, var, reading)
    config = make_config(str(model), card, files, output, max_minutes, learning_rate, max_steps)
    config.model.card = _describe_result(card, pathlib.Path(data).name)
    if card.task in ("radar", "nowcast"):
        config.data.var = var
    if card.task == "radar":
        network = load(model)
        config.data.statics = _check_static(network, static)
        config.data.dynamics = _find_dynamics(network, files, var, dynamics)
    elif static is not None or dynamics is not None:
        name = "dynamics" if static is None else "static"
        raise OptionError(name, f"is for radar weights, {card.name} is for {card.task}")
    config.threads, config.device, config.progress = threads, device, progress
    with import_training(card.task) as training:
        best = training.train(config)
        if card.task == "radar":
            _compare_on_synthetic_events(model, best, config.device)
        return best


def _prepare_files(data, folder: pathlib.Path, card: ModelCard, var: str | None, reading: ReadOptions):
    """Return the files to train on: `data`, or copies in `folder` with the metadata in var and reading."""
    if var is None and not any(value is not None for value in reading.values()):
        return data
    names = [v.get("name") for v in card.input_variables]
    if var is not None and len(names) > 1:
        raise OptionError("var", f"is for a network of one variable, {card.name} reads {', '.join(map(str, names))}")
    named = names[0] if card.task == "fields" and names and not card.any_variable else None
    return rewrite_with_metadata(data, folder, var, named, **reading)


def _check_static(network: Network, static: Sequence[str] | None) -> list[str]:
    """Return the static maps as a list. Raises OptionError if their number is not that of the network's channels."""
    maps, count = list(static or []), network.config.get("static_channels", 0)
    if len(maps) != count:
        raise OptionError(
            "static", f"must be {count} maps, FILE.nc:VARIABLE, which {network.card.name} reads, got {len(maps)}"
        )
    return maps


def _find_dynamics(
    network: Network, files: str | os.PathLike, var: str | None, given: Mapping[str, Any] | str | None
) -> dict[str, list[float]]:
    """Return the additional input variables of a radar network, as DataConfig.dynamics has them.

    Args:
        network: radar network with a card.
        files: file or folder; the variables are looked up in the first file.
        var: name of the reflectivity variable.
        given: argument `dynamics` of finetune.

    Raises:
        ValueError: the network reads reflectivity only, a variable is missing, or has other units.
    """
    from fastds.tasks.radar.dynamics import count_channels, find_channels, join_names, list_missing

    if given is None and not count_channels(network):
        return {}
    path = list_files(files)[0]
    with open_input(path, var) as dataset:
        channels = find_channels(network, dataset, given)
        lacking = list_missing(channels, dataset)
        if lacking:
            raise ValueError(
                f"{path} lacks {join_names(lacking)}, which the weights read in addition to the reflectivity; give "
                f"other names with {spell_argument('dynamics')}"
            )
    return {channel.variable: list(channel.ends) for channel in channels}


def _compare_on_synthetic_events(model: str | os.PathLike, best: pathlib.Path, device: str) -> None:
    """Compare the weights before and after with advection on synthetic events.

    The scores are recorded in the card of the new weights.
    """
    from fastds.tasks.radar.synthetic_scores import EVENTS, score_synthetic_events

    with warnings.catch_warnings():
        # load warns of weights that are worse than a baseline; the command prints that itself
        warnings.simplefilter("ignore", UserWarning)
        start: Network = load(model)
        tuned: Network = load(best)
    before, after = (score_synthetic_events(network, device) for network in (start, tuned))
    if before is None or after is None:
        return
    tuned.card.metrics["elsewhere"] = {"before": before.network, "after": after.network, "advection": after.advection}
    if before.network < before.advection and after.network >= after.advection:
        limit = f"no better than advection on {EVENTS}, where {start.card.name} is: for radars like those of its files"
        tuned.card.limits = list(dict.fromkeys([*tuned.card.limits, limit]))
        warnings.warn(f"the result is {limit} alone, which its card says", stacklevel=3)
    save(tuned, best)


# Values that clear file-specific settings of the shipped configurations, by task.
_RESET_VALUES = {
    "radar": {"data.blocks": {}, "data.weights": [], "data.synthetic_events": 0},
    "nowcast": {"data.blocks": {}, "data.weights": [], "data.synthetic_events": 0},
    "fields": {"data.train": [], "data.validation": []},
    "humidity": {"data.sources": {}},
}


# Options of the samples that are set from the weights' card, by task: option -> card field.
_CARD_FIELDS = {
    "radar": {"floor": "floor_dbz", "ceiling": "ceiling_dbz"},
    "nowcast": {"floor": "floor_dbz", "ceiling": "ceiling_dbz", "known": "input_steps"},
    "fields": {},
    "humidity": {"offset": "offset", "range": "range", "coarsening": "coarsening"},
}


def make_config(
    model: str, card: ModelCard, data, output, minutes: float, learning_rate: float, steps: int | None = None
) -> RunConfig:
    """Return the configuration of a fine-tuning.

    It consists of the shipped configuration that trained the weights, the user's data, and the input range and
    coarsening in the weights' card.

    Args:
        model: shipped name or weights file.
        card: model card of the weights.
        data: file or folder of the training data.
        output: folder of the run.
        minutes: length of the training in minutes.
        learning_rate: highest learning rate.
        steps: number of optimizer steps; None: no limit.

    Returns:
        The configuration.
    """
    # The name of weights begins with the name of the configuration that trained them. For example, the configuration
    # wgan-gp-small trained wgan-gp-small-x2. Fine-tuning appends "-finetuned".
    shipped = {k: path for k, path in find_configurations(card.task).items() if f"{card.name}-".startswith(f"{k}-")}
    variables = [v.get("name") for v in card.input_variables]
    read = {k: yaml.safe_load(path.read_text()) for k, path in shipped.items()}
    # Only configurations of shipped weights have a card. Configurations of papers have crops, steps and files that do
    # not apply here.
    names = [
        k
        for k, config in read.items()
        if "card" in config["model"] and config["data"].get("variables") in (None, variables)
    ]
    file = shipped[max(names, key=len)] if names else None
    values = dict(cast(dict, _RESET_VALUES[card.task]))
    values |= {
        f"data.{k}": value for k, name in _CARD_FIELDS[card.task].items() if (value := getattr(card, name)) is not None
    }
    if card.any_variable:
        values["data.each"] = ["*"]
    elif card.task == "fields":
        statics = [v.get("name") for v in card.static_variables]
        values |= {"data.variables": variables, "data.statics": statics}
    values |= {"data.path": data, "output": output, "validate_start": True, "model.start": model}
    values |= {"max_minutes": minutes, "learning_rate": learning_rate, "max_steps": steps}
    return build_config(importlib.import_module(f"fastds.tasks.{card.task}.config").TrainingConfig, values, file)


def _describe_result(card: ModelCard, files: str) -> dict:
    """Return the name and the description of the fine-tuned weights for their card.

    Args:
        card: card of the initial weights.
        files: name of the training file or folder.
    """
    return {
        "name": f"{card.name}-finetuned",
        "description": f"{card.name} trained further on {files}. {card.description}".strip(),
    }


def format_scores(weights: str | os.PathLike) -> str:
    """Return the validation scores before and after a fine-tuning as text, one a line."""
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
