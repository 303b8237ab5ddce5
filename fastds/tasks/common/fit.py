# SPDX-License-Identifier: Apache-2.0
"""fastds.fit: a network with fresh weights, trained on files of one's own."""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

from jsonargparse import ArgumentError
from torch import nn

from fastds import models
from fastds._argument_types import checks_types
from fastds._nearest import spelled
from fastds.models.registry import task_of
from fastds.tasks.common.command import parser_sentence, training_of


@checks_types
def fit(model: str, data: str | os.PathLike, output: str | os.PathLike = "fitted", **options: Any) -> nn.Module:
    """Train a network with fresh weights, as `fastds train TASK --model MODEL --data.path DATA` does.

    Args:
        model: a name, in any case, of fastds.models.available(task=...). Weights are trained further by
            fastds.tasks.common.finetune.finetune.
        data: a file or a folder.
        output: folder of the run, with best.safetensors; one that holds a run goes on with it.
        options: those of `fastds train TASK --help`, such as max_minutes=10, seed=1 or **{"data.crop": 24}; without
            max_steps and max_minutes a training ends after an hour.

    Returns: the network with the weights of the lowest validation error, and its card.

    Raises: ValueError for a name, option or data that do not fit, FileNotFoundError, ImportError without Lightning.
    """
    known = [name for name in models.available() if task_of(name)]
    model, asked = spelled(model, known), model
    if model is None:
        raise ValueError(f"model must be one of {', '.join(known)}, got {asked!r}")
    task, given = task_of(model), {"model.name": model, "data.path": data, "output": output}
    config = _config(task, {"progress": False, **options, **given})
    with training_of(task) as training:
        return models.load(training.train(config))


def _config(task: str, options: dict[str, Any]) -> Any:
    """The configuration of a training. Raises: ValueError for an option that is unknown or of another type."""
    read = importlib.import_module(f"fastds.tasks.{task}.config").parse_arguments
    try:
        return read([f"--{name}={_text(value)}" for name, value in options.items()])
    except ArgumentError as error:
        raise ValueError(parser_sentence(error, f"fastds train {task}")) from None


def _text(value: Any) -> str:
    """A value as the command line has it."""
    return str(value) if isinstance(value, str | os.PathLike) else json.dumps(value)
