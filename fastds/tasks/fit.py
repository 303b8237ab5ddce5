# SPDX-License-Identifier: Apache-2.0
"""The function fastds.fit: train a network with random initial weights on a user's files."""

from __future__ import annotations

import importlib
import os
from typing import Any

from torch import nn

from fastds import models
from fastds._argument_types import validate_arguments
from fastds._options import OptionError
from fastds._suggestions import resolve_name
from fastds.models.registry import find_task
from fastds.training.command import build_config, find_configuration, import_training


@validate_arguments
def fit(model: str, data: str | os.PathLike, output: str | os.PathLike = "fitted", **options: Any) -> nn.Module:
    """Train a network with random initial weights.

    This is the command `fastds train TASK --model MODEL --data.path DATA` as a function. To train existing weights
    further, use fastds.tasks.finetune.finetune.

    Args:
        model: name of a network in fastds.models.available(task=...); upper and lower case are equivalent.
        data: file or folder.
        output: folder of the run with best.safetensors; a run in it is resumed (default: "fitted").
        options: options of `fastds train TASK --help`, such as max_minutes=10, seed=1 or **{"data.crop": 24}. The time
            limit is 60 minutes if neither max_steps nor max_minutes is arguments.

    Returns:
        The network with the weights of lowest validation error, and its card.

    Raises:
        ValueError: unknown network or option, or data that do not fit.
        FileNotFoundError: no such data.
        ImportError: Lightning is not installed.
    """
    known = [name for name in models.available() if find_task(name)]
    model, requested = resolve_name(model, known), model
    if model is None:
        raise OptionError("model", f"must be one of {', '.join(known)}, got {requested!r}")
    task, arguments = find_task(model), {"model.name": model, "data.path": data, "output": output}
    config = make_config(task, {"progress": False, **options, **arguments})
    with import_training(task) as training:
        return models.load(training.train(config))


def make_config(task: str, values: dict[str, Any]) -> Any:
    """Return the configuration of a training.

    Args:
        task: name of the task.
        values: field of the configuration -> value. "config" is a shipped configuration or a YAML file with values of
            further fields.

    Raises:
        ValueError: an unknown field, or a value of the wrong type.
    """
    file = find_configuration(values.pop("config")) if "config" in values else None
    config_class = importlib.import_module(f"fastds.tasks.{task}.config").TrainingConfig
    return build_config(config_class, values, file, f"fastds train {task}")
