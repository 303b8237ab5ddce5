# SPDX-License-Identifier: Apache-2.0
"""The function fastds.fit: train a network with random initial weights on a user's files."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from fastds import models
from fastds._argument_types import validate_arguments
from fastds._options import OptionError
from fastds._suggestions import resolve_name
from fastds.models.registry import find_task
from fastds.training.command import build_config, find_configuration, import_training


@validate_arguments
def fit(
    model: str,
    data: str | os.PathLike,
    *,
    output: str | os.PathLike = "fitted",
    max_steps: int | None = None,
    max_minutes: float | None = None,
    learning_rate: float | None = None,
    ema_decay: float | None = None,
    seed: int = 0,
    resume: bool = True,
    threads: int | None = None,
    device: str = "auto",
    devices: int = 1,
    report: str | os.PathLike | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Train a network with random initial weights.

    This is the command `fastds train TASK --model MODEL --data.path DATA` as a function. To train existing weights
    further, use fastds.tasks.finetune.finetune.

    Args:
        model: name of a network in fastds.models.available(task=...); upper and lower case are equivalent.
        data: file or folder.
        output: folder of the run with best.safetensors; a run in it is resumed. Default: "fitted".
        max_steps: number of optimizer steps. With the cosine schedule, the learning rate reaches zero at max_steps or
            max_minutes, whichever comes first. Default: no limit.
        max_minutes: time limit in minutes of wall-clock time; pauses between resumed runs do not count. Default: 60 if
            neither max_steps nor the option max_epochs is given, else no limit.
        learning_rate: highest learning rate. Default: that of `fastds train TASK --help`.
        ema_decay: decay of the exponential moving average of the weights, which is validated and exported; 0: no
            averaging. Default: that of `fastds train TASK --help`.
        seed: random seed of the initial weights and the samples. Default: 0.
        resume: resume from the last checkpoint in output, if there is one. Default: True.
        threads: number of CPU threads. Default: torch's setting.
        device: "auto" (a GPU if there is one), "cpu" or "cuda". Default: "auto".
        devices: number of processes that share each batch, one per GPU or on the CPU. Default: 1.
        report: HTML file with learning curves, validation scores and the configuration. Default: no report.
        progress: print the progress to standard error. Default: False.
        options: further options of `fastds train TASK --help` by name, such as {"data.crop": 24, "loss": "mse"}.
            Default: none.

    Returns:
        The network with the weights of lowest validation error, and its card.

    Raises:
        ArgumentTypeError: an argument of the wrong type. It is a TypeError and a ValueError.
        ValueError: unknown network or option, or data that do not fit.
        FileNotFoundError: no such data.
        ImportError: Lightning is not installed.
    """
    known = [name for name in models.available() if find_task(name)]
    found = resolve_name(model, known)
    if found is None:
        raise OptionError("model", f"must be one of {', '.join(known)}, got {model!r}")
    model = found
    arguments = {
        "model.name": model, "data.path": data, "output": output, "max_steps": max_steps, "max_minutes": max_minutes,
        "learning_rate": learning_rate, "ema_decay": ema_decay, "seed": seed, "resume": resume, "threads": threads,
        "device": device, "devices": devices, "report": report, "progress": progress,
    }  # fmt: skip
    further = dict(options or {})
    twice = sorted(further.keys() & arguments.keys())
    if twice:
        raise OptionError("options", f"must not have {', '.join(twice)}, which fit takes as arguments")
    task = find_task(model)
    config = make_config(task, further | {name: value for name, value in arguments.items() if value is not None})
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
